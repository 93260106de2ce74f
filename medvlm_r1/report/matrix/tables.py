"""Matrices as tables (console, Markdown, LaTeX), as CSV and as a heat map."""

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from medvlm_r1.evaluate import statistics
from medvlm_r1.report.comparison import LEVEL
from medvlm_r1.report.figures import PAGE, PRINT, PRINT_FONT, Palette, literal, save_png, svg
from medvlm_r1.report.matrix.cells import UNTRAINED, Matrices, Matrix, MatrixCell
from medvlm_r1.report.page.audit import marks
from medvlm_r1.report.tables.table import (
    Cell,
    Table,
    difference_cell,
    mark_notes,
    p_text,
    percent,
    set_name,
    span,
)


def matrix_table(matrix: Matrix) -> Table:
    """Rows are training domains, columns test sets; each cell with its text prior and the gain over it."""
    n = [row.accuracy.n for row in next(iter(matrix.cells.values())).values()]
    columns = zip(matrix.test_sets, n, strict=True)
    heads = [Cell("Trained on"), *(Cell(set_name(t), f"n = {k}") for t, k in columns)]
    rows = [[Cell(set_name(domain)), *map(_cell, row.values())] for domain, row in matrix.cells.items()]
    notes = ["Accuracy in percent with 95 % intervals. In domain: trained on that set's domain."]
    if any(cell.prior is not None for row in matrix.cells.values() for cell in row.values()):
        notes[0] += (
            " Prior: accuracy of a text prior fitted on the training questions, without the image; then the "
            "gain over it."
        )
    mark = _marks(matrix)
    for name, mean in (("in domain", matrix.in_domain), ("out of domain", matrix.outside)):
        if mean:
            notes.append(f"Mean {name}: {percent(mean.value)}{mark} ({span(mean)}, {mean.method}).")
    if matrix.lost_outside:
        lost, p = matrix.lost_outside
        points = percent(lost.value, signed=True) + mark
        ends = f"({span(lost, signed=True)}, p {p_text(p)})"
        notes.append(f"In domain minus out of domain, on the same questions: {points} {ends}.")
    if any(row.seeds != matrix.seeds for row in matrix.trained.values()):
        notes.append(f"Means are over the seeds that all rows have: {', '.join(map(str, matrix.seeds))}.")
    notes += mark_notes(matrix.rows.values())
    return Table(f"Trained on one, tested on all: {matrix.label}", heads, rows, notes)


def change_table(matrices: Matrices, label: str) -> Table:
    """One matrix minus the first, cell by cell; bold if the adjusted test supports the difference."""
    first = matrices.matrices[0]
    changes = {(c.domain, c.test_set): c for c in matrices.changes if c.label == label}
    heads = [Cell("Trained on")] + [Cell(set_name(test)) for test in first.test_sets]
    other = next(matrix for matrix in matrices.matrices if matrix.label == label)
    shared = matrices.shared(other)
    touched = {test: _marks(first, test) or _marks(other, test) for test in first.test_sets}
    rows = [
        [Cell(set_name(domain)), *(difference_cell(changes[domain, t], touched[t]) for t in first.test_sets)]
        for domain in shared
    ]
    tests = " / ".join(sorted({change.test for change in matrices.changes}))
    n = ", ".join(str(len(first.image_groups(test))) for test in first.test_sets)
    notes = [
        f"Points on the same questions (n = {n}), 95 % interval, adjusted p ({tests}, Holm over "
        f"{len(matrices.changes)} tests). Bold: adjusted p below 0.05."
    ]
    if (least := len(matrices.changes) * 2 / (statistics.RESAMPLES + 1)) > LEVEL and "bootstrap" in tests:
        notes.append(f"With so many tests the adjusted p of a bootstrap is never below {least:.2f}.")
    if mean := changes.get((None, None)):
        points = percent(mean.interval.value, signed=True) + (_marks(first) or _marks(other))
        ends = span(mean.interval, signed=True)
        notes.append(f"Mean out of domain: {points} ({ends}), adjusted p {p_text(mean.adjusted)}.")
    if left_out := sorted({*first.trained, *other.trained} - {*shared}):
        names = ", ".join(map(set_name, left_out))
        notes.append(f"Left out, as only one of the two matrices has it: {names}.")
    notes += mark_notes([*first.rows.values(), *other.rows.values()])
    return Table(f"{label} minus {first.label}", heads, rows, notes)


def matrices_tables(matrices: Matrices) -> list[Table]:
    """Every matrix, then the changes from the first to each other one; a note lists unfinished runs."""
    tables = [
        *(matrix_table(matrix) for matrix in matrices.matrices),
        *(change_table(matrices, matrix.label) for matrix in matrices.matrices[1:]),
    ]
    if matrices.unfinished:
        names = ", ".join(path.name for path in matrices.unfinished)
        tables[0].notes.append(f"Unfinished, left out: {names}.")
    return tables


