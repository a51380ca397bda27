"""Names on the command line and in recipes -> objects of the library; names exist only there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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
from ..data import Dataset
from ..schedules import cubic, exponential, linear, one_shot

Batches = list[tuple[Tensor, Tensor]]

CHUNK = 128  # images that are scored at a time
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


def scoring_batches(
    dataset: Dataset, samples_per_class: int | None, batches: int | None, seed: int, dtype: torch.dtype
) -> Batches:
    """What a criterion scores on: balanced samples in chunks, or so many random batches.

    Raises:
        ValueError: the data set has fewer.
    """
    generator = torch.Generator().manual_seed(seed)
    if batches is not None:
        loader = dataset.batches("train", CHUNK, generator, drop_last=True)
        if len(loader) < batches:
            raise ValueError(f"batches must be at most {len(loader)} for {dataset.name}, got {batches}")
        chosen = list(itertools.islice(loader, batches))
    else:
        x, y = dataset.balanced(samples_per_class or 10, generator)
        chosen = list(zip(x.split(CHUNK), y.split(CHUNK), strict=True))
    return [(x.to(dtype), y) for x, y in chosen]
