"""A weight's survivors without the rest: the values that a mask keeps, in the order of the weight's flat index."""

from __future__ import annotations

import math

from torch import Tensor

from ..arguments import typed
from .bitmask import BitMask
from .mask_bits import unpack_mask
from .masked_linear import check_operands


@typed
def pack_values(weight: Tensor, mask: BitMask) -> Tensor:
    """The (kept,) values of ``weight`` at the slots that ``mask`` keeps, row by row; differentiable.

    Raises:
        ValueError: the shapes or the devices differ.

    >>> mask = BitMask.from_bool(torch.tensor([[True, False], [True, True]]))
    >>> pack_values(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), mask)
    tensor([1., 3., 4.])
    """
    if weight.shape != mask.shape:
        raise ValueError(f"weight must have the mask's shape {tuple(mask.shape)}, got {tuple(weight.shape)}")
    if weight.device != mask.device:
        raise ValueError(f"weight must be on the mask's device {mask.device}, got {weight.device}")
    return weight.masked_select(mask.to_bool())


@typed
def unpack_values(values: Tensor, mask: BitMask) -> Tensor:
    """The inverse: a tensor of the mask's shape with ``values`` at the slots kept, zero elsewhere; differentiable.

    Raises:
        ValueError: there are not as many values as slots kept, or they are on another device.

    >>> unpack_values(torch.tensor([1.0, 3.0]), BitMask.from_bool(torch.tensor([True, False, True])))
    tensor([1., 0., 3.])
    """
    if tuple(values.shape) != (mask.count(),):
        raise ValueError(f"values must have shape ({mask.count()},), one a slot kept, got {tuple(values.shape)}")
    if values.device != mask.device:
        raise ValueError(f"values must be on the mask's device {mask.device}, got {values.device}")
    return values.new_zeros(mask.shape).masked_scatter(mask.to_bool(), values)


def check_packed(x: Tensor, values: Tensor, mask: BitMask, bias: Tensor | None, dims: int) -> None:
    """What packed layers of ``dims`` dimensions ask of their arguments, or a TypeError / ValueError that says which.

    That there are as many values as slots kept is seen where the slots are counted, in the op; a CUDA kernel, for which
    nothing waits, reads no further than the values and says nothing.
    """
    if not isinstance(mask, BitMask):
        raise TypeError(f"mask must be a BitMask, got {type(mask).__name__}")
    if len(mask.shape) != dims:
        raise ValueError(f"mask must have {dims} dimensions, got shape {tuple(mask.shape)}")
    if values.dim() != 1:
        raise ValueError(f"values must have shape (kept,), got {tuple(values.shape)}")
    if bias is not None and tuple(bias.shape) != (mask.shape[0],):
        raise ValueError(f"bias must have shape ({mask.shape[0]},), got {tuple(bias.shape)}")
    check_operands(x, bias=bias, values=values)
    if mask.device != x.device:
        raise ValueError(f"mask must be on x's device {x.device}, got {mask.device}")


def scattered(values: Tensor, words: Tensor, columns: int) -> Tensor:
    """The matrix of ``columns`` columns with ``values`` at the slots of packed ``words``, zero elsewhere."""
    keep = unpack_mask(words, columns)
    if values.shape[0] != (kept := int(keep.sum())):
        raise ValueError(f"values must have as many elements as the mask keeps, {kept}, got {values.shape[0]}")
    return values.new_zeros(keep.shape).masked_scatter(keep, values)


def kept_slots(weight: Tensor, words: Tensor) -> Tensor:
    """The values of a weight's gradient at the slots of packed ``words``, in order."""
    return weight.masked_select(unpack_mask(words, math.prod(weight.shape[1:])).reshape(weight.shape))
