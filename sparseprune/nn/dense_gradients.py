"""Gradients at all slots, pruned ones too, for the few steps that ask: what a rule that grows weights looks at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function

from ..arguments import typed
from ..ops.masked_linear import masked
from .base import SparseLayer


@typed
@contextmanager
def dense_gradients(model: nn.Module, of: str = "weight") -> Iterator[dict[str, Tensor]]:
    """A gradient at every slot, summed over the backward passes inside the ``with`` block.

        of="weight"  dL/d(W . m)      what RigL, NeST and SparseMomentum grow by
        of="mask"    W dL/d(W . m)    dL/dm, if m were real: what SNIP scores by, and edge-popup and Piggyback learn by

    ``weight.grad`` is as it always is: zero at pruned slots, and not computed for a frozen weight. Forward and backward
    both have to run inside. They take the dense products meanwhile, so ask for the few steps that need it. Of a mask
    the gradient is zero where W is, so at pruned slots it says something of overlays only.

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


def watch_gradients(model: nn.Module, of_mask: bool = False) -> dict[str, Tensor]:
    """Let every backward add to the tensors returned, until ``unwatch_gradients``."""
    sums = {}
    for name, layers in sparse_weights(model).items():
        parameter = layers[0].parameter
        sums[name] = torch.zeros(layers[0].dense_shape, dtype=parameter.dtype, device=parameter.device)
        for layer in layers:
            layer.dense_gradient = _Wanted(sums[name], of_mask)
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


class _Wanted(NamedTuple):
    """Where a layer's backward adds, and whether the gradient of the mask or of the weight."""

    total: Tensor
    of_mask: bool


def watched_weight(layer: SparseLayer) -> Tensor:
    """W . m, whose gradient goes to ``layer.dense_gradient`` whole and to W masked."""
    anchor = torch.zeros((), requires_grad=True)  # so that backward comes here where W is frozen
    return _Watched.apply(layer.weight, layer.weight_mask, anchor, *layer.dense_gradient)


class _Watched(Function):
    @staticmethod
    def forward(weight: Tensor, words: Tensor, anchor: Tensor, total: Tensor, of_mask: bool) -> Tensor:
        return masked(weight, words)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        weight, words, _, ctx.total, of_mask = inputs
        ctx.save_for_backward(words, *([weight] if of_mask else []))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        words, *weight = ctx.saved_tensors
        ctx.total.add_(grad.detach() * weight[0].detach() if weight else grad.detach())
        return masked(grad, words) if ctx.needs_input_grad[0] else None, None, None, None, None
