"""Draw the results."""

from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COLOURS = {
    "encode": "#b0b0b0",
    "sample": "#4477aa",
    "reference": "#ccbb44",
    "train": "#ee6677",
    "update": "#aa3377",
    "other": "#dddddd",
}
AXES = {"group": "completions per prompt", "image_tokens": "image tokens per prompt"}


def bar_chart(results: dict[str, Any], path: Path) -> None:
    """Draw seconds per step by phase, a bar per row, and peak memory if the results have it."""
    rows = results["rows"]
    names = list(rows)[::-1]
    with_memory = all("memory" in row for row in rows.values())
    figure, axes = plt.subplots(
        1,
        1 + with_memory,
        figsize=(6.5 + 3 * with_memory, 1.2 + 0.5 * len(names)),
        squeeze=False,
        sharey=True,
    )
    time = axes[0, 0]
    left = [0.0] * len(names)
    for phase, colour in COLOURS.items():
        values = [rows[name]["seconds"].get(phase, {"median": 0.0})["median"] for name in names]
        time.barh(names, values, left=left, color=colour, label=phase)
        left = [a + b for a, b in zip(left, values, strict=True)]
    time.set_xlabel("seconds per step (sum of the phases' medians)")
    time.legend(fontsize=8, frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    if with_memory:
        held = [rows[name]["memory"]["resident"] / 1e9 for name in names]
        above = [rows[name]["memory"]["above_resident"] / 1e9 for name in names]
        memory = axes[0, 1]
        memory.barh(names, held, color="#dddddd", label="weights, gradients, moments")
        memory.barh(names, above, left=held, color="#228833", label="above")
        memory.set_xlabel("peak memory, GB")
        memory.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def growth_chart(points: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw seconds per step, and peak memory if measured, by group size and by image tokens."""
    measured = all("memory" in row for p in chain(*points.values()) for row in p["rows"].values())
    figure, grid = plt.subplots(1 + measured, 2, figsize=(9, 3.2 * (1 + measured)), squeeze=False)
    for column, (axis, found) in enumerate(points.items()):
        values = [point[axis] for point in found]
        for name in [n for n in found[0]["rows"] if n == "ours" or n.startswith("TRL")]:
            colour = "#228833" if name == "ours" else "#ee6677"
            seconds = [point["rows"][name]["seconds"]["step"]["median"] for point in found]
            grid[0, column].plot(values, seconds, "o-", color=colour, label=name)
            if measured:
                peak = [point["rows"][name]["memory"]["total"] / 1e9 for point in found]
                grid[1, column].plot(values, peak, "o-", color=colour, label=name)
        for axes in grid[:, column]:
            axes.set_xlabel(AXES[axis])
            axes.set_ylim(bottom=0)
            axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].set_ylabel("seconds per step")
    grid[0, 0].legend(frameon=False)
    if measured:
        grid[1, 0].set_ylabel("peak memory, GB")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def ratio_chart(results: dict[str, Any], path: Path) -> None:
    """Draw seconds of vLLM over ours, a bar per cell; beyond 1 ours takes less time."""
    cells = results["cells"][::-1]
    ratios = [cell["ratio"] for cell in cells]
    figure, axes = plt.subplots(figsize=(6.5, 1.2 + 0.4 * len(cells)))
    colours = ["#228833" if ratio > 1 else "#ee6677" for ratio in ratios]
    bars = axes.barh([cell["name"] for cell in cells], ratios, color=colours)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xlabel("seconds of vLLM / seconds of ours")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)
