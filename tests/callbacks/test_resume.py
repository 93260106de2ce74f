"""A resumed run ends like one that was never stopped, bit for bit: weights, metrics and predictions."""

import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import torch
from command import ROOT, environment, python, run_here
from hydra.utils import instantiate
from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from omegaconf import OmegaConf
from torch.distributed.tensor import DTensor
from training import fit, phantoms

from medvlm_r1.algorithms.base import VLMModule
from medvlm_r1.algorithms.grpo import GRPO
from medvlm_r1.algorithms.sft import SFT
from medvlm_r1.callbacks.checkpoint import Checkpoints, damage, find_checkpoint, load_weights, newest_intact
from medvlm_r1.evaluate.journal import Journal
from medvlm_r1.runs.status import FINISHED, UNFINISHED, attempts, status_of


class Killed(BaseException):
    """Simulates the end of a process."""


class KillAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if module.step == self.step:
            raise Killed


def weights(module):
    parts = (p.full_tensor() if isinstance(p, DTensor) else p for p in module.policy.parameters())
    return torch.cat([part.detach().flatten() for part in parts])


def logged(folder):
    """Logged metrics without times, and without the number of images, which a resumed run encodes again."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    left_out = ("timing/", "train/images_encoded")
    return [{k: v for k, v in row.items() if not k.startswith(left_out)} for row in rows]


def train(kind, folder, *callbacks, ckpt_path=None, every=2, more=None, **settings):
    """Train two epochs over twelve questions (six steps) with checkpoints and validations.

    ``more`` are arguments of the trainer.
    """
    folder.mkdir(exist_ok=True)
    arguments = {
        "callbacks": [Checkpoints(folder / "checkpoints", every), *callbacks],
        "logger": CSVLogger(folder, name="", version="", flush_logs_every_n_steps=1000),
        "log_every_n_steps": 1,
        "max_epochs": 2,
        "val_check_interval": 2,
        **(more or {}),
    }
    return fit(kind, folder, steps=-1, n=12, trainer=arguments, ckpt_path=ckpt_path, **settings)


RUNS = {
    "grpo": (GRPO, {"beta": 0.04, "num_iterations": 2}),
    "dynamic sampling": (GRPO, {"beta": 0.0, "dynamic_sampling_rounds": 2, "optimizer": torch.optim.SGD}),
    "sft": (SFT, {}),
}


@dataclass(frozen=True)
class Undisturbed:
    """A run that was never stopped."""

    kind: type[VLMModule]
    settings: dict
    module: VLMModule
    folder: Path


@pytest.fixture(scope="module", params=RUNS)
def whole(request, tmp_path_factory):
    kind, settings = RUNS[request.param]
    folder = tmp_path_factory.mktemp("whole")
    return Undisturbed(kind, settings, train(kind, folder, **settings), folder)


@pytest.mark.parametrize("step", [3, 5])
def test_it_ends_as_the_run_that_was_never_stopped(whole, step, tmp_path):
    """Killed within a step of the first or the second epoch; the newest checkpoint is of the step before."""
    with pytest.raises(Killed):
        train(whole.kind, tmp_path, KillAt(step), **whole.settings)
    found = newest_intact(tmp_path / "checkpoints")
    assert torch.load(found, weights_only=True)["medvlm_r1_step"] == step - 1
    again = train(whole.kind, tmp_path, ckpt_path=found, **whole.settings)
    assert again.step == whole.module.step == 6
    assert torch.equal(weights(again), weights(whole.module))
    assert [p.text for p in again.predictions] == [p.text for p in whole.module.predictions]
    assert logged(tmp_path) == logged(whole.folder)
    (*_, last) = (row for row in logged(tmp_path) if row["train/questions_seen"])
    assert float(last["train/questions_seen"]) == again.seen["questions"] >= 24


@pytest.fixture
def fsdp():
    """Trainer settings that shard the weights, over this process alone."""

    def settings():
        split = {"data_parallel_size": 1, "tensor_parallel_size": 1, "save_distributed_checkpoint": False}
        return {"strategy": ModelParallelStrategy(**split), "devices": 1}

    with mock.patch.dict(os.environ):  # Lightning leaves the rank there
        yield settings
    torch.distributed.destroy_process_group()


def test_sharded_weights_resume_too(fsdp, tmp_path):
    """Their checkpoint is read after the data loader is built."""
    whole = weights(train(SFT, tmp_path / "whole", more=fsdp()))
    with pytest.raises(Killed):
        train(SFT, tmp_path / "stopped", KillAt(5), more=fsdp())
    found = newest_intact(tmp_path / "stopped/checkpoints")
    again = weights(train(SFT, tmp_path / "stopped", ckpt_path=found, more=fsdp()))
    assert torch.equal(again, whole)


def test_a_finished_training_resumes_to_its_end(tmp_path):
    whole = train(SFT, tmp_path / "run")
    again = train(SFT, tmp_path / "run", ckpt_path=newest_intact(tmp_path / "run/checkpoints"))
    assert again.step == 6
    assert torch.equal(weights(again), weights(whole))


# --- damage ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    train(SFT, folder)
    return folder / "checkpoints"


class Mapped(Callback):
    """Records which checkpoints are mapped into memory while one is read."""

    def __init__(self):
        self.files = set()

    def on_load_checkpoint(self, trainer, module, checkpoint):
        self.files = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}


def test_a_checkpoint_is_mapped_into_memory_and_not_copied(two_checkpoints, tmp_path):
    folder = shutil.copytree(two_checkpoints, tmp_path / "checkpoints")
    mapped = Mapped()
    train(SFT, tmp_path, mapped, ckpt_path=folder / "before.ckpt")
    assert str(folder / "before.ckpt") in mapped.files


def test_a_checkpoint_is_written_without_a_copy_in_memory(tmp_path):
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    Checkpoints(tmp_path).setup(trainer, None, "fit")
    checkpoint = {"weights": torch.arange(5_000_000)}
    tracemalloc.start()
    trainer.strategy.checkpoint_io.save_checkpoint(checkpoint, tmp_path / "a.ckpt")
    assert tracemalloc.get_traced_memory()[1] < 2_000_000  # bytes
    tracemalloc.stop()
    assert torch.equal(torch.load(tmp_path / "a.ckpt")["weights"], checkpoint["weights"])


def test_the_best_checkpoint_holds_weights_alone_and_is_not_resumed_from(tmp_path):
    best = OmegaConf.load(ROOT / "conf/callbacks/default.yaml").best
    best.dirpath = str(tmp_path / "checkpoints")
    best = instantiate(best)
    module = train(SFT, tmp_path, best, more={"enable_checkpointing": True})
    path = tmp_path / "checkpoints/best.ckpt"
    assert best.best_model_path == str(path)
    trained = sum(p.numel() for p in module.policy.trainable_parameters)
    assert path.stat().st_size < 4.2 * trained  # fp32; the optimiser's moments would make it 12
    with pytest.raises(ValueError, match=r"best\.ckpt holds weights without the optimiser: name last\.ckpt"):
        find_checkpoint(tmp_path, str(path), None)
    with torch.no_grad():
        module.policy.trainable_parameters[0].zero_()
    load_weights(module, path)
    now = module.state_dict()
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(now[name], value) for name, value in saved.items())


def truncated(data):
    return data[: len(data) // 2]


def emptied(data):
    return b""


def flipped(data):
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("harm", [truncated, emptied, flipped])
def test_the_newest_intact_checkpoint_is_used_with_a_warning(harm, two_checkpoints, tmp_path, caplog):
    folder = shutil.copytree(two_checkpoints, tmp_path / "checkpoints")
    assert newest_intact(folder) == folder / "last.ckpt"
    (folder / "last.ckpt").write_bytes(harm((folder / "last.ckpt").read_bytes()))
    assert newest_intact(folder) == folder / "before.ckpt"
    assert "last.ckpt is damaged" in caplog.text
    assert "resuming from" in caplog.text
    (folder / "before.ckpt").write_bytes(harm((folder / "before.ckpt").read_bytes()))
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged .*before\.ckpt is damaged .*overwrite=true"):
        newest_intact(folder)


def test_the_intact_checkpoint_stays_until_a_newer_one_is_on_disk(tmp_path):
    with pytest.raises(Killed):
        train(SFT, tmp_path, KillAt(5), every=1)
    folder = tmp_path / "checkpoints"
    (folder / "last.ckpt").write_bytes(b"")
    before = (folder / "before.ckpt").read_bytes()
    with pytest.raises(Killed):  # after the first checkpoint that it writes
        train(SFT, tmp_path, KillAt(5), every=1, ckpt_path=newest_intact(folder))
    assert damage(folder / "last.ckpt") is None
    assert (folder / "before.ckpt").read_bytes() == before


def test_no_flipped_byte_changes_a_tensor_unnoticed(two_checkpoints, tmp_path):
    """The damage is either found, or in padding, so that the tensors are unchanged."""
    path = tmp_path / "last.ckpt"
    data = (two_checkpoints / "last.ckpt").read_bytes()
    path.write_bytes(data)
    good = torch.load(path, weights_only=True)["state_dict"]
    found = 0
    for at in range(7, len(data), len(data) // 40):
        path.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        if damage(path):
            found += 1
            continue
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(torch.equal(state[name], good[name]) for name in good)
    assert found > 30


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path):
    """From step 3 on, files cannot grow beyond 100 kB, as on a full disk."""

    class FullDisk(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if module.step == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(
            OSError, match=r"cannot write the checkpoint of step 4 .*earlier checkpoints are intact"
        ):
            train(SFT, tmp_path, FullDisk())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["last.ckpt"]
    again = train(SFT, tmp_path, ckpt_path=newest_intact(tmp_path / "checkpoints"))
    assert again.step == 6


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stopped", ["within a batch", "behind the last"])
def test_answers_are_saved_and_never_doubled(stopped, tmp_path):
    whole = fit(VLMModule, tmp_path, questions=phantoms(4), controls=("image", "blank"), journal={"step": 0})
    journal = tmp_path / "answers.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 2 + 2  # what they are of; 8 and 6 questions, four at a time
    if stopped == "within a batch":
        journal.write_bytes(b"".join(lines[:3]) + lines[3][: len(lines[3]) // 2])
    again = fit(VLMModule, tmp_path, questions=phantoms(4), controls=("image", "blank"), journal={"step": 0})
    assert again.predictions == whole.predictions

    def counted(module):
        left_out = ("seconds", "images_encoded")  # kept features are computed again
        return Counter({k: v for k, v in module.computed.items() if not k.startswith(left_out)})

    assert counted(again) == counted(whole)


def test_answers_of_other_weights_are_dropped(tmp_path):
    journal = Journal(tmp_path / "a.journal", {"step": 3})
    for tokens in (5, 7):
        journal.add([], Counter(tokens=tokens))
    assert Journal(tmp_path / "a.journal", {"step": 3}).totals == Counter(tokens=5)  # the last is made again
    assert Journal(tmp_path / "a.journal", {"step": 4}).totals == Counter()


# --- run.py ---------------------------------------------------------------------------------------

# Kills the process when a file of this name is opened or renamed for the n-th time: DIE_AT="EVENT NAME n".
KILLER = """
import os, signal, sys
wanted, name, left = os.environ["DIE_AT"].split()
left = int(left)
def watch(event, arguments):
    global left
    path = str(arguments[0]) if event == wanted else ""
    if "outputs/runs" in path and os.path.basename(path) == name:
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
"""
COMMAND = ["+experiment=grpo_600", "model=tiny", "data=phantom", "workers=0", "audit=null", "logger=csv"]
COMMAND += ["data.train.n=12", "data.validation.n=4", "data.test.mri.n=4", "data.test.ct.n=4"]
COMMAND += ["data.test.xray.n=4", "model.recipe.prompts_per_step=4", "model.recipe.group_size=4"]
COMMAND += ["model.recipe.evaluation_batch=2", "callbacks.last.every=1", "controls=[image]", "method.beta=0"]


def start(folder, die_at):
    """``run.py`` until it is killed."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(KILLER)
    more = {"PYTHONPATH": f"{folder}:{ROOT}", "DIE_AT": die_at}
    python(folder, ROOT / "run.py", *COMMAND, "resume=auto", code=-signal.SIGKILL, **more)


