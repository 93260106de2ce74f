"""Audit question files: ``medvlm-r1 audit --train FILE... --test FILE...``"""

import json
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from medvlm_r1.audit import Audit, audit
from medvlm_r1.audit.question_files import read_files
from medvlm_r1.cli.command import CommandError, command_parser, exits_on
from medvlm_r1.data.formats.question_file import require_rows
from medvlm_r1.data.images.dicom_header import ALLOW_IN_RUN
from medvlm_r1.data.images.volume import Volumes
from medvlm_r1.data.sample import BadRowError
from medvlm_r1.runs.shorten import shorten

EXAMPLES = """examples:
  medvlm-r1 audit --train train.json --test mri.json ct.json
  medvlm-r1 audit --train train.json --test test.json --images /data/OmniMedVQA --json audit.json
  medvlm-r1 audit --train xray_train.json --test xray_test.json --modality xray

Each test file is a set, named by its stem. Without image files on disk the audit compares paths and texts
only. Exit code 0: audited, with or without findings; 1: --fail-on-leak, and training contains an image of a
test set; 2: error; stderr gives the reason."""
_SHOWN = 5


@exits_on(ValueError)
def main(arguments: Sequence[str] | None = None) -> int:
    description = "Look for leaks, repeated questions, faulty images and shortcuts in question files."
    parser = command_parser("audit", description, EXAMPLES)
    files = {"nargs": "+", "type": Path, "metavar": "FILE"}
    parser.add_argument("--train", required=True, help="training questions, as one set", **files)
    parser.add_argument("--test", required=True, help="test questions, each file a set", **files)
    parser.add_argument("--validation", default=[], help="validation questions, as one set", **files)
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder that image paths are relative to")
    parser.add_argument("--modality", help="modality of all rows, for files without that column")
    allow = "read DICOM files that identify a patient or have burned-in text"
    parser.add_argument("--allow-identifying", action="store_true", help=allow)
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
    if args.images and not args.images.exists():
        raise CommandError(f"--images {args.images} does not exist: correct it, or leave it out")
    read = {"train": args.train, "validation": args.validation}
    for path in args.test:
        name = path.stem if path.stem not in read else path.as_posix()
        read[name] = [path]
    parts, faults, refused = {}, [], {}
    volumes = Volumes(allow_identifying=args.allow_identifying)
    for name, paths in read.items():
        rows = read_files(paths, args.images, args.modality, volumes)
        parts[name], refused[name] = rows.samples, rows.refused
        faults += rows.faults
        if paths:
            require_rows(", ".join(map(str, paths)), rows.samples, rows.faults)
    train, validation = parts.pop("train"), parts.pop("validation")
    try:
        return audit(train, parts, validation, faults, refused=refused, apart=_apart(args, read))
    except BadRowError as error:
        raise CommandError(str(error).replace(ALLOW_IN_RUN, "give --allow-identifying")) from None


def _apart(args: Namespace, read: Mapping[str, Sequence[Path]]) -> str:
    """Say from which folders the image paths start, if these differ."""
    folders = {
        name: sorted({str(path.parent.resolve()) for path in paths}) for name, paths in read.items() if paths
    }
    if args.images or len({folder for names in folders.values() for folder in names}) < 2:
        return ""
    starts = ", ".join(f"{name} from {' and '.join(map(shorten, names))}" for name, names in folders.items())
    return f"image paths start from different folders ({starts}): give --images DIR if they share one"


def show(result: Audit, console: Console) -> None:
    """Print every finding, the verdict last."""
    heads = ("from", "into", "questions", "copies", "%", "of which")
    rows = [
        (leak.source, leak.target, leak.n, leak.questions, f"{100 * leak.share:.1f}", kinds or "none")
        for leak in result.leaks
        for kinds in [", ".join(f"{n} {kind}" for kind, n in leak.kinds.items())]
    ]
    console.print(_table("Images of one set in another", heads, rows))
    for leak in result.leaks:
        if leak.pairs:
            console.print(escape(f"{leak.source} into {leak.target}:"), highlight=False)
        for pair in leak.pairs[:_SHOWN]:
            distance = f" (distance {pair.distance:.3f})" if pair.distance else ""
            line = f"  {pair.kind}{distance}: {pair.second}"
            line += "" if pair.first == pair.second else f" of {pair.first}"
            console.print(escape(line), highlight=False, soft_wrap=True)
        if len(leak.pairs) > _SHOWN:
            console.print(f"  ... and {len(leak.pairs) - _SHOWN} more pairs (--json)", highlight=False)
    console.print()
    rows = [
        (name, rule, f"{100 * s.accuracy:.1f}", f"{100 * s.chance:.1f}", s.n)
        for name, scores in result.shortcuts.items()
        for rule, s in scores.items()
    ]
    heads = ("test set", "rule", "accuracy", "chance", "n")
    console.print(_table("Accuracy without the image, %", heads, rows))
    rows = [
        (name, b.n, b.images, len(result.repeated[name]), *map(_counts, (b.letters, b.options, b.modalities)))
        for name, b in result.sets.items()
    ]
    heads = ("set", "questions", "images", "repeated", "gold letters", "options", "modalities")
    console.print(_table("Balance", heads, rows))
    for line in result.faults[:_SHOWN]:
        console.print(escape(f"fault: {line}"), highlight=False)
    if len(result.faults) > _SHOWN:
        console.print(f"... and {len(result.faults) - _SHOWN} more faults (--json)", highlight=False)
    console.print(escape(f"\nVerdict: {result.verdict}."), highlight=False)


def _counts(counts: Mapping[object, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items())


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table of plain text; Text objects, because names can contain console markup."""
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    numbers = ("questions", "copies", "%", "accuracy", "chance", "n", "images", "repeated")
    for head in heads:
        table.add_column(head, justify="right" if head in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row))
    return table


if __name__ == "__main__":
    sys.exit(main())