def matrices_csv(matrices: Matrices) -> str:
    """One line per cell, fractions in full precision."""
    rows = [
        {"matrix": matrix.label, "trained_on": domain, "tested_on": test, **cell.accuracy.as_dict()}
        | {"in_domain": cell.in_domain, "marks": cell.marks, "prior": cell.prior}
        | ({f"gain_{k}": getattr(cell.gain, k) for k in ("value", "low", "high")} if cell.gain else {})
        for matrix in matrices.matrices
        for domain, row in matrix.cells.items()
        for test, cell in row.items()
    ]
    return pd.DataFrame(rows).to_csv(index=False)


@PRINT_FONT
def heat_map(matrices: Matrices, path: Path) -> Path:
    """Draw all matrices side by side on one scale into a PNG on white; return its path."""
    caption = "accuracy in percent; framed: in domain; prior: of the text alone"
    return save_png(_figure(matrices.matrices, PRINT), path, caption)


def heat_map_svg(matrix: Matrix) -> Markup:
    """The heat map of one matrix for the page."""
    return svg(_figure([matrix], PAGE), f"matrix {matrix.label}")


def _figure(matrices: Sequence[Matrix], palette: Palette) -> Figure:
    test_sets = matrices[0].test_sets
    domains = dict.fromkeys(domain for matrix in matrices for domain in matrix.trained)
    names = list(dict.fromkeys([*(test for test in test_sets if test in domains), *domains]))
    names += [UNTRAINED] if any(UNTRAINED in matrix.rows for matrix in matrices) else []
    size = ((0.72 * len(test_sets) + 0.4) * len(matrices) + 1.4, 0.5 * len(names) + 1.3)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(matrices), squeeze=False, sharey=True)[0]
    for axes, matrix in zip(panels, matrices, strict=True):
        _heat_map(axes, matrix, names, palette)
    panels[0].invert_yaxis()
    panels[0].set_yticks([y + 0.5 for y in range(len(names))], [literal(set_name(name)) for name in names])
    panels[0].set_ylabel("trained on", color=palette.muted, fontsize=9)
    return figure


def _heat_map(axes: Axes, matrix: Matrix, names: Sequence[str], palette: Palette) -> None:
    rows = [list(matrix.cells[name].values()) if name in matrix.cells else [] for name in names]
    missing = [math.nan] * len(matrix.test_sets)
    values = [[cell.accuracy.value for cell in row] or missing for row in rows]
    axes.pcolormesh(values, cmap="YlGnBu", vmin=0, vmax=1, edgecolors="none")
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            _annotate(axes, cell, x + 0.5, y + 0.5)
    axes.set_title(literal(matrix.label), loc="left", fontsize=10, color=palette.ink)
    tests = [literal(set_name(test)) for test in matrix.test_sets]
    axes.set_xticks([x + 0.5 for x in range(len(tests))], tests, rotation=35, ha="right")
    axes.tick_params(length=0, labelsize=8.5, labelcolor=palette.ink)
    axes.spines[:].set_visible(False)
    if UNTRAINED in names:
        axes.axhline(len(names) - 1, color="white", lw=3)


def _annotate(axes: Axes, cell: MatrixCell, x: float, y: float) -> None:
    """Write accuracy and prior into a cell, and frame it if it is in domain."""
    # cells have the same colours in light and dark mode, so their text has too
    style = {"color": "white" if cell.accuracy.value > 0.55 else PRINT.ink, "ha": "center", "va": "center"}
    prior = cell.prior is not None
    axes.annotate(percent(cell.accuracy.value) + cell.marks, (x, y - 0.16 * prior), fontsize=8.5, **style)
    if prior:
        axes.annotate(f"prior {percent(cell.prior)}", (x, y + 0.22), fontsize=6, **style)
    if cell.in_domain:
        axes.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, lw=1.6, ec=style["color"]))


def _cell(cell: MatrixCell) -> Cell:
    notes = [span(cell.accuracy)] + ["in domain"] * cell.in_domain
    if cell.prior is not None:
        gain = percent(cell.gain.value, signed=True) if cell.gain else ""
        notes.append(f"prior {percent(cell.prior)} {gain}".rstrip())
    return Cell(percent(cell.accuracy.value) + cell.marks, "; ".join(notes))


def _marks(matrix: Matrix, test_set: str | None = None) -> str:
    """Marks of a number over all rows, on one test set or on all."""
    sets = [test_set] if test_set else matrix.test_sets
    return marks([run for row in matrix.trained.values() for run in row.runs], sets)