def test_a_run_killed_while_it_writes_resumes_and_ends_the_same(tmp_path):
    (tmp_path / "whole").mkdir()
    run_here(tmp_path / "whole", *COMMAND)
    # between the two renames of the second checkpoint, and just before it would be finished
    for die_at in ("os.rename last.partial 2", "os.rename metrics.json.partial 1"):
        start(tmp_path / "killed", die_at)
        (left,) = (tmp_path / "killed/outputs/runs").iterdir()
        assert status_of(left) == UNFINISHED
    assert not (left / "report.html").exists()
    run_here(tmp_path / "killed", *COMMAND, "resume=auto")
    (whole,), (killed,) = ((tmp_path / name / "outputs/runs").iterdir() for name in ("whole", "killed"))
    for name in ("model/model.safetensors", "predictions.jsonl"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    assert logged(whole) == logged(killed)
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (whole, killed)]
    assert metrics[0]["counters"].pop("images_encoded") <= metrics[1]["counters"].pop("images_encoded")
    assert metrics[0] == metrics[1]
    assert not list(killed.glob("*.journal"))
    assert len(attempts(killed)) == 3
    assert "finished already" in run_here(tmp_path / "killed", *COMMAND, "resume=auto").stdout


@pytest.fixture
def in_the_foreground():
    """A shell starts its background jobs, perhaps this process, with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("in_the_foreground")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=str)
def test_a_signal_ends_the_step_and_the_run_goes_on_later(number, code, tmp_path):
    def interrupted(stage):
        callback = (
            f"+callbacks.interrupt={{_target_: interrupts.Interrupt, signal: {number.value}, stage: {stage}}}"
        )
        return run_here(tmp_path, *command, callback, code=code).stderr

    command, run = [*COMMAND, "hydra.run.dir=out", "resume=auto"], tmp_path / "out"

    remedy = "stopped: the same command with resume=auto continues from the newest checkpoint"
    assert interrupted("fit").splitlines()[-1] == remedy
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["medvlm_r1_step"] == 2
    assert interrupted("test").splitlines()[-1] == remedy
    assert status_of(run) == UNFINISHED
    run_here(tmp_path, *command)
    assert status_of(run) == FINISHED


def test_ctrl_c_in_a_terminal_ends_the_step(tmp_path):
    """The terminal sends SIGINT to all processes of the command, and so to the workers of the data loader."""
    command = [
        sys.executable,
        ROOT / "run.py",
        *COMMAND,
        "data.train.n=400",
        "workers=1",
        "hydra.run.dir=out",
    ]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), start_new_session=True, **pipes)
    for _ in range(600):
        if process.poll() is not None or (tmp_path / "out/rollouts/step-2.jsonl").exists():
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert "Traceback" not in printed
    remedy = "stopped: the same command with resume=auto continues from the newest checkpoint"
    assert printed.splitlines()[-1] == remedy
    last = torch.load(tmp_path / "out/checkpoints/last.ckpt", weights_only=True)
    assert last["medvlm_r1_step"] >= 3


@pytest.mark.usefixtures("in_the_foreground")
def test_a_second_interrupt_stops_at_once(tmp_path):
    callback = (
        f"+callbacks.interrupt={{_target_: interrupts.Interrupt, signal: {signal.SIGINT.value}, times: 2}}"
    )
    printed = run_here(tmp_path, *COMMAND, "resume=auto", callback, code=130).stderr
    assert "stopping after this step; Ctrl-C again stops at once" in printed
    (run,) = (tmp_path / "outputs/runs").iterdir()
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["medvlm_r1_step"] == 1


def test_a_signal_that_the_shell_ignores_stays_ignored(tmp_path):
    earlier = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        callback = Checkpoints(tmp_path)
        callback.on_train_start(None, None)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        callback.teardown(None, None, "fit")
    finally:
        signal.signal(signal.SIGINT, earlier)


def test_a_full_disk_is_reported_with_the_remedy(tmp_path):
    full = tmp_path / "out/metrics.json.partial"
    full.parent.mkdir()
    full.symlink_to("/dev/full")
    command = ["+experiment=zero_shot", *COMMAND[1:-1], "hydra.run.dir=out", "resume=auto"]
    printed = run_here(tmp_path, *command, code=2).stderr
    assert "No space left on device" in printed
    assert "rerun the same command with resume=auto" in printed
    assert "Traceback" not in printed
    full.unlink(missing_ok=True)
    run_here(tmp_path, *command)
    assert status_of(tmp_path / "out") == FINISHED
