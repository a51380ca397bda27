"""Linear layer with a masked weight: y = x (W . m)^T + b.

Three products, which ``bilinear.py`` makes differentiable:

    forward      y  = x (W . m)^T + b
    input grad   dx = g (W . m)
    weight grad  dW = (g^T x) . m
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backends, costs
from .backends import Implementation
from .bilinear import differentiable
from .bitmask import BitMask, packed
from .choice import choose
from .costs import onednn_linear
from .known import is_zero_outside
from .mask_bits import unpack_mask
from .submask import ZERO


def masked_linear(
    x: Tensor,
    weight: Tensor,
    mask: BitMask | Tensor,
    bias: Tensor | None = None,
    *,
    backend: str = backends.DEFAULT,
) -> Tensor:
    """y = x (W . m)^T + b, where pruned entries of W are never read.

    NaN or inf in a pruned slot reaches neither the result nor a gradient, and the gradient of W is exactly zero there.

    Args:
        x: (..., in), a floating dtype, contiguous or not.
        weight: (out, in), of x's dtype and device.
        mask: a BitMask or bool tensor of weight's shape, or its packed int32 words.
        bias: (out,) or None.
        backend: "auto", "native", "triton", "onednn", "dense" or "reference".

    Returns:
        (..., out).

    Raises:
        TypeError: an argument is of the wrong type or the dtypes differ.
        ValueError: shapes or devices do not fit, or the named backend refuses.
    """
    check_tensors(x=x, weight=weight, bias=bias)
    x, weight, bias = backends.autocast(x, weight, bias)
    words = _check(x, weight, mask, bias)
    y = _apply(as_matrix(x), weight, words, bias, (backend,))
    return y.reshape(*x.shape[:-1], weight.shape[0])


def _check(x: Tensor, weight: Tensor, mask: BitMask | Tensor, bias: Tensor | None) -> Tensor:
    if weight.dim() != 2:
        raise ValueError(f"weight must have shape (out, in), got {tuple(weight.shape)}")
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x must have shape (..., {weight.shape[1]}), got {tuple(x.shape)}")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    check_operands(x, weight=weight, bias=bias)
    return packed(mask, weight)


def as_matrix(x: Tensor) -> Tensor:
    """x (..., in) as (rows, in), also where one of the two is 0."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def check_tensors(**operands: Tensor | None) -> None:
    """A TypeError that says which operand is not a tensor; a bias may be None."""
    for name, operand in operands.items():
        if not isinstance(operand, Tensor) and (operand is not None or name != "bias"):
            raise TypeError(f"{name} must be a tensor, got {type(operand).__name__}")


def check_operands(x: Tensor, **others: Tensor | None) -> None:
    """One floating dtype and one device for x and the others, or a TypeError / ValueError that says which."""
    if not x.dtype.is_floating_point:
        raise TypeError(f"x must be a floating-point tensor, got {x.dtype}")
    for name, tensor in others.items():
        if tensor is not None and tensor.dtype != x.dtype:
            raise TypeError(f"{name} must have x's dtype {x.dtype}, got {tensor.dtype}")
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} must be on x's device {x.device}, got {tensor.device}")


def masked(weight: Tensor, words: Tensor) -> Tensor:
    """W . m by selection: multiplying would let NaN and inf of pruned slots through."""
    keep = unpack_mask(words, math.prod(weight.shape[1:]))
    return torch.where(keep.reshape(weight.shape), weight, 0)


def forward_reference(x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, masked(weight, words), bias)


def input_grad_reference(grad: Tensor, weight: Tensor, words: Tensor) -> Tensor:
    return grad @ masked(weight, words)


def weight_grad_reference(grad: Tensor, x: Tensor, words: Tensor) -> Tensor:
    return masked(grad.t() @ x, words)


def zeroed(weight: Tensor, words: Tensor) -> Tensor:
    """W . m; W itself where it is known to be zero at pruned slots, as sparse layers keep it."""
    # On a GPU the question alone would wait for the device, so there the mask is applied.
    return weight if weight.device.type == "cpu" and is_zero_outside(weight, words) else masked(weight, words)


