"""Summarise a multirun: ``medvlm-r1 sweep FOLDER`` prints statuses, costs and effects."""

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from medvlm_r1.cli.command import command_line, command_parser, exits_on
from medvlm_r1.report.comparison import MEAN
from medvlm_r1.report.run_folder import RunFolderError
from medvlm_r1.report.sweep.figures import effects_figure, parallel_figure
from medvlm_r1.report.sweep.summary import Sweep, read_sweep
from medvlm_r1.report.sweep.tables import state_lines, sweep_tables
from medvlm_r1.report.tables.table import as_markdown, print_table, table_console

EXAMPLES = """examples:
  medvlm-r1 sweep outputs/sweeps/ablate_beta
  medvlm-r1 sweep outputs/sweeps/ablate_beta --on outside

A factor is a key of the command line that takes several values. Writes sweep.json, sweep.md and sweep.csv
into the folder, and with at least one factor effects.png and parallel.png.
Exit code 1: some runs are not finished. Exit code 2: error; stderr gives the reason."""


@exits_on(RunFolderError)
def main(arguments: Sequence[str] | None = None) -> int:
    description = "Runs of a multirun by status, their costs, and the effect of each factor on accuracy."
    parser = command_parser("sweep", description, EXAMPLES)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder of a multirun")
    on = "test set of the effects, mean (default) or outside (all outside the training domain)"
    parser.add_argument("--on", default=MEAN, metavar="TEST_SET", help=on)
    args = parser.parse_args(arguments)
    sweep = read_sweep(args.folder, args.on)
    console = table_console()
    for line in state_lines(sweep):
        console.print(escape(line), highlight=False)
    for table in sweep_tables(sweep):
        print_table(table, console)
    print("wrote " + ", ".join(map(str, write(sweep, command_line(parser, arguments)))))
    return 0 if len(sweep.runs) == len(sweep.statuses) else 1


def write(sweep: Sweep, command: str) -> list[Path]:
    """Write the tables in every form and the drawings into the sweep's folder."""
    folder = sweep.folder
    paths = [folder / f"sweep.{ending}" for ending in ("json", "md", "csv")]
    found = sweep.as_dict() if sweep.runs else {"statuses": sweep.statuses}
    paths[0].write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    parts = ["\n".join(state_lines(sweep)), *map(as_markdown, sweep_tables(sweep)), f"Made by `{command}`"]
    paths[1].write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    with paths[2].open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["run", "state", "seed", *sweep.factors, "test_set", "accuracy", "low", "high", "n"])
        for levels, row in sweep.cells.items() if sweep.runs else ():
            for run in row.runs:
                for test, rate in run.metrics["accuracy"].items():
                    figures = [rate["value"], rate["low"], rate["high"], rate["n"]]
                    lines.writerow([run.folder.name, "finished", run.seed, *levels, test, *figures])
        done = {run.folder.name for run in sweep.runs}
        lines.writerows([name, state] for name, state in sweep.statuses.items() if name not in done)
    if sweep.runs and sweep.effects:
        paths.append(effects_figure(sweep, folder / "effects.png"))
        paths.append(parallel_figure(sweep, folder / "parallel.png"))
    return paths


if __name__ == "__main__":
    sys.exit(main())
