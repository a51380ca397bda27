"""Block sizes of the matrix products, chosen from the table in each op's file."""

from __future__ import annotations

from typing import NamedTuple

import torch

# For every launch. A multiply and an add round once; said because Triton is about to change its default, and warns.
LAUNCH = {"enable_fp_fusion": True}

# By bytes of an element: tiles for a narrow and for a wide product.
TileTable = dict[int, tuple["Tile", "Tile"]]


class Tile(NamedTuple):
    """One program computes ``BM x BN`` outputs, ``BK`` terms at a time."""

    BM: int
    BN: int
    BK: int
    num_warps: int
    num_stages: int

    def options(self) -> dict[str, int | bool]:
        """The tile as keyword arguments of a launch."""
        return {**self._asdict(), **LAUNCH}


def pick(table: TileTable, dtype: torch.dtype, columns: int) -> Tile:
    """The tile for a product of this dtype whose free dimension (BN's) has this many columns."""
    narrow, wide = table[dtype.itemsize]
    return narrow if columns <= narrow.BN else wide


def tiles(size: int, block: int) -> int:
    """Blocks needed to cover a size."""
    return -(-size // block)
