"""Audit question files: ``python -m medvlm_r1.audit --train FILE... --test FILE...``"""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medvlm_r1.audit import Audit, audit
from medvlm_r1.audit.question_files import read_files
from medvlm_r1.cli.command import command_parser, exits_on
from medvlm_r1.data.sample import BadRowError

EXAMPLES = """examples:
  python -m medvlm_r1.audit --train train.json --test mri.json ct.json
  python -m medvlm_r1.audit --train train.json --test test.json --images /data/OmniMedVQA --json audit.json
  python -m medvlm_r1.audit --train xray_train.json --test xray_test.json --modality xray

Each test file is a set, named by its stem. Without image files on disk the audit compares paths and texts
only. Exit code 0: audited, with or without findings; 1: --fail-on-leak, and training contains an image of a
test set; 2: error; stderr gives the reason."""
_SHOWN = 5


@exits_on(ValueError)
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    description = "Look for leaks, repeated questions, faulty images and shortcuts in question files."
    parser = command_parser("audit", description, EXAMPLES)
    files = {"nargs": "+", "type": Path, "metavar": "FILE"}
    parser.add_argument("--train", required=True, help="training questions, as one set", **files)
    parser.add_argument("--test", required=True, help="test questions, each file a set", **files)
    parser.add_argument("--validation", default=[], help="validation questions, as one set", **files)
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder that image paths are relative to")
    parser.add_argument("--modality", help="modality of all rows, for files without that column")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all findings to this file")
    parser.add_argument("--fail-on-leak", action="store_true", help="exit code 1 if there is a leak")
    args = parser.parse_args(arguments)
    findings = _audited(args)
    show(findings, Console() if sys.stdout.isatty() else Console(width=110))
    if args.json:
        text = json.dumps(findings.as_dict(), indent=1, ensure_ascii=False)
        args.json.write_text(text + "\n", encoding="utf-8")
        print(f"wrote {args.json}")
    return 1 if args.fail_on_leak and findings.into_tests else 0


def _audited(args: Namespace) -> Audit:
    read = {"train": args.train, "validation": args.validation}
    for path in args.test:
        name = path.stem if path.stem not in read else path.as_posix()
        read[name] = [path]
    parts, faults = {}, []
    for name, paths in read.items():
        parts[name], more = read_files(paths, args.images, args.modality)
        faults += more
        if paths and not parts[name]:
            raise BadRowError(f"{paths[0]}: no row can be used; the first: {more[0]}")
    tests = {name: samples for name, samples in parts.items() if name not in ("train", "validation")}
    return audit(parts["train"], tests, parts["validation"], faults)


def show(found: Audit, console: Console) -> None:
    """Print every finding, the verdict last."""
    leaks = _table("Images of one set in another", "from", "into", "questions", "copies", "%", "of which")
    for leak in found.leaks:
        kinds = ", ".join(f"{n} {kind}" for kind, n in leak.kinds.items()) or "none"
        share = f"{100 * leak.share:.1f}"
        leaks.add_row(leak.source, leak.target, str(leak.n), str(leak.questions), share, kinds)
    console.print(leaks)
    for leak in found.leaks:
        if leak.pairs:
            console.print(escape(f"{leak.source} into {leak.target}:"), highlight=False)
        for pair in leak.pairs[:_SHOWN]:
            far = f" (distance {pair.distance:.3f})" if pair.distance else ""
            line = f"  {pair.kind}{far}: {pair.second}"
            line += "" if pair.first == pair.second else f" of {pair.first}"
            console.print(escape(line), highlight=False, soft_wrap=True)
        if len(leak.pairs) > _SHOWN:
            console.print(f"  ... and {len(leak.pairs) - _SHOWN} more pairs (--json)", highlight=False)
    console.print()
    rules = _table("Right without looking, %", "test set", "rule", "accuracy", "chance", "n")
    for name, scores in found.shortcuts.items():
        for rule, s in scores.items():
            rules.add_row(name, rule, f"{100 * s.accuracy:.1f}", f"{100 * s.chance:.1f}", str(s.n))
    console.print(rules)
    made_of = _table(
        "Balance", "set", "questions", "images", "twice", "gold letters", "options", "modalities"
    )
    for name, b in found.sets.items():
        counts = [", ".join(f"{k} {n}" for k, n in c.items()) for c in (b.letters, b.options, b.modalities)]
        made_of.add_row(name, str(b.n), str(b.images), str(len(found.repeated[name])), *counts)
    console.print(made_of)
    for line in found.faults[:_SHOWN]:
        console.print(escape(f"fault: {line}"), highlight=False)
    if len(found.faults) > _SHOWN:
        console.print(f"... and {len(found.faults) - _SHOWN} more faults (--json)", highlight=False)
    console.print(escape(f"\nVerdict: {found.verdict}."), highlight=False)


def _table(title: str, *heads: str) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for k, head in enumerate(heads):
        numeric = head in ("questions", "copies", "%", "accuracy", "chance", "n", "images", "twice")
        table.add_column(head, justify="right" if numeric and k else "left", overflow="fold")
    return table


if __name__ == "__main__":
    sys.exit(main())
