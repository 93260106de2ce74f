"""Matrices as tables (console, Markdown, LaTeX), as CSV and as a heat map."""

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from medvlm_r1.report.audit import DAGGER
from medvlm_r1.report.figures import PRINT
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
    """All matrices side by side on one scale; the diagonal is framed, its text prior written below.

    Args:
        path: of the PNG to write.
    """
    columns, lines = len(matrices.matrices[0].test_sets), max(len(m.lines) for m in matrices.matrices)
    size = ((0.72 * columns + 0.6) * len(matrices.matrices) + 1.4, 0.56 * lines + 1.5)
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, len(matrices.matrices), squeeze=False)[0]
        for k, (axes, matrix) in enumerate(zip(panels, matrices.matrices, strict=True)):
            shades = _shaded(axes, matrix)
            axes.set_yticks(range(len(matrix.lines)), [set_name(d) for d in matrix.lines] if not k else [])
        panels[0].set_ylabel("trained on", color=PRINT.muted, fontsize=9)
        bar = figure.colorbar(shades, ax=panels, shrink=0.8, pad=0.01)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, labelsize=8, labelcolor=PRINT.ink)
        figure.supxlabel(
            "accuracy in percent; framed: in domain, with its text prior", fontsize=8.5, color=PRINT.muted
        )
        figure.savefig(path, dpi=200, facecolor="white", metadata={"Software": None})
    return path


def _shaded(axes: Axes, matrix: Matrix):
    values = [[100 * cell.accuracy.value for cell in line.values()] for line in matrix.cells.values()]
    shades = axes.imshow(values, cmap=_SHADES, vmin=0, vmax=100, aspect="auto")
    for y, line in enumerate(matrix.cells.values()):
        for x, cell in enumerate(line.values()):
            ink = "white" if cell.accuracy.value > 0.55 else PRINT.ink
            text = percent(cell.accuracy.value) + DAGGER * cell.leaked
            prior = cell.in_domain and cell.prior is not None
            axes.annotate(text, (x, y - 0.16 * prior), color=ink, fontsize=8.5, ha="center", va="center")
            if prior:
                note = f"prior {percent(cell.prior)}"
                axes.annotate(note, (x, y + 0.22), color=ink, fontsize=6, ha="center", va="center")
            if cell.in_domain:
                axes.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, lw=1.6, ec=ink))
    axes.set_title(matrix.label, loc="left", fontsize=10, color=PRINT.ink)
    axes.set_xticks(
        range(len(matrix.test_sets)), [set_name(t) for t in matrix.test_sets], rotation=35, ha="right"
    )
    axes.tick_params(length=0, labelsize=8.5, labelcolor=PRINT.ink)
    for side in axes.spines.values():
        side.set_visible(False)
    if UNTRAINED in matrix.lines:
        axes.axhline(len(matrix.lines) - 1.5, color="white", lw=3)
    return shades


def _cell(cell: MatrixCell) -> Cell:
    notes = [span(cell.accuracy)]
    if cell.in_domain:
        notes += ["in domain"] if cell.prior is None else ["in domain", f"prior {percent(cell.prior)}"]
    return Cell(percent(cell.accuracy.value) + DAGGER * cell.leaked, "; ".join(notes))


def _change(change: Change) -> Cell:
    note = f"{span(change.interval, signed=True)}; p {p_text(change.adjusted)}"
    return Cell(percent(change.interval.value, signed=True), note, change.supported)
