"""Collapse: empty layers, broken paths, what is left once dead paths are gone, and how far pruning could go."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from ..arguments import typed
from ..criteria.flow import path_flow
from ..masks import Masks
from ..pruning import Exclude, prunable, prune
from .trace import INPUT, OUTPUT, Call, traced

__all__ = [
    "Collapse",
    "CriticalCompression",
    "collapse",
    "critical_compression",
    "effective_masks",
    "maximal_compression",
]


@dataclass(frozen=True)
class Collapse:
    """What pruning has cut.

    Attributes:
        empty_layers: layer collapse: weights of which nothing is kept.
        connected: False is path collapse: no path from input to output is left, with or without an empty layer.
        density: kept / all.
        effective_density: kept and on a path from input to output / all.
    """

    empty_layers: tuple[str, ...]
    connected: bool
    density: float
    effective_density: float

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and booleans only."""
        return {**asdict(self), "empty_layers": list(self.empty_layers)}


@typed
def collapse(model: nn.Module, masks: Masks, example_input: Tensor) -> Collapse:
    """Whether ``masks`` empty a layer or cut every path.

    Args:
        model: a model that is linear in its input once activations are identities; not changed.
        masks: parameter name -> BitMask; weights without one count as kept.
        example_input: (N, ...) floating; only its shape is used.

    Raises:
        TypeError, ValueError: wrong arguments, or a model whose paths cannot be followed.
    """
    alive = effective_masks(model, masks, example_input)
    empty = tuple(name for name, mask in masks.items() if mask.numel() and not mask.count())
    return Collapse(empty, _connected(model, masks, example_input), masks.density, alive.density)


@typed
def effective_masks(model: nn.Module, masks: Masks, example_input: Tensor) -> Masks:
    """``masks`` without the weights that lie on no path from input to output.

    Those behind a unit that nothing reads do nothing. Those after a unit that reads nothing pass on a constant, its
    activation of its bias: removing them changes the output by that constant, which training can put into the biases.

    Args, Raises: as :func:`collapse`.

    Source: Vysogorets and Kempe 2023, arXiv:2107.02306 (effective sparsity).
    """
    masks.weights_of(model)
    return Masks(path_flow(model, {n: m.to_bool() for n, m in masks.items()}, example_input).weights, masks.metadata)


@typed
def maximal_compression(
    model: nn.Module, exclude: Exclude | Collection[Exclude] = (), *, example_input: Tensor | None = None
) -> float:
    """The most that any method could compress before it must collapse: all prunable weights / the fewest needed.

    Without ``example_input`` no layer may be empty, so one weight for each is needed: N / L. With it one path from
    input to output must be left, and shortcuts without weights make do with fewer.

    Args:
        model, exclude: as for :func:`sparseprune.prune`; excluded layers count as kept.
        example_input: (N, ...) floating; the model is run on it once.

    Raises:
        ValueError: there is nothing to prune, or input and output are joined by a path without prunable weights.

    Source: Tanaka, Kunin, Yamins, Ganguli 2020, arXiv:2006.05467, section 3 (maximal critical compression).

    >>> maximal_compression(nn.Sequential(nn.Linear(784, 300), nn.Linear(300, 10)))
    119100.0
    """
    weights = prunable(model, exclude)
    if not weights:
        raise ValueError("model must have a linear or convolution layer that is not excluded, got one without")
    needed = len(weights) if example_input is None else _shortest_path(model, weights, example_input)
    if not needed:
        raise ValueError("model must have prunable weights on every path, got one that stays connected without any")
    return sum(w.numel() for w in weights.values()) / needed


@dataclass(frozen=True)
class CriticalCompression:
    """Where a method collapses.

    Attributes:
        keep, total: the fewest weights it can be left with, of all prunable ones.
        maximal: what :func:`maximal_compression` allows.
    """

    keep: int
    total: int
    maximal: float

    @property
    def ratio(self) -> float:
        """total / keep."""
        return self.total / self.keep


@typed
def critical_compression(
    model: nn.Module,
    criterion: Callable[[nn.Module, dict[str, nn.Parameter]], Mapping[str, Tensor]],
    *,
    by_path: bool = False,
    example_input: Tensor | None = None,
    exclude: Exclude | Collection[Exclude] = (),
    **options: Any,
) -> CriticalCompression:
    """The highest compression that ``criterion`` reaches without collapse, by bisection on the number kept.

    Exact where masks are nested (one step: a larger k keeps what a smaller one does). Over several steps collapse is
    taken to be final once it has happened. Needs log2(N) runs of ``prune``.

    Args:
        model, criterion, exclude, options: as for :func:`sparseprune.prune`, without a target.
        by_path: collapse is that no path is left instead of an empty layer.
        example_input: (N, ...) floating, for ``by_path``.

    Raises:
        ValueError: ``by_path`` without ``example_input``; what ``prune`` and :func:`maximal_compression` raise.

    Source: as :func:`maximal_compression`; an algorithm meets the axiom where ``ratio == maximal``.
    """
    if by_path and example_input is None:
        raise ValueError("example_input must be given with by_path, got None")
    maximal = maximal_compression(model, exclude, example_input=example_input if by_path else None)
    total = sum(w.numel() for w in prunable(model, exclude).values())

    def whole(k: int) -> bool:
        masks = prune(model, criterion, keep=k, exclude=exclude, **options)
        return _connected(model, masks, example_input) if by_path else all(masks.counts().values())

    low, high = round(total / maximal) - 1, total  # low collapses, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if whole(middle) else (middle, high)
    return CriticalCompression(high, total, maximal)


def _connected(model: nn.Module, masks: Masks, example_input: Tensor) -> bool:
    return path_flow(model, {n: m.to_bool() for n, m in masks.items()}, example_input).connected


def _shortest_path(model: nn.Module, weights: Mapping[str, Tensor], example_input: Tensor) -> int:
    """The fewest prunable layers on any path: each needs one weight."""
    with traced(model, example_input, dtype=None) as trace:
        writers = {end: trace.writers(end) for end in (*trace.layers, OUTPUT)}
    counted = {id(weight) for weight in weights.values()}
    distances: dict[Call | str, int] = {INPUT: 0}
    for end, sources in writers.items():  # in call order, so what an end reads has been seen
        cost = 0 if end == OUTPUT else id(end.module.weight) in counted
        distances[end] = cost + min(distances[writer] for writer in sources)
    return distances[OUTPUT]
