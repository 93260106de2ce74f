"""Compare sampling alone with vLLM: the same weights, prompts, images and numbers of tokens, in turns.

    python experiments/speed/engines.py --json engines.json --chart engines.png
    python experiments/speed/engines.py --quick                            the embedded model
    python experiments/speed/engines.py --size small --cells base          the 2B model's widths
    python experiments/speed/engines.py --device cuda --size 2b --dtype bfloat16

First our trainer computes the log-probabilities of the tokens that each sampler drew; in fp32 they must agree
with the sampler's own. Then each cell is timed. vLLM's Python is that of the environment variable
MEDVLM_R1_VLLM_PYTHON, or .venv/vllm/bin/python (`make .venv/.vllm`).
"""

import argparse
import ctypes.util
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "experiments/common"), str(ROOT)]
os.environ["HF_HUB_OFFLINE"] = "1"

from benchmark import SIZES, write  # noqa: E402
from charts import ratio_chart  # noqa: E402
from compare import DisagreementError, machine, summary  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from samplers import VLLM, Drawn, Ours  # noqa: E402
from sizes import Size, encoder, questions  # noqa: E402

from medvlm_r1.launch.silence import silence_libraries  # noqa: E402
from medvlm_r1.runs.vllm_server import vllm_python  # noqa: E402

TOLERANCE = 1e-4  # of log-probabilities in fp32
ROWS = 64  # limit of rows that decode together, the same on both sides
SHORT = {"image_tokens": 64, "text_tokens": 48, "new_tokens": 48}
# What differs from the size's defaults. "again" samples the same prompts in every round.
CELLS: dict[str, dict[str, Any]] = {
    "base": {},
    "16 per prompt": {"group": 16},
    "one row": {"prompts": 1, "group": 1},
    "64 rows": {"prompts": 8, **SHORT},
    "queue of drawn lengths": {"prompts": 16, "lengths": "drawn", **SHORT},
    "same prompts again": {"again": True},
    "512 tokens": {"prompts": 1, "new_tokens": 512},
}
# vLLM's best of those tried: README.md
OPTIONS = {
    "cpu": {"enforce_eager": True, "block_size": 32},
    "cuda": {"gpu_memory_utilization": 0.4},
}


def main() -> None:
    arguments = parse()
    silence_libraries()
    torch.set_num_threads(arguments.threads)
    size = size_of(arguments, {})
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(size, Path(folder) / "model", ROWS)
        vllm = VLLM(Path(folder) / "model", vllm_python(), *settings(arguments))
        try:
            results = {
                "machine": machine(arguments.threads) | {"vllm": vllm.versions},
                "vllm_options": settings(arguments)[0],
                "parity": parity(ours, vllm, size),
                "cells": [],
            }
            for cell in timed_cells(ours, vllm, arguments):
                results["cells"].append(cell)
                write(arguments.json, results)
        finally:
            vllm.stop()
    show(results)
    if arguments.chart:
        ratio_chart(results, arguments.chart)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="half", help="the model")
    parser.add_argument("--quick", action="store_const", const="quick", dest="size", help="--size quick")
    parser.add_argument("--cells", nargs="+", choices=CELLS, help="default: all; quick: base")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each side")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds per cell")
    parser.add_argument("--vllm", type=json.loads, default={}, help="further options of vllm.LLM, as JSON")
    parser.add_argument("--json", type=Path, help="output file of the results")
    parser.add_argument("--chart", type=Path, help="output file of the chart")
    arguments = parser.parse_args()
    arguments.cells = arguments.cells or (["base"] if arguments.size == "quick" else list(CELLS))
    return arguments


def size_of(arguments: argparse.Namespace, cell: dict[str, Any]) -> Size:
    names = ("layers", "blocks", "prompts", "group", "image_tokens", "text_tokens", "new_tokens")
    values = dict(zip(names, SIZES[arguments.size], strict=True)) | {"lengths": "full"} | cell
    values.pop("again", None)
    fixed = {"tune": "lora", "beta": 0.0}  # of training; nothing is trained
    return Size(model=arguments.size, dtype=arguments.dtype, device=arguments.device, **values, **fixed)


