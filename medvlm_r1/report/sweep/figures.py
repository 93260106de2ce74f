"""Two figures of a sweep: the effect of each level, and every setting as a line through its levels."""

from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from medvlm_r1.report.comparison import MEAN
from medvlm_r1.report.figures import PRINT, PRINT_FONT, dot, dotted_line, literal, save_png
from medvlm_r1.report.sweep.effects import Effect
from medvlm_r1.report.sweep.joint import JointSweep
from medvlm_r1.report.sweep.summary import Sweep
from medvlm_r1.report.sweep.tables import count_tests, shorten
from medvlm_r1.report.tables.table import p_text, percent, set_name


@PRINT_FONT
def effects_figure(joint: JointSweep, path: Path) -> Path:
    """Draw each effect as a dot with its interval, below its factor, with its p and verdict at the right.

    A full dot in colour: the adjusted test supports a difference. Grey and full: equivalent. Hollow: neither.
    The grey band is the planned smallest difference to both sides of 0.
    """
    effects, smallest = joint.effects, joint.smallest
    rows: list[Effect | str] = []  # an effect, or the heading of a factor
    for factor, levels in groupby(effects, lambda effect: (effect.factor, effect.reference)):
        rows += [f"{factor[0]}, minus {shorten(factor[1])}", *levels]
    names = [row if isinstance(row, str) else shorten(row.level) for row in rows]
    words = [row.verdict(smallest) if smallest and isinstance(row, Effect) else "" for row in rows]
    left, right = (inches + 0.07 * max(map(len, texts)) for inches, texts in ((0.25, names), (1.45, words)))
    width, height = left + 3.4 + right, 0.7 + 0.25 * len(rows)  # in inches
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(left / width, 0.65 / height, 1 - right / width, 1 - 0.05 / height)
    axes = figure.subplots()
    if smallest:
        axes.axvspan(-100 * smallest, 100 * smallest, color=PRINT.rule, alpha=0.55, lw=0)
    for y, (row, word) in enumerate(zip(rows, words, strict=True)):
        if isinstance(row, str):
            continue
        i = row.interval
        colour = PRINT.series[2] if row.supported else PRINT.muted
        hollow = not row.supported and word != "equivalent"
        dot(axes, i, y, colour, "white" if hollow else colour)
        columns = (percent(i.value, signed=True), "right", 40), (f"p {p_text(row.adjusted)}", "left", 48)
        for text, side, points in (*columns, (word, "left", 98)):
            label = axes.annotate(text, (1, y), (points, 0), ("axes fraction", "data"), "offset points")
            label.set(ha=side, va="center", fontsize=8.5, color=PRINT.ink, annotation_clip=False)
    axes.set_ylim(len(rows) - 0.5, -0.6)
    axes.set_yticks(range(len(rows)), [literal(name) for name in names])
    dotted_line(axes, 0, PRINT)
    for row, label in zip(rows, axes.get_yticklabels(), strict=True):
        label.set_fontweight("bold" if isinstance(row, str) else "normal")
    where = "over all test sets" if joint.on == MEAN else f"on {set_name(joint.on)}"
    holm = f"after Holm over {count_tests(effects)}"
    caption = f"points of accuracy {where}, 95 % interval\nblue: p below 0.05 {holm}"
    if smallest:
        caption += f"; grey: equivalent within the band, {100 * smallest:g} points; hollow: cannot be told"
    return save_png(figure, path, caption)


@PRINT_FONT
def parallel_figure(sweep: Sweep, path: Path) -> Path:
    """Draw parallel coordinates: one axis per factor, accuracy last, one line per setting."""
    rates = {levels: group.rate(sweep.test_sets).value for levels, group in sweep.cells.items()}
    low, high = min(rates.values()), max(rates.values())
    scale = (high - low) or 1.0
    colours = ScalarMappable(Normalize(low, high), "viridis_r")
    figure = Figure(figsize=(1.6 + 1.9 * len(sweep.factors), 3.4), layout="constrained")
    axes = figure.subplots()
    for levels, rate in sorted(rates.items(), key=lambda item: item[1]):
        pairs = zip(levels, sweep.factors.values(), strict=True)
        heights = [distinct.index(level) / (len(distinct) - 1) for level, distinct in pairs]
        axes.plot([*heights, (rate - low) / scale], color=colours.to_rgba(rate), lw=1.8, alpha=0.9)
    for x, (factor, distinct) in enumerate(sweep.factors.items()):
        _axis(axes, x, factor, [level or "\N{EN DASH}" for level in distinct])
    ticks = [percent(low + scale * k / 4) for k in range(5)]
    _axis(axes, len(sweep.factors), f"accuracy in %,\n{set_name(sweep.on).lower()}", ticks)
    axes.set(xlim=(-0.15, len(sweep.factors) + 0.45), ylim=(-0.05, 1.05))
    axes.axis("off")
    return save_png(figure, path)


def _axis(axes: Axes, x: int, name: str, ticks: list[str]) -> None:
    """Draw a vertical axis with evenly spaced ticks."""
    axes.plot([x, x], [0, 1], color=PRINT.muted, lw=1)
    axes.annotate(name, (x, 1), (0, 9), textcoords="offset points", ha="center", va="bottom", fontsize=9)
    style = {"textcoords": "offset points", "va": "center", "fontsize": 8}
    style["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.8}
    for k, label in enumerate(ticks):
        axes.annotate(literal(label), (x, k / (len(ticks) - 1)), (4, 0), **style)
