"""Check values of the configuration against the annotations of the constructors that they go to."""

from collections.abc import Iterator
from contextlib import suppress
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from medvlm_r1.runs.places import pip_install

_PLAIN = (bool, int, float, str, NoneType)


def check_types(cfg: DictConfig) -> None:
    """Check all nodes of this package and of Lightning; raises ``ValueError`` with the key and its types.

    Numbers, texts, flags, null and literals are checked; a parameter with another type is not. Of nodes from
    elsewhere, only that their constructor can be imported.
    """
    for path, node in _nodes(OmegaConf.to_container(cfg, resolve=True)):
        if not str(node["_target_"]).startswith(("medvlm_r1.", "lightning.")):
            _check_import(path, node["_target_"])
            continue
        hints: dict[str, Any] = {}
        with suppress(Exception):  # a missing package, or annotations that only a type checker can read
            target = get_object(node["_target_"])
            hints = get_type_hints(target.__init__ if isinstance(target, type) else target)
        for name in hints.keys() & node.keys():
            kinds = list(_members(hints[name]))
            if not all(kind in _PLAIN or get_origin(kind) is Literal for kind in kinds):
                continue
            if not any(_is(node[name], kind) for kind in kinds):
                words = " or ".join(word for kind in kinds for word in _words(kind))
                raise ValueError(f"{path}.{name} is {node[name]!r}: it must be {words}")


def _check_import(path: str, target: str) -> None:
    try:
        resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        if target.startswith("bitsandbytes.") and getattr(error, "name", None) == "bitsandbytes":
            raise ValueError(
                f"{target} needs the package bitsandbytes: {pip_install('quantized')}"
            ) from error
        raise ValueError(
            f"{path}._target_ is {target!r}: {error} (modules are imported from the current folder, "
            "PYTHONPATH, or installed packages)"
        ) from error


def _nodes(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for name, value in node.items():
            yield from _nodes(value, f"{path}.{name}".lstrip("."))


def _members(hint: Any) -> Iterator[Any]:
    """Types of a union, or the hint itself."""
    if get_origin(hint) in (Union, UnionType):
        for member in get_args(hint):
            yield from _members(member)
    else:
        yield hint


def _is(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if isinstance(value, bool):  # which is an int to Python
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _words(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    return ["null" if kind is NoneType else {int: "an integer", float: "a number"}.get(kind, kind.__name__)]
