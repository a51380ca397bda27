"""The k largest of every group of consecutive scores, exactly, as a packed mask: N:M sparsity, or k in every row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..arguments import typed
from . import backends
from .bitmask import BitMask, as_rows
from .mask_bits import pack_reference, words_per_row
from .products import FORMULAS, Product, as_operand, as_product, values_in_rows


@typed
def group_topk_mask(
    scores: Tensor | Product,
    k: int,
    group: int | None = None,
    *,
    largest: bool = True,
    abs: bool = False,
    name: str = "scores",
    backend: str = backends.DEFAULT,
) -> BitMask:
    """Keep the ``k`` largest of every ``group`` consecutive scores.

    Rows are dimension 0 and groups lie within a row, whose elements are the other dimensions in logical order; a tensor
    of one dimension is one row. ``k=2, group=4`` is the 2:4 pattern along the input of a linear layer, and no group
    gives every output the same number of inputs.

    Args:
        scores: one tensor of any shape and strides, float16, bfloat16, float32 or float64, or a :class:`Product`. +inf
            and -inf are ordinary values and -0.0 equals 0.0.
        k: how many to keep of each group.
        group: how many scores a group has, which must divide the length of a row; None makes a row one group.
        largest: False keeps the ``k`` smallest.
        abs: compare absolute values; for tensors only, as a formula says so itself.
        name: what to call the scores in error messages.
        backend: "auto", "native" (on a CPU) or "reference".

    Returns:
        The mask, with exactly ``k`` of each group. Among equal scores the lowest index is kept.

    Raises:
        TypeError: scores are not a floating-point tensor, or ``k`` or ``group`` is not an integer.
        ValueError: a score is NaN (the row is named), ``group`` does not divide a row, or ``k`` is negative or more
            than a group has.

    Source of N:M sparsity: Mishra et al. 2021, arXiv:2104.08378, section 3; of constant fan-in: Lasby et al. 2023,
    arXiv:2305.02299.

    >>> group_topk_mask(torch.tensor([[3.0, 1.0, 2.0, 0.0, -5.0, 4.0, 4.0, 4.0]]), 2, group=4).to_bool().int()
    tensor([[1, 0, 1, 0, 0, 1, 1, 0]], dtype=torch.int32)
    """
    product = as_product(scores, abs, name)
    _, columns = as_rows(product.shape)
    group = _check_group(group, columns)
    if not 0 <= k <= group:
        raise ValueError(f"k must be between 0 and the {group} scores of a group, got {k}")
    weight = as_operand(product.weight, product.dtype)
    gradient = None if product.gradient is None else as_operand(product.gradient, product.dtype)
    words, nan_row = _group_topk_mask(weight, gradient, FORMULAS.index(product.formula), k, group, largest, backend)
    if (row := int(nan_row)) >= 0:
        raise ValueError(f"scores must not be NaN, got NaN in row {row} of {name}")
    return BitMask._trusted(words, product.shape)


def _check_group(group: int | None, columns: int) -> int:
    if group is None:
        return max(columns, 1)
    if group < 1 or columns % group:
        raise ValueError(f"group must be positive and divide the {columns} scores of a row, got {group}")
    return group


def group_topk_mask_reference(
    scores: Tensor, gradient: Tensor | None, formula: int, k: int, group: int, largest: bool
) -> list[Tensor]:
    """Sort every group stably and keep the first k."""
    wide = torch.promote_types(scores.dtype, torch.float32)
    gradient = scores if gradient is None else gradient
    values = values_in_rows(scores.to(wide), gradient.to(wide), formula, largest)
    rows, columns = values.shape
    groups = values.reshape(rows, columns // group, group) + 0.0  # -0.0 becomes 0.0
    best = torch.sort(groups, dim=-1, descending=True, stable=True).indices[..., :k]
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter(-1, best, True)
    nan_rows = values.isnan().any(1).nonzero()[:, 0]
    return [pack_reference(kept.reshape(rows, columns)), torch.cat([nan_rows, nan_rows.new_tensor([-1])])[:1]]


def _fake(scores: Tensor, *_: Any) -> list[Tensor]:
    rows, columns = as_rows(scores.shape)
    words = scores.new_empty(rows, words_per_row(columns), dtype=torch.int32)
    return [words, scores.new_empty(1, dtype=torch.int64)]


IMPLEMENTATIONS = {
    "native": backends.native("group_topk_mask", halves=True, gpu=False),
    "reference": backends.reference(group_topk_mask_reference),
}

_group_topk_mask = backends.register(
    "group_topk_mask",
    "(Tensor scores, Tensor? gradient, int formula, int k, int group, bool largest, str backend) -> Tensor[]",
    IMPLEMENTATIONS,
    _fake,
    strided=True,
)
