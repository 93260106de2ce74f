"""Dot plots with intervals and training curves.

A figure for the page is an SVG whose colours are CSS variables of the page (``var(--ink)``,
``var(--grpo)``), so one drawing reads in light and in dark; text stays text. Panels are small, so
that they stand side by side on a wide screen and below each other on a phone.
"""

import io
import itertools
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medvlm_r1.report.comparison import OUTSIDE, Comparison
from medvlm_r1.report.groups import RunGroup
from medvlm_r1.report.tables.table import percent, set_name


@dataclass(frozen=True)
class Palette:
    """Colours of a figure; ``series`` are those of zero-shot, SFT, GRPO and of further rows."""

    ink: str
    muted: str
    rule: str
    series: tuple[str, ...]


# Stand-ins that matplotlib writes into the SVG, replaced by the page's variables.
PAGE = Palette("#010101", "#020202", "#030303", tuple(f"#0a0a0{k}" for k in range(10)))
PRINT = Palette(
    "#1c2430",
    "#5b6675",
    "#d8dee6",
    (
        "#6b7686",
        "#b9501a",
        "#1a66a8",
        "#2f7d52",
        "#7d4bab",
        "#a8325a",
        "#0f747e",
        "#7d6300",
        "#5c4a3d",
        "#444fc4",
    ),
)
_VARIABLES = {PAGE.ink: "--ink", PAGE.muted: "--muted", PAGE.rule: "--rule"} | {
    colour: f"--series-{k}" for k, colour in enumerate(PAGE.series)
}


@dataclass(frozen=True)
class Panel:
    """One metric's drawing.

    Attributes:
        title: what is drawn.
        unit: of its values.
        svg: inline SVG.
        lines: per method its label, colour number, first and last value (mean over seeds).
    """

    title: str
    unit: str
    svg: Markup
    lines: list[tuple[str, int, float, float]]


# Panel title and what to read off it, by logged metric; reward terms are added as they are found.
CURVES = {
    "train/reward": ("Reward", "mean total per completion"),
    "train/kl": ("KL to the reference", "nats per token"),
    "train/tokens": ("Completion length", "tokens"),
    "train/truncated": ("Truncated", "share cut at the limit"),
    "train/accuracy": ("Accuracy while training", "share of completions"),
    "train/well_formed": ("Well-formed while training", "share of completions"),
    "train/active_groups": ("Groups with spread", "share that carries a gradient"),
    "train/loss": ("Loss", ""),
    "validation/accuracy": ("Validation accuracy", "training domain"),
    "validation/well_formed": ("Validation: well-formed", "share of answers"),
}
APART = ("train/loss",)  # the losses of two methods are different quantities


def series(rows: Sequence[RunGroup]) -> dict[str, int]:
    """Group label -> number of its colour: zero-shot 0, SFT 1, GRPO 2, all others 3 to 9."""
    first = {"zero_shot": 0, "sft": 1, "grpo": 2}
    spare = itertools.cycle(range(3, 10))
    return {row.label: first.pop(row.method) if row.method in first else next(spare) for row in rows}


def dot_panels(c: Comparison) -> dict[str, Markup]:
    """Column -> SVG: one dot with its interval per method, chance as a dotted line."""
    panels = {}
    labels = [_folded(row.label).split("\n") for row in c.groups]
    height = 0.42 + len(c.groups) * max(0.3, 0.16 * max(map(len, labels)))
    longest = max(len(line) for lines in labels for line in lines)
    for scope in c.scopes:
        figure = Figure(figsize=(3.5, height))
        _dots(figure.subplots(), c, scope, PAGE, values=True)
        left = min(0.5, 0.04 + 0.019 * longest)  # set by hand: panels align, and layout engines are slow
        figure.subplots_adjust(left=left, right=0.87, top=1, bottom=0.24 / height)
        panels[scope] = svg(figure, f"dots-{scope}")
    return panels


def curve_panels(c: Comparison) -> list[Panel]:
    """Panels of the metrics that a run logged; methods that log the same quantity share one.

    Several seeds: thin lines, their mean thick.
    """
    logged = {m for row in c.groups for run in row.runs for m in run.curves.columns}
    terms = sorted(m for m in logged if m.startswith("train/reward_"))
    titles = {m: (f"Reward: {m.removeprefix('train/reward_').replace('_', ' ')}", "mean") for m in terms}
    number, panels = series(c.groups), []
    for metric, (heading, unit) in ({"train/reward": CURVES["train/reward"]} | titles | CURVES).items():
        lines = {row.label: line for row in c.groups if len(line := _mean_curve(row, metric))}
        together = [[label] for label in lines] if metric in APART else [list(lines)] if lines else []
        for labels in together:
            figure = Figure(figsize=(3.5, 2.1))
            _curves(figure.subplots(), [r for r in c.groups if r.label in labels], metric, number)
            figure.subplots_adjust(
                left=0.13, right=0.99, top=0.97, bottom=0.21
            )  # panels align with each other
            ends = [(k, number[k], float(lines[k].iloc[0]), float(lines[k].iloc[-1])) for k in labels]
            name = f"{heading} of {labels[0]}" if metric in APART else heading
            panels.append(Panel(name, unit, svg(figure, f"{metric} {labels}"), ends))
    return panels


