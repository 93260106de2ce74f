"""Two figures of a sweep: the effect of each level, and every setting as a line through its levels."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from medvlm_r1.report.comparison import MEAN
from medvlm_r1.report.figures import PRINT, PRINT_FONT, dot, dotted_line, literal, save_png
from medvlm_r1.report.sweep.summary import Sweep
from medvlm_r1.report.tables.table import percent, set_name


@PRINT_FONT
def effects_figure(sweep: Sweep, path: Path) -> Path:
    """Draw each effect as a dot with its interval, coloured if the adjusted test supports it."""
    effects = sweep.effects
    labels = [literal(f"{e.factor}: {e.level} \N{MINUS SIGN} {e.reference}") for e in effects]
    size = (4.4 + 0.075 * max(map(len, labels)), 0.9 + 0.36 * len(effects))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    above = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center", "fontsize": 8}
    for y, effect in enumerate(effects):
        i = effect.interval
        dot(axes, i, y, PRINT.series[2 if effect.supported else 0])
        axes.annotate(percent(i.value, signed=True), (100 * i.value, y), color=PRINT.ink, **above)
    axes.set_ylim(len(effects) - 0.5, -0.7)
    axes.set_yticks(range(len(effects)), labels)
    dotted_line(axes, 0, PRINT)
    where = "over all test sets" if sweep.on == MEAN else f"on {set_name(sweep.on)}"
    return save_png(figure, path, f"points of accuracy {where}, 95 % interval; coloured: adjusted p < 0.05")


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
