"""Assemble a generalisation matrix: ``python -m medvlm_r1.matrix FOLDER...``."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from medvlm_r1.report.matrix import Matrices
from medvlm_r1.report.matrix_lines import assemble
from medvlm_r1.report.matrix_tables import heat_map, matrices_csv, matrices_tables
from medvlm_r1.report.paper_tables import as_latex
from medvlm_r1.report.run_folder import RunFolderError
from medvlm_r1.report.tables import as_markdown, as_rich, table_console

EXAMPLES = """examples:
  python run.py -m +experiment=med_r1_modality model=tiny data=phantom_modality data.domain=mri,ct,xray \\
      'controls=[image,prior]' sweep=modalities
  python -m medvlm_r1.matrix outputs/sweeps/modalities

Every run was trained on one domain (data.domain) and tested on all. Seeds of one configuration share a cell;
runs under several prompts make one matrix each, side by side. Writes matrix.json, matrix.md, matrix.tex,
matrix.csv and matrix.png. Exit code 2: a folder cannot be used; the line says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m medvlm_r1.matrix",
        description="Trained on one of several domains, tested on all: accuracy, intervals, a heat map.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a sweep, or run folders")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (default: FOLDER, if only one is given)"
    )
    given = parser.parse_args(arguments)
    if given.out is None and len(given.folders) > 1:
        print("several folders: name the folder to write into with --out DIR", file=sys.stderr)
        return 2
    try:
        matrices = assemble(given.folders)
    except RunFolderError as error:
        print(error, file=sys.stderr)
        return 2
    typed = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "medvlm_r1.matrix", *map(str, typed)])
    show(matrices, table_console())
    print("wrote " + ", ".join(map(str, write(matrices, given.out or given.folders[0], command))))
    return 0


def show(matrices: Matrices, console: Console) -> None:
    """Print every table, and which runs are missing."""
    for table in matrices_tables(matrices):
        console.print(as_rich(table))
    for folder in matrices.unfinished:
        console.print(f"unfinished, left out: {folder} (no metrics.json)", highlight=False, markup=False)


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
