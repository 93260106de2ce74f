"""Matrices as tables (console, Markdown, LaTeX), as CSV and as a heat map."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from medvlm_r1.report.audit import DAGGER
from medvlm_r1.report.figures import PAGE, PRINT, Palette, svg
from medvlm_r1.report.matrix import UNTRAINED, Change, Matrices, Matrix
from medvlm_r1.report.matrix import Cell as MatrixCell
from medvlm_r1.report.tables import Cell, Table, p_text, percent, set_name, span

_SHADES = "YlGnBu"


def matrix_table(matrix: Matrix) -> Table:
    """Lines are training domains, columns test sets; the diagonal says what its text prior scores."""
    n = [line.accuracy.n for line in next(iter(matrix.cells.values())).values()]
    heads = [Cell("Trained on")] + [
        Cell(set_name(t), f"n = {k}") for t, k in zip(matrix.test_sets, n, strict=True)
    ]
    rows = [
        [Cell(set_name(domain)), *(_cell(cell) for cell in line.values())]
        for domain, line in matrix.cells.items()
    ]
    notes = [
        "Accuracy in percent with 95 % intervals. In domain: trained on that set's domain; prior: what the "
        "text of the training questions gives away without a picture."
    ]
    for name, mean in (("in domain", matrix.in_domain), ("out of domain", matrix.outside)):
        if mean:
            notes.append(f"Mean {name}: {percent(mean.value)} ({span(mean)}, {mean.method}).")
    if matrix.lost_outside:
        lost, p = matrix.lost_outside
        notes.append(
            f"In domain minus out of domain, on the same questions: {percent(lost.value, signed=True)} "
            f"({span(lost, signed=True)}, p {p_text(p)})."
        )
    if any(cell.leaked for line in matrix.cells.values() for cell in line.values()):
        notes.append(f"{DAGGER} training showed pictures of this test set.")
    return Table(f"Trained on one, tested on all: {matrix.label}", heads, rows, notes)


def change_table(matrices: Matrices, label: str) -> Table:
    """One matrix minus the first, cell by cell; bold where the adjusted test supports it."""
    first = matrices.matrices[0]
    found = {(c.domain, c.test_set): c for c in matrices.changes if c.label == label}
    heads = [Cell("Trained on")] + [Cell(set_name(test)) for test in first.test_sets]
    rows = [
        [Cell(set_name(domain)), *(_change(found[domain, test]) for test in first.test_sets)]
        for domain in first.lines
        if (domain, first.test_sets[0]) in found
    ]
    notes = [
        "Points on the same questions, 95 % interval, adjusted p (bootstrap, Holm over "
        f"{len(matrices.changes)} tests). Bold: adjusted p below 0.05."
    ]
    if mean := found.get((None, None)):
        told = f"{percent(mean.interval.value, signed=True)} ({span(mean.interval, signed=True)})"
        notes.append(f"Mean out of domain: {told}, adjusted p {p_text(mean.adjusted)}.")
    return Table(f"{label} minus {first.label}", heads, rows, notes)


def matrices_tables(matrices: Matrices) -> list[Table]:
    """Every matrix, then what changes from the first to each other one."""
    return [
        *(matrix_table(matrix) for matrix in matrices.matrices),
        *(change_table(matrices, matrix.label) for matrix in matrices.matrices[1:]),
    ]


def matrices_csv(matrices: Matrices) -> str:
    """One cell a line, fractions in full precision."""
    rows = [
        {"matrix": matrix.label, "trained_on": domain, "tested_on": test, **cell.accuracy.as_dict()}
        | {"in_domain": cell.in_domain, "leaked": cell.leaked, "prior": cell.prior}
        | ({f"gain_{k}": getattr(cell.gain, k) for k in ("value", "low", "high")} if cell.gain else {})
        for matrix in matrices.matrices
        for domain, line in matrix.cells.items()
        for test, cell in line.items()
    ]
    return pd.DataFrame(rows).to_csv(index=False)


def heat_map(matrices: Matrices, path: Path) -> Path:
    """All matrices side by side on one scale, as a PNG on white.

    Args:
        path: of the file to write.
    """
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure = _drawn(matrices.matrices, PRINT)
        caption = "accuracy in percent; framed: in domain, with its text prior"
        figure.supxlabel(caption, fontsize=8.5, color=PRINT.muted)
        figure.savefig(path, dpi=200, facecolor="white", metadata={"Software": None})
    return path


def heat_map_svg(matrix: Matrix) -> str:
    """One matrix for the page."""
    return svg(_drawn([matrix], PAGE), f"matrix {matrix.label}")


def _drawn(matrices: Sequence[Matrix], palette: Palette) -> Figure:
    columns, lines = len(matrices[0].test_sets), max(len(matrix.lines) for matrix in matrices)
    size = ((0.72 * columns + 0.4) * len(matrices) + 1.4, 0.5 * lines + 1.3)
    figure = Figure(figsize=size, layout="constrained")
    for k, (axes, matrix) in enumerate(
        zip(figure.subplots(1, len(matrices), squeeze=False)[0], matrices, strict=True)
    ):
        _shaded(axes, matrix, palette)
        names = [set_name(domain) for domain in matrix.lines] if not k else []
        axes.set_yticks([y + 0.5 for y in range(len(matrix.lines))][: len(names)], names)
        if not k:
            axes.set_ylabel("trained on", color=palette.muted, fontsize=9)
    return figure


def _shaded(axes: Axes, matrix: Matrix, palette: Palette) -> None:
    values = [[cell.accuracy.value for cell in line.values()] for line in matrix.cells.values()]
    axes.pcolormesh(values, cmap=_SHADES, vmin=0, vmax=1, edgecolors="none")
    axes.invert_yaxis()
    for y, line in enumerate(matrix.cells.values()):
        for x, cell in enumerate(line.values()):
            _written(axes, cell, x + 0.5, y + 0.5)
    axes.set_title(matrix.label, loc="left", fontsize=10, color=palette.ink)
    names = [set_name(test) for test in matrix.test_sets]
    axes.set_xticks([x + 0.5 for x in range(len(names))], names, rotation=35, ha="right")
    axes.tick_params(length=0, labelsize=8.5, labelcolor=palette.ink)
    for side in axes.spines.values():
        side.set_visible(False)
    if UNTRAINED in matrix.lines:
        axes.axhline(len(matrix.lines) - 1, color="white", lw=3)


def _written(axes: Axes, cell: MatrixCell, x: float, y: float) -> None:
    """The figure in its field; in domain also a frame and what the prior scores."""
    # fields have the same colours in light and in dark, so what stands in them has too
    style = {"color": "white" if cell.accuracy.value > 0.55 else PRINT.ink, "ha": "center", "va": "center"}
    prior = cell.in_domain and cell.prior is not None
    text = percent(cell.accuracy.value) + DAGGER * cell.leaked
    axes.annotate(text, (x, y - 0.16 * prior), fontsize=8.5, **style)
    if prior:
        axes.annotate(f"prior {percent(cell.prior)}", (x, y + 0.22), fontsize=6, **style)
    if cell.in_domain:
        frame = Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, lw=1.6, ec=style["color"])
        axes.add_patch(frame)


def _cell(cell: MatrixCell) -> Cell:
    notes = [span(cell.accuracy)]
    if cell.in_domain:
        notes += ["in domain"] if cell.prior is None else ["in domain", f"prior {percent(cell.prior)}"]
    return Cell(percent(cell.accuracy.value) + DAGGER * cell.leaked, "; ".join(notes))


def _change(change: Change) -> Cell:
    note = f"{span(change.interval, signed=True)}; p {p_text(change.adjusted)}"
    return Cell(percent(change.interval.value, signed=True), note, change.supported)
