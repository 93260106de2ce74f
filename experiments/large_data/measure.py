"""How long does a run over many questions take to its first training step, and how much memory?

    python experiments/large_data/measure.py [--questions 100000] [--side 64] [--tests 300] [--out FILE.json]

Makes as many small PNG files and a question file in the papers' schema in a temporary folder, and starts
run.py on them twice for one training step: with nothing kept on disk, and with what the first run left.
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
    """One picture, smooth shapes under noise as a scan has them, and its row."""
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
    """``train.json`` and ``test.json``, every question with a picture of its own."""
    with ProcessPoolExecutor() as pool:
        rows = list(pool.map(partial(draw, folder=folder, side=side), range(training + tests), chunksize=500))
    (folder / "train.json").write_text(json.dumps(rows[:training]))
    (folder / "test.json").write_text(json.dumps(rows[training:]))


def started(folder: Path, workers: int, profile: Path | None = None) -> dict[str, float]:
    """One training step of run.py: seconds to each point, and the largest memory in use, in MB."""
    command = [sys.executable, *(["-m", "cProfile", "-o", str(profile)] if profile else []), ROOT / "run.py"]
    command += ["model=tiny", "data=mcq_json", "data.train=train.json", "data.test={mri:test.json}"]
    command += ["trainer.max_steps=1", f"workers={workers}", "overwrite=true"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "home")}
    for step in folder.glob(STEP):  # of the run before
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
            except psutil.Error:  # one has just ended
                pass
            time.sleep(0.5)
    if run.returncode:
        raise SystemExit(f"run.py ended with {run.returncode}")
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
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    parser.add_argument("--profile", type=Path, help="folder for a cProfile of each run, which slows both")
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        folder = Path(temporary)
        write_questions(folder, given.questions, given.tests, given.side)
        found = {}
        for name in ("first", "again"):
            profile = given.profile and given.profile / f"{name}.prof"
            found[name] = started(folder, given.workers, profile) | {"load average": os.getloadavg()[0]}
    table = Table("", *found, title=f"{given.questions} questions, {given.side} x {given.side} pixels")
    for row in found["first"]:
        table.add_row(row, *(f"{found[name][row]:g}" for name in found))
    Console().print(table)
    if given.out:
        sizes = {name: getattr(given, name) for name in ("questions", "tests", "side", "workers")}
        given.out.write_text(json.dumps(sizes | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
