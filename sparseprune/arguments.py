"""``@typed``: an argument of the wrong kind is an error that names it, raised before anything has run."""

from __future__ import annotations

import functools
import inspect
import os
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar, Union, get_origin

import torch
from torch import Tensor, nn

F = TypeVar("F", bound=Callable[..., Any])

NUMBERS = {int: int, float: (int, float)}
WORDS = {
    int: "an integer", float: "a number", bool: "a bool", str: "a string", type: "a type",
    Tensor: "a tensor", nn.Module: "an nn.Module", torch.Generator: "a torch.Generator",
    torch.optim.Optimizer: "a torch.optim.Optimizer", torch.dtype: "a torch.dtype", torch.device: "a torch.device",
    Callable: "callable", Mapping: "a mapping", Sequence: "a sequence", Collection: "a collection", Iterable: "an iterable", os.PathLike: "a path",
}  # fmt: skip


def typed(function: F) -> F:
    """Check at every call that arguments are of the kinds that the annotations say; of a class, its constructor's.

    Of a container the outermost kind is looked at: of ``Sequence[Tensor]`` whether it is a sequence. A bool is not a
    number, and a string or a tensor is not a sequence of anything. What an annotation names for type checkers alone is
    not checked.

    Raises:
        TypeError: when called with something else.

    >>> @typed
    ... def half(x: Tensor, times: int = 1) -> Tensor:
    ...     return x / 2**times
    >>> half(torch.ones(1), times="3")
    Traceback (most recent call last):
    TypeError: times must be an integer, got str
    """
    if isinstance(function, type):
        function.__init__ = typed(function.__init__)
        return function
    names = list(inspect.signature(function).parameters)
    allowed: dict[str, tuple[type, ...]] = {}
    seen: set[tuple[str, type]] = set()  # what passed, so that a call costs a look-up for each argument

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for name, value in (*zip(names, args), *kwargs.items()):
            if (name, type(value)) in seen:
                continue
            if name not in allowed:  # asked in a call, when all names that annotations use are there
                allowed[name] = _allowed(function, name) if name in names else ()
            kinds = allowed[name]
            if kinds and not any(_is(value, kind) for kind in kinds):
                *others, last = [WORDS.get(kind, kind.__name__) for kind in kinds if kind is not type(None)]
                words = f"{', '.join(others)} or {last}" if others else last
                raise TypeError(f"{name} must be {words}, got {type(value).__name__}")
            seen.add((name, type(value)))
        return function(*args, **kwargs)

    return checked


def _allowed(function: Callable[..., Any], name: str) -> tuple[type, ...]:
    """The types that the annotation of an argument allows; none where that cannot be said."""
    parameter = inspect.signature(function).parameters[name]
    if parameter.annotation is parameter.empty or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return ()
    try:
        return tuple(dict.fromkeys(_kinds(eval(parameter.annotation, inspect.unwrap(function).__globals__))))
    except (NameError, TypeError):
        return ()


def _kinds(annotation: Any) -> list[type]:
    """The types of an annotation, each that of a container without its items; TypeError if it has others than types."""
    if isinstance(annotation, TypeVar):
        annotation = annotation.__bound__
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return [kind for part in annotation.__args__ for kind in _kinds(part)]
    kind = type(None) if annotation is None else origin or annotation
    isinstance(None, kind)  # a protocol for type checkers alone, or Any, is not asked
    return [kind]


def _is(value: Any, kind: type) -> bool:
    if kind in NUMBERS:
        return isinstance(value, NUMBERS[kind]) and not isinstance(value, bool)
    if kind in (Sequence, Collection, Iterable):
        return isinstance(value, kind) and not isinstance(value, (str, bytes, Tensor))
    return isinstance(value, kind)
