"""Two figures of a sweep: the effect of each level, and every setting as a line through its levels."""

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from medvlm_r1.report.comparison import MEAN
from medvlm_r1.report.figures import PRINT, literal, remove_frame
from medvlm_r1.report.sweep.summary import Sweep
from medvlm_r1.report.tables.table import percent, set_name

_FONT = {"font.family": "DejaVu Sans"}
_SUPPORTED, _OPEN = PRINT.series[2], PRINT.series[0]


def effects_figure(sweep: Sweep, path: Path) -> Path:
    """Draw each effect as a dot with its interval, coloured if the adjusted test supports it."""
    effects = sweep.effects
    labels = [literal(f"{e.factor}: {e.level} \N{MINUS SIGN} {e.reference}") for e in effects]
    with matplotlib.rc_context(_FONT):
        figure = Figure(
            figsize=(4.4 + 0.075 * max(map(len, labels)), 0.9 + 0.36 * len(effects)), layout="constrained"
        )
        axes = figure.subplots()
        for y, effect in enumerate(effects):
            colour = _SUPPORTED if effect.supported else _OPEN
            i = effect.interval
            axes.plot([100 * i.low, 100 * i.high], [y, y], color=colour, lw=2.4, solid_capstyle="round")
            axes.plot(100 * i.value, y, "o", color=colour, ms=7)
            above = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center", "fontsize": 8}
            axes.annotate(percent(i.value, signed=True), (100 * i.value, y), color=PRINT.ink, **above)
        axes.axvline(0, color=PRINT.muted, lw=1, ls=(0, (1, 2)))
        axes.set_ylim(len(effects) - 0.5, -0.7)
        axes.set_yticks(range(len(effects)), labels)
        remove_frame(axes, PRINT)
        axes.grid(axis="x", color=PRINT.rule, lw=0.7)
        where = "over all test sets" if sweep.on == MEAN else f"on {set_name(sweep.on)}"
        caption = f"points of accuracy {where}, 95 % interval; coloured: adjusted p < 0.05"
        figure.supxlabel(caption, fontsize=8.5, color=PRINT.muted)
        figure.savefig(path, dpi=200, facecolor="white", metadata={"Software": None})
    return path


def parallel_figure(sweep: Sweep, path: Path) -> Path:
    """Draw parallel coordinates: one axis per factor, accuracy last, one line per setting."""
    rates = {levels: group.rate(sweep.test_sets).value for levels, group in sweep.cells.items()}
    low, high = min(rates.values()), max(rates.values())
    scale = (high - low) or 1.0
    colours = ScalarMappable(Normalize(low, high), "viridis_r")
    with matplotlib.rc_context(_FONT):
        figure = Figure(figsize=(1.6 + 1.9 * len(sweep.factors), 3.4), layout="constrained")
        axes = figure.subplots()
        for levels, rate in sorted(rates.items(), key=lambda item: item[1]):
            heights = [
                _height(distinct.index(level), len(distinct))
                for level, distinct in zip(levels, sweep.factors.values(), strict=True)
            ]
            axes.plot([*heights, (rate - low) / scale], color=colours.to_rgba(rate), lw=1.8, alpha=0.9)
        for x, (factor, distinct) in enumerate(sweep.factors.items()):
            ticks = [(_height(k, len(distinct)), level or "\N{EN DASH}") for k, level in enumerate(distinct)]
            _axis(axes, x, factor, ticks)
        ticks = [(k / 4, percent(low + scale * k / 4)) for k in range(5)]
        _axis(axes, len(sweep.factors), f"accuracy in %,\n{set_name(sweep.on).lower()}", ticks)
        axes.set(xlim=(-0.15, len(sweep.factors) + 0.45), ylim=(-0.05, 1.05))
        axes.axis("off")
        figure.savefig(path, dpi=200, facecolor="white", metadata={"Software": None})
    return path


def _height(place: int, levels: int) -> float:
    return place / (levels - 1)


def _axis(axes: Axes, x: int, name: str, ticks: list[tuple[float, str]]) -> None:
    axes.plot([x, x], [0, 1], color=PRINT.muted, lw=1)
    axes.annotate(name, (x, 1), (0, 9), textcoords="offset points", ha="center", va="bottom", fontsize=9)
    backing = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.8}
    for height, label in ticks:
        axes.annotate(
            literal(label),
            (x, height),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            bbox=backing,
        )
