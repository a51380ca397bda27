"""Sanity checks of a pruning method: does it matter which weights it kept, and with which values?

Frankle, Dziugaite, Roy, Carbin 2021, arXiv:2009.08576: methods at initialisation survive shuffling and
reinitialisation, magnitude pruning after training does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ..arguments import typed
from ..criteria import Random
from ..criteria.base import check_criterion
from ..masks import BitMask, Masks
from ..models.init import initialize_
from ..nn import densify, sparsify
from ..nn.base import SparseLayer
from ..ops.products import Product
from ..patterns import LayerWise
from ..pruning import prunable, prune

__all__ = ["inverted", "inverted_masks", "random_masks", "reinitialize_", "shuffled"]

Criterion = Callable[[nn.Module, dict[str, nn.Parameter]], Mapping[str, Tensor]]


@typed
def shuffled(masks: Masks, generator: Generator | None = None) -> Masks:
    """Each layer's mask in a random order: counts stay exactly, positions do not.

    Args:
        masks: any.
        generator: on the CPU; None is torch's global one.
    """

    def shuffle(mask: BitMask) -> BitMask:
        order = torch.randperm(mask.numel(), generator=generator)
        flat = mask.to_bool().flatten()
        return BitMask.from_bool(flat[order.to(flat.device)].reshape(mask.shape))

    return Masks({name: shuffle(mask) for name, mask in masks.items()}, masks.metadata)


@typed
def random_masks(model: nn.Module, masks: Masks, generator: Generator | None = None) -> Masks:
    """Random masks with exactly the layer counts of ``masks``.

    Raises:
        ValueError: a mask does not fit the model or is not of a linear or convolution weight.
    """
    return _as_many(model, Random(generator), masks)


@typed
def reinitialize_(
    model: nn.Module,
    masks: Masks,
    scheme: str = "kaiming_normal",
    generator: Generator | None = None,
    *,
    gain: float | None = None,
    sparse_fan: bool = False,
) -> nn.Module:
    """Draw the weights anew in place, the masks stay; also batch norm and biases start afresh.

    Args:
        model: dense, or with sparse layers, which stay sparse.
        masks: parameter name -> BitMask; pruned weights are zero afterwards.
        scheme, generator, gain: as for ``models.initialize_``.
        sparse_fan: multiply each unit's weights by sqrt(fan_in / kept fan_in), so that pruned units have inputs of
            the variance that the scheme gives dense ones.

    Returns:
        The same model.

    Raises:
        ValueError: a mask does not fit the model; what ``initialize_`` raises.

    Source: Liu et al. 2019, arXiv:1810.05270 (training from scratch); Frankle et al. 2021, section 5.
    """
    weights = masks.weights_of(model)
    held = {
        f"{name}.weight".removeprefix("."): layer.mask
        for name, layer in model.named_modules()
        if isinstance(layer, SparseLayer)
    }
    densify(model)
    try:
        initialize_(model, scheme, generator, gain=gain)
    finally:
        sparsify(model, {**held, **{name: masks[name].to(weights[name].device) for name in held if name in masks}})
    masks.apply_(model)
    if sparse_fan:
        with torch.no_grad():
            for name, weight in weights.items():
                kept = masks[name].to(weight.device).to_bool().flatten(1).sum(1)
                scale = (weight[0].numel() / kept.clamp(min=1)).sqrt()
                weight.mul_(scale.to(weight.dtype).reshape(-1, *[1] * (weight.dim() - 1)))
    return model


@dataclass(frozen=True, eq=False)
class _Inverted:
    criterion: Any

    @property
    def example_input(self) -> Tensor | None:
        return getattr(self.criterion, "example_input", None)

    def __call__(self, model: nn.Module, params: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        return _negated(self.criterion(model, params))


@dataclass(frozen=True, eq=False)
class _InvertedPlan(_Inverted):
    def plan(self, model: nn.Module, params: dict[str, nn.Parameter]) -> Callable[[Masks], dict[str, Tensor]]:
        step = self.criterion.plan(model, params)
        return lambda masks: _negated(step(masks))


def inverted(criterion: Criterion) -> Criterion:
    """The criterion with all scores negated: what it would prune first is kept.

    >>> layer = nn.Linear(2, 1).requires_grad_(False)
    >>> _ = layer.weight.copy_(torch.tensor([[1.0, 2.0]]))
    >>> prune(layer, inverted(lambda model, params: {n: p.abs() for n, p in params.items()}), keep=1)["weight"].to_bool()
    tensor([[ True, False]])
    """
    check_criterion(criterion)
    return _InvertedPlan(criterion) if hasattr(criterion, "plan") else _Inverted(criterion)


@typed
def inverted_masks(model: nn.Module, criterion: Criterion, masks: Masks, **options: Any) -> Masks:
    """The worst weights by ``criterion``, exactly as many of each layer as ``masks`` keep.

    Args:
        model, criterion, options: as for :func:`sparseprune.prune`.
        masks: whose layer counts to take.

    Raises:
        ValueError: a mask does not fit the model; what ``prune`` raises.
    """
    return _as_many(model, inverted(criterion), masks, **options)


def _as_many(model: nn.Module, criterion: Criterion, masks: Masks, **options: Any) -> Masks:
    """Prune each layer to as many weights as ``masks`` keep of it."""
    masks.weights_of(model)
    known = prunable(model)
    if unknown := [name for name in masks if name not in known]:
        raise ValueError(f"masks must be of linear and convolution weights, got {', '.join(unknown)}")
    densities = {name: mask.density for name, mask in masks.items()}
    pattern = LayerWise(lambda shapes, density: densities)
    spared = tuple(name for name in known if name not in masks)
    return prune(model, criterion, keep=masks.count(), pattern=pattern, exclude=spared, **options)


def _negated(scores: Mapping[str, Tensor | Product]) -> dict[str, Tensor]:
    return {name: -score for name, score in as_tensors(scores).items()}


def as_tensors(scores: Mapping[str, Tensor | Product]) -> dict[str, Tensor]:
    """The scores of a criterion that may return formulas of them."""
    return {name: score.tensor() if isinstance(score, Product) else score for name, score in scores.items()}
