"""Measure a long GRPO run from outside: resident memory, open files, size of its folder.

    python experiments/endurance/memory.py --steps 2000

Reads resident memory and open files of the process from /proc every second. Writes memory.json and memory.png
to the folder of this script. Fails if memory grows by 2 % or more after the first 200 steps, or if the number
of open files grows.
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
KEEP = 100  # rollouts on disk
COMMAND = [sys.executable, HERE.parents[1] / "run.py", "+experiment=grpo_600", "model=tiny", "data=phantom"]
COMMAND += ["controls=[image]", "audit=null", "workers=1", "logger=csv", "callbacks.rollouts.show_every=0"]
COMMAND += [f"callbacks.rollouts.keep={KEEP}", "trainer.val_check_interval=1.0", "trainer.max_epochs=-1"]
COMMAND += ["data.validation.n=16", "data.test.mri.n=4", "data.test.ct.n=4", "data.test.xray.n=4"]


def resident(pid: int) -> int:
    """Resident memory of a process in bytes; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, IndexError):
        return 0


def handles(pid: int) -> int:
    """Number of open files, sockets and pipes of a process; 0 if it has ended."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except FileNotFoundError:
        return 0


def size(folder: Path, *parts: str) -> int:
    """Size of a folder in bytes; of some subfolders, if ``parts`` names them."""
    paths = [path for path in folder.rglob("*") if not parts or path.relative_to(folder).parts[0] in parts]
    return sum(path.stat().st_size for path in paths if path.exists() and path.is_file())


def step(folder: Path) -> int:
    """Number of steps whose rollouts are on disk."""
    steps = [int(path.stem.removeprefix("step-")) for path in folder.glob("rollouts/step-*.jsonl")]
    return max(steps, default=-1) + 1


def measure(steps: int, work: Path) -> list[dict[str, float]]:
    """Run and measure: one row for each step at which a measurement was taken."""
    run = subprocess.Popen(
        [*COMMAND, f"trainer.max_steps={steps}"],
        cwd=work,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    rows: list[dict[str, float]] = []
    with Progress() as progress:
        bar = progress.add_task("steps", total=steps)
        while run.poll() is None:
            time.sleep(1)
            folders = list(work.glob("outputs/runs/*"))
            done = step(folders[0]) if folders else 0
            if not done or (rows and rows[-1]["step"] == done) or done >= steps:
                continue
            row = {"step": done, "resident": resident(run.pid)}
            row |= {"handles": handles(run.pid), "rollouts": size(folders[0], "rollouts")}
            rows.append(row | {"folder": size(folders[0])})
            progress.update(bar, completed=done)
    if run.returncode:
        raise SystemExit(f"the run failed: {COMMAND}")
    return rows


def mean(rows: list[dict[str, float]], name: str, low: int, high: int) -> float:
    """Mean of one quantity over the measurements from step ``low`` to ``high``."""
    return float(np.mean([row[name] for row in rows if low <= row["step"] < high]))


def draw(rows: list[dict[str, float]], path: Path) -> None:
    """Plot memory and disk over the steps."""
    figure, axes = plt.subplots(2, 1, figsize=(7, 4.6), sharex=True, layout="constrained")
    steps = [row["step"] for row in rows]
    axes[0].plot(steps, [row["resident"] / 1e6 for row in rows], color="#1a66a8")
    axes[0].set(ylabel="resident, MB", ylim=(0, None))
    axes[1].plot(steps, [row["folder"] / 1e6 for row in rows], color="#1c2430", label="run folder")
    axes[1].plot(steps, [row["rollouts"] / 1e6 for row in rows], color="#b9501a", label="rollouts")
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
        start = time.monotonic()
        rows = measure(args.steps, Path(folder))
        seconds = time.monotonic() - start
    parts = {"first": (200, 300), "last": (args.steps - 100, args.steps)}
    memory = {name: mean(rows, "resident", *part) for name, part in parts.items()}
    files = {
        name: max(s["handles"] for s in rows if s["step"] in range(*part)) for name, part in parts.items()
    }
    traces = {name: mean(rows, "rollouts", *part) for name, part in parts.items()}
    growth = memory["last"] / memory["first"] - 1
    summary = {
        "command": f"experiments/endurance/memory.py --steps {args.steps}",
        "seconds": round(seconds),
        "resident MB, steps 200 to 300": round(memory["first"] / 1e6, 1),
        f"resident MB, last 100 of {args.steps}": round(memory["last"] / 1e6, 1),
        "growth": round(growth, 4),
        "largest MB after step 200": round(max(s["resident"] for s in rows if s["step"] >= 200) / 1e6, 1),
        "open files at most": files,
        "rollouts MB": {name: round(value / 1e6, 2) for name, value in traces.items()},
        "folder MB at the end": round(rows[-1]["folder"] / 1e6, 1),
        "looks": len(rows),
    }
    (HERE / "memory.json").write_text(json.dumps(summary, indent=1) + "\n")
    draw(rows, HERE / "memory.png")
    print(json.dumps(summary, indent=1))
    raise SystemExit(growth >= 0.02 or files["last"] > files["first"] + 1)


if __name__ == "__main__":
    main()
