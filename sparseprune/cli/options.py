"""Names on the command line -> objects of the library; names exist only here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..allocation import erk, uniform
from ..criteria import (
    LAMP,
    OBD,
    OBS,
    SNIP,
    ExactSaliency,
    Fisher,
    FourierAmplitude,
    GraSP,
    Magnitude,
    Movement,
    QuadraticSNIP,
    Random,
    RelativeMagnitude,
    SignPreserved,
    Skeletonization,
    SynapticSaliency,
    SynFlow,
    Taylor,
    VarianceNullity,
)  # fmt: skip
from ..criteria.skeletonization import linear_error
from ..patterns import Global, LayerWise, Pattern
from ..schedules import cubic, exponential, linear, one_shot

Value = TypeVar("Value")
Batches = list[tuple[Tensor, Tensor]]

SCHEDULES = {"one-shot": one_shot, "linear": linear, "exponential": exponential, "cubic": cubic}
ALLOCATIONS = {"uniform": uniform, "erk": erk}
SCOPES = ("global", "layer")
DTYPES = {"float32": torch.float32, "float64": torch.float64}
BN_MODES = ("eval", "train")


@dataclass(frozen=True)
class Given:
    """What a criterion may be made of: data, an input of ones, randomness, batch norm's mode, the weights' initial values."""

    batches: Batches
    example: Tensor | None
    generator: torch.Generator
    bn: str
    initial: Mapping[str, Tensor] | None


@dataclass(frozen=True)
class CriterionChoice:
    """How to make a criterion, how many steps it takes by default, and what it needs.

    Attributes:
        needs_data: takes batches.
        trains_bn: may score with batch norm in training mode; others keep examples apart.
        needs_initial: takes the values that the weights had before training.
    """

    make: Callable[[Given], Any]
    steps: int = 1
    needs_data: bool = False
    trains_bn: bool = False
    needs_initial: bool = False


def _on_batches(criterion: Callable[..., Any], **options: Any) -> CriterionChoice:
    """One of the criteria that take (loss, batches) and keep examples apart."""
    return CriterionChoice(lambda given: criterion(F.cross_entropy, given.batches, **options), needs_data=True)


def _with_bn(criterion: Callable[..., Any], steps: int = 1) -> CriterionChoice:
    def make(given: Given) -> Any:
        return criterion(F.cross_entropy, given.batches, bn=given.bn)

    return CriterionChoice(make, steps, needs_data=True, trains_bn=True)


CRITERIA: dict[str, CriterionChoice] = {
    "random": CriterionChoice(lambda given: Random(given.generator)),
    "magnitude": CriterionChoice(lambda given: Magnitude()),
    "snip": _with_bn(SNIP),
    "grasp": _with_bn(GraSP),
    # One step of SynFlow empties layers like any other criterion; the paper takes a hundred.
    "synflow": CriterionChoice(lambda given: SynFlow(given.example), steps=100),
    "relative-magnitude": CriterionChoice(lambda given: RelativeMagnitude()),
    "lamp": CriterionChoice(lambda given: LAMP()),
    "movement": CriterionChoice(lambda given: Movement(given.initial), needs_initial=True),
    "magnitude-increase": CriterionChoice(lambda given: Movement(given.initial, form="increase"), needs_initial=True),
    "sign-preserved": CriterionChoice(lambda given: SignPreserved(given.initial), needs_initial=True),
    # SNIP's own score, at each step under the masks of the step before.
    "iterative-snip": _with_bn(SNIP, steps=100),
    "quadratic-snip": _on_batches(QuadraticSNIP),
    "synaptic-saliency": _with_bn(SynapticSaliency),
    "exact": _on_batches(ExactSaliency),
    "taylor": _on_batches(Taylor),
    "taylor-units": _on_batches(Taylor, per="unit"),
    "fisher": _on_batches(Fisher),
    "fisher-units": _on_batches(Fisher, per="unit"),
    "true-fisher": _on_batches(Fisher, kind="true"),
    "obd": _on_batches(OBD),
    "obs": _on_batches(OBS, blocks="row"),
    "skeletonization": CriterionChoice(lambda given: Skeletonization(linear_error, given.batches), needs_data=True),
    "variance-nullity": CriterionChoice(lambda given: VarianceNullity(given.batches), needs_data=True),
    "fourier": CriterionChoice(lambda given: FourierAmplitude(given.batches), needs_data=True),
}


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
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
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
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        raise ValueError(f"--min-per-layer must be a count or a share below 1, got {text!r}") from None
