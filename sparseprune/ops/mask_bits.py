"""Pack a boolean mask into bits, unpack it, count it.

Format: a mask of R rows and C columns is int32 words [R, W], W = 2 ceil(C / 64); bit j of word w of a row is column
32 w + j, little-endian; the unused bits are zero. Rows are padded to 64 bits so that a kernel may read whole words.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import backends


def words_per_row(columns: int) -> int:
    """W = 2 ceil(columns / 64), the int32 words of one row."""
    return 2 * ((columns + 63) // 64)


def pack_mask(mask: Tensor, *, backend: str = backends.DEFAULT) -> Tensor:
    """bool [R, C] -> int32 words [R, W]: bit j of word w is ``mask[:, 32 w + j]``.

    Raises:
        TypeError: ``mask`` is not a bool tensor.
        ValueError: ``mask`` is not 2-D, or the named backend refuses.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor, got {_kind(mask)}")
    if mask.dim() != 2:
        raise ValueError(f"mask must be 2-D (rows, columns), got shape {tuple(mask.shape)}")
    return _pack(mask, backend)


def unpack_mask(words: Tensor, columns: int, *, backend: str = backends.DEFAULT) -> Tensor:
    """int32 words [R, W] -> bool [R, columns], the inverse of :func:`pack_mask`.

    Raises:
        TypeError: ``words`` is not an int32 tensor.
        ValueError: ``words`` is not 2-D with W = 2 ceil(columns / 64), or the named backend refuses.
    """
    _check_words(words)
    if columns < 0 or words.shape[1] != words_per_row(columns):
        raise ValueError(
            f"words must have {words_per_row(max(columns, 0))} words a row for {columns} columns, "
            f"got shape {tuple(words.shape)}"
        )
    return _unpack(words, columns, backend)


def count_mask(words: Tensor, *, backend: str = backends.DEFAULT) -> Tensor:
    """int32 words [R, W] -> int64 [R]: the set bits of every row.

    Raises:
        TypeError: ``words`` is not an int32 tensor.
        ValueError: ``words`` is not 2-D, or the named backend refuses.
    """
    _check_words(words)
    return _count(words, backend)


def _kind(value: object) -> str:
    return f"a {value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__


def _check_words(words: Tensor) -> None:
    if not isinstance(words, Tensor) or words.dtype != torch.int32:
        raise TypeError(f"words must be an int32 tensor, got {_kind(words)}")
    if words.dim() != 2:
        raise ValueError(f"words must be 2-D (rows, words), got shape {tuple(words.shape)}")


def pack_reference(mask: Tensor) -> Tensor:
    rows, columns = mask.shape
    width = words_per_row(columns)
    bits = torch.zeros(rows, 32 * width, dtype=torch.int64, device=mask.device)
    bits[:, :columns] = mask
    shifts = torch.arange(32, device=mask.device)
    return (bits.view(rows, width, 32) << shifts).sum(-1).to(torch.int32)  # 2**31 and above wrap to the sign bit


def unpack_reference(words: Tensor, columns: int) -> Tensor:
    shifts = torch.arange(32, dtype=torch.int32, device=words.device)
    return ((words.unsqueeze(-1) >> shifts) & 1).bool().flatten(1)[:, :columns].contiguous()


def count_reference(words: Tensor) -> Tensor:
    return unpack_reference(words, 32 * words.shape[1]).sum(1)


PACK = {
    "native": backends.native("pack_mask"),
    "triton": backends.triton("mask_bits", "pack_mask"),
    "reference": backends.reference(pack_reference),
}
UNPACK = {
    "native": backends.native("unpack_mask"),
    "triton": backends.triton("mask_bits", "unpack_mask"),
    "reference": backends.reference(unpack_reference),
}
COUNT = {
    "native": backends.native("count_mask"),
    "triton": backends.triton("mask_bits", "count_mask"),
    "reference": backends.reference(count_reference),
}

_pack = backends.register(
    "pack_mask",
    "(Tensor mask, str backend) -> Tensor",
    PACK,
    lambda mask: mask.new_empty(mask.shape[0], words_per_row(mask.shape[1]), dtype=torch.int32),
)
_unpack = backends.register(
    "unpack_mask",
    "(Tensor words, SymInt columns, str backend) -> Tensor",
    UNPACK,
    lambda words, columns: words.new_empty(words.shape[0], columns, dtype=torch.bool),
)
_count = backends.register(
    "count_mask",
    "(Tensor words, str backend) -> Tensor",
    COUNT,
    lambda words: words.new_empty(words.shape[0], dtype=torch.int64),
)
