"""2-D convolution that keeps only its weight's survivors: y = conv2d(x, S(v)) + b, where S puts v at the mask's slots.

As for ``packed_linear``, the three products are closed under differentiation, and the gradient of v is as long as v.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from . import backends
from .bilinear import differentiable
from .bitmask import BitMask
from .choice import choose_packed, conv_work, layout_of, output_size
from .masked_conv2d import convolution_backward, resolve
from .masked_linear import check_tensors
from .packed_values import check_packed, kept_slots, scattered


def packed_conv2d(
    x: Tensor,
    values: Tensor,
    mask: BitMask,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    backend: str = backends.DEFAULT,
) -> Tensor:
    """y = conv2d(x, W) + b, where W has ``values`` at the slots that ``mask`` keeps, in order, and zeros elsewhere.

    The same as ``masked_conv2d`` on the dense W, which is never made: neither here nor for the gradient.

    Args:
        x: (N, in, H, W) or (in, H, W), a floating dtype; channels_last in, channels_last out.
        values: (kept,), of x's dtype and device: W's survivors in the order of its flat index.
        mask: a BitMask of shape (out, in / groups, kh, kw).
        bias: (out,) or None.
        stride, padding, dilation, groups: as for ``masked_conv2d``.
        backend: "auto", "native" or "reference".

    Returns:
        (N, out, H', W') or (out, H', W'), as ``masked_conv2d``.

    Raises:
        TypeError: an argument is of the wrong type or the dtypes differ.
        ValueError: shapes, devices or options do not fit, or the named backend refuses.
    """
    check_tensors(x=x, values=values, bias=bias)
    x, values, bias = backends.autocast(x, values, bias)
    check_packed(x, values, mask, bias, 4)
    x, geometry = resolve(x, mask.shape, stride, padding, dilation, groups)
    batch = x.unsqueeze(0) if x.dim() == 3 else x
    y = _apply(batch, values, mask.words, bias, (list(mask.shape[2:]), *geometry, backend))
    return y.squeeze(0) if x.dim() == 3 else y


def _weight_shape(words: Tensor, channels: int, kernel: list[int], groups: int) -> tuple[int, ...]:
    return words.shape[0], channels // groups, *kernel


def _weight(values: Tensor, words: Tensor, channels: int, kernel: list[int], groups: int) -> Tensor:
    shape = _weight_shape(words, channels, kernel, groups)
    return scattered(values, words, math.prod(shape[1:])).reshape(shape)


def forward_reference(x, values, words, bias, kernel, stride, padding, dilation, groups):
    weight = _weight(values, words, x.shape[1], kernel, groups)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def input_grad_reference(grad, values, words, input_size, kernel, stride, padding, dilation, groups):
    shape = grad.new_empty(1).expand(input_size)  # only its shape is used
    weight = _weight(values, words, input_size[1], kernel, groups)
    geometry = (stride, padding, dilation, groups)
    return convolution_backward(grad, shape, weight, *geometry, [True, False, False])[0].contiguous()


def values_grad_reference(grad, x, words, kept, kernel, stride, padding, dilation, groups):
    shape = grad.new_empty(1).expand(_weight_shape(words, x.shape[1], kernel, groups))
    geometry = (stride, padding, dilation, groups)
    return kept_slots(convolution_backward(grad, x, shape, *geometry, [False, True, False])[1], words)


def _choose(op, image, x, words, kernel, *geometry, kept):
    if image.device.type != "cpu":
        return "reference"
    weight = _weight_shape(words, x[1], kernel, geometry[-1])
    return choose_packed(conv_work(op, image, x, weight, geometry, kept))


def _choose_forward(x, values, words, bias, *rest):
    return _choose("masked_conv2d", x, x.shape, words, *rest, kept=len(values))


def _choose_input_grad(grad, values, words, input_size, *rest):
    return _choose("masked_conv2d_input_grad", grad, input_size, words, *rest, kept=len(values))


def _choose_values_grad(grad, x, words, kept, *rest):
    return _choose("masked_conv2d_weight_grad", grad, x.shape, words, *rest, kept=kept)


FORWARD = {
    "native": backends.native("packed_conv2d", gpu=False),
    "reference": backends.reference(forward_reference),
}
INPUT_GRAD = {
    "native": backends.native("packed_conv2d_input_grad", gpu=False),
    "reference": backends.reference(input_grad_reference),
}
VALUES_GRAD = {
    "native": backends.native("packed_conv2d_values_grad", gpu=False),
    "reference": backends.reference(values_grad_reference),
}

_forward = backends.register(
    "packed_conv2d",
    "(Tensor x, Tensor values, Tensor words, Tensor? bias, int[] kernel, "
    "int[] stride, int[] padding, int[] dilation, int groups, str backend) -> Tensor",
    FORWARD,
    lambda x, values, words, bias, kernel, stride, padding, dilation, groups: x.new_empty(
        x.shape[0], words.shape[0], *output_size(x.shape[2:], kernel, stride, padding, dilation)
    ),
    choose=_choose_forward,
)
_input_grad = backends.register(
    "packed_conv2d_input_grad",
    "(Tensor grad, Tensor values, Tensor words, SymInt[] input_size, int[] kernel, "
    "int[] stride, int[] padding, int[] dilation, int groups, str backend) -> Tensor",
    INPUT_GRAD,
    lambda grad, values, words, input_size, *_: grad.new_empty(input_size),
    choose=_choose_input_grad,
)
_values_grad = backends.register(
    "packed_conv2d_values_grad",
    "(Tensor grad, Tensor x, Tensor words, SymInt kept, int[] kernel, "
    "int[] stride, int[] padding, int[] dilation, int groups, str backend) -> Tensor",
    VALUES_GRAD,
    lambda grad, x, words, kept, *_: x.new_empty(kept),
    choose=_choose_values_grad,
)


_apply = differentiable(
    lambda x, *rest: _forward(x, *rest).contiguous(memory_format=layout_of(x)),
    lambda grad, values, words, image, *options: _input_grad(grad, values, words, (grad.shape[0], *image), *options),
    lambda grad, x, words, kept, *options: _values_grad(grad, x, words, *kept, *options),
)