def comparison_figure(c: Comparison, path: Path) -> Path:
    """The dot plot of every test set side by side, as a PNG on white for a README.

    Args:
        c: what was compared.
        path: file to write.
    """
    scopes = [s for s in c.scopes if s != OUTSIDE]
    size = (2.1 * len(scopes) + 0.9, 0.95 + 0.4 * len(c.groups))
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure = Figure(figsize=size, layout="constrained")
        for k, axes in enumerate(figure.subplots(1, len(scopes), sharex=True, squeeze=False)[0]):
            _dots(axes, c, scopes[k], PRINT, values=False)
            name = set_name(scopes[k]) + (" (in domain)" if scopes[k] in c.in_domain else "")
            axes.set_title(name, loc="left", fontsize=10, color=PRINT.ink)
            if k:
                axes.set_yticklabels([])
        caption = "accuracy in percent with 95 % interval; dotted: chance"
        figure.supxlabel(caption, fontsize=8.5, color=PRINT.muted)
        figure.savefig(path, dpi=200, facecolor="white", metadata={"Software": None})
    return path


def svg(figure: Figure, name: str) -> Markup:
    """The figure as inline SVG in the page's own colours and font; the same bytes for the same data."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', text, count=1
    )
    return Markup(text)  # matplotlib escapes every label


def _dots(axes: Axes, c: Comparison, scope: str, palette: Palette, values: bool) -> None:
    number = series(c.groups)
    for y, row in enumerate(c.groups):
        i = c.accuracy[row.label][scope]
        paint = palette.series[number[row.label]]
        axes.plot([100 * i.low, 100 * i.high], [y, y], color=paint, lw=2.4, solid_capstyle="round")
        axes.plot(100 * i.value, y, "o", color=paint, ms=7)
        if not values:  # the page prints them beside the plot, a picture above each dot
            above = {"xytext": (0, 6.5), "textcoords": "offset points", "ha": "center"}
            above["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
            axes.annotate(percent(i.value), (100 * i.value, y), color=palette.ink, fontsize=8, **above)
        else:
            beside = {"xycoords": ("axes fraction", "data"), "va": "center", "ha": "right"}
            axes.annotate(percent(i.value), (1.16, y), color=palette.ink, fontsize=9.5, weight=700, **beside)
    axes.axvline(100 * c.chance[scope], color=palette.muted, lw=1, ls=(0, (1, 2)))
    axes.set(xlim=(0, 100), ylim=(len(c.groups) - 0.5, -0.5), xticks=[0, 25, 50, 75, 100])
    axes.set_yticks(range(len(c.groups)), [_folded(row.label) for row in c.groups])
    quiet(axes, palette)
    axes.grid(axis="x", color=palette.rule, lw=0.7)
    axes.spines["left"].set_visible(False)


def _mean_curve(row: RunGroup, metric: str) -> pd.Series:
    """Mean over the seeds that logged the metric, at the steps where they all did."""
    lines = [line for run in row.runs if len(line := run.curve(metric))]
    return pd.concat(lines, axis=1).dropna().mean(axis=1) if lines else pd.Series(dtype=float)


def _curves(axes: Axes, rows: Sequence[RunGroup], metric: str, number: dict[str, int]) -> None:
    for row in rows:
        paint = PAGE.series[number[row.label]]
        if len(row.runs) > 1:
            for run in row.runs:
                axes.plot(run.curve(metric), color=paint, lw=0.7, alpha=0.4)
        mean = _mean_curve(row, metric)
        axes.plot(mean, color=paint, lw=1.8, marker="o" if len(mean) < 12 else None, ms=3.5)
    low, high = axes.get_ylim()
    if metric.endswith(("accuracy", "well_formed", "truncated", "with_spread")):
        axes.set_ylim(max(-0.02, low), min(1.02, max(high, 0.1)))
    quiet(axes, PAGE)
    axes.grid(axis="y", color=PAGE.rule, lw=0.7)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlim(left=0)
    axes.set_xlabel("optimiser step", fontsize=8.5, color=PAGE.muted)


def _folded(label: str) -> str:
    """A long label on several lines."""
    return textwrap.fill(label, 22)


def quiet(axes: Axes, palette: Palette) -> None:
    """Quiet frame: a base line, no box, no tick marks."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(palette.rule)
    axes.tick_params(length=0, labelsize=8.5, labelcolor=palette.ink)
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
