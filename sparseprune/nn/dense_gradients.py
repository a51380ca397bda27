"""Gradients at all slots, pruned ones too, for the few steps that ask: what a rule that grows weights looks at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..arguments import typed
from ..ops.bitmask import BitMask
from .base import SparseLayer


@typed
@contextmanager
def dense_gradients(model: nn.Module, of: str = "weight") -> Iterator[dict[str, Tensor]]:
    """A gradient at every slot, summed over the backward passes inside the ``with`` block.

        of="weight"  dL/d(W . m)      what RigL, NeST and SparseMomentum grow by
        of="mask"    W dL/d(W . m)    dL/dm, if m were real: what SNIP scores by, and edge-popup and Piggyback learn by

    ``weight.grad`` is as it always is: zero at pruned slots, and not computed for a frozen weight. Forward and backward
    both have to run inside. The weight gradient takes a dense product meanwhile, so ask for the steps that need it. Of a
    mask the gradient is zero where W is, so at pruned slots it says something of overlays only.

    Yields:
        The weight's name -> a tensor of its shape and dtype, zero at first; a weight that several layers share
        stands under its first name with the sum.

    Raises:
        ValueError: ``of`` is none of these.

    >>> layer = sp.sparsify(nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
    >>> with dense_gradients(layer) as gradients:
    ...     layer(torch.tensor([[3.0, 5.0]])).sum().backward()
    >>> gradients["weight"], layer.weight.grad
    (tensor([[3., 5.]]), tensor([[3., 0.]]))
    """
    if of not in ("weight", "mask"):
        raise ValueError(f"of must be weight or mask, got {of!r}")
    try:
        yield watch_gradients(model, of == "mask")
    finally:
        unwatch_gradients(model)


def watch_gradients(
    model: nn.Module, of_mask: bool = False, again: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Let every backward add to the tensors returned, until ``unwatch_gradients``.

    Those of ``again``, which it returned before, are made zero and used again where they still are in use.
    """
    sums = {}
    for name, layers in sparse_weights(model).items():
        watch = layers[0].dense_gradient
        if again and watch is not None and watch.total is again.get(name):
            sums[name] = watch.total.zero_()
            continue
        shape, parameter = layers[0].dense_shape, layers[0].parameter
        sums[name] = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
        words = BitMask.ones(shape, parameter.device).words
        for layer in layers:
            layer.dense_gradient = _Watch(sums[name], words, layer if of_mask else None)
    return sums


def unwatch_gradients(model: nn.Module) -> None:
    for layers in sparse_weights(model).values():
        for layer in layers:
            layer.__dict__.pop("dense_gradient", None)


def sparse_weights(model: nn.Module) -> dict[str, list[SparseLayer]]:
    """The weight's name -> the layers that hold it; more than one where weights are tied."""
    holders: dict[nn.Parameter, list[SparseLayer]] = {}
    names: dict[nn.Parameter, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, SparseLayer):
            name = f"{path}.weight" if path else "weight"
            holders.setdefault(module.parameter, []).append(module)
            names.setdefault(module.parameter, name)
    return {names[weight]: layers for weight, layers in holders.items()}


class _Watch(NamedTuple):
    """Where a layer's backward adds, the mask of all slots, and the layer where the gradient of its mask is wanted."""

    total: Tensor
    words: Tensor
    layer: SparseLayer | None

    def add(self, gradient: Tensor) -> None:
        self.total.add_(gradient if self.layer is None else gradient * self.layer.weight.detach())


def watched_weight(layer: SparseLayer) -> Tensor:
    """The dense weight, for which backward computes a gradient where it is frozen, too."""
    weight = layer.weight
    return weight if weight.requires_grad else weight.detach().requires_grad_()
