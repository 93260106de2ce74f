"""Every command in README.md and docs/ is run, composed or parsed; every printed output is today's.

A bash block whose last command's output the page shows has ``<!-- prints -->`` above that output. With
``<!-- prints after make run -->`` the command needs the results of ``make run``: ``make check-outputs``
compares it.
"""

import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from argparse import ArgumentParser
from contextlib import chdir, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import pytest
from command import ROOT, environment, run_here
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from pages import Block, Command, blocks, differences, tokens, written_files

from medvlm_r1.cli import main as cli
from medvlm_r1.launch import compose
from medvlm_r1.launch.reference import read_reference
from medvlm_r1.launch.validate import check_settings

FIRST = ROOT / "docs/quickstart.md"  # later pages use the files that it writes
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in (FIRST, ROOT / "README.md", *ROOT.glob("docs/**/*.md"))
}
BLOCKS = [block for name, path in PAGES.items() for block in blocks(name, path.read_text())]
# The configuration page continues with the comments in conf/, which have commands too.
HOOKS = runpy.run_path(str(ROOT / "docs/hooks.py"))
BLOCKS += blocks("conf", "\n\n".join(HOOKS["configuration"](read_reference())))
MINIATURE = os.environ.get("MEDVLM_R1_MINIATURE")  # the folder outputs/ of `make run`
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
EXAMPLES = ROOT / "docs/examples/own_part"  # the folder in which the page that includes them works
TARGETS = re.findall(r"(?m)^([a-z-]+):.*##", (ROOT / "Makefile").read_text())
RUN = {("python", "run.py"), ("medvlm-r1", "run")}
# Commands of a shell and of other programs, which no test starts: those that print a file are run.
PRINTERS = {"head", "cat", "ls"}
OTHERS = {"cd", "docker", "export", "git", "mlflow", "pre-commit", "ssh", "tensorboard", "vllm", "wandb"}
FILES = {"bash", "sbatch", "source"}


class ParsedError(Exception):
    """The parser accepted the arguments."""


def compose_all(arguments: list[str]) -> None:
    """Compose a command's jobs so that each value of a sweep is in one of them, not every combination."""
    with redirect_stderr(io.StringIO()) as notices:
        args = compose.parse_arguments(compose.hydra_arguments(arguments))
    assert not notices.getvalue(), notices.getvalue()
    for group in ("hydra/launcher", "hydra/sweeper"):
        for override in args.overrides:
            if override.startswith(f"{group}="):
                name = override.partition("=")[2]
                assert (compose.CONF / group / f"{name}.yaml").exists(), f"{group} has no option {name}"
    values = []
    for parsed in OverridesParser.create().parse_overrides(args.overrides):
        value = parsed.value()
        if not parsed.is_sweep_override():
            values.append([parsed.input_line])
        elif isinstance(value, IntervalSweep):
            values.append([f"{parsed.get_key_element()}={value.start}"])
        else:
            assert args.multirun, f"{parsed.input_line} has several values: -m is missing"
            values.append([f"{parsed.get_key_element()}={one}" for one in parsed.sweep_string_iterator()])
    args.multirun = False
    with compose.initialized_hydra(args):
        for job in range(max(map(len, values), default=1)):
            args.overrides = [choices[min(job, len(choices) - 1)] for choices in values]
            for _, cfg, _ in compose.compose(args):
                check_settings(cfg)


