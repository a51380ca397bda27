"""The kept weights of a layer row by row, and what one layer of a SynFlow pass does with them.

``y = s * (W x)`` and, from the gradient ``g`` of y, ``W^T (s * g)`` and the score ``w <s g, x>`` of every kept weight.
Memory and time fall with the number of weights kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import backends
from .bitmask import BitMask, as_rows
from .mask_bits import unpack_mask

MOST_COLUMNS = 65_536  # a column of a row has 16 bits
FEWEST_BLOCKS, TASK_BLOCKS, MOST_BLOCKS, BLOCK_COLUMNS, LIST_ENTRIES = 2, 8, 64, 512, 12  # of sparse_rows.h


@dataclass(frozen=True, eq=False)
class SparseRows:
    """An [O, I] matrix of which only kept weights are stored, row by row, each row's columns cut into a few blocks.

    Attributes:
        starts: int32 [O blocks + 1], where each row's weights begin in each block.
        columns, values: [kept], int16 (unsigned) and float32 or float64; in a row columns ascend.
        height, row_cols: O, and the columns of a row.
        groups: as of a convolution: O / groups rows each have ``row_cols`` columns of x of their own.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    height: int
    row_cols: int
    groups: int = 1
    backend: str = backends.DEFAULT

    @classmethod
    def pack(cls, weight: Tensor, mask: BitMask, groups: int = 1, backend: str = backends.DEFAULT) -> SparseRows:
        """The kept weights of a layer.

        Args:
            weight: (O, ...), float32 or float64; dimension 0 by all others is the matrix.
            mask: of the weight's shape.
            groups: see above.

        Raises:
            ValueError: shapes disagree, or a row has more than 65,536 columns.
        """
        if weight.shape != mask.shape:
            raise ValueError(f"mask must have the weight's shape {tuple(weight.shape)}, got {tuple(mask.shape)}")
        matrix = weight.reshape(as_rows(weight.shape)).contiguous()
        if matrix.shape[1] > MOST_COLUMNS:
            raise ValueError(f"weight must have at most {MOST_COLUMNS:,} values a row, got {matrix.shape[1]:,}")
        made = backends.call_again("pack_rows", PACK, backend, matrix, mask.words, mask.count())
        return cls(*made, *matrix.shape, groups, backend)

    def narrow(self, kept: BitMask, count: int) -> SparseRows:
        """Of these weights, in their order, the ``count`` that ``kept`` [number of them] keeps."""
        made = backends.call_again("narrow_rows", NARROW, self.backend, *self._parts[:5], kept.words, count)
        return replace(self, **dict(zip(("starts", "columns", "values"), made, strict=True)))

    def product(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """``scale * (W x)``: x [groups I, N], scale [O] or None, N 1, 4 or a multiple of 8; [O, N]."""
        return backends.call_again("rows_product", PRODUCT, self.backend, *self._parts, x, scale)

    def gradients(
        self, grad: Tensor, x: Tensor, scale: Tensor | None = None, input_grad: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From the gradient [O, N] of :meth:`product`: that of x (empty unless wanted), ``w dR/dw`` [kept], and the
        largest ``dR/dw``, [1], 0 where all are negative.

        The scores are in the order of the weights: row by row, columns ascending.
        """
        found = backends.call_again("rows_gradients", GRADIENTS, self.backend, *self._parts, grad, x, scale, input_grad)
        return tuple(found)

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor, int, int, int]:
        return self.starts, self.columns, self.values, self.height, self.row_cols, self.groups


def block_count(height: int, row_cols: int, entries: int) -> int:
    """Blocks of every row: as ``block_count`` of sparse_rows.h."""
    blocks = FEWEST_BLOCKS
    while (
        blocks < MOST_BLOCKS
        and entries >= 2 * blocks * height * LIST_ENTRIES
        and (blocks < TASK_BLOCKS or 2 * blocks * BLOCK_COLUMNS <= row_cols)
    ):
        blocks *= 2
    return blocks


def _made(rows: Tensor, columns: Tensor, values: Tensor, height: int, row_cols: int) -> list[Tensor]:
    """From weights in their order."""
    blocks = block_count(height, row_cols, len(values))
    edges = torch.tensor([row_cols * b // blocks for b in range(1, blocks)])
    lists = rows * blocks + torch.bucketize(columns, edges, right=True)
    counts = torch.bincount(lists, minlength=height * blocks)
    return [torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int(), columns.to(torch.int16), values]


def pack_reference(weight: Tensor, words: Tensor, entries: int) -> list[Tensor]:
    mask = unpack_mask(words, weight.shape[1])
    rows, columns = mask.nonzero(as_tuple=True)
    return _made(rows, columns, weight[mask], *weight.shape)


def _listed(starts: Tensor, columns: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """Row and column of every weight."""
    blocks = (len(starts) - 1) // max(height, 1)
    rows = torch.repeat_interleave(torch.arange(len(starts) - 1) // max(blocks, 1), starts.diff().long())
    return rows, columns.long() & 0xFFFF


def narrow_reference(
    starts: Tensor, columns: Tensor, values: Tensor, height: int, row_cols: int, kept: Tensor, entries: int
) -> list[Tensor]:
    flags = unpack_mask(kept, len(values))[0]
    rows, columns = _listed(starts, columns, height)
    return _made(rows[flags], columns[flags], values[flags], height, row_cols)


def _dense(
    starts: Tensor, columns: Tensor, values: Tensor, height: int, row_cols: int, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = _listed(starts, columns, height)
    columns = columns + rows // max(height // groups, 1) * row_cols
    matrix = values.new_zeros(height, groups * row_cols)
    matrix[rows, columns] = values
    return matrix, rows, columns


def product_reference(
    starts: Tensor,
    columns: Tensor,
    values: Tensor,
    height: int,
    row_cols: int,
    groups: int,
    x: Tensor,
    scale: Tensor | None,
) -> Tensor:
    y = _dense(starts, columns, values, height, row_cols, groups)[0] @ x
    return y if scale is None else y * scale[:, None]


def gradients_reference(
    starts: Tensor,
    columns: Tensor,
    values: Tensor,
    height: int,
    row_cols: int,
    groups: int,
    grad: Tensor,
    x: Tensor,
    scale: Tensor | None,
    input_grad: bool,
) -> list[Tensor]:
    matrix, rows, columns = _dense(starts, columns, values, height, row_cols, groups)
    grad = grad if scale is None else grad * scale[:, None]
    gradients = (grad[rows] * x[columns]).sum(1)
    peak = torch.cat([gradients, gradients.new_zeros(1)]).amax().reshape(1)
    return [matrix.t() @ grad if input_grad else x.new_empty(0, x.shape[1]), values * gradients, peak]


def _implementations(op: str, run: object) -> dict[str, backends.Implementation]:
    return {"native": backends.native(op), "reference": backends.reference(run)}


PACK = _implementations("pack_rows", pack_reference)
NARROW = _implementations("narrow_rows", narrow_reference)
PRODUCT = _implementations("rows_product", product_reference)
GRADIENTS = _implementations("rows_gradients", gradients_reference)
