"""Watch a long GRPO run from outside: resident memory, open files, size of its folder.

    python experiments/endurance/memory.py --steps 2000

Every second /proc is read: resident memory and open files of the run's process. Writes
memory.json and memory.png beside it; fails where memory grows by 2 % or more after the first 200 steps, or
the number of open files does.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib
import numpy as np
from rich.progress import Progress

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
KEPT = 100  # rollouts on disk
COMMAND = [sys.executable, HERE.parents[1] / "run.py", "+experiment=grpo_600", "model=tiny", "data=phantom"]
COMMAND += ["controls=[image]", "audit=null", "workers=1", "logger=csv", "callbacks.rollouts.show_every=0"]
COMMAND += [f"callbacks.rollouts.keep={KEPT}", "trainer.val_check_interval=1.0", "trainer.max_epochs=-1"]
COMMAND += ["data.validation.n=16", "data.test.mri.n=4", "data.test.ct.n=4", "data.test.xray.n=4"]


def resident(pid: int) -> int:
    """Bytes of memory that a process holds; 0 of one that has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, IndexError):
        return 0


def handles(pid: int) -> int:
    """Files, sockets and pipes that a process has open."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except FileNotFoundError:
        return 0


def size(folder: Path, *parts: str) -> int:
    """Bytes below a folder."""
    paths = [path for path in folder.rglob("*") if not parts or path.relative_to(folder).parts[0] in parts]
    return sum(path.stat().st_size for path in paths if path.exists() and path.is_file())


def step(folder: Path) -> int:
    """The newest step whose rollout is written."""
    found = [int(path.stem.removeprefix("step-")) for path in folder.glob("rollouts/step-*.jsonl")]
    return max(found, default=-1) + 1


def watch(steps: int, work: Path) -> list[dict[str, float]]:
    """Run and look: one line for each step that a look fell on."""
    run = subprocess.Popen(
        [*COMMAND, f"trainer.max_steps={steps}"],
        cwd=work,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    seen: list[dict[str, float]] = []
    with Progress() as progress:
        bar = progress.add_task("steps", total=steps)
        while run.poll() is None:
            time.sleep(1)
            folders = list(work.glob("outputs/runs/*"))
            done = step(folders[0]) if folders else 0
            if not done or (seen and seen[-1]["step"] == done) or done >= steps:
                continue
            line = {"step": done, "resident": resident(run.pid)}
            line |= {"handles": handles(run.pid), "rollouts": size(folders[0], "rollouts")}
            seen.append(line | {"folder": size(folders[0])})
            progress.update(bar, completed=done)
    if run.returncode:
        raise SystemExit(f"the run failed: {COMMAND}")
    return seen


def mean(seen: list[dict[str, float]], name: str, low: int, high: int) -> float:
    """Mean of one quantity over the looks from step ``low`` to ``high``."""
    return float(np.mean([line[name] for line in seen if low <= line["step"] < high]))


def draw(seen: list[dict[str, float]], path: Path) -> None:
    """Memory and disk over the steps."""
    figure, axes = plt.subplots(2, 1, figsize=(7, 4.6), sharex=True, layout="constrained")
    steps = [line["step"] for line in seen]
    axes[0].plot(steps, [line["resident"] / 1e6 for line in seen], color="#1a66a8")
    axes[0].set(ylabel="resident, MB", ylim=(0, None))
    axes[1].plot(steps, [line["folder"] / 1e6 for line in seen], color="#1c2430", label="run folder")
    axes[1].plot(steps, [line["rollouts"] / 1e6 for line in seen], color="#b9501a", label="rollouts")
    axes[1].set(ylabel="disk, MB", xlabel="optimiser step", ylim=(0, None))
    axes[1].legend(frameon=False)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        seen = watch(args.steps, Path(folder))
        seconds = time.monotonic() - began
    parts = {"first": (200, 300), "last": (args.steps - 100, args.steps)}
    memory = {name: mean(seen, "resident", *part) for name, part in parts.items()}
    # most are the shared memory of questions that a worker has ready, so their number swings in an epoch
    files = {
        name: max(s["handles"] for s in seen if s["step"] in range(*part)) for name, part in parts.items()
    }
    traces = {name: mean(seen, "rollouts", *part) for name, part in parts.items()}
    growth = memory["last"] / memory["first"] - 1
    summary = {
        "command": f"experiments/endurance/memory.py --steps {args.steps}",
        "seconds": round(seconds),
        "resident MB, steps 200 to 300": round(memory["first"] / 1e6, 1),
        f"resident MB, last 100 of {args.steps}": round(memory["last"] / 1e6, 1),
        "growth": round(growth, 4),
        "largest MB after step 200": round(max(s["resident"] for s in seen if s["step"] >= 200) / 1e6, 1),
        "open files at most": files,
        "rollouts MB": {name: round(value / 1e6, 2) for name, value in traces.items()},
        "folder MB at the end": round(seen[-1]["folder"] / 1e6, 1),
        "looks": len(seen),
    }
    (HERE / "memory.json").write_text(json.dumps(summary, indent=1) + "\n")
    draw(seen, HERE / "memory.png")
    print(json.dumps(summary, indent=1))
    raise SystemExit(growth >= 0.02 or files["last"] > files["first"] + 1)


if __name__ == "__main__":
    main()
