"""The first day on a GPU, rehearsed on the CPU: checks find faults, and one that fails stops no other."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from command import ROOT

FOLDER = ROOT / "experiments/first_gpu_day"
sys.path.append(str(FOLDER))  # last: its run.py is not the project's

from day import base, checks, decoding, memory_use, page, recorded, training_run, work  # noqa: E402


@pytest.fixture(scope="module")
def command():
    spec = importlib.util.spec_from_file_location("first_gpu_day_run", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def day(tmp_path):
    return base.Day(tmp_path, tmp_path, rehearsal=True, capture=base.step_itself)


def test_a_day_on_one_gpu_takes_at_most_25_minutes():
    alone = sum(check.seconds for check in checks.CHECKS if check.needs != checks.GPUS)
    assert alone <= checks.TOTAL == 25 * 60
    assert sum(check.seconds for check in checks.CHECKS) <= checks.TOTAL + checks.SEVERAL


def test_recorded_steps_agree_with_plain_steps(day):
    found = recorded.recorded_steps(day, dtypes=["float32"])
    assert found.verdict == "passed", found.bounds
    assert found.figures["float32: recordings"] > 0


def test_a_recorder_that_changes_a_record_is_found(day):
    def wrong(step):
        def replay():
            step()
            step.__self__.records.mul_(2)

        return replay

    found = recorded.recorded_steps(replace(day, capture=wrong), dtypes=["float32"])
    failed = [bound for bound, holds in found.bounds.items() if not holds]
    assert "float32: the recorder's own check finds no difference" in failed


def test_steps_of_training_with_an_infinite_gradient(day):
    found = training_run.grpo_steps(day)
    assert found.verdict == "passed", found.bounds
    assert found.figures["checkpoint GB"] > 0


def test_measured_peaks_stand_beside_the_planned_ones(day):
    timer = SimpleNamespace(peaks=dict.fromkeys(memory_use.PHASES, 2e9))
    rows = memory_use.against_plan(work.config(day, "model.recipe.max_completion_tokens=16"), timer)
    assert [row["phase"] for row in rows] == ["sampling", "reference", "training", "update"]
    assert all(0 < row["planned GB"] < row["measured GB"] == 2 for row in rows)
    assert not any(memory_use.within_plan(rows).values())


def test_the_draw_agrees_with_torch(day):
    assert decoding.draw_kernel(day).verdict == "passed"


def test_a_command_runs_its_checks_and_writes_results_and_page(command, tmp_path, monkeypatch):
    arguments = ["--rehearse", "--only", "environment", "zero_shot", "fsdp", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    command.main()
    results = json.loads((tmp_path / "results.json").read_text())
    verdicts = {check["name"]: check["verdict"] for check in results["checks"]}
    assert verdicts == {"environment": "passed", "zero_shot": "skipped", "fsdp": "skipped"}
    html = (tmp_path / "index.html").read_text()
    assert "1 passed, 2 skipped of 3 checks" in html
    assert "no figure here shows anything about a GPU" in html
    assert 'href="environment.log"' in html


PROGRAM = """
import json, pathlib, subprocess, sys, time
check, result = sys.argv[2], sys.argv[4]
if check == "crash":
    sys.exit("no such kernel")
if check == "hang":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    pathlib.Path(result).write_text(str(child.pid))
    time.sleep(60)
found = {"verdict": "passed", "bounds": {}, "figures": {"a": 1}, "reason": ""}
pathlib.Path(result).write_text(json.dumps(found))
"""


def test_a_check_that_crashes_or_hangs_fails_and_stops_no_other(command, tmp_path, monkeypatch):
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setattr(sys, "argv", ["run.py", "--out", str(tmp_path)])
    listed = [
        checks.Check(f"module:{name}", name, 3 if name == "hang" else 30) for name in ("crash", "hang", "end")
    ]
    results = command.run_all(command.parse(), listed, tmp_path, gpus=1, program=tmp_path / "program.py")
    crash, hang, end = results["checks"]
    assert [check["verdict"] for check in results["checks"]] == ["failed", "failed", "passed"]
    assert crash["reason"] == "ended with code 1: no such kernel"
    assert hang["reason"] == "stopped at its limit of 3 s"
    assert end["figures"] == {"a": 1}
    stat = Path(f"/proc/{(tmp_path / 'hang.json').read_text()}/stat")
    assert not stat.exists() or stat.read_text().split()[2] == "Z"  # its child is dead too
    assert "no such kernel" in page.render(results)
