"""The gradient of a sparse layer's weight at all slots, pruned ones too: what a rule that grows weights looks at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from ..ops.masked_linear import masked
from .base import SparseLayer


@contextmanager
def dense_gradients(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """dL/d(W . m) at every slot, summed over the backward passes inside the ``with`` block.

    ``weight.grad`` is as it always is: zero at pruned slots. Forward and backward both have to run inside. They take
    the dense products meanwhile, so ask for the few steps that need it.

    Yields:
        Parameter name -> a tensor of the weight's shape and dtype, zero at first; a weight that several layers share
        stands under its first name with the sum.

    >>> layer = sp.sparsify(nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
    >>> with dense_gradients(layer) as gradients:
    ...     layer(torch.tensor([[3.0, 5.0]])).sum().backward()
    >>> gradients["weight"], layer.weight.grad
    (tensor([[3., 5.]]), tensor([[3., 0.]]))
    """
    try:
        yield watch_gradients(model)
    finally:
        unwatch_gradients(model)


def watch_gradients(model: nn.Module) -> dict[str, Tensor]:
    """Let every backward add to the tensors returned, until ``unwatch_gradients``."""
    sums = {}
    for name, layers in sparse_weights(model, packed=True).items():
        parameter = layers[0].parameter
        sums[name] = torch.zeros(layers[0].dense_shape, dtype=parameter.dtype, device=parameter.device)
        for layer in layers:
            layer.dense_gradient = sums[name]
    return sums


def unwatch_gradients(model: nn.Module) -> None:
    for layers in sparse_weights(model, packed=True).values():
        for layer in layers:
            layer.__dict__.pop("dense_gradient", None)


def sparse_weights(model: nn.Module, *, packed: bool = False) -> dict[str, list[SparseLayer]]:
    """The weight's name -> the layers that hold it; more than one where weights are tied.

    Raises:
        ValueError: a layer is packed, and its user works on dense weights.
    """
    holders: dict[nn.Parameter, list[SparseLayer]] = {}
    names: dict[nn.Parameter, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, SparseLayer):
            name = f"{path}.weight" if path else "weight"
            if module.storage == "packed" and not packed:
                raise ValueError(f"model must have dense weights, got {name!r} packed; set_storage(model, 'owned')")
            holders.setdefault(module.parameter, []).append(module)
            names.setdefault(module.parameter, name)
    return {names[weight]: layers for weight, layers in holders.items()}


def watched_weight(layer: SparseLayer) -> Tensor:
    """W . m, whose gradient goes to ``layer.dense_gradient`` whole and to W masked."""
    return _Watched.apply(layer.weight, layer.weight_mask, layer.dense_gradient)


class _Watched(Function):
    @staticmethod
    def forward(weight: Tensor, words: Tensor, total: Tensor) -> Tensor:
        return masked(weight, words)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, words, ctx.total = inputs
        ctx.save_for_backward(words)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        ctx.total.add_(grad.detach())
        return masked(grad, *ctx.saved_tensors), None, None