def check_arguments(command: Command) -> None:
    """Let the command's own parser read its arguments."""
    parse = ArgumentParser.parse_args

    def stop(parser, arguments=None, namespace=None):
        parse(parser, arguments, namespace)
        raise ParsedError

    with pytest.MonkeyPatch.context() as patch, redirect_stderr(io.StringIO()) as said:
        patch.setattr(ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", ["medvlm-r1"])
        try:
            code = cli.main(command.words[1:])
        except ParsedError:
            return
        except SystemExit as stopped:
            code = stopped.code
    if not code:  # --help and --version
        return
    pytest.fail(f"{command}: {said.getvalue()}")


def check(command: Command, folder: Path) -> None:
    """Run, compose or parse one command; fails for one that this test does not know."""
    name, *rest = command.words
    if command.words[:2] in RUN:
        with chdir(folder):
            compose_all(rest[1:])
    elif name == "medvlm-r1":
        with chdir(folder), redirect_stdout(io.StringIO()):
            check_arguments(command)
    elif name == "make":
        targets = [word for word in rest if "=" not in word]
        assert set(targets) <= set(TARGETS), f"{command}: the Makefile has {TARGETS}"
    elif name == "pip":
        named = {
            extra for word in rest for extras in re.findall(r"\[(.+)\]", word) for extra in extras.split(",")
        }
        assert named <= EXTRAS.keys(), f"{command}: pyproject.toml has {sorted(EXTRAS)}"
        assert "-c" not in rest or (ROOT / rest[rest.index("-c") + 1]).exists(), str(command)
    elif command.document:
        pass  # it ran before
    elif command.words[:2] == ("python", "-c"):
        subprocess.run(
            [sys.executable, *rest], cwd=folder, check=True, env=environment(), stdout=subprocess.DEVNULL
        )
    elif name in FILES or (name == "python" and rest[0].endswith(".py")):
        is_there = (folder / rest[0]).exists() or (ROOT / rest[0]).exists() or rest[0].startswith(".venv/")
        assert is_there, f"{command}: there is no {rest[0]}"
    else:
        assert name in OTHERS | PRINTERS, f"{command}: this test does not know it"


def printed(command: Command, folder: Path, shown: str) -> str:
    """Run a command in this process, or a shell's in another; returns its standard output."""
    name, *rest = command.words
    if command.words[:2] in RUN:
        does_not_fit = 3 if "does not fit" in shown.lower() else 0
        return run_here(folder, *rest[1:], code=does_not_fit).stdout
    if name == "medvlm-r1":
        with chdir(folder), redirect_stdout(io.StringIO()) as out, suppress(SystemExit):
            assert not cli.main(rest)
        return out.getvalue()
    words = [sys.executable, *rest] if name == "python" else command.words
    assert name in PRINTERS | {"python"}, f"{command}: this test does not run it"
    return subprocess.run(
        words, env=environment(), cwd=folder, capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what a checkout has, and the files that the pages show or write with here-documents."""
    made = tmp_path_factory.mktemp("checkout")
    for entry in ROOT.iterdir():
        if entry.name not in ("outputs", "site") and not entry.name.startswith("."):
            (made / entry.name).symlink_to(entry)
    for page in PAGES.values():
        for name, content in written_files(page.read_text()).items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_text(content)
    for command in (command for block in BLOCKS for command in block.commands if command.document):
        assert command.words == ("python", "-"), f"{command} reads a here-document"
        subprocess.run([sys.executable, "-"], input=command.document, text=True, cwd=made, check=True)
    if MINIATURE:
        shutil.copytree(MINIATURE, made / "outputs")
    return made


def works_in(block: Block, folder: Path) -> Path:
    """The folder in which a page's commands work."""
    return EXAMPLES if block.place.startswith("docs/your_own_part.md") else folder


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_every_command_is_one_that_works(block: Block, folder):
    for command in block.commands:
        check(command, works_in(block, folder))


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.prints], ids=lambda block: block.place)
def test_an_output_is_what_the_command_prints_today(block: Block, folder, monkeypatch):
    if block.after != "prints" and not MINIATURE:
        pytest.skip("needs the results of `make run`: make check-outputs")
    monkeypatch.delenv("COLUMNS", raising=False)
    shown = printed(block.commands[-1], works_in(block, folder), block.prints)
    different = differences(block.prints, shown)
    assert not different, f"{shlex.join(block.commands[-1].words)}\n{different}"


@pytest.mark.parametrize("page", PAGES)
def test_blocks_of_commands_are_marked_as_bash(page):
    known = {"bash", "csv", "json", "jsonl", "python", "text", "toml", "yaml", ""}
    fences = [token for token in tokens(PAGES[page].read_text()) if token.type == "fence"]
    infos = {token.info.partition(" ")[0] for token in fences}
    assert infos <= known, f"{page}: {infos - known}: commands are in bash blocks"
