"""2-D convolution with a masked weight: y = conv2d(x, W . m) + b.

As for the linear layer, forward, input gradient and weight gradient are closed under differentiation, and each
gradient is written with the other two.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backends
from .backends import Implementation
from .bilinear import Watch, differentiable
from .bitmask import BitMask, packed
from .choice import choose, layout_of, output_size
from .masked_linear import check_operands, check_tensors, masked, masked_, zeroed


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    mask: BitMask | Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    backend: str = backends.DEFAULT,
    watch: Watch | None = None,
) -> Tensor:
    """y = conv2d(x, W . m) + b, where pruned entries of W are never read.

    Args:
        x: (N, in, H, W) or (in, H, W), a floating dtype; channels_last in, channels_last out.
        weight: (out, in / groups, kh, kw), of x's dtype and device.
        mask: a BitMask or bool tensor of weight's shape, or its packed int32 words.
        bias: (out,) or None.
        stride, padding, dilation, groups: as for ``torch.nn.functional.conv2d``; padding is with zeros, and may be
            "valid" or (for stride 1) "same".
        backend: "auto", "native", "triton", "dense" or "reference".
        watch: who is told the gradient at every slot, see :func:`sparseprune.dense_gradients`.

    Returns:
        (N, out, H', W') or (out, H', W'), with H' = floor((H + 2 ph - dh (kh - 1) - 1) / sh) + 1.

    Raises:
        TypeError: an argument is of the wrong type or the dtypes differ.
        ValueError: shapes, devices or options do not fit, or the named backend refuses.
    """
    check_tensors(x=x, weight=weight, bias=bias)
    x, weight, bias = backends.autocast(x, weight, bias)
    if weight.dim() != 4:
        raise ValueError(f"weight must have shape (out, in / groups, kh, kw), got {tuple(weight.shape)}")
    x, geometry = resolve(x, weight.shape, stride, padding, dilation, groups)
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    check_operands(x, weight=weight, bias=bias)
    batch = x.unsqueeze(0) if x.dim() == 3 else x
    y = _apply(batch, weight, packed(mask, weight), bias, (*geometry, backend), watch)
    return y.squeeze(0) if x.dim() == 3 else y


def resolve(
    x: Tensor, weight: torch.Size, stride: Any, padding: Any, dilation: Any, groups: int
) -> tuple[Tensor, tuple[list[int], list[int], list[int], int]]:
    """x, padded where both sides differ, and (stride, padding, dilation, groups) in pairs, for a weight of this shape.

    Raises:
        TypeError: an option is of the wrong type.
        ValueError: the options do not fit each other, x or the weight.
    """
    stride, dilation = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
    x, padding = _resolve_padding(x, weight, stride, padding, dilation)
    _check(x, weight, stride, padding, dilation, groups)
    return x, (stride, padding, dilation, groups)


def _pair(name: str, value: int | tuple[int, int], least: int) -> list[int]:
    pair = list(value) if isinstance(value, (list, tuple)) else [value, value]
    if len(pair) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) for v in pair):
        raise TypeError(f"{name} must be an integer or a pair of integers, got {value!r}")
    if min(pair) < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return pair


def _resolve_padding(
    x: Tensor, weight: torch.Size, stride: list[int], padding: Any, dilation: list[int]
) -> tuple[Tensor, list[int]]:
    if not isinstance(padding, str):
        return x, _pair("padding", padding, 0)
    if padding == "valid":
        return x, [0, 0]
    if padding != "same":
        raise ValueError(f'padding must be integers, "same" or "valid", got {padding!r}')
    if stride != [1, 1]:
        raise ValueError(f'stride must be 1 where padding is "same", got {tuple(stride)}')
    total = [d * (k - 1) for d, k in zip(dilation, weight[2:], strict=True)]
    if total[0] % 2 or total[1] % 2:  # an even kernel: the odd row or column goes to the bottom and right
        x = F.pad(x, (0, total[1] % 2, 0, total[0] % 2))
    return x, [t // 2 for t in total]


def _check(x: Tensor, weight: torch.Size, stride: Any, padding: Any, dilation: Any, groups: int) -> None:
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise TypeError(f"groups must be an integer, got {type(groups).__name__}")
    if groups < 1 or weight[0] % groups:
        raise ValueError(f"groups must divide the {weight[0]} output channels, got {groups}")
    channels = weight[1] * groups
    if x.dim() not in (3, 4) or x.shape[-3] != channels:
        raise ValueError(f"x must have shape (N, {channels}, H, W) or ({channels}, H, W), got {tuple(x.shape)}")
    if min(output_size(x.shape[-2:], weight[2:], stride, padding, dilation)) < 1:
        raise ValueError(
            f"x must be at least as large as the kernel, got {tuple(x.shape[-2:])} with padding {tuple(padding)} "
            f"for a kernel of {tuple(weight[2:])} with dilation {tuple(dilation)}"
        )


def forward_reference(x, weight, words, bias, stride, padding, dilation, groups):
    y = F.conv2d(x, masked(weight, words), bias, stride, padding, dilation, groups)
    return y.contiguous(memory_format=layout_of(x))


def convolution_backward(grad, x, weight, stride, padding, dilation, groups, output_mask):
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, output_mask
    )


def input_grad_reference(grad, weight, words, input_size, stride, padding, dilation, groups):
    shape = grad.new_empty(1).expand(input_size)  # only its shape is used
    geometry = (stride, padding, dilation, groups)
    dx = convolution_backward(grad, shape, masked(weight, words), *geometry, [True, False, False])[0]
    return dx.contiguous(memory_format=layout_of(grad))


def weight_grad_reference(grad, x, words, weight_size, stride, padding, dilation, groups):
    shape = grad.new_empty(1).expand(weight_size)
    geometry = (stride, padding, dilation, groups)
    dw = convolution_backward(grad, x, shape, *geometry, [False, True, False])[1]
    return masked(dw, words).contiguous(memory_format=layout_of(x))


def _empty_like(tensor: Tensor, size: Any) -> Tensor:
    """New, in the layout of ``tensor``."""
    return torch.empty(size, dtype=tensor.dtype, device=tensor.device, memory_format=layout_of(tensor))


def _dense_forward(x, weight, words, bias, *geometry):
    return F.conv2d(x, zeroed(weight, words), bias, *geometry).contiguous(memory_format=layout_of(x))


def _dense_input_grad(grad, weight, words, input_size, *geometry):
    shape = grad.new_empty(1).expand(input_size)
    dx = convolution_backward(grad, shape, zeroed(weight, words), *geometry, [True, False, False])[0]
    return dx.contiguous(memory_format=layout_of(grad))


def _dense_weight_grad(grad, x, words, weight_size, *geometry):
    shape = grad.new_empty(1).expand(weight_size)
    dw = convolution_backward(grad, x, shape, *geometry, [False, True, False])[1]
    return masked_(dw.contiguous(memory_format=layout_of(x)), words)


def _on_contiguous(kernel: Implementation, leader: int = 0) -> Implementation:
    """A kernel of ours, which knows one layout; the result is in that of argument ``leader``."""

    def run(*args: Any) -> Tensor:
        result = kernel.run(*backends.contiguous(args))
        return result.contiguous(memory_format=layout_of(args[leader]))

    return kernel._replace(run=run)


def products(
    x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> list[backends.Call]:
    """The calls of forward, input gradient and weight gradient for x (N, in, H, W); the gradient of y is ones."""
    x, geometry = resolve(x, weight.shape, stride, padding, dilation, groups)
    size = output_size(x.shape[2:], weight.shape[2:], *geometry[:3])
    grad = _empty_like(x, (x.shape[0], weight.shape[0], *size)).fill_(1)
    return [
        backends.Call("masked_conv2d", FORWARD, (x, weight, words, bias, *geometry)),
        backends.Call("masked_conv2d_input_grad", INPUT_GRAD, (grad, weight, words, list(x.shape), *geometry)),
        backends.Call("masked_conv2d_weight_grad", WEIGHT_GRAD, (grad, x, words, list(weight.shape), *geometry)),
    ]


FORWARD = {
    "native": _on_contiguous(backends.native("masked_conv2d")),
    "triton": _on_contiguous(backends.triton("masked_conv2d", "masked_conv2d")),
    "dense": backends.reference(_dense_forward),
    "reference": backends.reference(forward_reference),
}
INPUT_GRAD = {
    "native": _on_contiguous(backends.native("masked_conv2d_input_grad")),
    "triton": _on_contiguous(backends.triton("masked_conv2d", "masked_conv2d_input_grad")),
    "dense": backends.reference(_dense_input_grad),
    "reference": backends.reference(input_grad_reference),
}
WEIGHT_GRAD = {
    "native": _on_contiguous(backends.native("masked_conv2d_weight_grad"), leader=1),
    "triton": _on_contiguous(backends.triton("masked_conv2d", "masked_conv2d_weight_grad"), leader=1),
    "dense": backends.reference(_dense_weight_grad),
    "reference": backends.reference(weight_grad_reference),
}

_forward = backends.register(
    "masked_conv2d",
    "(Tensor x, Tensor weight, Tensor words, Tensor? bias, "
    "int[] stride, int[] padding, int[] dilation, int groups, str backend) -> Tensor",
    FORWARD,
    lambda x, weight, words, bias, stride, padding, dilation, groups: _empty_like(
        x, (x.shape[0], weight.shape[0], *output_size(x.shape[2:], weight.shape[2:], stride, padding, dilation))
    ),
    strided=True,
    choose=choose("masked_conv2d"),
)
_input_grad = backends.register(
    "masked_conv2d_input_grad",
    "(Tensor grad, Tensor weight, Tensor words, SymInt[] input_size, "
    "int[] stride, int[] padding, int[] dilation, int groups, str backend) -> Tensor",
    INPUT_GRAD,
    lambda grad, weight, words, input_size, *_: _empty_like(grad, input_size),
    strided=True,
    choose=choose("masked_conv2d_input_grad"),
)
_weight_grad = backends.register(
    "masked_conv2d_weight_grad",
    "(Tensor grad, Tensor x, Tensor words, SymInt[] weight_size, "
    "int[] stride, int[] padding, int[] dilation, int groups, str backend) -> Tensor",
    WEIGHT_GRAD,
    lambda grad, x, words, weight_size, *_: _empty_like(x, weight_size),
    strided=True,
    choose=choose("masked_conv2d_weight_grad"),
)


_apply = differentiable(
    _forward,
    lambda grad, weight, words, image, *options: _input_grad(grad, weight, words, (grad.shape[0], *image), *options),
    _weight_grad,
    masked_,
)
