"""How every command parses its arguments, reports an error and exits."""

import functools
import shlex
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from medvlm_r1.runs.shorten import MAX_ERROR, clip


class CommandError(ValueError):
    """The command cannot be carried out. The message gives the reason and the remedy."""


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(clip(message, 500))  # the usage stands before it


def command_parser(name: str, description: str, epilog: str) -> ArgumentParser:
    """Return the parser of ``medvlm-r1 <name>``; the epilog keeps its line breaks."""
    return _Parser(
        prog=f"medvlm-r1 {name}",
        description=description,
        epilog=epilog,
        formatter_class=RawDescriptionHelpFormatter,
    )


def folder_parser(
    name: str, description: str, epilog: str, folders: str = "a run folder, or a folder of run folders"
) -> ArgumentParser:
    """Return a parser with folders, described by ``folders``, and ``--out`` as arguments."""
    parser = command_parser(name, description, epilog)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help=folders)
    out = "output folder (default: FOLDER, if there is only one)"
    parser.add_argument("--out", type=Path, metavar="DIR", help=out)
    return parser


def output_folder(args: Namespace) -> Path:
    """Return the folder to write to; CommandError for several input folders without ``--out``."""
    if args.out is None and len(args.folders) > 1:
        raise CommandError("several folders: name the output folder with --out DIR")
    return args.out or args.folders[0]


def command_line(parser: ArgumentParser, arguments: Sequence[str] | None) -> str:
    """Return the command that a user can copy to repeat this call; results record it."""
    return f"{parser.prog} {shlex.join(map(str, sys.argv[1:] if arguments is None else arguments))}"


def write_texts(folder: Path, stem: str, **texts: str) -> list[Path]:
    """Write each text to ``folder/stem.<name of the argument>``; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for ending, text in texts.items():
        (folder / f"{stem}.{ending}").write_text(text, encoding="utf-8")
    return [folder / f"{stem}.{ending}" for ending in texts]


def exits_on(*errors: type[Exception]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorate ``main``, which runs a command and returns its exit code.

    A CommandError, an OSError or one of ``errors`` becomes one line on stderr and exit code 2.
    """

    def decorate(main: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(main)
        def run(arguments: Sequence[str] | None = None) -> int:
            try:
                return main(arguments)
            except (CommandError, OSError, *errors) as error:
                print(f"error: {clip(' '.join(str(error).split()), MAX_ERROR)}", file=sys.stderr)
                return 2

        return run

    return decorate
