"""What the matrix products share: block sizes, chosen from the table in each op's file, slices of sums, precision."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

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


# About four programs for each of 132 multiprocessors. Said in advance, so that results do not depend on the device.
MAX_PROGRAMS = 512


def slices_of(terms: int, least: int, programs: int) -> int:
    """Into how many slices of at least so many terms to split sums, where one program for each tile of sums are few."""
    return max(1, min(terms // least, MAX_PROGRAMS // programs))


def partial_sums(result: Tensor, slices: int) -> Tensor:
    """Where the programs write: ``result``, or one array a slice of the dtype that sums have."""
    return result if slices == 1 else result.new_empty(slices, *result.shape, dtype=sum_dtype(result.dtype))


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """What products of ``dtype`` are summed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """The same as Triton calls it."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def linear_precision() -> str:
    """How products of float32 are formed, by the user's ``torch.set_float32_matmul_precision``.

    "highest" is "ieee", exact products; "high" is "tf32x3", three products of the tensor cores for each, which lose
    about the last two bits of a term; "medium" is "tf32", one product of 11 bits. Where torch was told by
    ``torch.backends.cuda.matmul.fp32_precision`` instead, it is what that says.
    """
    try:
        return {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}[torch.get_float32_matmul_precision()]
    except RuntimeError:  # torch refuses to translate a setting of the other kind
        return _stated(torch.backends.cuda.matmul.fp32_precision)


def conv_precision() -> str:
    """The same of convolutions: "tf32" unless ``torch.backends.cudnn.allow_tf32`` forbids it, as for torch's own."""
    return _stated(torch.backends.cudnn.conv.fp32_precision)


def _stated(fp32_precision: str) -> str:
    return "tf32" if fp32_precision == "tf32" else "ieee"


def tiles(size: int, block: int) -> int:
    """Blocks needed to cover a size."""
    return -(-size // block)
