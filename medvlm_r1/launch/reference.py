"""The groups, options and keys of ``conf/``, with the comments in its files.

The comment at the head of an option's file describes the option; its first line is the summary. The comment
lines directly above a key, or the comment behind its value, describe the key. No file is composed, and
nothing that they name is imported.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from medvlm_r1.runs.places import CONF

# Keys with which Hydra builds an object.
INSTANTIATE = {
    "_target_": "the class or function that is called with the keys beside this one",
    "_partial_": "true: the rest of the arguments comes later, from parts that other groups build",
    "_convert_": "all: lists and dictionaries become Python's own",
}
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Key:
    """A key without keys below it.

    Attributes:
        path: as typed on the command line, such as ``method.loss.clip_low``.
        value: as written in the file.
        comment: without ``#``; empty if the file has none.
    """

    path: str
    value: str
    comment: str


@dataclass(frozen=True)
class Option:
    """One file of a group.

    Attributes:
        comment: the comment at its head, without ``#``.
        keys: the keys that this file sets.
        parents: options of the same group that it starts from.
        choices: the options that it chooses of other groups, by group.
    """

    group: str
    name: str
    comment: str
    keys: tuple[Key, ...]
    parents: tuple[str, ...]
    choices: dict[str, str]

    @property
    def summary(self) -> str:
        return self.comment.partition("\n")[0]


@dataclass(frozen=True)
class Group:
    """A folder of ``conf/``; ``default`` is the option that a run has without a choice, or ``None``."""

    name: str
    options: dict[str, Option]
    default: str | None

    def keys_of(self, option: str) -> dict[str, Key]:
        """The keys of an option and of its parents, by path."""
        keys: dict[str, Key] = {}
        for parent in self.options[option].parents:
            keys |= self.keys_of(parent)
        for key in self.options[option].keys:
            if (above := key.path.rpartition(".")[0]) in keys:  # a node in place of the parent's null
                del keys[above]
            keys[key.path] = key
        return keys


@dataclass(frozen=True)
class Reference:
    """All of ``conf/``; ``top`` is ``config.yaml``, whose keys belong to no group."""

    top: Option
    groups: dict[str, Group]

    @cached_property
    def _comments(self) -> dict[str, str]:
        comments = {key.path: key.comment for key in self.top.keys}
        for group in self.groups.values():
            for name in sorted(group.options, key=lambda name: name != group.default):
                for key in group.options[name].keys:
                    comments[key.path] = comments.get(key.path) or key.comment
        return comments

    def comment_of(self, key: Key) -> str:
        """The key's own comment, else that of the same key in its group's default, or in another option."""
        return key.comment or self._comments.get(key.path) or INSTANTIATE.get(key.path.split(".")[-1], "")


def read_reference(conf: Path = CONF, *own: Path) -> Reference:
    """Read every option of ``conf`` and of the user's ``own`` folders, in the order of the defaults list."""
    top = read_option(conf / "config.yaml", conf)
    order = ["experiment", *top.choices]
    groups: dict[str, dict[str, Option]] = {}
    for folder in (conf, *own):
        for path in sorted(folder.rglob("*.yaml")):
            if path.parent != folder:
                option = read_option(path, folder)
                groups.setdefault(option.group, {})[option.name] = option

    def place(group: str) -> tuple[bool, int, str]:
        first = group.split("/")[0]
        return first == "hydra", order.index(first) if first in order else len(order), group

    defaults = dict(top.choices)
    for group in sorted(groups, key=place):
        options = groups[group]
        for name in sorted(options, key=lambda name: name != defaults.get(group)):
            for inner, choice in options[name].choices.items():
                if inner.startswith(f"{group}/"):
                    defaults.setdefault(inner, choice)
    return Reference(top, {n: Group(n, groups[n], defaults.get(n)) for n in sorted(groups, key=place)})


def read_option(path: Path, conf: Path = CONF) -> Option:
    """Read one file of ``conf/``."""
    group = path.parent.relative_to(conf).as_posix().removeprefix(".")
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    package = group.replace("/", ".")
    if "@package _global_" in text:
        package, lines[0] = "", "#"
    head = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    comment = "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:head] if line != "#")
    lines[:head] = [""] * head  # the first key's comment is not the option's
    keys: list[Key] = []
    parents: list[str] = []
    choices: dict[str, str] = {}
    node = yaml.compose(text, Loader=_Loader)
    for name, value in node.value if node else ():
        if name.value != "defaults":
            keys += _keys(name, value, package, "", text, lines)
            continue
        for entry in value.value:
            if isinstance(entry, yaml.ScalarNode):
                parents += {entry.value} - {"_self_"}
                continue
            for chosen, choice in entry.value:
                other = chosen.value.split()[-1]  # after override or optional
                absolute = other.startswith("/") or not group
                choices[other.removeprefix("/") if absolute else f"{group}/{other}"] = choice.value
    return Option(group, path.stem, comment, tuple(keys), tuple(parents), choices)


def _keys(name, value, package: str, around: str, text: str, lines: list[str]) -> Iterator[Key]:
    """The keys at and below a key; one without a comment has that of the node around it."""
    path = f"{package}.{name.value}".removeprefix(".")
    comment = _comment(name, value, lines) or (around if name.value not in INSTANTIATE else "")
    if isinstance(value, yaml.MappingNode) and value.value:
        for inner, below in value.value:
            yield from _keys(inner, below, path, comment, text, lines)
    else:
        written = re.sub(r"\s*\n\s*", " ", text[value.start_mark.index : value.end_mark.index])
        yield Key(path, written, comment)


def _comment(name, value, lines: list[str]) -> str:
    """The comment behind the value, and the lines of comment directly above the key."""
    first, last = name.start_mark, value.end_mark
    found = []
    if not lines[first.line][: first.column].strip():
        above = first.line
        while above and lines[above - 1].lstrip().startswith("#"):
            above -= 1
        found = lines[above : first.line]
    if last.line == value.start_mark.line:
        found += re.findall(r"^\s+(#.*)", lines[last.line][last.column :])
    return " ".join(line.strip().removeprefix("#").strip() for line in found)
