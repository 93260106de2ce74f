"""The command ``medvlm-r1``: one word chooses what it does."""

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version

from medvlm_r1.runs.shorten import shorten

# Module of each command, and what the command does.
COMMANDS = {
    "run": ("medvlm_r1.run", "train and evaluate: one run, or a sweep with -m"),
    "compare": ("medvlm_r1.cli.compare", "compare runs: intervals, paired tests, the HTML page"),
    "sweep": ("medvlm_r1.cli.sweep", "summarise a sweep: the effect of each setting, and the cost"),
    "matrix": ("medvlm_r1.cli.matrix", "train on one domain, test on all: Med-R1's matrices"),
    "audit": ("medvlm_r1.cli.audit", "find leaks and shortcuts in question files"),
    "difficulty": ("medvlm_r1.difficulty", "measure how often the base answers each training question"),
    "predict": ("medvlm_r1.cli.predict", "answer questions about images with a trained model"),
    "export": ("medvlm_r1.cli.export", "describe, merge or publish a trained model"),
}


def usage() -> str:
    """The help text."""
    lines = [f"  {name:<12}{purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: medvlm-r1 COMMAND ...",
            "",
            "Train and evaluate reasoning vision-language models for medical questions.",
            "",
            "commands:",
            *lines,
            "",
            "medvlm-r1 COMMAND --help shows the options of a command, medvlm-r1 --version the version.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int | None:
    """Run a command; returns its exit code."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"medvlm_r1 {version('medvlm_r1')}")
        return 0
    if name not in COMMANDS:
        near = get_close_matches(name[:80], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
        print(f"error: there is no command {shorten(name)}: {hint}", file=sys.stderr)
        return 2
    sys.argv[1:] = rest
    return import_module(COMMANDS[name][0]).main()


if __name__ == "__main__":
    sys.exit(main())
