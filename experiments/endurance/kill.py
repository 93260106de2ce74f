"""Kill a run at random times, resume it each time, and compare with a run that was never killed.

    python experiments/endurance/kill.py --kills 30
    python experiments/endurance/kill.py --kills 6 --out kill_fsdp.json trainer=fsdp trainer.accelerator=cpu

The times are drawn uniformly from the duration of the undisturbed run, from its first import to its report.
Each kill is a SIGKILL of all its processes; then the same command resumes with resume=auto. A run that ends
between two kills is compared, and another one is started. Writes kill.json to the folder of this script.
"""

import argparse
import csv
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.progress import Progress

HERE = Path(__file__).parent
COMMAND = [sys.executable, HERE.parents[1] / "run.py", "+experiment=grpo_600", "model=tiny", "data=phantom"]
COMMAND += ["data.train.n=64", "data.validation.n=16", "data.test.mri.n=64", "data.test.ct.n=64"]
COMMAND += ["data.test.xray.n=64", "workers=0", "audit=null", "logger=csv", "controls=[image,blank]"]
COMMAND += ["model.recipe.evaluation_batch=8", "callbacks.last.every=2", "resume=auto"]


def folder_of(work: Path) -> Path:
    """The only run folder in ``work``."""
    (folder,) = (work / "outputs/runs").iterdir()
    return folder


def start(work: Path) -> subprocess.Popen:
    """Start or resume the run in ``work``, in one thread and a process group of its own."""
    return subprocess.Popen(
        COMMAND,
        cwd=work,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def undisturbed(work: Path) -> float:
    """Run in ``work`` from start to end; returns the duration in seconds."""
    work.mkdir()
    started = time.monotonic()
    if start(work).wait():
        raise SystemExit(f"the undisturbed run failed: {COMMAND}")
    return time.monotonic() - started


def where(work: Path) -> str:
    """The phase in which a run was killed."""
    folders = list((work / "outputs/runs").glob("*"))
    if not folders or not (folders[0] / "attempts.json").exists():
        return "start"
    if (folders[0] / "metrics.json").exists():
        return "report"
    if list(folders[0].glob("*.journal")):
        return "evaluation"
    return (
        "training, a checkpoint half written"
        if (folders[0] / "checkpoints/last.partial").exists()
        else "training"
    )


def compare(whole: Path, killed: Path) -> dict[str, bool]:
    """Whether each file of two run folders is the same, bit for bit.

    Times are ignored, and the number of encoded images: a resumed run encodes again the images whose features
    a frozen vision tower had cached.
    """

    def logged(folder: Path) -> list[dict]:
        with (folder / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        ignored = ("timing/", "train/images_encoded")
        return [{k: v for k, v in row.items() if not k.startswith(ignored)} for row in rows]

    def measured(folder: Path) -> dict:
        metrics = json.loads((folder / "metrics.json").read_text())
        del metrics["counters"]["images_encoded"]
        return metrics

    rollouts = [path.relative_to(whole) for path in (whole / "rollouts").iterdir()]
    names = ["model/model.safetensors", "predictions.jsonl", *map(str, rollouts)]
    same = {name: (whole / name).read_bytes() == (killed / name).read_bytes() for name in names}
    same["metrics.csv"] = logged(whole) == logged(killed)
    same["metrics.json"] = measured(whole) == measured(killed)
    return same


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="kill.json", help="file in the folder of this script")
    parser.add_argument("overrides", nargs="*", help="overrides of the run, such as trainer=ddp")
    args = parser.parse_args()
    COMMAND.extend(args.overrides)
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        killed.mkdir()
        seconds = undisturbed(whole)
        kills: list[str] = []
        results: list[dict[str, bool]] = []
        with Progress() as progress:
            bar = progress.add_task("kills", total=args.kills)
            while len(kills) < args.kills or list(killed.iterdir()):
                process = start(killed)
                try:
                    code = process.wait(rng.uniform(0, 1) * seconds if len(kills) < args.kills else None)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)  # as if the machine failed
                    process.wait()
                    kills.append(where(killed))
                    progress.update(bar, completed=len(kills))
                    continue
                if code:
                    raise SystemExit(f"a resumed run failed with exit code {code}")
                results.append(compare(folder_of(whole), folder_of(killed)))
                shutil.rmtree(killed / "outputs")
    summary = {
        "command": f"experiments/endurance/kill.py {shlex.join(sys.argv[1:])}",
        "seconds of the undisturbed run": round(seconds),
        "killed in": {place: kills.count(place) for place in sorted(set(kills))},
        "runs compared": len(results),
        "all the same": all(all(result.values()) for result in results),
        "differences": [name for result in results for name, same in result.items() if not same],
    }
    (HERE / args.out).write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    raise SystemExit(not summary["all the same"])


if __name__ == "__main__":
    main()
