"""The ready ablations compose, every run of them, on the embedded model and on the paper's."""

import json
import shutil
import subprocess
import sys
from collections import Counter

import pytest
from command import ROOT, environment
from omegaconf import OmegaConf

COMPOSE = """#!/bin/sh
[ "$1" = run.py ] || exit 0
shift
exec {python} -c "import sys; from medvlm_r1.launch import compose; compose.compose_jobs(sys.argv[1:])" "$@"
"""
RUNS = {"reference": 1, "rewards": 1, "beta": 3, "group": 3, "temperature": 2, "reasoning": 3, "questions": 3}
RUNS |= {"sft_first": 1}


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("all", ["model=tiny", "data=phantom"]), ("questions", ["data.test_file=x.json", "data.n_train=600"])],
)
def test_every_run_composes(name, overrides, tmp_path):
    (tmp_path / "experiments/ablations").mkdir(parents=True)
    script = shutil.copy(ROOT / "experiments/ablations/run.sh", tmp_path / "experiments/ablations")
    (tmp_path / "compose").write_text(COMPOSE.format(python=sys.executable))
    (tmp_path / "compose").chmod(0o755)
    more = {"PYTHON": str(tmp_path / "compose"), "SEEDS": "0"}
    command = ["bash", script, name, *overrides]
    done = subprocess.run(command, env=environment(**more), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for one in RUNS if name == "all" else [name]:
        jobs = json.loads((tmp_path / f"outputs/sweeps/ablate_{one}/jobs.json").read_text())
        seeds = Counter(OmegaConf.from_dotlist(job).seed for job in jobs.values())
        assert seeds == {0: RUNS[one]}, one
