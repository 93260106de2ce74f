"""The experiment on shortcuts: every run composes, and the tables hold what the runs answered."""

import json
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from command import ROOT, environment, python
from omegaconf import OmegaConf
from PIL import Image
from run_folders import write_run

EXPERIMENT = ROOT / "experiments/shortcut"
COMPOSE = """#!/bin/sh
[ "$1" = run.py ] || exit 0
shift
exec {python} -c "import sys; from medvlm_r1.launch import compose; compose.compose_jobs(sys.argv[1:])" "$@"
"""


def test_every_run_composes(tmp_path):
    (tmp_path / "experiments/shortcut").mkdir(parents=True)
    script = shutil.copy(EXPERIMENT / "run.sh", tmp_path / "experiments/shortcut")
    (tmp_path / "compose").write_text(COMPOSE.format(python=sys.executable))
    (tmp_path / "compose").chmod(0o755)
    more = {"PYTHON": str(tmp_path / "compose"), "SEEDS": "0,1"}
    done = subprocess.run(["bash", script], env=environment(**more), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    sweeps = tmp_path / "outputs/sweeps"
    jobs = {p.parent.name: json.loads(p.read_text()) for p in sweeps.glob("*/jobs.json")}
    doses = {
        name: {OmegaConf.from_dotlist(j).data.train.shortcut for j in jobs[name].values()} for name in jobs
    }
    assert doses == {"shortcut_variants": {0.95}} | {f"shortcut_{d:g}": {d} for d in (0, 0.5, 0.8, 0.95, 1)}
    # zero-shot is greedy: one seed
    assert Counter(map(len, jobs.values())) == {5: 5, 15: 1}


def write_answers(sweep, method, seed, inside, outside, grey, **changes):
    """A run whose first questions of each test set are right, ``inside`` of 40 on mri, ``outside`` elsewhere.

    Gold is always A, a wrong answer B. The prior is right on mri and on every second question elsewhere.
    """
    name = f"{method}-{len(list(sweep.glob('*')))}"
    folder = write_run(sweep, method, seed, n=40, name=name, changes=changes)
    path = folder / "predictions.jsonl"
    rows = pd.read_json(path, lines=True).query("control == 'image'")
    rows = pd.concat([rows, rows[rows["test_set"] == "mri"].assign(test_set="mri_plain")])
    number, on_mri = rows.groupby("test_set").cumcount(), rows["test_set"] == "mri"

    def answers(control, right):
        correct = right.to_numpy(dtype=bool)
        answer = np.where(correct, "A", "B")
        return rows.assign(control=control, gold="A", correct=correct, answer=answer)

    parts = [
        answers("image", number < on_mri.map({True: inside, False: outside})),
        answers("blank", number < on_mri.map({True: grey, False: 10})),
        answers("prior", on_mri | (number % 2 == 0)),
    ]
    pd.concat(parts).to_json(path, orient="records", lines=True)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["accuracy"] = {
        test: {**metrics["accuracy"]["mri"], "n": 40, "value": (inside if test == "mri" else outside) / 40}
        for test in ("mri", "mri_plain", "ct", "xray")
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The script's results on two doses and a variant; SFT takes the shortcut, GRPO does not."""
    folder = tmp_path_factory.mktemp("experiment")
    for dose in (0.5, 1):
        sweep, changes = (
            folder / f"sweeps/shortcut_{dose}",
            {"data.train.shortcut": dose, "model.recipe.epochs": 1},
        )
        write_answers(sweep, "zero_shot", 0, 10, 10, 10, **changes)
        for seed in (0, 1, 2):
            write_answers(sweep, "sft", seed, 20 * dose + 20, 10, 20 * dose + 20, **changes)
            write_answers(sweep, "grpo", seed, 30, 30, 10, **changes)
    more = {"data.train.shortcut": 1, "model.recipe.epochs": 3}
    for seed in (0, 1, 2):
        write_answers(folder / "sweeps/shortcut_variants", "sft", seed, 40, 4, 40, **more)
    (folder / "README.md").write_text("before\n<!-- results -->\nold\n<!-- end of results -->\nafter\n")
    command = [EXPERIMENT / "dose_response.py", "sweeps", "--out", ".", "--readme", "README.md"]
    python(folder, *command)
    return folder


def test_rates_by_dose(made):
    found = json.loads((made / "dose_response.json").read_text())
    assert found["doses"] == [0.5, 1.0]
    rates = {(arm["shortcut"], arm["label"]): arm for arm in found["arms"]}
    assert len(rates) == 7
    sft, grpo = rates[0.5, "SFT"], rates[0.5, "GRPO"]
    assert sft["seeds"] == [0, 1, 2]
    scopes = ("MRI with the shortcut", "MRI without it", "CT and X-ray")
    assert [sft["accuracy"][scope]["value"] for scope in scopes] == [0.75, 0.25, 0.25]
    assert [sft["blank"][scope]["value"] for scope in scopes] == [0.75, 0.25, 0.25]
    assert [sft["prior"][scope]["value"] for scope in scopes] == [1, 0.5, 0.5]
    assert grpo["accuracy"][scopes[2]]["value"] == 0.75
    # odd questions: the prior takes B, as a wrong answer does
    assert sft["follows_prior"]["value"] == 0.75
    assert grpo["follows_prior"]["value"] == 0.25


def test_differences_are_paired_and_adjusted(made):
    found = json.loads((made / "dose_response.json").read_text())
    assert len(found["differences"]) == 2 * 3 * 3
    points = {(t["shortcut"], t["first"], t["second"], t["on"]): t for t in found["differences"]}
    assert points[1.0, "GRPO", "SFT", "MRI with the shortcut"]["difference"]["value"] == -0.25
    assert points[1.0, "GRPO", "SFT", "MRI without it"]["difference"]["value"] == 0.5
    assert points[1.0, "SFT", "Zero-shot", "MRI without it"]["adjusted"] == 1
    assert all(t["adjusted"] >= t["p"] for t in found["differences"])
    variants = {(t["first"], t["second"], t["on"]): t["difference"]["value"] for t in found["variants"]}
    assert variants["SFT, epochs 3", "SFT", "MRI without it"] == pytest.approx(-0.15)
    assert len(variants) == 3


def test_the_readme_holds_the_tables_between_its_markers(made):
    text = (made / "README.md").read_text()
    assert text.startswith("before\n<!-- results -->\n![Accuracy against the share")
    assert text.endswith("<!-- end of results -->\nafter\n")
    assert "old" not in text
    assert "| 0.5 | SFT | 75.0 (" in text
    assert "| 0.5 | option-text prior | 100.0 | 50.0 | 50.0 | 100.0 | 100.0 |" in text
    assert "| SFT, epochs 3 | 100.0 (" in text
    with Image.open(made / "dose_response.png") as figure:
        assert min(figure.size) > 900


@pytest.mark.parametrize(
    ("sweeps", "readme", "message"),
    [
        (
            "nowhere",
            "README.md",
            "nowhere has no finished run of a sweep shortcut_*: run experiments/shortcut",
        ),
        ("sweeps", "bare.md", "bare.md lacks the markers <!-- results --> and <!-- end of results -->"),
    ],
)
def test_what_is_missing_is_named(sweeps, readme, message, made):
    (made / "bare.md").write_text("no markers\n")
    command = [EXPERIMENT / "dose_response.py", sweeps, "--out", ".", "--readme", readme]
    assert message in python(made, *command, code=2).stderr
