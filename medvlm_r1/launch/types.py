"""Check values of the configuration against the annotations of the constructors that they go to."""

import collections.abc
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from medvlm_r1.launch.ranges import range_of
from medvlm_r1.runs.places import pip_install

_PLAIN = (bool, int, float, str, Path, NoneType)
_INSTANTIATE = ("_target_", "_partial_", "_convert_", "_recursive_")
# Constructors elsewhere whose parameters have ranges.
_FOREIGN = ("torch.optim.", "peft.LoraConfig", "bitsandbytes.optim.")


@dataclass
class RunSettings:
    """Types of the keys at the top of ``config.yaml`` that have no check of their own."""

    seed: int
    workers: int
    experiment: str | None
    run_folder: str | None
    sweep: str | None
    overwrite: bool
    retry: bool
    ckpt_path: str | None
    optimized_metric: str
    plan: bool
    card: str
    controls: Sequence[str] | str


@dataclass
class Paths:
    """Types of the group ``paths``."""

    outputs: str
    cache: str | None


def check_top(cfg: DictConfig) -> None:
    """Check the keys that go to no constructor; raises ``ValueError``."""
    top = {name: cfg[name] for name in inspect.signature(RunSettings).parameters}
    check_values(
        "", {k: OmegaConf.to_object(v) if OmegaConf.is_config(v) else v for k, v in top.items()}, RunSettings
    )
    check_values("paths", dict(cfg.paths), Paths)


def check_types(cfg: DictConfig) -> None:
    """Check nodes of this package and of Lightning; raises ``ValueError`` with the key.

    Numbers, texts, flags, null, literals, and lists and mappings of them are checked; a node of a parameter
    with another type is not. Of nodes from elsewhere, that their constructor can be imported.
    """
    known = OmegaConf.merge(cfg, {"run_folder": cfg.run_folder or "run"})  # filled in when a run starts
    for path, node in _nodes(OmegaConf.to_container(known, resolve=True)):
        target = node["_target_"]
        if not str(target).startswith(("medvlm_r1.", "lightning.")):
            _check_import(path, target)
            if not target.startswith(_FOREIGN):
                continue
        try:
            constructor = get_object(target)
        except Exception as error:
            missing = getattr(error.__cause__ or error, "name", None) or target
            if str(missing).startswith(("medvlm_r1", "lightning")):
                _check_import(path, target)
            continue  # a package of an extra is missing: an error of its own, with a remedy
        check_values(path, node, constructor)


def check_values(path: str, values: Mapping[str, Any], target: Callable[..., Any]) -> None:
    """Check the arguments ``values`` of ``target``; raises ``ValueError`` with the key below ``path``."""
    hints, is_open = hints_of(target)
    for name, value in values.items():
        key = f"{path}.{name}".lstrip(".")
        if name in _INSTANTIATE:
            continue
        if name not in hints and not is_open:
            raise ValueError(f"nothing reads the key {key}: {target.__name__} takes {', '.join(hints)}")
        kinds = list(_members(hints.get(name, Any)))
        if not all(map(_is_checked, kinds)) and isinstance(value, dict):
            continue
        if not any(_is(value, kind) for kind in kinds):
            words = " or ".join(dict.fromkeys(word for kind in kinds for word in _words(kind)))
            if str in kinds and isinstance(value, int | float) and not isinstance(value, bool):
                words += f", in quotes if it looks like a number, such as '{key}=\"1e5\"'"
            raise ValueError(f"{key} is {value!r:.60}: it must be {words}")
        allowed = range_of(target, name)
        numbers = value.items() if isinstance(value, Mapping) else [(None, value)]
        for part, number in numbers:
            if isinstance(number, int | float) and not isinstance(number, bool) and number not in allowed:
                where = key if part is None else f"{key}.{part}"
                raise ValueError(f"{where} is {number!r}: it must be {allowed}")


@functools.cache
def hints_of(target: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """Annotations of a constructor's parameters, and whether it takes others too.

    Arguments that a class hands on with ``**kwargs`` go to its parents.
    """
    hints: dict[str, Any] = {}
    for owner in target.__mro__ if isinstance(target, type) else [target]:
        function = owner.__init__ if isinstance(owner, type) else owner
        parameters = inspect.signature(function).parameters
        for name, parameter in parameters.items():
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and name != "self":
                hint = Any if parameter.annotation is parameter.empty else parameter.annotation
                if isinstance(hint, str):
                    hint = _evaluated(hint, owner)
                hints.setdefault(name, hint)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return hints, False
    return hints, True


def _evaluated(hint: str, owner: Callable[..., Any]) -> Any:
    with suppress(Exception):  # annotations that only a type checker can read
        return eval(hint, dict(vars(sys.modules[owner.__module__])))
    return Any


def _check_import(path: str, target: str) -> None:
    try:
        resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        if target.startswith("bitsandbytes.") and getattr(error, "name", None) == "bitsandbytes":
            raise ValueError(
                f"{target} needs the package bitsandbytes: {pip_install('quantized')}"
            ) from error
        raise ValueError(
            f"{path}._target_ is {target!r:.80}: {error} (modules are imported from the current folder, "
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


def _items(kind: Any) -> Any:
    """Type of the values of a mapping or a sequence; ``None`` for another type."""
    origin = get_origin(kind)
    if isinstance(origin, type) and issubclass(origin, Mapping | Sequence) and get_args(kind):
        return get_args(kind)[-1] if get_args(kind)[-1] is not Ellipsis else get_args(kind)[0]
    return None


def _is_checked(kind: Any) -> bool:
    """Whether values of a type are written in a configuration, and not built from a node of it."""
    inner = _items(kind)
    if inner is not None:
        return all(map(_is_checked, _members(inner)))
    return kind in _PLAIN or get_origin(kind) is Literal


def _is(value: Any, kind: Any) -> bool:
    if (inner := _items(kind)) is not None:
        if issubclass(get_origin(kind), Mapping):
            values = value.values() if isinstance(value, Mapping) else [None]
        else:
            values = value if isinstance(value, list | tuple) else [None]
        return all(any(_is(v, k) for k in _members(inner)) for v in values)
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind in _PLAIN:
        if isinstance(value, bool):  # which is an int to Python
            return kind is bool
        also: dict[Any, Any] = {float: (int, float), Path: str}
        return isinstance(value, also.get(kind, kind))
    # a class, a protocol or a callable is built from a node; of other hints nothing is known
    if isinstance(kind, type):
        return kind in (Any, object) or isinstance(value, kind)
    return get_origin(kind) is not collections.abc.Callable


def _words(kind: Any) -> list[str]:
    if (inner := _items(kind)) is not None:
        what = "a mapping to" if issubclass(get_origin(kind), Mapping) else "a list of"
        return [f"{what} {' or '.join(word for k in _members(inner) for word in _words(k))}"]
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    names = {NoneType: "null", bool: "true or false", int: "an integer", float: "a number", str: "a text"}
    return [names.get(kind, "a path" if kind is Path else "a node with _target_")]