def masked_(fresh: Tensor, words: Tensor) -> Tensor:
    """``fresh`` . m, in place: a third of the time of a new tensor, and by the native kernel a sixth of that."""
    if fresh.is_contiguous():
        backends.call("zero_pruned_", ZERO, "auto", fresh.flatten(1), words.contiguous())
        return fresh
    keep = unpack_mask(words, math.prod(fresh.shape[1:])).reshape(fresh.shape)
    return torch.where(keep, fresh, fresh.new_zeros(()), out=fresh)


def products(x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None) -> list[backends.Call]:
    """The calls of forward, input gradient and weight gradient for x (batch, in); the gradient of y is ones."""
    grad = x.new_ones(x.shape[0], weight.shape[0])
    return [
        backends.Call("masked_linear", FORWARD, (x, weight, words, bias)),
        backends.Call("masked_linear_input_grad", INPUT_GRAD, (grad, weight, words)),
        backends.Call("masked_linear_weight_grad", WEIGHT_GRAD, (grad, x, words)),
    ]


ONEDNN = "it takes float32 on a CPU, no empty tensors, in a torch that has oneDNN"


def _onednn(run: Callable[..., Tensor]) -> Implementation:
    def refusal(rows: Tensor, *others: Any) -> str | None:
        takes = rows.device.type == "cpu" and rows.dtype == torch.float32 and costs.has_onednn()
        return None if takes and all(t.numel() for t in backends.tensors((rows, *others))) else ONEDNN

    return Implementation(run, refusal)


FORWARD = {
    "native": backends.native("masked_linear"),
    "triton": backends.triton("masked_linear", "masked_linear"),
    "onednn": _onednn(lambda x, weight, words, bias: onednn_linear(x, zeroed(weight, words), bias)),
    "dense": backends.reference(lambda x, weight, words, bias: F.linear(x, zeroed(weight, words), bias)),
    "reference": backends.reference(forward_reference),
}
INPUT_GRAD = {
    "native": backends.native("masked_linear_input_grad"),
    "triton": backends.triton("masked_linear", "masked_linear_input_grad"),
    "onednn": _onednn(lambda grad, weight, words: onednn_linear(grad, zeroed(weight, words).t())),
    "dense": backends.reference(lambda grad, weight, words: grad @ zeroed(weight, words)),
    "reference": backends.reference(input_grad_reference),
}
WEIGHT_GRAD = {
    "native": backends.native("masked_linear_weight_grad"),
    "triton": backends.triton("masked_linear", "masked_linear_weight_grad"),
    "onednn": _onednn(lambda grad, x, words: masked_(onednn_linear(grad.t(), x.t()), words)),
    "dense": backends.reference(lambda grad, x, words: masked_(grad.t() @ x, words)),
    "reference": backends.reference(weight_grad_reference),
}

_forward = backends.register(
    "masked_linear",
    "(Tensor x, Tensor weight, Tensor words, Tensor? bias, str backend) -> Tensor",
    FORWARD,
    lambda x, weight, words, bias: x.new_empty(x.shape[0], weight.shape[0]),
    choose=choose("masked_linear"),
)
_input_grad = backends.register(
    "masked_linear_input_grad",
    "(Tensor grad, Tensor weight, Tensor words, str backend) -> Tensor",
    INPUT_GRAD,
    lambda grad, weight, words: grad.new_empty(grad.shape[0], weight.shape[1]),
    choose=choose("masked_linear_input_grad"),
)
_weight_grad = backends.register(
    "masked_linear_weight_grad",
    "(Tensor grad, Tensor x, Tensor words, str backend) -> Tensor",
    WEIGHT_GRAD,
    lambda grad, x, words: x.new_empty(grad.shape[1], x.shape[1]),
    choose=choose("masked_linear_weight_grad"),
)


_apply = differentiable(
    _forward,
    lambda grad, weight, words, _, backend: _input_grad(grad, weight, words, backend),
    lambda grad, x, words, _, backend: _weight_grad(grad, x, words, backend),
)
