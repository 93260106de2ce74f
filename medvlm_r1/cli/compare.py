"""Compare runs: ``medvlm-r1 compare FOLDER...`` prints the table and writes the page."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from medvlm_r1.cli.command import command_line, exits_on, folder_parser, output_folder, write_texts
from medvlm_r1.report.comparison import Comparison, compare
from medvlm_r1.report.figures import comparison_figure
from medvlm_r1.report.page.headline import caveat, headline
from medvlm_r1.report.page.render import write_page
from medvlm_r1.report.run_folder import RunFolderError
from medvlm_r1.report.tables.controls import control_numbers, control_summary, control_table
from medvlm_r1.report.tables.paper import as_csv, as_latex
from medvlm_r1.report.tables.table import (
    accuracy_table,
    as_markdown,
    difference_table,
    escape_markdown,
    fairness_lines,
    print_table,
    table_console,
)
from medvlm_r1.tracking.comparison import send_comparison
from medvlm_r1.tracking.wandb_run import TrackingError

EXAMPLES = """examples:
  medvlm-r1 compare outputs/sweeps/main_table
  medvlm-r1 compare outputs/runs/sft_600-seed0 outputs/runs/grpo_600-seed0 --out outputs/sft_grpo
  medvlm-r1 compare outputs/sweeps/ablate_beta --baseline sft_600 --wandb medvlm_r1

Runs that differ only in the seed share a row. Writes comparison.json, comparison.md,
comparison.tex (booktabs), comparison.csv, accuracy.png and report.html.
Exit code 2: error; stderr gives the reason."""


@exits_on(RunFolderError, TrackingError)
def main(arguments: Sequence[str] | None = None) -> int:
    description = (
        "Compare finished runs on the same questions: intervals, paired tests, fairness, an HTML page."
    )
    parser = folder_parser("compare", description, EXAMPLES)
    baseline = "experiment, method or row label of the baseline of differences (default: zero_shot)"
    parser.add_argument("--baseline", help=baseline)
    wandb = "also send tables, figure and page, which hold answers and images, to this project of W&B"
    parser.add_argument("--wandb", metavar="PROJECT", help=wandb)
    args = parser.parse_args(arguments)
    out = output_folder(args)
    comparison = compare(args.folders, args.baseline)
    paths = write(comparison, out, command_line(parser, arguments))
    show(comparison, table_console())
    if args.wandb:
        send_comparison(comparison, out, paths, args.wandb)
    print("wrote " + ", ".join(map(str, paths)))
    return 0


def show(c: Comparison, console: Console) -> None:
    """Print the tables, the fairness list and what is missing."""
    print_table(accuracy_table(c), console)
    if c.differences:
        print_table(difference_table(c), console)
    if controls := control_summary(c):
        print_table(controls, console)
    for fairness in c.fairness:
        console.print("[bold]Fairness[/bold]")
        console.print(escape("\n".join(fairness_lines(fairness))), highlight=False)
    for folder in c.unfinished:
        console.print(f"unfinished, left out: {escape(str(folder))} (no metrics.json)", highlight=False)
    if c.baseline is None and len(c.groups) > 1:
        console.print("no zero-shot run: differences from a baseline are left out (or name one: --baseline)")
    console.print("\n" + escape(headline(c)), highlight=False)
    if caveat(c):
        console.print(escape(caveat(c)), highlight=False)


def write(c: Comparison, out: Path, command: str) -> list[Path]:
    """Write ``comparison.json``, ``.md``, ``.tex`` and ``.csv``, ``accuracy.png`` and ``report.html``."""
    figures = c.as_dict() | {"controls": control_numbers(c)}
    tables = [accuracy_table(c), difference_table(c) if c.differences else None, control_table(c)]
    tables = [table for table in tables if table]
    parts = [escape_markdown(headline(c)), caveat(c), *map(as_markdown, tables)]
    for fairness in c.fairness:
        lines = "\n".join(f"- {escape_markdown(line)}" for line in fairness_lines(fairness))
        parts.append(f"### Fairness\n\n{lines}")
    parts += [f"Unfinished, left out: {escape_markdown(str(folder))}" for folder in c.unfinished]
    parts.append(f"Made by `{command}`")
    paths = write_texts(
        out,
        "comparison",
        json=json.dumps(figures, indent=1) + "\n",
        md="\n\n".join(filter(None, parts)) + "\n",
        tex=f"% made by {command}\n{as_latex(tables, 'comparison')}",
        csv=as_csv(c),
    )
    return [*paths, comparison_figure(c, out / "accuracy.png"), write_page(c, out, command)]


if __name__ == "__main__":
    sys.exit(main())
