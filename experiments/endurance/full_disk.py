"""Run on disks that are too small, give each more space, go on, and compare with the undisturbed run.

    sudo .venv/bin/python experiments/endurance/full_disk.py --sizes 12

Each disk is a tmpfs of a size drawn evenly between nothing and the most that the undisturbed run used, so it
fills while weights, checkpoints, rollouts, answers or the report are written. Mounting needs root (or a
namespace of one's own: unshare --user --map-root-user --mount). Writes full_disk.json beside it.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from kill import HERE, compare, folder_of, start, where
from rich.progress import track


def used(folder: Path) -> int:
    """Bytes on the disk that is mounted there."""
    blocks = subprocess.run(
        ["df", "--block-size=1", "--output=used", folder], check=True, capture_output=True, text=True
    )
    return int(blocks.stdout.split()[-1])


def mount(folder: Path, size: int, *, again: bool = False) -> None:
    """Mount a tmpfs of ``size`` bytes, or give the one that is mounted another size."""
    options = f"size={size}" + (",remount" if again else "")
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, default=12)
    args = parser.parse_args()
    enough = 2**30
    filled, results = [], []
    with tempfile.TemporaryDirectory() as name:
        whole, small = Path(name, "whole"), Path(name, "small")
        whole.mkdir()
        small.mkdir()
        mount(whole, enough)
        try:
            life, most = start(whole), 0
            while life.poll() is None:
                most = max(most, used(whole))
                time.sleep(0.05)
            if life.returncode:
                raise SystemExit("the undisturbed run failed")
            for number in track(range(args.sizes), "sizes"):
                mount(small, int(most * (number + 0.5) / args.sizes))
                try:
                    code = start(small).wait()
                    filled.append(where(small) if code else "nowhere")
                    mount(small, enough, again=True)
                    if start(small).wait():
                        raise SystemExit(f"with more space the run failed all the same: size {number}")
                    results.append(compare(folder_of(whole), folder_of(small)))
                finally:
                    subprocess.run(["umount", small], check=True)
        finally:
            subprocess.run(["umount", whole], check=True)
    summary = {
        "command": f"experiments/endurance/full_disk.py {shlex.join(sys.argv[1:])}",
        "MB that the undisturbed run needs": round(most / 1e6, 1),
        "disk full in": dict(sorted(Counter(filled).items())),
        "runs compared": len(results),
        "all the same": all(all(result.values()) for result in results),
        "differences": [name for result in results for name, same in result.items() if not same],
    }
    (HERE / "full_disk.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    raise SystemExit(not summary["all the same"])


if __name__ == "__main__":
    main()
