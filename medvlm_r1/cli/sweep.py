"""Summarise a multirun: ``medvlm-r1 sweep FOLDER`` prints statuses, costs and effects."""

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from medvlm_r1.cli.command import (
    CommandError,
    command_line,
    exits_on,
    folder_parser,
    output_folder,
    write_texts,
)
from medvlm_r1.report.comparison import MEAN
from medvlm_r1.report.run_folder import RunFolderError
from medvlm_r1.report.sweep.figures import effects_figure, parallel_figure
from medvlm_r1.report.sweep.joint import JointSweep, read_sweeps
from medvlm_r1.report.sweep.tables import state_lines, sweep_tables
from medvlm_r1.report.tables.table import as_markdown, print_table, table_console
from medvlm_r1.runs.status import FINISHED

EXAMPLES = """examples:
  medvlm-r1 sweep outputs/sweeps/ablate_beta
  medvlm-r1 sweep outputs/sweeps/ablate_beta --on outside --smallest 5
  medvlm-r1 sweep outputs/sweeps/reference outputs/sweeps/ablate_* --out outputs/sweeps/ablations

A factor is a key of the command line that takes several values. Several folders are one family of tests. If
the runs of the first differ in no factor, they are the first level in each other sweep that differs from them
in one key. Writes sweep.json, sweep.md and sweep.csv, effects.png, and for one folder parallel.png.
Exit code 1: some runs are not finished. Exit code 2: error; stderr gives the reason."""


@exits_on(RunFolderError)
def main(arguments: Sequence[str] | None = None) -> int:
    description = "Runs of multiruns by status, their costs, and the effect of each factor on accuracy."
    parser = folder_parser("sweep", description, EXAMPLES, "the folder of a multirun")
    on = "test set of the effects, mean (default) or outside (all outside the training domain)"
    parser.add_argument("--on", default=MEAN, metavar="TEST_SET", help=on)
    smallest = "smallest difference that matters, planned before the runs: adds a verdict for each level"
    parser.add_argument("--smallest", type=float, metavar="POINTS", help=smallest)
    args = parser.parse_args(arguments)
    if args.smallest is not None and not 0 < args.smallest < 100:
        raise CommandError(
            f"--smallest is {args.smallest:g}: give points of accuracy between 0 and 100, such as 5"
        )
    out = output_folder(args)
    joint = read_sweeps(args.folders, args.on, None if args.smallest is None else args.smallest / 100)
    console = table_console()
    for line in map(escape, state_lines(joint)):
        console.print(line, highlight=False)
    for table in sweep_tables(joint):
        print_table(table, console)
    print("wrote " + ", ".join(map(str, write(joint, out, command_line(parser, arguments)))))
    return 0 if all(len(sweep.statuses) == len(sweep.finished) for sweep in joint.sweeps) else 1


def write(joint: JointSweep, folder: Path, command: str) -> list[Path]:
    """Write the tables in every form and the drawings into ``folder``."""
    drawings = []
    if joint.effects:
        folder.mkdir(parents=True, exist_ok=True)
        drawings.append(effects_figure(joint, folder / "effects.png"))
        if len(joint.sweeps) == 1:
            drawings.append(parallel_figure(joint.sweeps[0], folder / "parallel.png"))
    parts = ["\n".join(state_lines(joint)), *map(as_markdown, sweep_tables(joint))]
    parts += ["![Effect of each level](effects.png)"] if joint.effects else []
    markdown = "\n\n".join([*parts, f"Made by `{command}`"]) + "\n"
    found = json.dumps(joint.as_dict(), indent=1) + "\n"
    return [*write_texts(folder, "sweep", json=found, md=markdown, csv=_csv(joint)), *drawings]


def _csv(joint: JointSweep) -> str:
    """One line per run and test set, with the run's level of every factor."""
    factors = list(dict.fromkeys(factor for sweep in joint.sweeps for factor in sweep.factors))
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(["sweep", "run", "state", "seed", *factors, "test_set", "accuracy", "low", "high", "n"])
    for sweep in joint.sweeps:
        name = sweep.folder.name
        for levels, group in sweep.cells.items():
            own = dict(zip(sweep.factors, levels, strict=True))
            for run in group.runs:
                start = [
                    name,
                    run.folder.name,
                    FINISHED,
                    run.seed,
                    *(own.get(factor, "") for factor in factors),
                ]
                for test, rate in run.metrics["accuracy"].items():
                    lines.writerow([*start, test, *(rate[key] for key in ("value", "low", "high", "n"))])
        others = ((run, state) for run, state in sweep.statuses.items() if run not in sweep.finished)
        lines.writerows([name, run, state] for run, state in others)
    return out.getvalue()


if __name__ == "__main__":
    sys.exit(main())
