"""Tables for a paper: LaTeX with booktabs, and CSV with one number per line."""

from collections.abc import Iterable

import pandas as pd

from medvlm_r1.report.comparison import Comparison
from medvlm_r1.report.tables.table import Cell, Table

_SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "[": "{[}",  # after a line break it would open an optional argument
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\ensuremath{<}",
    ">": r"\ensuremath{>}",
    "\N{MINUS SIGN}": r"\ensuremath{-}",
    "\N{EN DASH}": "--",
    "\N{DAGGER}": r"\textsuperscript{\textdagger}",
    "\N{DOUBLE DAGGER}": r"\textsuperscript{\textdaggerdbl}",
}


def as_latex(tables: list[Table], label: str = "medvlm_r1") -> str:
    """``table`` environments with the notes in the caption; tables after the first number their ``label``."""
    parts = [_environment(table, f"tab:{label}" + (f"-{k}" if k else "")) for k, table in enumerate(tables)]
    return "% needs \\usepackage{booktabs}\n" + "\n".join(parts)


def as_csv(c: Comparison) -> str:
    """Accuracy, format rates and differences, one per line, fractions in full precision."""
    rows = []
    for quantity, rates in c.rates.items():
        for label, columns in rates.items():
            best = {scope: quantity == "accuracy" and c.best(scope) == label for scope in columns}
            rows += [
                {"quantity": quantity, "row": label, "column": scope, **i.as_dict(), "supported": best[scope]}
                for scope, i in columns.items()
            ]
    for d in c.differences:
        rows.append(
            {"quantity": "difference", "row": d.first, "minus": d.second, "column": d.where}
            | d.interval.as_dict()
            | {"p": d.p, "p_holm": d.adjusted, "test": d.test, "supported": d.supported}
        )
    columns = ["quantity", "row", "minus", "column", "value", "low", "high", "n", "method"]
    columns += ["p", "p_holm", "test", "supported"]
    return pd.DataFrame(rows, columns=columns).to_csv(index=False)


def _environment(table: Table, label: str) -> str:
    head, *body = ([_line(map(_bold, row)), _line(map(_small, row))] for row in (table.heads, *table.rows))
    return "\n".join(
        [
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{escaped(table.title)}. {escaped(' '.join(table.notes))}}}",
            f"\\label{{{label}}}",
            f"\\begin{{tabular}}{{l{'r' * (len(table.heads) - 1)}}}",
            "\\toprule",
            *filter(None, head),
            "\\midrule",
            *(line for lines in body for line in lines if line),
            "\\bottomrule",
            "\\end{tabular}",
            "\\end{table}",
            "",
        ]
    )


def escaped(text: str) -> str:
    """Escape plain text, so that LaTeX prints it literally."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def _line(cells: Iterable[str]) -> str:
    """One table row; empty if all its cells are empty."""
    cells = list(cells)
    return " & ".join(cells) + r" \\" if any(cells) else ""


def _bold(cell: Cell) -> str:
    return f"\\textbf{{{escaped(cell.text)}}}" if cell.bold else escaped(cell.text)


def _small(cell: Cell) -> str:
    return f"{{\\footnotesize {escaped(cell.note.replace('; ', ', '))}}}" if cell.note else ""
