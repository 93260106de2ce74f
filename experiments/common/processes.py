"""Run a command as a process of its own, with a time limit and its output in a file."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GROUPS: set[int] = set()  # process groups that run now


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: exit code; ``None`` if the time limit ended it.
        seconds: duration.
    """

    code: int | None
    seconds: float


def in_its_own_process(
    command: Sequence[object],
    seconds: float | None = None,
    log: Path | None = None,
    environment: dict[str, str] | None = None,
) -> Ended:
    """Run ``command``; its output goes to ``log``.

    With a limit of ``seconds`` it gets a process group of its own, which is killed in the end: ranks and data
    loader workers may outlive the process. Without one, it belongs to the caller's group.
    """
    start = time.monotonic()
    output = log.open("wb") if log else None
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        start_new_session=seconds is not None,
        env={**os.environ, **(environment or {})},
    )
    if seconds is not None:
        GROUPS.add(process.pid)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        if seconds is None:
            process.kill()
        else:
            kill_group(process.pid)
            GROUPS.discard(process.pid)
        process.wait()
        if output:
            output.close()
    return Ended(code, round(time.monotonic() - start, 1))


def kill_group(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
