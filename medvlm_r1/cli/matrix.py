"""Assemble a generalisation matrix: ``python -m medvlm_r1.matrix FOLDER...``."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from medvlm_r1.cli.folders import as_typed, destination, folder_parser
from medvlm_r1.report.matrix.assemble import assemble
from medvlm_r1.report.matrix.cells import Matrices
from medvlm_r1.report.matrix.tables import heat_map, matrices_csv, matrices_tables
from medvlm_r1.report.run_folder import RunFolderError
from medvlm_r1.report.tables.paper import as_latex
from medvlm_r1.report.tables.table import as_markdown, as_rich, table_console

PROG = "python -m medvlm_r1.matrix"
EXAMPLES = """examples:
  python run.py -m +experiment=med_r1_modality model=tiny data=phantom_modality data.domain=mri,ct,xray \\
      'controls=[image,prior]' sweep=modalities
  python -m medvlm_r1.matrix outputs/sweeps/modalities

Every run was trained on one domain (data.domain) and tested on all. Seeds of one configuration share a cell;
runs under several prompts make one matrix each, side by side. Writes matrix.json, matrix.md, matrix.tex,
matrix.csv and matrix.png. Exit code 2: a folder cannot be used; the line says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    described = "Trained on one of several domains, tested on all: accuracy, intervals, a heat map."
    given = folder_parser(PROG, described, EXAMPLES).parse_args(arguments)
    try:
        out = destination(given)
        matrices = assemble(given.folders)
    except RunFolderError as error:
        print(error, file=sys.stderr)
        return 2
    show(matrices, table_console())
    print("wrote " + ", ".join(map(str, write(matrices, out, as_typed(PROG, arguments)))))
    return 0


def show(matrices: Matrices, console: Console) -> None:
    """Print every table."""
    for table in matrices_tables(matrices):
        console.print(as_rich(table))


def write(matrices: Matrices, out: Path, command: str) -> list[Path]:
    """Write the tables in every form and the heat map into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    tables = matrices_tables(matrices)
    texts = {
        "json": json.dumps(matrices.as_dict(), indent=1) + "\n",
        "md": "\n".join([*map(as_markdown, tables), f"Made by `{command}`\n"]),
        "tex": f"% made by {command}\n{as_latex(tables, 'matrix')}",
        "csv": matrices_csv(matrices),
    }
    for ending, text in texts.items():
        (out / f"matrix.{ending}").write_text(text, encoding="utf-8")
    return [*(out / f"matrix.{ending}" for ending in texts), heat_map(matrices, out / "matrix.png")]


if __name__ == "__main__":
    sys.exit(main())
