"""Linear layer that keeps only its weight's survivors: y = x S(v)^T + b, where S puts v at the mask's slots.

Its three products are closed under differentiation, as those of ``masked_linear``; the gradient of v is as long as v.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from . import backends, native
from .bilinear import differentiable
from .bitmask import BitMask
from .choice import choose_packed, linear_work
from .masked_linear import as_matrix, check_tensors
from .packed_values import check_packed, kept_slots, scattered


def packed_linear(
    x: Tensor, values: Tensor, mask: BitMask, bias: Tensor | None = None, *, backend: str = backends.DEFAULT
) -> Tensor:
    """y = x W^T + b, where W has ``values`` at the slots that ``mask`` keeps, in order, and zeros elsewhere.

    The same as ``masked_linear`` on the dense W, which is never made: neither here nor for the gradient.

    Args:
        x: (..., in), a floating dtype, contiguous or not.
        values: (kept,), of x's dtype and device: W's survivors in the order of its flat index.
        mask: a BitMask of shape (out, in).
        bias: (out,) or None.
        backend: "auto", "native" or "reference".

    Returns:
        (..., out).

    Raises:
        TypeError: an argument is of the wrong type or the dtypes differ.
        ValueError: shapes or devices do not fit, or the named backend refuses.
    """
    check_tensors(x=x, values=values, bias=bias)
    x, values, bias = backends.autocast(x, values, bias)
    check_packed(x, values, mask, bias, 2)
    out, columns = mask.shape
    if x.dim() == 0 or x.shape[-1] != columns:
        raise ValueError(f"x must have shape (..., {columns}), got {tuple(x.shape)}")
    y = _apply(as_matrix(x), values, mask.words, bias, (backend,))
    return y if x.dim() == 2 else y.reshape(*x.shape[:-1], out)


def forward_reference(x: Tensor, values: Tensor, words: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, scattered(values, words, x.shape[1]), bias)


def input_grad_reference(grad: Tensor, values: Tensor, words: Tensor, columns: int) -> Tensor:
    return grad @ scattered(values, words, columns)


def values_grad_reference(grad: Tensor, x: Tensor, words: Tensor, kept: int) -> Tensor:
    return kept_slots(grad.t() @ x, words)


FORWARD = {"native": backends.native("packed_linear"), "reference": backends.reference(forward_reference)}
INPUT_GRAD = {
    "native": backends.native("packed_linear_input_grad"),
    "reference": backends.reference(input_grad_reference),
}
VALUES_GRAD = {
    "native": backends.native("packed_linear_values_grad"),
    "reference": backends.reference(values_grad_reference),
}


# What the kernels may cost on a GPU for "auto" to take them, in multiply-adds a slot. The reference writes and reads the
# dense weight, a mask of bytes and the places of the values, 20 + 4 x 2 bytes a slot in float16: 6.5 ps at the 4.3 TB/s
# of an H200, before its product. 16 multiply-adds take 1.8 ps if the kernels reach 27 % of the peak, as Sputnik does
# (Gale et al. 2020). The bits, which they read again for every 16 rows, count as 1/64 of one a slot and row. Not measured.
GPU_MULTIPLY_ADDS = 16


def _choose(op: str, rows: Tensor, words: Tensor, columns: int, kept: int) -> str:
    work = linear_work(op, rows, (words.shape[0], columns), kept)
    if rows.device.type == "cpu":
        return choose_packed(work)
    takes = rows.device.type == "cuda" and native.refusal({"cuda"}, {rows.dtype}) is None
    few = (work.kept + work.slots / 64) * work.vectors <= GPU_MULTIPLY_ADDS * work.slots
    return "native" if takes and few else "reference"


_forward = backends.register(
    "packed_linear",
    "(Tensor x, Tensor values, Tensor words, Tensor? bias, str backend) -> Tensor",
    FORWARD,
    lambda x, values, words, bias: x.new_empty(x.shape[0], words.shape[0]),
    choose=lambda x, values, words, bias: _choose("masked_linear", x, words, x.shape[1], len(values)),
)
_input_grad = backends.register(
    "packed_linear_input_grad",
    "(Tensor grad, Tensor values, Tensor words, SymInt columns, str backend) -> Tensor",
    INPUT_GRAD,
    lambda grad, values, words, columns: grad.new_empty(grad.shape[0], columns),
    choose=lambda grad, values, words, n: _choose("masked_linear_input_grad", grad, words, n, len(values)),
)
_values_grad = backends.register(
    "packed_linear_values_grad",
    "(Tensor grad, Tensor x, Tensor words, SymInt kept, str backend) -> Tensor",
    VALUES_GRAD,
    lambda grad, x, words, kept: x.new_empty(kept),
    choose=lambda grad, x, words, kept: _choose("masked_linear_weight_grad", grad, words, x.shape[1], kept),
)


_apply = differentiable(
    _forward,
    lambda grad, values, words, columns, backend: _input_grad(grad, values, words, *columns, backend),
    lambda grad, x, words, kept, backend: _values_grad(grad, x, words, *kept, backend),
)
