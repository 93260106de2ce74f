"""Time and memory of a run over many questions until the end of its first training step.

    python experiments/large_data/measure.py [--questions 100000] [--side 64] [--tests 300] [--out FILE.json]

Writes small PNG files and a question file in the papers' schema to a temporary folder, and starts run.py on
them twice for one training step: without and with the caches of the first run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter

ROOT = Path(__file__).parents[2]
OPTIONS = ("liver", "brain", "lung", "kidney", "spleen", "heart")
PHASES = ("data", "audit", "build")
STEP = "outputs/runs/*/rollouts/step-*.jsonl"


def draw(number: int, folder: Path, side: int) -> dict:
    """Write one image, smooth shapes with noise as in a scan; return its row."""
    noise = np.random.default_rng(number)
    shapes = gaussian_filter(noise.normal(size=(side, side)), side / 12)
    grey = 128 + 60 * shapes / shapes.std() + 8 * noise.normal(size=(side, side))
    path = folder / "images" / f"{number % 1000:03d}" / f"{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(path)
    options = noise.choice(OPTIONS, 4, replace=False).tolist()
    return {
        "image": path.relative_to(folder).as_posix(),
        "question": "Which organ does this image show?",
        "options": options,
        "answer": options[int(noise.integers(4))],
        "subset": "MR (Mag-netic Resonance Imaging)",
    }


def write_questions(folder: Path, training: int, tests: int, side: int) -> None:
    """Write ``train.json`` and ``test.json``; each question has an image of its own."""
    with ProcessPoolExecutor() as pool:
        rows = list(pool.map(partial(draw, folder=folder, side=side), range(training + tests), chunksize=500))
    (folder / "train.json").write_text(json.dumps(rows[:training]))
    (folder / "test.json").write_text(json.dumps(rows[training:]))


def run_one_step(folder: Path, workers: int, profile: Path | None = None) -> dict[str, float]:
    """Run one training step of run.py; return seconds of each phase and peak memory in MB."""
    command = [sys.executable, *(["-m", "cProfile", "-o", str(profile)] if profile else []), ROOT / "run.py"]
    command += ["model=tiny", "data=mcq_json", "data.train=train.json", "data.test={mri:test.json}"]
    command += ["trainer.max_steps=1", f"workers={workers}", "overwrite=true"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "home")}
    for step in folder.glob(STEP):  # of the previous run
        step.unlink()
    begun, largest, in_all, computed = time.time(), 0, 0, None
    with subprocess.Popen(command, cwd=folder, env=environment) as run:
        tree = psutil.Process(run.pid)
        while run.poll() is None:
            try:
                if computed is None and any(folder.glob(STEP)):
                    spent = tree.cpu_times()
                    computed = round(spent.user + spent.system, 1)
                members = [p.memory_full_info() for p in (tree, *tree.children(recursive=True))]
                largest = max(largest, members[0].rss)
                in_all = max(in_all, sum(member.pss for member in members))
            except psutil.Error:  # a process has just ended
                pass
            time.sleep(0.5)
    if run.returncode:
        raise SystemExit(f"run.py failed with exit code {run.returncode}")
    (step,) = folder.glob(STEP)
    phases = json.loads((step.parents[1] / "timing.json").read_text())["seconds"]
    return {
        **{name: phases[name] for name in PHASES},
        "to the end of the first step": round(step.stat().st_mtime - begun, 1),
        "of these, the main process computed": computed,
        "main process, MB": round(largest / 1e6),
        "with workers, MB": round(in_all / 1e6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--questions", type=int, default=100_000)
    parser.add_argument("--tests", type=int, default=300)
    parser.add_argument("--side", type=int, default=64, help="side of an image in pixels")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="parent of the temporary folder")
    parser.add_argument(
        "--profile", type=Path, help="folder for a cProfile of each run, which slows the runs"
    )
    parser.add_argument("--out", type=Path, help="JSON output file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary)
        write_questions(folder, args.questions, args.tests, args.side)
        results = {}
        for name in ("first", "again"):
            profile = args.profile and args.profile / f"{name}.prof"
            results[name] = run_one_step(folder, args.workers, profile) | {"load average": os.getloadavg()[0]}
    table = Table("", *results, title=f"{args.questions} questions, {args.side} x {args.side} pixels")
    for row in results["first"]:
        table.add_row(row, *(f"{results[name][row]:g}" for name in results))
    Console().print(table)
    if args.out:
        sizes = {name: getattr(args, name) for name in ("questions", "tests", "side", "workers")}
        args.out.write_text(json.dumps(sizes | results, indent=1) + "\n")


if __name__ == "__main__":
    main()
