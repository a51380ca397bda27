"""BitMask: which entries of one weight are kept, one bit each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..arguments import typed
from .known import count_kept, remember_count
from .mask_bits import count_mask, pack_mask, unpack_mask, words_per_row


def as_rows(shape: Sequence[int]) -> tuple[int, int]:
    """(rows, columns) of a weight: dimension 0 by all the others; a 0-D or 1-D tensor is one row."""
    if len(shape) < 2:
        return 1, math.prod(shape)
    return shape[0], math.prod(shape[1:])


class BitMask:
    """The mask of one weight, packed: True = keep.

    Immutable in use: operators return new masks. It cannot hold a wrong value: ``words`` must have the right dtype
    and shape, and its unused bits must be zero.

    Args:
        words: int32 [rows, 2 ceil(columns / 64)], bit j of word w of a row = element 32 w + j of that row. Rows are
            dimension 0 of the weight; the other dimensions, in logical order, are the columns.
        shape: the weight's shape.

    Raises:
        TypeError: ``words`` is not an int32 tensor.
        ValueError: ``words`` does not fit ``shape``, or has bits set beyond the last column.

    >>> mask = BitMask.from_bool(torch.tensor([[True, False, True]]))
    >>> mask.count(), mask.density, mask.words.shape
    (2, 0.6666666666666666, torch.Size([1, 2]))
    """

    __slots__ = ("shape", "words")

    def __init__(self, words: Tensor, shape: Sequence[int]) -> None:
        if not isinstance(shape, Sequence) or isinstance(shape, str):
            raise TypeError(f"shape must be a sequence of integers, got {type(shape).__name__}")
        shape = torch.Size(shape)
        rows, columns = as_rows(shape)
        if not isinstance(words, Tensor) or words.dtype != torch.int32:
            raise TypeError(
                f"words must be an int32 tensor, got {words.dtype if isinstance(words, Tensor) else type(words).__name__}"
            )
        if words.shape != (rows, words_per_row(columns)):
            raise ValueError(
                f"words must have shape {(rows, words_per_row(columns))} for a mask of shape {tuple(shape)}, "
                f"got {tuple(words.shape)}"
            )
        if _has_stray_bits(words, columns):
            raise ValueError(f"words must have no bits set beyond the {columns} columns of shape {tuple(shape)}")
        self.words = words
        self.shape = shape

    @classmethod
    def _trusted(cls, words: Tensor, shape: Sequence[int]) -> BitMask:
        """Words that an op of ours made: nothing to check, so no wait for a GPU."""
        mask = object.__new__(cls)
        mask.words, mask.shape = words, torch.Size(shape)
        return mask

    @classmethod
    def from_bool(cls, mask: Tensor) -> BitMask:
        """The mask of a bool tensor of any shape and strides."""
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            kind = f"a {mask.dtype} tensor" if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"mask must be a bool tensor, got {kind}")
        return cls._trusted(pack_mask(mask.reshape(as_rows(mask.shape))), mask.shape)

    @classmethod
    @typed
    def ones(cls, shape: Sequence[int], device: torch.device | str | None = None) -> BitMask:
        """Everything kept."""
        rows, columns = as_rows(shape)
        words = torch.zeros(rows, words_per_row(columns), dtype=torch.int32, device=device)
        words[:, : columns // 32] = -1
        if columns % 32:
            words[:, columns // 32] = (1 << columns % 32) - 1
        remember_count(words, rows * columns)
        return cls._trusted(words, shape)

    @classmethod
    @typed
    def zeros(cls, shape: Sequence[int], device: torch.device | str | None = None) -> BitMask:
        """Everything pruned."""
        rows, columns = as_rows(shape)
        return cls._trusted(torch.zeros(rows, words_per_row(columns), dtype=torch.int32, device=device), shape)

    def to_bool(self) -> Tensor:
        """A bool tensor of the weight's shape."""
        return unpack_mask(self.words, as_rows(self.shape)[1]).reshape(self.shape)

    def row_counts(self) -> Tensor:
        """int64 [rows]: how many are kept in each row."""
        return count_mask(self.words)

    def count(self) -> int:
        """How many are kept."""
        return count_kept(self.words)

    def numel(self) -> int:
        """How many there are."""
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """Kept / all; 1.0 for a weight of no elements."""
        return self.count() / self.numel() if self.numel() else 1.0

    @property
    def sparsity(self) -> float:
        """1 - density."""
        return 1.0 - self.density

    @property
    def device(self) -> torch.device:
        return self.words.device

    @typed
    def to(self, device: torch.device | str) -> BitMask:
        """This mask on another device."""
        return self._trusted(self.words.to(device), self.shape)

    def clone(self) -> BitMask:
        return self._trusted(self.words.clone(), self.shape)

    @typed
    def apply(self, tensor: Tensor) -> Tensor:
        """``torch.where(mask, tensor, 0)``: a new tensor whose pruned slots are zero, whatever they held."""
        if tensor.shape != self.shape:
            raise ValueError(f"tensor must have the mask's shape {tuple(self.shape)}, got {tuple(tensor.shape)}")
        return torch.where(self.to_bool(), tensor, 0)

    def __and__(self, other: BitMask) -> BitMask:
        return self._trusted(self.words & self._same(other).words, self.shape)

    def __or__(self, other: BitMask) -> BitMask:
        return self._trusted(self.words | self._same(other).words, self.shape)

    def __invert__(self) -> BitMask:
        return self._trusted(self.words ^ self.ones(self.shape, self.device).words, self.shape)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BitMask):
            return NotImplemented
        return self.shape == other.shape and torch.equal(self.words, other.words)

    __hash__ = None  # type: ignore[assignment]  # equality is by content, and the content is a tensor

    def __reduce__(self) -> tuple[Any, ...]:
        return BitMask, (self.words, tuple(self.shape))

    def __repr__(self) -> str:
        return f"BitMask(shape={tuple(self.shape)}, kept={self.count()}, density={self.density:.4g})"

    def _same(self, other: object) -> BitMask:
        if not isinstance(other, BitMask):
            raise TypeError(f"the other operand must be a BitMask, got {type(other).__name__}")
        if other.shape != self.shape:
            raise ValueError(f"masks must have one shape, got {tuple(self.shape)} and {tuple(other.shape)}")
        return other


