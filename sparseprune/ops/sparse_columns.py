"""The kept weights of a layer column by column, and what one layer of a SynFlow pass does with them.

``y = s * (W x)`` and, from the gradient ``g`` of y, ``W^T (s * g)`` and the score ``w <s g, x>`` of every kept weight.
Memory and time fall with the number of weights kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import backends
from .bitmask import BitMask, as_rows
from .mask_bits import unpack_mask

BLOCKS = 8  # of columns, each with cursors into the scores: kColumnBlocks of the kernel
BAND = 256  # rows that are stored together: kBandRows
MOST_ROWS = 65_536  # row numbers have 16 bits


@dataclass(frozen=True, eq=False)
class SparseColumns:
    """A [O, I] matrix of which only kept weights are stored: bands of 256 rows, each column by column.

    Attributes:
        starts: int32 [ceil(O / 256) I + 1], where each column's weights begin in each band.
        rows, values: [kept], int16 (unsigned) and float32 or float64; in a column rows ascend.
        cursors: int32 [8, O], how many kept weights, counted row by row, come before each row's part of each eighth
            of the columns.
    """

    starts: Tensor
    rows: Tensor
    values: Tensor
    cursors: Tensor
    backend: str = backends.DEFAULT

    @classmethod
    def pack(cls, weight: Tensor, mask: BitMask, groups: int = 1, backend: str = backends.DEFAULT) -> SparseColumns:
        """The kept weights of a layer.

        Args:
            weight: (O, ...), float32 or float64; dimension 0 by all others is the matrix.
            mask: of the weight's shape.
            groups: as of a convolution: O / groups rows each have I / groups columns of their own.

        Raises:
            ValueError: shapes disagree, or there are more than 65,536 rows.
        """
        if weight.shape != mask.shape:
            raise ValueError(f"mask must have the weight's shape {tuple(weight.shape)}, got {tuple(mask.shape)}")
        if weight.shape[0] > MOST_ROWS:
            raise ValueError(f"weight must have at most {MOST_ROWS:,} rows, got {weight.shape[0]:,}")
        matrix = weight.reshape(as_rows(weight.shape)).contiguous()
        made = backends.call_again("pack_columns", PACK, backend, matrix, mask.words, groups, mask.count())
        return cls(*made, backend)

    def narrow(self, kept: BitMask, count: int) -> SparseColumns:
        """Of these weights, counted row by row, the ``count`` that ``kept`` [number of them] keeps."""
        made = backends.call_again("narrow_columns", NARROW, self.backend, *self._parts, kept.words, count)
        return SparseColumns(*made, self.backend)

    def product(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """``scale * (W x)``: x [I, N], scale [O] or None, N 1, 4 or a multiple of 8; [O, N]."""
        return backends.call_again("columns_product", PRODUCT, self.backend, *self._parts, x, scale)

    def gradients(
        self, grad: Tensor, x: Tensor, scale: Tensor | None = None, input_grad: bool = True
    ) -> tuple[Tensor, Tensor]:
        """From the gradient [O, N] of :meth:`product`: that of x (empty unless wanted), and ``w dR/dw`` [kept].

        The scores are in the order of the weights: row by row, columns ascending.
        """
        found = backends.call_again(
            "columns_gradients", GRADIENTS, self.backend, *self._parts, grad, x, scale, input_grad
        )
        return found[0], found[1]

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.starts, self.rows, self.values, self.cursors


def _made(rows: Tensor, columns: Tensor, values: Tensor, height: int, cols: int) -> list[Tensor]:
    """From weights in any order."""
    place = rows // BAND * cols + columns
    order = (place * height + rows).argsort()
    rows, columns, place = rows[order], columns[order], place[order]
    counts = torch.bincount(place, minlength=-(-height // BAND) * cols)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    edges = torch.tensor([cols * b // BLOCKS for b in range(BLOCKS + 1)])
    block = torch.bucketize(columns, edges, right=True) - 1
    per_part = torch.bincount(rows * BLOCKS + block, minlength=height * BLOCKS)
    cursors = (per_part.cumsum(0) - per_part).view(height, BLOCKS).t()
    return [starts.int(), rows.to(torch.int16), values[order], cursors.int().contiguous()]


def pack_reference(weight: Tensor, words: Tensor, groups: int, entries: int) -> list[Tensor]:
    height, cols = weight.shape
    mask = unpack_mask(words, cols)
    rows, columns = mask.nonzero(as_tuple=True)
    columns = columns + rows // max(height // groups, 1) * cols
    return _made(rows, columns, weight[mask], height, groups * cols)


def _columns(starts: Tensor, cursors: Tensor) -> int:
    return (len(starts) - 1) // max(-(-cursors.shape[1] // BAND), 1)


def _listed(starts: Tensor, rows: Tensor, cursors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column of every weight, and its number, counted row by row."""
    rows, cols = rows.long() & 0xFFFF, _columns(starts, cursors)
    columns = torch.repeat_interleave(torch.arange(len(starts) - 1) % max(cols, 1), starts.diff().long())
    order = (rows * max(cols, 1) + columns).argsort()
    number = torch.empty_like(order)
    number[order] = torch.arange(len(order))
    return rows, columns, number


def narrow_reference(
    starts: Tensor, rows: Tensor, values: Tensor, cursors: Tensor, kept: Tensor, entries: int
) -> list[Tensor]:
    rows, columns, number = _listed(starts, rows, cursors)
    flags = unpack_mask(kept, len(rows))[0][number]
    return _made(rows[flags], columns[flags], values[flags], cursors.shape[1], _columns(starts, cursors))


def _dense(starts: Tensor, rows: Tensor, values: Tensor, cursors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, columns, number = _listed(starts, rows, cursors)
    matrix = values.new_zeros(cursors.shape[1], _columns(starts, cursors))
    matrix[rows, columns] = values
    return matrix, rows, columns, number


def product_reference(
    starts: Tensor, rows: Tensor, values: Tensor, cursors: Tensor, x: Tensor, scale: Tensor | None
) -> Tensor:
    y = _dense(starts, rows, values, cursors)[0] @ x
    return y if scale is None else y * scale[:, None]


def gradients_reference(
    starts: Tensor,
    rows: Tensor,
    values: Tensor,
    cursors: Tensor,
    grad: Tensor,
    x: Tensor,
    scale: Tensor | None,
    input_grad: bool,
) -> list[Tensor]:
    matrix, rows, columns, number = _dense(starts, rows, values, cursors)
    grad = grad if scale is None else grad * scale[:, None]
    scores = torch.empty_like(values)
    scores[number] = values * (grad[rows] * x[columns]).sum(1)
    return [matrix.t() @ grad if input_grad else x.new_empty(0, x.shape[1]), scores]


def _implementations(op: str, run: object) -> dict[str, backends.Implementation]:
    return {"native": backends.native(op), "reference": backends.reference(run)}


PACK = _implementations("pack_columns", pack_reference)
NARROW = _implementations("narrow_columns", narrow_reference)
PRODUCT = _implementations("columns_product", product_reference)
GRADIENTS = _implementations("columns_gradients", gradients_reference)
