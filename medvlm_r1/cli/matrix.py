"""Assemble a generalisation matrix: ``medvlm-r1 matrix FOLDER...``."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from medvlm_r1.cli.command import command_line, exits_on, folder_parser, output_folder, write_texts
from medvlm_r1.report.matrix.assemble import assemble
from medvlm_r1.report.matrix.cells import Matrices
from medvlm_r1.report.matrix.tables import heat_map, matrices_csv, matrices_tables
from medvlm_r1.report.run_folder import RunFolderError
from medvlm_r1.report.tables.paper import as_latex
from medvlm_r1.report.tables.table import as_markdown, print_table, table_console

EXAMPLES = """examples:
  python run.py -m +experiment=med_r1_modality model=tiny data=phantom_modality data.domain=mri,ct,xray \\
      'controls=[image,prior]' sweep=modalities
  medvlm-r1 matrix outputs/sweeps/modalities

Each run is trained on one domain (data.domain) and tested on all. Runs that differ only in the seed share a
cell; each prompt has a matrix of its own. Writes matrix.json, matrix.md, matrix.tex, matrix.csv, matrix.png.
Exit code 2: error; stderr gives the reason."""


@exits_on(RunFolderError)
def main(arguments: Sequence[str] | None = None) -> int:
    description = "Accuracy by training domain and test domain: tables, intervals, a heat map."
    parser = folder_parser("matrix", description, EXAMPLES)
    args = parser.parse_args(arguments)
    out = output_folder(args)
    matrices = assemble(args.folders)
    console = table_console()
    for table in matrices_tables(matrices):
        print_table(table, console)
    print("wrote " + ", ".join(map(str, write(matrices, out, command_line(parser, arguments)))))
    return 0


def write(matrices: Matrices, out: Path, command: str) -> list[Path]:
    """Write the tables in every form and the heat map into ``out``."""
    tables = matrices_tables(matrices)
    paths = write_texts(
        out,
        "matrix",
        json=json.dumps(matrices.as_dict(), indent=1) + "\n",
        md="\n".join([*map(as_markdown, tables), f"Made by `{command}`\n"]),
        tex=f"% made by {command}\n{as_latex(tables, 'matrix')}",
        csv=matrices_csv(matrices),
    )
    return [*paths, heat_map(matrices, out / "matrix.png")]


if __name__ == "__main__":
    sys.exit(main())
