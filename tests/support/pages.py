"""The commands, printed outputs, links and inline code of Markdown pages."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.token import Token

SEPARATORS = {"&&", "||", "|", ";", "&"}


@dataclass(frozen=True)
class Command:
    """One command of a bash block: its words, without assignments, redirections and comments."""

    place: str  # page and line
    words: tuple[str, ...]
    document: str = ""  # here-document on its standard input

    def __str__(self) -> str:
        return f"{self.place} {shlex.join(self.words)}"


@dataclass
class Block:
    """A bash block, and what its last command prints if the page shows it."""

    place: str
    commands: list[Command]
    prints: str = ""
    after: str = ""  # the text of the marker: "prints" or "prints after make run"


def tokens(text: str) -> Iterator[Token]:
    """All tokens, in the order of the page; inline ones follow their block."""
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        yield token
        yield from token.children or ()


def blocks(page: str, text: str) -> list[Block]:
    """The bash blocks of a page; a variable that one assigns holds in those below it."""
    found: list[Block] = []
    variables: dict[str, str] = {}
    marker = ""
    for token in tokens(text):
        if token.type == "html_block" and (
            comment := re.fullmatch(r"<!-- (prints.*?) -->\s*", token.content)
        ):
            marker = comment[1]
        elif token.type == "fence" and token.info.split()[:1] == ["bash"]:
            place = f"{page}:{token.map[0] + 1}"
            found.append(Block(place, list(commands(place, token.content, variables))))
        elif token.type == "fence" and marker:
            found[-1].prints, found[-1].after, marker = token.content, marker, ""
    assert not marker, f"{page}: no block follows <!-- {marker} -->"
    return found


def commands(place: str, text: str, variables: dict[str, str]) -> Iterator[Command]:
    """The commands of a block, with known variables filled in."""
    lines = text.replace("\\\n", " ").splitlines()
    while lines:
        words, document = None, ""
        line = lines.pop(0)
        while words is None:
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            try:
                words = list(lexer)
            except ValueError:  # a quotation over several lines
                line += "\n" + lines.pop(0)
        if "<<" in words:
            at = words.index("<<")
            end = lines.index(words[at + 1])
            document, lines, words = "\n".join(lines[:end]), lines[end + 1 :], words[:at]
        command: list[str] = []
        for word in [*words, ";"]:
            if word in SEPARATORS:
                if ">" in command:
                    command = command[: command.index(">")]
                if command:
                    yield Command(place, tuple(command), document)
                command = []
            elif not command and (assigned := re.fullmatch(r"(\w+)=(.*)", word)):
                variables[assigned[1]] = assigned[2]
            else:
                command.append(re.sub(r"\$(\w+)", lambda name: variables.get(name[1], name[0]), word))


def written_files(text: str) -> dict[str, str]:
    """Files that a page shows: blocks of code that start with ``# PATH``, or with it after ``# @package``."""
    fences = (token.content for token in tokens(text) if token.type == "fence")
    named = ((re.match(r"(?:# @.*\n)?# ([\w./-]+\.\w+)\n", content), content) for content in fences)
    return {path[1]: content for path, content in named if path}


def links(text: str) -> list[str]:
    """Targets of all links and images."""
    attributes = ((t.attrGet("href") or t.attrGet("src")) for t in tokens(text))
    return [str(target) for target in attributes if target]


def inline_code(text: str) -> list[str]:
    return [token.content for token in tokens(text) if token.type == "code_inline"]


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub and MkDocs form them, or as ``{#name}`` sets them."""
    found, heading = set(), False
    for token in tokens(text):
        if token.type == "inline" and heading:
            own = re.search(r"\{#([\w-]+)\}", token.content)
            words = re.sub(r"[^\w\s-]", "", token.content.lower()).split()
            found.add(own[1] if own else "-".join(words))
        heading = token.type == "heading_open"
    return found


def differences(expected: str, printed: str) -> str:
    """Empty if the lines were printed; ``...`` stands for any text, alone on a line for any lines."""

    def pattern(line: str) -> str:
        return ".*".join(map(re.escape, line.rstrip().split("...")))

    printed = "\n".join(line.rstrip() for line in printed.strip("\n").splitlines())
    lines = expected.strip("\n").splitlines()
    whole = "\n".join(r"(?:.*\n)*?.*" if line.strip() == "..." else pattern(line) for line in lines)
    if re.fullmatch(whole, printed):
        return ""
    missing = [line for line in lines if not re.search(rf"(?m)^{pattern(line)}$", printed)]
    return f"not printed: {missing or 'this order'}\nprinted:\n{printed}"
