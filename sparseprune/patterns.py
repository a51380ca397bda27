"""Which weights may go: the step from scores to masks.

A pattern is any object with ``select(scores, masks, k, floors) -> Masks``: given the scores of all layers and the
current masks, keep exactly ``k`` of the weights that are still there, at least ``floors[name]`` in each layer. Scores are
tensors; for a pattern whose ``takes_products`` is true they may also be :class:`Product` formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from .allocation import Shapes, counts, uniform
from .arguments import typed
from .masks import BitMask, Masks
from .ops.group_topk_mask import group_topk_mask
from .ops.products import Product
from .ops.topk_mask import topk_mask


@runtime_checkable
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


@typed
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


@dataclass(frozen=True)
class NM:
    """The ``n`` largest scores of every ``m`` consecutive weights along a layer's input, dimension 1 of the weight.

    For a convolution groups run along the input channels for each tap. A group with fewer than ``n`` weights left keeps
    them. What the pattern keeps is fixed, so ``prune`` must be asked for it: ``density=n/m``, in one step. NVIDIA's
    sparse tensor cores take ``NM(2, 4)``.

    Args:
        n, m: 0 <= n <= m.

    Raises:
        TypeError: ``n`` or ``m`` is not an integer.
        ValueError: ``n`` or ``m`` is out of range; on selection: an input dimension is not a multiple of ``m``, or
            another number of weights is asked for.

    Source: Mishra et al. 2021, arXiv:2104.08378, section 3.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if any(isinstance(v, bool) or not isinstance(v, int) for v in (self.n, self.m)):
            raise TypeError(f"n and m must be integers, got {self.n!r} and {self.m!r}")
        if not 0 <= self.n <= self.m or not self.m:
            raise ValueError(f"n must be between 0 and m, and m positive, got {self.n} and {self.m}")

    def select(self, scores: Mapping[str, Tensor], masks: Masks, k: int, floors: Mapping[str, int]) -> Masks:
        odd = {name: mask.shape[1] for name, mask in masks.items() if mask.shape[1] % self.m}
        if odd:
            raise ValueError(
                f"input dimensions must be multiples of {self.m} for {self}, got {odd}; exclude={list(odd)}"
            )
        kept = Masks({name: self._select(name, scores[name], mask) for name, mask in masks.items()})
        if kept.count() != k:
            raise ValueError(
                f"k must be the {kept.count():,} weights that {self} keeps, got {k:,}; "
                f"ask for density={kept.density!r} in one step"
            )
        for name, mask in kept.items():
            if mask.count() < floors[name]:
                raise ValueError(
                    f"min_per_layer must be at most the {mask.count():,} weights that {self} keeps of {name}, "
                    f"got {floors[name]:,}"
                )
        return kept

    def _select(self, name: str, scores: Tensor, mask: BitMask) -> BitMask:
        if mask.count() < mask.numel():  # what is left, though its score be -inf, comes before what is not
            left = scores.clamp(min=torch.finfo(scores.dtype).min)
            scores = torch.where(mask.to_bool(), left, -torch.inf)
        best = group_topk_mask(scores.movedim(1, -1), self.n, self.m, name=name)
        return BitMask.from_bool(best.to_bool().movedim(-1, 1)) & mask
