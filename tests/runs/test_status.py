"""Status of a run, read from its folder: attempts, failures, and one process at a time."""

import os
import signal
import subprocess
import sys
import time

import pytest
from command import environment

from medvlm_r1.runs import status
from medvlm_r1.runs.folder import empty, free_folder

HOLDER = """
import sys, time
from pathlib import Path
from medvlm_r1.runs import durable, status
folder = Path(sys.argv[1])
with status.run_lock(folder), status.attempt(folder) as record:
    record(devices=2, hardware="H100")
    (folder / "metrics.csv").write_text("step\\n")
    print("holding", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that is working on the run."""
    (tmp_path / "config.yaml").touch()
    command = [sys.executable, "-c", HOLDER, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout.readline() == "holding\n"
        yield process
        process.kill()


def test_one_process_at_a_time(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(status, "_LOCK_TIMEOUT", 0.1)
    assert status.status_of(tmp_path) == status.RUNNING
    busy = pytest.raises(status.RunIsBusyError, match="another process is working on this run")
    with busy, status.run_lock(tmp_path):
        pass
    (tmp_path / "metrics.csv").unlink()  # so that only the lock shows it
    assert free_folder(tmp_path, reuse=False) == tmp_path.with_name(f"{tmp_path.name}-2")


def test_a_kill_releases_the_lock_and_its_time_counts(holder, tmp_path):
    written = time.time()
    os.utime(tmp_path / "metrics.csv", (written + 5, written + 5))
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert status.status_of(tmp_path) == status.UNFINISHED
    with status.run_lock(tmp_path), status.attempt(tmp_path):
        pass
    killed, last = status.attempts(tmp_path)
    assert killed["devices"] == 2
    assert killed["seconds"] == pytest.approx(written + 5 - killed["began"], abs=0.01)
    assert 0 <= last["seconds"] < 1


def test_a_failure_is_kept_until_the_next_life(tmp_path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ZeroDivisionError), status.attempt(tmp_path):
        1 / 0  # noqa: B018
    assert status.status_of(tmp_path) == status.FAILED
    assert status.failure_reason(tmp_path) == "division by zero"
    assert "Traceback" in (tmp_path / status.ERROR).read_text()
    with status.attempt(tmp_path):
        assert status.status_of(tmp_path) == status.UNFINISHED


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_no_failure(stopped, tmp_path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(stopped), status.attempt(tmp_path):
        raise stopped
    assert status.status_of(tmp_path) == status.UNFINISHED


def test_the_newer_of_failure_and_end_counts(tmp_path):
    for first, last, expected in (
        ("metrics.json", status.ERROR, "failed"),
        (status.ERROR, "metrics.json", "finished"),
    ):
        for seconds, name in enumerate((first, last)):
            (tmp_path / name).write_text("{}")
            os.utime(tmp_path / name, (1e9 + seconds, 1e9 + seconds))
        assert status.status_of(tmp_path) == expected


def test_a_folder_that_is_half_removed_is_not_finished(tmp_path, monkeypatch):
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "model").mkdir()

    def killed(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        empty(tmp_path)
    assert status.status_of(tmp_path) != status.FINISHED


def test_a_full_disk_hides_no_cause(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    def fail():
        monkeypatch.setattr(status, "write_whole", full)
        raise ValueError("the cause")

    with pytest.raises(ValueError, match="the cause"), status.attempt(tmp_path):
        fail()


def test_jobs_recorded_at_the_same_time_are_all_saved(tmp_path):
    code = "import sys; from pathlib import Path; from medvlm_r1.runs.status import record_jobs\n"
    code += "for k in range(20): record_jobs(Path(sys.argv[1]), {f'{sys.argv[2]}-{k}': []})"
    command = [sys.executable, "-c", code, tmp_path]
    processes = [subprocess.Popen([*command, str(number)], env=environment()) for number in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert len(status.jobs_of(tmp_path)) == 60


def test_statuses_of_a_sweep(tmp_path):
    status.record_jobs(tmp_path, {"one": ["seed=0"], "two": ["seed=1"]})
    status.record_jobs(tmp_path, {"three": ["seed=2"]})
    for name in ("two", "stray"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    (tmp_path / "two/metrics.json").write_text("{}")
    states = status.statuses_of(tmp_path)
    assert states == {"one": "not started", "two": "finished", "three": "not started", "stray": "unfinished"}
    assert status.count_statuses(states) == "4 runs: 1 finished, 1 unfinished, 2 not started"
