"""Which weights may go: the step from scores to masks.

A pattern is any object with ``select(scores, masks, k, floors) -> Masks``: given the scores of all layers and the
current masks, keep exactly ``k`` of the weights that are still there, at least ``floors[name]`` in each layer. Scores are
tensors; for a pattern whose ``takes_products`` is true they may also be :class:`Product` formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from .allocation import Shapes, counts, uniform
from .masks import Masks
from .ops.products import Product
from .ops.topk_mask import topk_mask


class Pattern(Protocol):
    """Turns scores into masks; see the module's docstring."""

    def select(self, scores: Mapping[str, Tensor], masks: Masks, k: int, floors: Mapping[str, int]) -> Masks: ...


@dataclass(frozen=True)
class Global:
    """Unstructured, over the whole network: the k largest scores wherever they are."""

    takes_products: ClassVar[bool] = True

    def select(self, scores: Mapping[str, Tensor | Product], masks: Masks, k: int, floors: Mapping[str, int]) -> Masks:
        names = list(masks)
        kept = topk_mask(
            [scores[n] for n in names],
            k,
            masks=[masks[n] for n in names],
            floors=[floors[n] for n in names],
            names=names,
        )
        return Masks(dict(zip(names, kept.masks, strict=True)))


@dataclass(frozen=True)
class LayerWise:
    """Unstructured, layer by layer: the largest scores of each layer, as many as the allocation gives it.

    Args:
        allocation: ``(shapes, density) -> {name: density}``, for example ``uniform`` or ``erk``.
    """

    allocation: Callable[[Shapes, float], Mapping[str, float]] = uniform
    takes_products: ClassVar[bool] = True

    def select(self, scores: Mapping[str, Tensor | Product], masks: Masks, k: int, floors: Mapping[str, int]) -> Masks:
        shapes = {name: mask.shape for name, mask in masks.items()}
        sizes = {name: mask.numel() for name, mask in masks.items()}
        densities = self.allocation(shapes, k / max(sum(sizes.values()), 1))
        if set(densities) != set(shapes):
            raise ValueError(f"allocation must give a density for each of {list(shapes)}, got {list(densities)}")
        keep = counts(densities, sizes, k, floors, limits=masks.counts())
        return Masks({n: topk_mask([scores[n]], keep[n], masks=[masks[n]], names=[n]).masks[0] for n in masks})
