"""What the options of several commands say, as objects of the library."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch

from ..patterns import Global, LayerWise, Pattern
from ..recipes.names import ALLOCATIONS, SCOPES

Value = TypeVar("Value")


def choose(option: str, name: str, choices: Mapping[str, Value] | Sequence[str]) -> Any:
    """The object called ``name``; for a plain list of names the name itself.

    Raises:
        ValueError: there is no such name; the message lists all.
    """
    if name not in choices:
        raise ValueError(f"{option} must be one of {', '.join(choices)}, got {name!r}")
    return choices[name] if isinstance(choices, Mapping) else name


def choose_pattern(scope: str, allocation: str | None) -> Pattern:
    """The pattern for --scope and --allocation."""
    choose("--scope", scope, SCOPES)
    if allocation is not None and scope != "layer":
        raise ValueError(f"--allocation must be given with --scope layer only, got {allocation!r} with --scope {scope}")
    if scope == "global":
        return Global()
    return LayerWise(choose("--allocation", allocation or "uniform", ALLOCATIONS))


def choose_device(name: str) -> torch.device:
    """The device for --device; one that is not there is an error here, not in the middle of a run."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device must be a device of this machine, got {name!r}: {reason}") from error
    return device


def parse_shape(text: str) -> tuple[int, int, int]:
    """ "3x224x224" -> (3, 224, 224)."""
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"--input must be CxHxW, for example 3x224x224, got {text!r}")
    return int(parts[0]), int(parts[1]), int(parts[2])


def parse_model_options(texts: Sequence[str] | None) -> dict[str, Any]:
    """["depth=22", "name=x"] -> {"depth": 22, "name": "x"}: JSON where it is JSON, else text."""
    options: dict[str, Any] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--model-option must be NAME=VALUE, got {text!r}")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def parse_min_per_layer(text: str) -> int | float:
    """ "3" -> 3 weights, "0.01" -> that share."""
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        raise ValueError(f"--min-per-layer must be a count or a share below 1, got {text!r}") from None
