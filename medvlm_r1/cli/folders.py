"""What the commands that read run folders share: which folders, and where to write."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from medvlm_r1.report.run_folder import RunFolderError


def folder_parser(prog: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Takes run folders and ``--out``; a command adds its own options."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="a run folder, or a folder of run folders"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (default: FOLDER, if only one is given)"
    )
    return parser


def destination(given: argparse.Namespace) -> Path:
    """The folder to write into.

    Raises:
        RunFolderError: several folders were given, and none to write into.
    """
    if given.out is None and len(given.folders) > 1:
        raise RunFolderError("several folders: name the folder to write into with --out DIR")
    return given.out or given.folders[0]


def as_typed(prog: str, arguments: Sequence[str] | None) -> str:
    """The command as one types it, to stand beside what it wrote."""
    typed = sys.argv[1:] if arguments is None else arguments
    return f"{prog} {shlex.join(map(str, typed))}"
