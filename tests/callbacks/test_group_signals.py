"""A signal to all processes of a run: Ctrl-C in a terminal, the end of a job under Slurm, ``timeout``."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from command import ROOT, environment
from training import SHORT


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=str)
@pytest.mark.parametrize("stage", ["fit", "test"])
def test_a_signal_to_the_group_ends_the_step_and_keeps_a_checkpoint(number, code, stage, tmp_path):
    sizes = {"fit": "data.train.n=800", "test": "data.test.mri.n=800"}
    command = [sys.executable, ROOT / "run.py", *SHORT, "workers=1", sizes[stage], "hydra.run.dir=out"]
    if stage == "fit":
        command.append("trainer.max_steps=-1")
    begun = {"fit": "rollouts/step-1.jsonl", "test": "predictions-0.journal"}[stage]
    with open(tmp_path / "output.txt", "w+") as output:
        run = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        deadline = time.monotonic() + 120
        while not (tmp_path / "out" / begun).exists() and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(run.pid, number)
        run.wait(60)
        output.seek(0)
        text = output.read()
    assert run.returncode == code, text[-3000:]
    assert "stopped: the same command with resume=auto continues from the newest checkpoint" in text
    assert "Traceback" not in text
    steps = torch.load(tmp_path / "out/checkpoints/last.ckpt", weights_only=True)["medvlm_r1_step"]
    assert steps >= 2
    with pytest.raises(ProcessLookupError):  # no worker is left
        os.killpg(run.pid, 0)
