"""The k-th value and the quantiles of many tensors together, exactly, without putting them into one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..arguments import typed
from . import backends
from .products import Product
from .topk_mask import topk_mask


@typed
def kth_value(
    tensors: Sequence[Tensor | Product],
    k: int,
    *,
    largest: bool = False,
    abs: bool = False,
    names: Sequence[str] | None = None,
    backend: str = backends.DEFAULT,
) -> Tensor:
    """The ``k``-th smallest of all the values together, counted from 1 as ``torch.kthvalue`` does.

    Args:
        tensors: what ``topk_mask`` takes.
        k: between 1 and the number of values.
        largest: the ``k``-th largest instead.
        abs, names, backend: as for ``topk_mask``.

    Returns:
        The value, without dimensions, in the widest dtype among the tensors.

    Raises:
        TypeError, ValueError: as ``topk_mask``, and where ``k`` is 0.

    >>> kth_value([torch.tensor([3.0, 1.0]), torch.tensor([2.0])], 2)
    tensor(2.)
    """
    found = topk_mask(tensors, k, largest=largest, abs=abs, names=names, backend=backend)
    if k < 1:
        raise ValueError(f"k must be between 1 and the number of values, got {k}")
    dtype = tensors[0].dtype
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return found.threshold.to(dtype)


@typed
def quantile(
    tensors: Sequence[Tensor | Product],
    q: float,
    *,
    abs: bool = False,
    names: Sequence[str] | None = None,
    backend: str = backends.DEFAULT,
) -> Tensor:
    """The ``q``-quantile of all the values together, linear between two of them, for any number of values.

    ``x[i] + (x[i+1] - x[i]) f`` where ``i + f = q (n - 1)`` and x are the n values, sorted. ``torch.quantile`` computes the
    same, of one tensor of up to 2^24 values.

    Args:
        tensors: what ``topk_mask`` takes, one value at least.
        q: in [0, 1].
        abs, names, backend: as for ``topk_mask``.

    Returns:
        float64, without dimensions.

    Raises:
        TypeError, ValueError: as ``topk_mask``; ``q`` is not in [0, 1]; there is no value.

    >>> quantile([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])], 0.5)
    tensor(2.5000, dtype=torch.float64)
    """
    if not 0 <= q <= 1:
        raise ValueError(f"q must be a number in [0, 1], got {q}")
    total = sum(t.numel() for t in tensors)
    if total == 0:
        raise ValueError("tensors must hold at least one value, got none")
    position = q * (total - 1)
    below, fraction = math.floor(position), position - math.floor(position)
    value, *above = [
        topk_mask(tensors, i + 1, largest=False, abs=abs, names=names, backend=backend).threshold
        for i in ([below, below + 1] if fraction else [below])
    ]
    if not above or above[0] == value:
        return value
    if value.isinf() or above[0].isinf():  # lerp subtracts, and may find NaN next to an infinite value
        return value * (1 - fraction) + above[0] * fraction
    return value.lerp(above[0], fraction)
