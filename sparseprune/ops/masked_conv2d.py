"""2-D convolution with a masked weight: y = conv2d(x, W . m) + b.

As for the linear layer, forward, input gradient and weight gradient are closed under differentiation, and each
gradient is written with the other two.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from . import backends
from .bitmask import BitMask, packed
from .masked_linear import check_operands, masked, sparse_pays


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
) -> Tensor:
    """y = conv2d(x, W . m) + b, where pruned entries of W are never read.

    Args:
        x: (N, in, H, W) or (in, H, W), a floating dtype; channels_last in, channels_last out.
        weight: (out, in / groups, kh, kw), of x's dtype and device.
        mask: a BitMask or bool tensor of weight's shape, or its packed int32 words.
        bias: (out,) or None.
        stride, padding, dilation, groups: as for ``torch.nn.functional.conv2d``; padding is with zeros, and may be
            "valid" or (for stride 1) "same".
        backend: "auto", "native", "triton" or "reference".

    Returns:
        (N, out, H', W') or (out, H', W'), with H' = floor((H + 2 ph - dh (kh - 1) - 1) / sh) + 1.

    Raises:
        TypeError: an argument is of the wrong type or the dtypes differ.
        ValueError: shapes, devices or options do not fit, or the named backend refuses.
    """
    x, weight, bias = backends.autocast(x, weight, bias)
    if weight.dim() != 4:
        raise ValueError(f"weight must have shape (out, in / groups, kh, kw), got {tuple(weight.shape)}")
    x, geometry = resolve(x, weight.shape, stride, padding, dilation, groups)
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    check_operands(x, weight=weight, bias=bias)
    batch = x.unsqueeze(0) if x.dim() == 3 else x
    y = _MaskedConv2d.apply(batch, weight, packed(mask, weight), bias, geometry, backend)
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
    pair = [value, value] if isinstance(value, int) else list(value)
    if len(pair) != 2 or not all(isinstance(v, int) for v in pair):
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


def output_size(size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> list[int]:
    return [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    ]


def forward_reference(x, weight, words, bias, stride, padding, dilation, groups):
    return F.conv2d(x, masked(weight, words), bias, stride, padding, dilation, groups)


def convolution_backward(grad, x, weight, stride, padding, dilation, groups, output_mask):
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, output_mask
    )


def input_grad_reference(grad, weight, words, input_size, stride, padding, dilation, groups):
    shape = grad.new_empty(1).expand(input_size)  # only its shape is used
    geometry = (stride, padding, dilation, groups)
    return convolution_backward(grad, shape, masked(weight, words), *geometry, [True, False, False])[0].contiguous()


def weight_grad_reference(grad, x, words, weight_size, stride, padding, dilation, groups):
    shape = grad.new_empty(1).expand(weight_size)
    geometry = (stride, padding, dilation, groups)
    return masked(convolution_backward(grad, x, shape, *geometry, [False, True, False])[1].contiguous(), words)


# Where the sparse kernels beat F.conv2d on torch.where(m, W, 0): forward and backward, one Zen 5 core with AVX-512.
# 3x3, 256 channels at 14x14, batch 8: 0.95x at density 0.5, 1.5x at 0.3, 3.1x at 0.1, 5.8x at 0.02; other shapes of a
# ResNet-50 are between 1.3x and 1.9x at 0.3. On a GPU nothing is measured yet, so the vendor's convolution is taken.
DENSITY = 0.35


def _pays(x: Tensor, weight: Tensor, words: Tensor, *_: Any) -> bool:
    return sparse_pays(x, words, math.prod(weight.shape[1:]), DENSITY)


def _weight_grad_pays(grad: Tensor, x: Tensor, words: Tensor, weight_size: Any, *_: Any) -> bool:
    return sparse_pays(grad, words, math.prod(weight_size[1:]), DENSITY)


FORWARD = {
    "native": backends.native("masked_conv2d", _pays),
    "triton": backends.triton("masked_conv2d", "masked_conv2d", backends.never),
    "reference": backends.reference(forward_reference),
}
INPUT_GRAD = {
    "native": backends.native("masked_conv2d_input_grad", _pays),
    "triton": backends.triton("masked_conv2d", "masked_conv2d_input_grad", backends.never),
    "reference": backends.reference(input_grad_reference),
}
WEIGHT_GRAD = {
    "native": backends.native("masked_conv2d_weight_grad", _weight_grad_pays),
    "triton": backends.triton("masked_conv2d", "masked_conv2d_weight_grad", backends.never),
    "reference": backends.reference(weight_grad_reference),
}

_forward = backends.register(
    "masked_conv2d",
    "(Tensor x, Tensor weight, Tensor words, Tensor? bias, "
    "int[] stride, int[] padding, int[] dilation, int groups, str backend) -> Tensor",
    FORWARD,
    lambda x, weight, words, bias, stride, padding, dilation, groups: x.new_empty(
        x.shape[0], weight.shape[0], *output_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    ),
)
_input_grad = backends.register(
    "masked_conv2d_input_grad",
    "(Tensor grad, Tensor weight, Tensor words, SymInt[] input_size, "
    "int[] stride, int[] padding, int[] dilation, int groups, str backend) -> Tensor",
    INPUT_GRAD,
    lambda grad, weight, words, input_size, *_: grad.new_empty(input_size),
)
_weight_grad = backends.register(
    "masked_conv2d_weight_grad",
    "(Tensor grad, Tensor x, Tensor words, SymInt[] weight_size, "
    "int[] stride, int[] padding, int[] dilation, int groups, str backend) -> Tensor",
    WEIGHT_GRAD,
    lambda grad, x, words, weight_size, *_: x.new_empty(weight_size),
)


class _MaskedConv2d(Function):
    @staticmethod
    def forward(x, weight, words, bias, geometry, backend):
        y = _forward(x, weight, words, bias, *geometry, backend)
        if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            return y.contiguous(memory_format=torch.channels_last)
        return y

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, words, _, ctx.geometry, ctx.backend = inputs
        ctx.save_for_backward(x, weight, words)

    @staticmethod
    def backward(ctx, grad):
        x, weight, words = ctx.saved_tensors
        needs, options = ctx.needs_input_grad, (ctx.geometry, ctx.backend)
        dx = _InputGrad.apply(grad, weight, words, tuple(x.shape[1:]), *options) if needs[0] else None
        dw = _WeightGrad.apply(grad, x, words, tuple(weight.shape), *options) if needs[1] else None
        db = grad.sum((0, 2, 3)) if needs[3] else None
        return dx, dw, None, db, None, None

    @staticmethod
    def vmap(info, in_dims, *args):
        return backends.vmap_by_batch(_MaskedConv2d, info, in_dims, *args)


class _InputGrad(Function):
    @staticmethod
    def forward(grad, weight, words, image_size, geometry, backend):
        return _input_grad(grad, weight, words, (grad.shape[0], *image_size), *geometry, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad, weight, words, _, ctx.geometry, ctx.backend = inputs
        ctx.save_for_backward(grad, weight, words)

    @staticmethod
    def backward(ctx, grad_dx):
        grad, weight, words = ctx.saved_tensors
        needs, options = ctx.needs_input_grad, (ctx.geometry, ctx.backend)
        dgrad = _MaskedConv2d.apply(grad_dx, weight, words, None, *options) if needs[0] else None
        dw = _WeightGrad.apply(grad, grad_dx, words, tuple(weight.shape), *options) if needs[1] else None
        return dgrad, dw, None, None, None, None

    @staticmethod
    def vmap(info, in_dims, *args):
        return backends.vmap_by_batch(_InputGrad, info, in_dims, *args)


class _WeightGrad(Function):
    @staticmethod
    def forward(grad, x, words, weight_size, geometry, backend):
        return _weight_grad(grad, x, words, weight_size, *geometry, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad, x, words, _, ctx.geometry, ctx.backend = inputs
        ctx.save_for_backward(grad, x, words)

    @staticmethod
    def backward(ctx, grad_dw):
        grad, x, words = ctx.saved_tensors
        needs, options = ctx.needs_input_grad, (ctx.geometry, ctx.backend)
        dgrad = _MaskedConv2d.apply(x, grad_dw, words, None, *options) if needs[0] else None
        dx = _InputGrad.apply(grad, grad_dw, words, tuple(x.shape[1:]), *options) if needs[1] else None
        return dgrad, dx, None, None, None, None

    @staticmethod
    def vmap(info, in_dims, *args):
        return backends.vmap_by_loop(_WeightGrad, info, in_dims, *args)
