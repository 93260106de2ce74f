"""Fill the disk at random times of a run, free space, resume, and compare with an undisturbed run.

    sudo .venv/bin/python experiments/endurance/full_disk.py --fills 12

The disk is a tmpfs. At a time drawn uniformly from the duration of the undisturbed run, its size is reduced
to the space in use; after the run has failed, the size is restored, and the same command resumes with
resume=auto. Mounting requires root (or a namespace: unshare --user --map-root-user --mount). Writes
full_disk.json to the folder of this script.
"""

import argparse
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from kill import HERE, compare, folder_of, start, undisturbed, where
from rich.progress import track

ROOMY = 2**30


def resize(disk: Path, size: int | str) -> bool:
    """Resize the mounted tmpfs; returns whether its files fit."""
    command = ["mount", "-o", f"remount,size={size}", disk]
    return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0


def fill(disk: Path) -> None:
    """Reduce the size to the space in use, also while a process writes."""
    while True:
        df = ["df", "--block-size=1K", "--output=used", disk]
        used = subprocess.run(df, check=True, capture_output=True, text=True).stdout.split()[-1]
        if resize(disk, f"{max(int(used), 4)}k"):
            return


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if os.geteuid():
        parser.error("mounting a disk requires root: sudo, or unshare --user --map-root-user --mount")
    rng = random.Random(args.seed)
    full_in, results = [], []
    with tempfile.TemporaryDirectory() as name:
        whole, disk = Path(name, "whole"), Path(name, "disk")
        disk.mkdir()
        seconds = undisturbed(whole)
        for _ in track(range(args.fills), "fills"):
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOMY}", "tmpfs", disk], check=True)
            try:
                process = start(disk)
                time.sleep(rng.uniform(0, 1) * seconds)
                fill(disk)
                full_in.append(where(disk) if process.wait() else "nothing was left to write")
                resize(disk, ROOMY)
                if start(disk).wait():
                    raise SystemExit(f"the run failed although there was space again: {full_in}")
                results.append(compare(folder_of(whole), folder_of(disk)))
            finally:
                subprocess.run(["umount", disk], check=True)
    summary = {
        "command": f"experiments/endurance/full_disk.py {shlex.join(sys.argv[1:])}",
        "seconds of the undisturbed run": round(seconds),
        "disk full in": dict(sorted(Counter(full_in).items())),
        "runs compared": len(results),
        "all the same": all(all(result.values()) for result in results),
        "differences": [name for result in results for name, same in result.items() if not same],
    }
    (HERE / "full_disk.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    raise SystemExit(not summary["all the same"])


if __name__ == "__main__":
    main()