def settings(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, str]]:
    """Return vLLM's options and environment: on a CPU, its own advice, on the cores that our threads use."""
    longest = max(
        size.prompt_tokens + size.new_tokens
        for size in (size_of(arguments, CELLS[name]) for name in arguments.cells)
    )
    options = {
        "dtype": arguments.dtype,
        "max_model_len": longest,
        "max_num_seqs": ROWS,
        "limit_mm_per_prompt": {"image": 1, "video": 0},
        **OPTIONS[arguments.device],
        **arguments.vllm,
    }
    if arguments.device != "cpu":
        return options, {}
    cores = sorted(os.sched_getaffinity(0))[: arguments.threads]
    os.sched_setaffinity(0, cores)
    intel_openmp = vllm_python().parents[1] / "lib/libiomp5.so"
    preloaded = [ctypes.util.find_library("tcmalloc_minimal"), str(intel_openmp)]
    return options, {
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "LD_PRELOAD": ":".join(library for library in preloaded if library),
    }


def parity(ours: Ours, vllm: VLLM, size: Size) -> dict[str, float]:
    """Let both draw completions of unequal lengths, which our trainer scores.

    Returns:
        The largest difference of each sampler's log-probabilities from the trainer's.

    Raises:
        DisagreementError: prompts or numbers of tokens differ; in fp32, a difference exceeds
            :data:`TOLERANCE`.
    """
    asked, lengths = questions(size, size.prompts, encoder(size.model)), size.row_lengths(ragged=True)
    mine = ours.sample(asked, size, lengths)
    theirs = vllm.sample(asked, size, lengths, ours.policy.banned_ids)
    if mine.prompts != theirs.prompts:
        raise DisagreementError("the samplers have different prompts")
    found = {}
    for name, drawn in (("ours", mine), ("vLLM", theirs)):
        check_lengths(drawn, lengths)
        rows = zip(drawn.logprobs, ours.trained_on(asked, drawn), strict=True)
        found[name] = max(abs(a - b) for row in rows for a, b in zip(*row, strict=True))
        if size.dtype == "float32" and not found[name] <= TOLERANCE:
            raise DisagreementError(
                f"{name}: log-probabilities differ from the trainer's by {found[name]:.2e}, above "
                f"{TOLERANCE:.0e}; no times were measured"
            )
    print(f"parity: largest difference from the trainer {found}", file=sys.stderr)
    return found


def timed_cells(ours: Ours, vllm: VLLM, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Time each cell: in a round each side samples once, from new prompts or those of an earlier round."""
    first = SIZES[arguments.size][2]  # after those of the parity step
    for name in arguments.cells:
        size, again = size_of(arguments, CELLS[name]), "again" in CELLS[name]
        lengths, seconds = size.row_lengths(), []
        for number in range(again + arguments.rounds):
            asked = questions(size, size.prompts, encoder(size.model), first)
            first += 0 if again else size.prompts
            both = {}
            for side in (ours, vllm):
                drawn = side.sample(asked, size, lengths)
                check_lengths(drawn, lengths.clamp(max=size.new_tokens))
                both[side.name] = drawn.seconds
            print(f"{name}, round {number}: {both}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
            seconds.append(both)
        rows = summary(seconds[again:])
        ratio = rows["vLLM"]["median"] / rows["ours"]["median"]
        first += size.prompts
        yield {"name": name, "size": vars(size), "seconds": rows, "ratio": ratio}


def check_lengths(drawn: Drawn, lengths: torch.Tensor) -> None:
    if [len(row) for row in drawn.tokens] != lengths.tolist():
        raise DisagreementError("a sampler drew another number of tokens")


def show(results: dict[str, Any]) -> None:
    columns = ("cell", "prompts x rows", "prompt tokens", "new tokens", "ours", "vLLM", "vLLM / ours")
    table = Table(*columns, title="seconds, median (minimum to maximum)")
    for cell in results["cells"]:
        size = cell["size"]
        times = (cell["seconds"][name] for name in ("ours", "vLLM"))
        table.add_row(
            cell["name"],
            f"{size['prompts']} x {size['group']}",
            str(size["image_tokens"] + size["text_tokens"]),
            f"{size['new_tokens']} ({size['lengths']})",
            *(f"{time['median']:.3g} ({time['least']:.3g} to {time['most']:.3g})" for time in times),
            f"{cell['ratio']:.2f}",
        )
    console = Console(width=120)
    console.print(results["machine"], results["parity"], table)


if __name__ == "__main__":
    main()
