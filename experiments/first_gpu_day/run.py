"""The first day on a GPU as one command: checks in order, each with its verdict, figures and log.

    python experiments/first_gpu_day/run.py --weights DIR       Qwen2-VL-2B-Instruct in DIR
    python experiments/first_gpu_day/run.py                     random weights of the genuine size
    python experiments/first_gpu_day/run.py --rehearse          the embedded model on a CPU, minutes
    python experiments/first_gpu_day/run.py --only memory ddp_against_one

Each check is a process of its own with a time limit; one that fails or crashes stops no other. Writes
results.json, index.html and a log per check to --out. Exits with 1 if a check failed.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from day.base import Day, Result, UnavailableError, step_itself
from day.checks import CHECKS, GPUS, SEVERAL, TOTAL, WEIGHTS, Check

from processes import GROUPS, in_its_own_process, kill_group  # isort: skip  (day.base adds its folder to the path)

REHEARSED = {"ddp_against_one"}  # with two CPU processes
STOPPED = threading.Event()
SYMBOL = {"passed": "ok", "failed": "FAILED", "skipped": "skipped"}


def main() -> None:
    arguments = parse()
    if arguments.check:
        run_here(arguments)
        return
    day, chosen = day_of(arguments), set(arguments.only or (check.name for check in CHECKS))
    if not (day.rehearsal or day.weights):
        chosen.add("weights")  # writes those that the others load
    checks = [check for check in CHECKS if check.name in chosen]
    day.folder.mkdir(parents=True, exist_ok=True)
    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    gpus = 0 if day.rehearsal else count_gpus()
    with tempfile.TemporaryDirectory(dir=arguments.scratch, prefix="first_gpu_day_") as scratch:
        results = run_all(arguments, checks, Path(scratch), gpus)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    write(day, results)
    verdicts = [check["verdict"] for check in results["checks"]]
    print(", ".join(f"{verdicts.count(word)} {word}" for word in SYMBOL), "->", day.folder / "index.html")
    if "failed" in verdicts:
        sys.exit(1)


def stop(number: int, frame: Any) -> None:
    """End the check that runs and skip the others; the results so far are written."""
    STOPPED.set()
    for group in tuple(GROUPS):
        kill_group(group)


def parse() -> argparse.Namespace:
    names = [check.name for check in CHECKS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, help="checkpoint of Qwen2-VL-2B-Instruct")
    parser.add_argument(
        "--data", type=Path, help="the paper's questions, data.root of conf/data/medvlm_r1.yaml"
    )
    parser.add_argument("--rehearse", action="store_true", help="the embedded model on the CPU")
    parser.add_argument("--only", nargs="+", choices=names, metavar="CHECK", help=", ".join(names))
    parser.add_argument("--out", type=Path, help="folder of the results (default: outputs/first_gpu_day)")
    parser.add_argument("--scratch", type=Path, help="folder for 40 GB of weights and checkpoints")
    parser.add_argument("--check", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out = arguments.out or Path("outputs/first_gpu_day")
    return arguments


def day_of(arguments: argparse.Namespace, scratch: Path = Path()) -> Day:
    folders = (arguments.out, arguments.scratch or scratch, arguments.weights, arguments.data)
    folders = [folder and folder.resolve() for folder in folders]
    return Day(*folders, arguments.rehearse, capture=step_itself if arguments.rehearse else None)


def run_all(
    arguments: argparse.Namespace,
    checks: Sequence[Check],
    scratch: Path,
    gpus: int,
    program: Path = Path(__file__),
) -> dict[str, Any]:
    """Run ``program`` for each check, one after another; in the rehearsal two at a time."""
    start = time.monotonic()
    total = TOTAL + (SEVERAL if gpus > 1 else 0)

    def one(check: Check) -> dict[str, Any]:
        left = total - (time.monotonic() - start)
        found = run_alone(arguments, program, check, scratch, gpus, left)
        line = found["reason"] or "; ".join(bound for bound, holds in found["bounds"].items() if not holds)
        print(f"{SYMBOL[found['verdict']]:8}{check.name:24}{found['seconds']:6.0f} s  {line}", flush=True)
        return found

    with ThreadPoolExecutor(2 if arguments.rehearse else 1) as pool:
        found = list(pool.map(one, checks))
    return {
        "command": shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "rehearsal": arguments.rehearse,
        "weights": "embedded" if arguments.rehearse else str(arguments.weights or "random"),
        "started": time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() - (time.monotonic() - start))),
        "seconds": round(time.monotonic() - start),
        "seconds_limit": total,
        "checks": found,
    }


def run_alone(
    arguments: argparse.Namespace, program: Path, check: Check, scratch: Path, gpus: int, left: float
) -> dict[str, Any]:
    """Run one check as a process of its own."""
    facts = {"name": check.name, "title": check.title, "seconds": 0.0, "seconds_limit": check.seconds}
    lacks = {GPUS: gpus < 2, WEIGHTS: not arguments.weights}.get(check.needs, False)
    if arguments.rehearse and check.name in REHEARSED:
        lacks = False
    reason = (
        f"needs {check.needs}"
        if lacks
        else "stopped"
        if STOPPED.is_set()
        else "no time was left"
        if left < 10
        else ""
    )
    if reason:
        return facts | asdict(Result("skipped", reason=reason)) | {"log": None}
    log, out = arguments.out / f"{check.name}.log", scratch / f"{check.name}.json"
    command = [sys.executable, program, "--check", check.name, "--result", out, "--out", arguments.out]
    command += ["--scratch", scratch, *(["--rehearse"] if arguments.rehearse else [])]
    for option in ("weights", "data"):
        if value := getattr(arguments, option):
            command += [f"--{option}", value]
    environment = {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        environment["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"  # as run.py does
    if arguments.rehearse:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    limit = left if arguments.rehearse else min(check.seconds, left)  # CPUs differ more than GPUs
    ended = in_its_own_process(command, limit, log, environment)
    if ended.code == 0:
        found = json.loads(out.read_text())
    elif ended.code is None:
        found = asdict(Result("failed", reason=f"stopped at its limit of {limit:.0f} s"))
    else:
        found = asdict(Result("failed", reason=f"ended with code {ended.code}: {last_line(log)}"))
    return facts | found | {"seconds": ended.seconds, "log": log.name}


def run_here(arguments: argparse.Namespace) -> None:
    """Run one check in this process; the first rank writes its result."""
    check = next(check for check in CHECKS if check.name == arguments.check)
    try:
        found = check.function(day_of(arguments))
    except UnavailableError as why:
        found = Result("skipped", reason=str(why))
    if os.environ.get("LOCAL_RANK", "0") == "0":
        arguments.result.write_text(json.dumps(asdict(found), default=str))


def last_line(log: Path) -> str:
    """The last line of a log, which names the error."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "no output"


def count_gpus() -> int:
    """Number of GPUs, without CUDA in this process."""
    try:
        done = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return 0
    return len(done.stdout.splitlines()) if done.returncode == 0 else 0


def write(day: Day, results: dict[str, Any]) -> None:
    """Write ``results.json`` and ``index.html``."""
    from day.page import render

    (day.folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (day.folder / "index.html").write_text(render(results), encoding="utf-8")


if __name__ == "__main__":
    main()
