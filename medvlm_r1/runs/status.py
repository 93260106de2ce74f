"""Status of a run: its attempts (one process's work each), its lock, why it failed; the runs of a sweep."""

import json
import secrets
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from medvlm_r1.runs.durable import write_whole

FINISHED, RUNNING, FAILED = "finished", "running", "failed"
UNFINISHED, NOT_STARTED = "unfinished", "not started"
STATUSES = (FINISHED, RUNNING, FAILED, UNFINISHED, NOT_STARTED)
LOCK, ERROR, ATTEMPTS, JOBS = "run.lock", "error.txt", "attempts.json", "jobs.json"
OLD_ATTEMPTS = "lives.json"  # as earlier versions called it
# Every attempt writes these when it starts, so their age says nothing about the end of the last one.
_AT_START = (".hydra", "config.yaml", "run.log", LOCK, ATTEMPTS, OLD_ATTEMPTS, ERROR)
_LOCK_TIMEOUT = 1  # s; a process that only checks a lock holds it for a moment


class RunIsBusyError(ValueError):
    """Another process is working on the run."""


def status_of(folder: Path) -> str:
    """One of :data:`STATUSES`."""
    if (result := result_of(folder)) != FINISHED and is_locked(folder):
        return RUNNING
    return result or (UNFINISHED if _is_started(folder) else NOT_STARTED)


def result_of(folder: Path) -> str | None:
    """:data:`FINISHED`, :data:`FAILED` or ``None``: the newer of ``metrics.json`` and ``error.txt``."""
    # with overwrite=true, the old metrics stay until the new run is built
    finished, failed = (_modified(folder / name) for name in ("metrics.json", ERROR))
    if finished > failed:
        return FINISHED
    return FAILED if failed else None


def failure_reason(folder: Path) -> str:
    """First line of ``error.txt``; empty if a new attempt has just removed it."""
    with suppress(FileNotFoundError):
        return (folder / ERROR).read_text("utf-8").split("\n", 1)[0]
    return ""


def record_failure(folder: Path, error: Exception) -> None:
    """Write ``error.txt`` unless another process of the run has written it; a full disk is ignored."""
    first, *_ = (str(error).strip() or type(error).__name__).splitlines()
    if not (folder / ERROR).exists():
        with suppress(OSError):
            write_whole(folder / ERROR, "".join([first, "\n\n", *traceback.format_exception(error)]))


def is_locked(folder: Path) -> bool:
    """Whether a process is working on the run now."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except OSError as error:  # Timeout, or the user may only read the folder
        return isinstance(error, Timeout)


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Lock the run folder, or raise :class:`RunIsBusyError`; the system releases a killed process's lock."""
    try:
        lock = FileLock(folder / LOCK).acquire(timeout=_LOCK_TIMEOUT)
    except Timeout as error:
        raise RunIsBusyError(f"{folder}: another process is working on this run") from error
    with lock:
        yield


@contextmanager
def attempt(folder: Path, overwrite: bool = False) -> Iterator[Callable[..., None]]:
    """Record start, end (s since 1970) and failure of an attempt; call it under :func:`run_lock`.

    The attempts of a run share an id for W&B and MLflow; with ``overwrite`` a new one begins.

    Yields a function that records facts. An interrupt or SIGTERM is no failure: the run stays unfinished.
    """
    began = round(time.time(), 3)
    tracking = (not overwrite and tracking_id(folder)) or secrets.token_hex(4)
    rows = [*attempts(folder), {"began": began, "tracking": tracking}]

    def record(**facts: Any) -> None:
        rows[-1].update(facts)
        write_whole(folder / ATTEMPTS, json.dumps(rows, indent=1) + "\n")

    (folder / ERROR).unlink(missing_ok=True)
    record()
    try:
        yield record
    except Exception as error:
        record_failure(folder, error)
        raise
    finally:
        with suppress(OSError):  # a full disk must not hide the error that is being raised
            record(seconds=round(time.time() - began, 3))


def attempts(folder: Path) -> list[dict[str, Any]]:
    """Facts of every attempt, oldest first; ``seconds`` of a killed or running one end at the last write."""
    rows = _rows(folder)
    if rows and "seconds" not in rows[-1]:
        paths = (p for p in folder.rglob("*") if p.relative_to(folder).parts[0] not in _AT_START)
        ended = max((_modified(path) for path in paths if not path.is_dir()), default=0.0)
        rows[-1]["seconds"] = max(0.0, round(ended - rows[-1]["began"], 3))
    return rows


def tracking_id(folder: Path) -> str | None:
    """Id of the run in W&B and MLflow: that of its newest attempt; ``None`` if no attempt has one."""
    return next((row["tracking"] for row in reversed(_rows(folder)) if "tracking" in row), None)


def record_jobs(sweep: Path, jobs: dict[str, list[str]]) -> None:
    """Add run names and their overrides to ``jobs.json``, the list of runs that a sweep will have."""
    sweep.mkdir(parents=True, exist_ok=True)
    with FileLock(sweep / "jobs.lock"):  # the same command may be started several times at once
        write_whole(sweep / JOBS, json.dumps(jobs_of(sweep) | jobs, indent=1) + "\n")


def jobs_of(sweep: Path) -> dict[str, list[str]]:
    path = sweep / JOBS
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def statuses_of(sweep: Path) -> dict[str, str]:
    """Run name -> status, for the runs in ``jobs.json`` and all others in the folder."""
    started = [path.name for path in sorted(sweep.glob("*")) if _is_started(path)]
    return {name: status_of(sweep / name) for name in dict.fromkeys([*jobs_of(sweep), *started])}


def count_statuses(statuses: dict[str, str]) -> str:
    """``12 runs: 5 finished, 1 failed, 6 not started``."""
    counts = [(list(statuses.values()).count(status), status) for status in STATUSES]
    return f"{len(statuses)} runs: " + ", ".join(f"{count} {status}" for count, status in counts if count)


def sweep_summary(sweep: Path) -> str:
    """Number of runs by status, and a line for each run that is not finished."""
    statuses = statuses_of(sweep)
    reasons = {name: f" ({failure_reason(sweep / name)})" for name in statuses if statuses[name] == FAILED}
    lines = [f"{sweep}: {count_statuses(statuses)}"]
    lines += [f"  {s}: {name}{reasons.get(name, '')}" for name, s in statuses.items() if s != FINISHED]
    if FAILED in statuses.values():
        lines.append("retry=true runs failed runs again")
    if NOT_STARTED in statuses.values():
        lines.append(f"to drop a run that you no longer want, remove it from {sweep / JOBS}")
    return "\n".join(lines)


def _rows(folder: Path) -> list[dict[str, Any]]:
    """The attempts as they are on disk."""
    path = next((p for p in (folder / ATTEMPTS, folder / OLD_ATTEMPTS) if p.exists()), None)
    return json.loads(path.read_text("utf-8")) if path else []


def _is_started(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("config.yaml", ATTEMPTS, OLD_ATTEMPTS, ERROR))


def _modified(path: Path) -> float:
    """Modification time in s since 1970; 0 if the file does not exist (any more)."""
    with suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0
