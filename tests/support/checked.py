"""Check types and shapes of every signature in the package, through jaxtyping's import hook."""

from collections.abc import Callable
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from beartype import BeartypeConf, beartype

CONF = BeartypeConf(is_pep484_tower=True)  # an int may stand for a float


def without_choices(hint: Any) -> Any:
    """``hint`` with ``str`` for ``Literal``: tests pass wrong choices to see the package's own error."""
    if get_origin(hint) is Literal:
        return Union[tuple({type(choice) for choice in get_args(hint)})]  # noqa: UP007
    if get_origin(hint) in (Union, UnionType):
        return Union[tuple(map(without_choices, get_args(hint)))]  # noqa: UP007
    return hint


def check(function: Callable) -> Callable:
    """Make ``function`` raise where an argument or its result has another type or shape than its hint."""
    function.__annotations__ = {k: without_choices(hint) for k, hint in function.__annotations__.items()}
    return beartype(conf=CONF)(function)
