"""A run of ``prune``: how many weights it keeps after each step, and which those are by now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .masks import Masks
from .patterns import Pattern
from .progress import TraceStep

__all__ = ["Run", "target", "with_same_masks"]


@dataclass(eq=False)
class Run:
    """One run, between two steps.

    Attributes:
        masks: those it has by now; ``kept`` of ``total`` weights.
        final: how many it keeps in the end.
        steps, schedule, pattern, floors: as ``prune`` was given them.
        number: which of ``prune_many``'s runs it is.
        done: how many steps are.
    """

    masks: Masks
    kept: int
    total: int
    final: int
    wanted: float
    steps: int
    schedule: Callable[[float, float], float]
    pattern: Pattern
    floors: dict[str, int]
    number: int = 0
    done: int = 0
    traced: list[TraceStep] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._start = self.kept

    @classmethod
    def plan(
        cls,
        masks: Masks,
        sparsity: float | None,
        density: float | None,
        keep: int | None,
        steps: int,
        schedule: Callable[[float, float], float],
        pattern: Pattern,
        min_per_layer: int | float,
        number: int = 0,
    ) -> Run:
        """The run that these arguments of ``prune`` ask for.

        Raises:
            TypeError, ValueError: an argument is wrong.
        """
        start, total = masks.count(), masks.numel()
        final = target(sparsity, density, keep, total, start)
        # As it was asked for, not final / start: rounding that first may move a step between by one weight.
        asked = density if density is not None else None if sparsity is None else 1 - sparsity
        wanted = 1.0 if start == 0 else final / start if asked is None else asked * (total / start)
        floors = _floors(min_per_layer, masks, final)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps must be a positive integer, got {steps!r}")
        return cls(masks, start, total, final, wanted, steps, schedule, pattern, floors, number)

    @property
    def takes_products(self) -> bool:
        return getattr(self.pattern, "takes_products", False)

    def next(self) -> int:
        """Begin the next step: how many weights the schedule lets it keep."""
        self.done += 1
        share = self.schedule(self.wanted, self.done / self.steps)
        last = self.done == self.steps
        self.kept = self.final if last else min(max(round(share * self._start), self.final), self.kept)
        return self.kept

    def advance(self, scores: Mapping[str, Any]) -> None:
        """Keep the best, as many as the schedule says."""
        self.masks = self.pattern.select(scores, self.masks, self.next(), self.floors)

    def trace(self, masks: Masks, step: int, flow: float | None) -> None:
        """Remember a step that left these masks."""
        totals = {name: mask.numel() for name, mask in masks.items()}
        self.traced.append(TraceStep(step, masks.counts(), totals, flow))


def with_same_masks(runs: Iterable[Run]) -> list[list[Run]]:
    """The runs, those together that have equal masks, in the order of the first of each."""
    groups: list[list[Run]] = []
    for run in runs:
        same = (g for g in groups if g[0].kept == run.kept and (g[0].masks is run.masks or g[0].masks == run.masks))
        if group := next(same, None):
            group.append(run)
        else:
            groups.append([run])
    return groups


def target(sparsity: float | None, density: float | None, keep: int | None, total: int, start: int) -> int:
    """How many weights to keep: of ``total`` in all, ``start`` of which are left."""
    given = {n: v for n, v in {"sparsity": sparsity, "density": density, "keep": keep}.items() if v is not None}
    if len(given) != 1:
        raise ValueError(f"exactly one of sparsity, density and keep must be given, got {given or 'none'}")
    [(name, value)] = given.items()
    if isinstance(value, bool) or not isinstance(value, int if name == "keep" else (int, float)):
        raise TypeError(f"{name} must be a number{' of weights' if name == 'keep' else ''}, got {value!r}")
    if name == "sparsity" and not 0 <= value < 1:
        raise ValueError(f"sparsity must be in [0, 1), got {value}")
    if name == "density" and not 0 < value <= 1:
        raise ValueError(f"density must be in (0, 1], got {value}")
    k = value if name == "keep" else round((1 - value if name == "sparsity" else value) * total)
    if not 0 <= k <= start:
        raise ValueError(
            f"{name} must keep between 0 and the {start:,} weights that are there, got {value}, that is {k:,}"
        )
    return k


def _floors(min_per_layer: int | float, masks: Masks, k: int) -> dict[str, int]:
    if isinstance(min_per_layer, bool) or not isinstance(min_per_layer, (int, float)):
        raise TypeError(f"min_per_layer must be a number, got {type(min_per_layer).__name__}")
    if min_per_layer < 0 or (isinstance(min_per_layer, float) and min_per_layer >= 1):
        raise ValueError(f"min_per_layer must be a count or a share below 1, got {min_per_layer}")
    floors = {}
    for name, mask in masks.items():
        share = isinstance(min_per_layer, float)
        floors[name] = min(round(min_per_layer * mask.numel()) if share else min_per_layer, mask.count())
    if sum(floors.values()) > k:
        raise ValueError(
            f"min_per_layer must fit in the {k:,} weights kept, got {sum(floors.values()):,} over all layers"
        )
    return floors
