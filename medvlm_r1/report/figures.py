"""Figures of a comparison: dot plots with intervals, and training curves.

A figure of the page is inline SVG whose colours are CSS variables of the page (``var(--ink)``,
``var(--series-2)``), so that one figure serves light and dark mode; text stays text.
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

from medvlm_r1.evaluate.statistics import Interval
from medvlm_r1.report.comparison import OUTSIDE, Comparison
from medvlm_r1.report.groups import RunGroup
from medvlm_r1.report.tables.table import percent, set_name, span


@dataclass(frozen=True)
class Palette:
    """Colours of a figure."""

    ink: str
    muted: str
    rule: str
    series: tuple[str, ...]  # zero-shot, SFT, GRPO, further run groups


# Placeholder colours that matplotlib writes into the SVG; svg() replaces them by the page's variables.
PAGE = Palette("#010101", "#020202", "#030303", tuple(f"#0a0a0{k}" for k in range(10)))
_COLOURS = ("#6b7686", "#b9501a", "#1a66a8", "#2f7d52", "#7d4bab", "#a8325a", "#0f747e", "#7d6300", "#5c4a3d")
PRINT = Palette("#1c2430", "#5b6675", "#d8dee6", (*_COLOURS, "#444fc4"))
PRINT_FONT = matplotlib.rc_context({"font.family": "DejaVu Sans"})  # a decorator
_VARIABLES = {PAGE.ink: "--ink", PAGE.muted: "--muted", PAGE.rule: "--rule"} | {
    colour: f"--series-{k}" for k, colour in enumerate(PAGE.series)
}


@dataclass(frozen=True)
class Panel:
    """One small figure of the page."""

    title: str
    unit: str  # remark beside the title
    svg: Markup
    alt: str  # the figure in words, for screen readers
    lines: tuple[tuple[str, int, float, float], ...] = ()  # label, colour, first and last mean over seeds


# Logged metric -> panel title and unit; every reward term gets a panel of its own.
CURVES = {
    "train/reward": ("Reward", "mean total per completion"),
    "train/reward_std": ("Reward spread", "standard deviation in a group"),
    "train/frac_zero_advantage": ("Zero-advantage groups", "share of prompts"),
    "train/entropy": ("Entropy", "nats per token"),
    "train/kl": ("KL to the reference", "nats per token"),
    "train/tokens": ("Completion length", "tokens"),
    "train/truncated": ("Truncated", "share of completions"),
    "train/accuracy": ("Accuracy while training", "share of completions"),
    "train/well_formed": ("Well-formed while training", "share of completions"),
    "train/loss": ("Loss", ""),
    "validation/accuracy": ("Validation accuracy", "training domain"),
    "validation/well_formed": ("Validation: well-formed", "share of answers"),
}
SEPARATE = ("train/loss",)  # the losses of two methods are different quantities


def colour_numbers(groups: Sequence[RunGroup]) -> dict[str, int]:
    """Group label -> number of its colour: zero-shot 0, SFT 1, GRPO 2, all others 3 to 9 in turn."""
    first = {"zero_shot": 0, "sft": 1, "grpo": 2}
    others = itertools.cycle(range(3, 10))
    return {g.label: first.pop(g.method) if g.method in first else next(others) for g in groups}


def dot_panels(c: Comparison) -> list[Panel]:
    """One panel per scope: a dot with its interval per run group, chance as a dotted line."""
    panels = []
    labels = [_wrap(group.label).split("\n") for group in c.groups]
    height = 0.42 + len(c.groups) * max(0.3, 0.16 * max(map(len, labels)))
    longest = max(len(line) for lines in labels for line in lines)
    for scope, test_sets in c.scopes.items():
        figure = Figure(figsize=(3.5, height))
        _dots(figure.subplots(), c, scope, PAGE, values=True)
        left = min(0.5, 0.04 + 0.019 * longest)  # set here: panels align, and layout engines are slow
        figure.subplots_adjust(left=left, right=0.83, top=1, bottom=0.24 / height)
        unit = f"mean of {len(test_sets)} sets" if len(test_sets) > 1 else ""
        unit = "in domain" if scope in c.in_domain else unit
        rates = [(label, rates[scope]) for label, rates in c.accuracy.items()]
        words = "; ".join(f"{label} {percent(i.value)} %, interval {span(i)}" for label, i in rates)
        alt = f"Accuracy on {set_name(scope)}: {words}"
        panels.append(Panel(set_name(scope), unit, svg(figure, f"dots-{scope}"), alt))
    return panels


def curve_panels(c: Comparison) -> list[Panel]:
    """One panel per logged metric; groups that log the same quantity share it.

    Several seeds: a thin line each, and their mean as a thick one.
    """
    logged = {metric for run in c.runs for metric in run.curves.columns}
    parts = {f"{metric}_{side}" for metric in logged for side in ("right", "wrong")} | CURVES.keys()
    terms = sorted(m for m in logged - parts if m.startswith("train/reward_"))
    titles = {m: (f"Reward: {m.removeprefix('train/reward_').replace('_', ' ')}", "mean") for m in terms}
    number, panels = colour_numbers(c.groups), []
    for metric, (heading, unit) in ({"train/reward": CURVES["train/reward"]} | titles | CURVES).items():
        means = {group.label: mean for group in c.groups if len(mean := _mean_curve(group, metric))}
        shared = [[label] for label in means] if metric in SEPARATE else [list(means)] if means else []
        for labels in shared:
            figure = Figure(figsize=(3.5, 2.1))
            _curves(figure.subplots(), [g for g in c.groups if g.label in labels], metric, number)
            figure.subplots_adjust(left=0.13, right=0.99, top=0.97, bottom=0.21)
            lines = tuple((k, number[k], float(means[k].iloc[0]), float(means[k].iloc[-1])) for k in labels)
            title = f"{heading} of {labels[0]}" if metric in SEPARATE else heading
            words = "; ".join(f"{label} from {first:.3g} to {last:.3g}" for label, _, first, last in lines)
            alt = f"{title} by step: {words}"
            panels.append(Panel(title, unit, svg(figure, f"{metric} {labels}"), alt, lines))
    return panels


@PRINT_FONT
def comparison_figure(c: Comparison, path: Path) -> Path:
    """Write the dot plots of all test sets as one PNG on white, for a README; return its path."""
    scopes = [s for s in c.scopes if s != OUTSIDE]
    size = (2.1 * len(scopes) + 0.9, 0.95 + 0.4 * len(c.groups))
    figure = Figure(figsize=size, layout="constrained")
    for k, axes in enumerate(figure.subplots(1, len(scopes), sharex=True, squeeze=False)[0]):
        _dots(axes, c, scopes[k], PRINT, values=False)
        name = set_name(scopes[k]) + (" (in domain)" if scopes[k] in c.in_domain else "")
        axes.set_title(literal(name), loc="left", fontsize=10, color=PRINT.ink)
        if k:
            axes.set_yticklabels([])
    return save_png(figure, path, "accuracy in percent with 95 % interval; dotted: chance")


def save_png(figure: Figure, path: Path, caption: str = "") -> Path:
    """Write a figure as PNG on white, the same bytes for the same data; return its path."""
    if caption:
        figure.supxlabel(caption, fontsize=8.5, color=PRINT.muted)
    figure.savefig(path, dpi=200, facecolor="white", metadata={"Software": None})
    return path


def svg(figure: Figure, name: str) -> Markup:
    """A figure in the colours :data:`PAGE` as inline SVG with the page's colours and font.

    The same data give the same bytes; ``name`` is the seed of the SVG's ids, unique on the page.
    """
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    root = r'<svg viewBox="\1" aria-hidden="true">'
    text = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', root, text, count=1)
    return Markup(text)  # matplotlib escapes every label


def _dots(axes: Axes, c: Comparison, scope: str, palette: Palette, values: bool) -> None:
    """Draw dots with intervals; the values are in a column at the right, or each above its dot."""
    number = colour_numbers(c.groups)
    for y, group in enumerate(c.groups):
        i = c.accuracy[group.label][scope]
        dot(axes, i, y, palette.series[number[group.label]])
        if values:
            place = {"xytext": (0.995, y), "textcoords": ("figure fraction", "data"), "va": "center"}
            place |= {"ha": "right", "fontsize": 9.5, "weight": 700}
        else:
            place = {"xytext": (0, 6.5), "textcoords": "offset points", "ha": "center", "fontsize": 8}
            place["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
        axes.annotate(percent(i.value), (100 * i.value, y), color=palette.ink, **place)
    axes.set(xlim=(0, 100), ylim=(len(c.groups) - 0.5, -0.5), xticks=[0, 25, 50, 75, 100])
    axes.set_yticks(range(len(c.groups)), [_wrap(group.label) for group in c.groups])
    dotted_line(axes, 100 * c.chance[scope], palette)


def dot(axes: Axes, i: Interval, y: float, colour: str, face: str | None = None) -> None:
    """Draw an interval in percent with a dot at its estimate, filled with ``face`` (default: the colour)."""
    axes.plot([100 * i.low, 100 * i.high], [y, y], color=colour, lw=2.4, solid_capstyle="round")
    axes.plot(100 * i.value, y, "o", color=colour, markerfacecolor=face or colour, ms=7)


def dotted_line(axes: Axes, x: float, palette: Palette) -> None:
    """Finish a dot plot: a dotted vertical line at ``x``, a grid, no frame."""
    axes.axvline(x, color=palette.muted, lw=1, ls=(0, (1, 2)))
    remove_frame(axes, palette)
    axes.grid(axis="x", color=palette.rule, lw=0.7)


def _mean_curve(group: RunGroup, metric: str) -> pd.Series:
    """Mean over the seeds that logged the metric, at the steps that all of them logged."""
    curves = [curve for run in group.runs if len(curve := run.curve(metric))]
    return pd.concat(curves, axis=1).dropna().mean(axis=1) if curves else pd.Series(dtype=float)


def _curves(axes: Axes, groups: Sequence[RunGroup], metric: str, number: dict[str, int]) -> None:
    for group in groups:
        colour = PAGE.series[number[group.label]]
        if len(group.runs) > 1:
            for run in group.runs:
                axes.plot(run.curve(metric), color=colour, lw=0.7, alpha=0.4)
        mean = _mean_curve(group, metric)
        axes.plot(mean, color=colour, lw=1.8, marker="o" if len(mean) < 12 else None, ms=3.5)
    low, high = axes.get_ylim()
    if metric.endswith(("accuracy", "well_formed", "truncated", "frac_zero_advantage")):
        axes.set_ylim(max(-0.02, low), min(1.02, max(high, 0.1)))
    remove_frame(axes, PAGE)
    axes.grid(axis="y", color=PAGE.rule, lw=0.7)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlim(left=0)
    axes.set_xlabel("step", fontsize=8.5, color=PAGE.muted)


def literal(text: str) -> str:
    """Escape dollar signs: matplotlib takes text between two of them for a formula."""
    return text.replace("$", r"\$")


def _wrap(label: str) -> str:
    return literal(textwrap.fill(label, 22))


def remove_frame(axes: Axes, palette: Palette) -> None:
    """Leave the bottom line and the tick labels; no box, no tick marks, no background."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(palette.rule)
    axes.tick_params(length=0, labelsize=8.5, labelcolor=palette.ink)
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