def _has_stray_bits(words: Tensor, columns: int) -> bool:
    # Reduced row by row in the bits' own domain: no temporary larger than the words.
    allowed = BitMask.ones((1, columns), words.device).words
    return bool((words & ~allowed).any())


def packed(mask: BitMask | Tensor, weight: Tensor) -> Tensor:
    """The words of ``mask`` for ``weight``: a BitMask, a bool tensor of weight's shape, or the packed words.

    Raises:
        TypeError: ``mask`` is something else.
        ValueError: its shape or device is not the weight's.
    """
    if isinstance(mask, BitMask):
        shape, words, wanted = mask.shape, mask.words, weight.shape
    elif isinstance(mask, Tensor) and mask.dtype == torch.bool:
        shape, words, wanted = mask.shape, mask, weight.shape
    elif isinstance(mask, Tensor) and mask.dtype == torch.int32:
        rows, columns = as_rows(weight.shape)
        shape, words, wanted = mask.shape, mask, (rows, words_per_row(columns))
    else:
        kind = f"a {mask.dtype} tensor" if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a BitMask, a bool tensor or packed int32 words, got {kind}")
    if tuple(shape) != tuple(wanted):
        raise ValueError(
            f"mask must have shape {tuple(wanted)} for a weight of shape {tuple(weight.shape)}, got {tuple(shape)}"
        )
    if words.device != weight.device:
        raise ValueError(f"mask must be on the weight's device {weight.device}, got {words.device}")
    return pack_mask(words.reshape(as_rows(shape))) if words.dtype == torch.bool else words
