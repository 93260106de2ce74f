"""Run a command that ends with the process that needs it: ``python -I end_with_parent.py PID COMMAND...``

To be started as the leader of a new process group. It ends the group on SIGTERM, when the command ends, and
when its parent, process PID, ends, even by SIGKILL.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

GRACE_SECONDS = 10.0  # from SIGTERM to SIGKILL


def main(parent: int, command: list[str]) -> None:
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    # Polled, because a fork of the parent keeps a pipe open, and PR_SET_PDEATHSIG follows a thread.
    child = subprocess.Popen(command)
    while not stopped and child.poll() is None and os.getppid() == parent:
        time.sleep(0.1)
    if child.returncode is None:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECONDS)
    elif child.returncode < 0:
        print(f"ended by {signal.Signals(-child.returncode).name}", file=sys.stderr, flush=True)
    os.killpg(0, signal.SIGKILL)  # what the command started and left, and this process


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
