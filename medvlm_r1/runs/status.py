"""What becomes of a run: one process holds its folder; lives, failure and cost are kept beside the rest.

A life is one process's work on a run, from its start to its end or kill; a resumed run has several.
"""

import json
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from medvlm_r1.runs.durable import write_whole

FINISHED, RUNNING, FAILED, UNFINISHED, NOT_BEGUN = "finished", "running", "failed", "unfinished", "not begun"
STATES = (FINISHED, RUNNING, FAILED, UNFINISHED, NOT_BEGUN)
LOCK, ERROR, LIVES, JOBS = "run.lock", "error.txt", "lives.json", "jobs.json"
# Written at the start of every life, so their age tells nothing about the end of the last one.
_AT_START = (".hydra", "config.yaml", "run.log", LOCK, LIVES, ERROR)
_PATIENCE = 1  # s; of two processes that look at a folder at once, one has it for a moment


class RunIsBusyError(ValueError):
    """Another process is working on the run."""


def state_of(folder: Path) -> str:
    """One of :data:`STATES`."""
    found = outcome(folder)
    if found != FINISHED and is_held(folder):
        return RUNNING
    return found or (UNFINISHED if _is_begun(folder) else NOT_BEGUN)


def outcome(folder: Path) -> str | None:
    """:data:`FINISHED`, :data:`FAILED`, or neither.

    A failure behind an end counts: overwrite=true keeps the older run until the new one is built.
    """
    finished, failed = (_written(folder / name) for name in ("metrics.json", ERROR))
    if finished > failed:
        return FINISHED
    return FAILED if failed else None


def reason(folder: Path) -> str:
    """Why a run failed, in one line; empty where it has just been begun again."""
    with suppress(FileNotFoundError):
        return (folder / ERROR).read_text("utf-8").split("\n", 1)[0]
    return ""


def keep_failure(folder: Path, error: Exception) -> None:
    """Write why a run failed, unless another of its processes told the cause; a full disk keeps nothing."""
    told = str(error).strip() or type(error).__name__
    text = "".join(traceback.format_exception(error))
    if not (folder / ERROR).exists():
        with suppress(OSError):
            write_whole(folder / ERROR, f"{told.splitlines()[0]}\n\n{text}")


def is_held(folder: Path) -> bool:
    """Whether a process works on the run now."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that this user may only read
        return False


@dataclass
class Life:
    """One process's work on a run, as ``lives.json`` keeps it.

    Attributes:
        folder: of the run.
        before: the lives before this one.
        facts: ``began`` (s since 1970), ``devices``, ``hardware``, and at its end ``seconds``.
    """

    folder: Path
    before: list[dict[str, Any]]
    facts: dict[str, Any]

    def note(self, **facts: Any) -> None:
        """Add to the facts, on disk at once."""
        self.facts |= facts
        write_whole(self.folder / LIVES, json.dumps([*self.before, self.facts], indent=1) + "\n")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the folder against every other process; a kill lets it go.

    Raises:
        RunIsBusyError: another process holds it.
    """
    lock = FileLock(folder / LOCK, timeout=_PATIENCE)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunIsBusyError(f"{folder}: another process is working on this run") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def life(folder: Path) -> Iterator[Life]:
    """Keep when the work began and ended, and why it failed; the folder is held meanwhile.

    Interrupts and SIGTERM are no failure: the run is unfinished.
    """
    this = Life(folder, lives(folder), {"began": round(time.time(), 3)})
    (folder / ERROR).unlink(missing_ok=True)
    this.note()
    try:
        yield this
    except Exception as error:
        keep_failure(folder, error)
        raise
    finally:
        with suppress(OSError):  # a full disk must not hide what was raised
            this.note(seconds=round(time.time() - this.facts["began"], 3))


def lives(folder: Path) -> list[dict[str, Any]]:
    """What is known of every process that worked on the run, oldest first.

    One that was killed, or works still, is taken to have lived as long as it wrote.
    """
    path = folder / LIVES
    kept = json.loads(path.read_text("utf-8")) if path.exists() else []
    if kept and "seconds" not in kept[-1]:
        kept[-1]["seconds"] = max(0.0, round(_last_written(folder) - kept[-1]["began"], 3))
    return kept


# --- the runs of a sweep ----------------------------------------------------------------------------


def note_jobs(sweep: Path, jobs: dict[str, list[str]]) -> None:
    """Keep which runs a sweep is to have, by folder name with their overrides, beside those noted before."""
    sweep.mkdir(parents=True, exist_ok=True)
    with FileLock(sweep / "jobs.lock"):  # the same command may be started several times at once
        write_whole(sweep / JOBS, json.dumps(jobs_of(sweep) | jobs, indent=1) + "\n")


def jobs_of(sweep: Path) -> dict[str, list[str]]:
    """Name and overrides of the runs that a sweep is to have, as far as they were known when it began."""
    path = sweep / JOBS
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def states_of(sweep: Path) -> dict[str, str]:
    """Name and state of every run of a sweep: of those noted, and of those found."""
    found = [path.name for path in sorted(sweep.glob("*")) if _is_begun(path)]
    return {name: state_of(sweep / name) for name in dict.fromkeys([*jobs_of(sweep), *found])}


def counted(states: dict[str, str]) -> str:
    """``12 runs: 5 finished, 1 failed, 6 not begun``."""
    counts = [(sum(one == state for one in states.values()), state) for state in STATES]
    return f"{len(states)} runs: " + ", ".join(f"{count} {state}" for count, state in counts if count)


def told(sweep: Path) -> str:
    """What has become of the runs of a sweep: their number, and each that is not finished."""
    states = states_of(sweep)
    lines = [f"{sweep}: {counted(states)}"]
    for name, state in states.items():
        why = f" ({reason(sweep / name)})" if state == FAILED else ""
        lines += [f"  {state}: {name}{why}"] if state != FINISHED else []
    if FAILED in states.values():
        lines.append("retry=true tries failed runs again")
    if NOT_BEGUN in states.values():
        lines.append(f"a run that is not wanted any more: take it out of {sweep / JOBS}")
    return "\n".join(lines)


def _is_begun(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("config.yaml", LIVES, ERROR))


def _last_written(folder: Path) -> float:
    """When a run last wrote something that is not written at the start of every life."""
    paths = (p for p in folder.rglob("*") if p.relative_to(folder).parts[0] not in _AT_START)
    return max((_written(path) for path in paths if not path.is_dir()), default=0.0)


def _written(path: Path) -> float:
    """When a file was written, in s since 1970; 0 where there is none, or none any more."""
    with suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0
