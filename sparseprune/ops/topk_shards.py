"""What a rank does alone in a selection over many: count digits of its keys, then write its mask.

A score's key is an integer that orders as the scores do: 64 bits wide where any tensor of the selection is float64,
else 32. Both zeros have key 0, and where the smallest scores are wanted keys are negated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import backends
from . import native as native_libraries
from .bitmask import as_rows
from .mask_bits import pack_mask, unpack_mask, words_per_row

DIGIT_BITS = 13
SLAB = 1 << 20  # how many scores the reference looks at together, a multiple of 64
ALL = torch.iinfo(torch.int64).max


class Order(NamedTuple):
    """How scores become keys: in float64 or float32, of the scores or their absolute values, largest or smallest."""

    wide: bool
    largest: bool
    abs: bool

    @property
    def bits(self) -> int:
        return 64 if self.wide else 32

    @property
    def lowest(self) -> int:
        """The least integer of so many bits."""
        return -1 << (self.bits - 1)

    def keys(self, scores: Tensor) -> Tensor:
        """int64 keys."""
        floats, integers = (torch.float64, torch.int64) if self.wide else (torch.float32, torch.int32)
        bits = scores.to(floats).view(integers).long()
        magnitude = bits & ((1 << (self.bits - 1)) - 1)
        keys = magnitude if self.abs else torch.where(bits < 0, -magnitude, magnitude)
        return keys if self.largest else -keys

    def value(self, key: int) -> float:
        """The score that has this key."""
        key = key if self.largest else -key
        floats, integers = (torch.float64, torch.int64) if self.wide else (torch.float32, torch.int32)
        magnitude = torch.tensor(abs(key), dtype=integers).view(floats).item()
        return magnitude if key >= 0 else -magnitude


def digits(bits: int) -> Iterator[tuple[int, int]]:
    """(shift, width) of each digit of an integer of so many bits, the highest first."""
    while bits > 0:
        width = min(DIGIT_BITS, bits)
        bits -= width
        yield bits, width


def digit_histogram(
    scores: Tensor, candidates: Tensor | None, order: Order, low: int, shift: int, width: int, backend: str
) -> Tensor:
    """int64 [2^width + 1]: how often each digit [shift, shift + width) occurs, then how many scores are NaN.

    Counted are the competing scores whose keys lie in the range of 2^(shift + width) keys that begins at ``low``, and
    all competing NaNs, which lie nowhere.

    Args:
        scores: this rank's scores of one tensor, any shape and strides.
        candidates: packed words of the slots that compete; all where it is None.
        order: what makes keys of scores.
        backend: "auto", "native" or "reference".
    """
    return backends.call("digit_histogram", HISTOGRAM, backend, scores, candidates, *order, low, shift, width)


def threshold_mask(
    scores: Tensor, candidates: Tensor | None, order: Order, threshold: int, quota: int, backend: str
) -> tuple[Tensor, Tensor]:
    """Packed words of the competing scores whose keys are above ``threshold`` and of the first ``quota`` equal to it.

    Returns:
        The words, and int64 [2]: how many keys are above, and how many are equal, kept or not.
    """
    words, counts = backends.call("threshold_mask", MASK, backend, scores, candidates, *order, threshold, quota)
    return words, counts


def tie_histogram(
    scores: Tensor,
    candidates: Tensor | None,
    order: Order,
    threshold: int,
    index: Callable[[Tensor], Tensor],
    low: int,
    shift: int,
    width: int,
) -> Tensor:
    """int64 [2^width]: as :func:`digit_histogram`, of ``index(flat position)`` where a key equals ``threshold``."""
    total = torch.zeros(1 << width, dtype=torch.int64, device=scores.device)
    for _, part, competing, begin in _slabs(scores, candidates):
        ties = (competing & (order.keys(part) == threshold)).flatten().nonzero()[:, 0]
        total += _count_digits(index(ties + begin), low, shift, width)
    return total


def _slabs(scores: Tensor, candidates: Tensor | None) -> Iterator[tuple[Any, Tensor, Tensor, int]]:
    """(the words' place, scores [r, c], which compete, flat index of the first), in order."""
    rows = scores.reshape(as_rows(scores.shape))
    columns = rows.shape[1]
    height = max(SLAB // max(columns, 1), 1)
    for row in range(0, rows.shape[0], height):
        for column in range(0, columns, SLAB):
            part = rows[row : row + height, column : column + SLAB]
            first = column // 32
            place = slice(row, row + height), slice(first, first + words_per_row(part.shape[1]))
            if candidates is None:
                competing = torch.ones_like(part, dtype=torch.bool)
            else:
                competing = unpack_mask(candidates[place].contiguous(), part.shape[1])
            yield place, part, competing, row * columns + column


def _count_digits(keys: Tensor, low: int, shift: int, width: int) -> Tensor:
    digit = (keys >> shift) - (low >> shift)
    return torch.bincount(digit[(digit >= 0) & (digit < 1 << width)], minlength=1 << width)


def digit_histogram_reference(
    scores: Tensor, candidates: Tensor | None, wide: bool, largest: bool, abs: bool, low: int, shift: int, width: int
) -> Tensor:
    order = Order(wide, largest, abs)
    total = torch.zeros((1 << width) + 1, dtype=torch.int64, device=scores.device)
    for _, part, competing, _ in _slabs(scores, candidates):
        nan = competing & part.isnan()
        total[:-1] += _count_digits(order.keys(part[competing & ~nan]), low, shift, width)
        total[-1] += nan.sum()
    return total


def threshold_mask_reference(
    scores: Tensor, candidates: Tensor | None, wide: bool, largest: bool, abs: bool, threshold: int, quota: int
) -> list[Tensor]:
    order = Order(wide, largest, abs)
    rows, columns = as_rows(scores.shape)
    words = torch.zeros(rows, words_per_row(columns), dtype=torch.int32, device=scores.device)
    counts = torch.zeros(2, dtype=torch.int64, device=scores.device)
    for place, part, competing, _ in _slabs(scores, candidates):
        keys = order.keys(part)
        above, equal = competing & (keys > threshold), competing & (keys == threshold)
        nth = counts[1] + equal.flatten().cumsum(0).view_as(equal)
        words[place] = pack_mask(above | (equal & (nth <= quota)))
        counts += torch.stack([above.sum(), equal.sum()])
    return [words, counts]


def _native(op: str) -> backends.Implementation:
    def run(scores: Tensor, *args: Any) -> Any:
        return getattr(torch.ops.sparseprune_native, op).default(
            scores.reshape(as_rows(scores.shape)).contiguous(), *args
        )

    def refusal(scores: Tensor, *_: Any) -> str | None:
        if scores.device.type != "cpu":
            return f"there is no native kernel for device type {scores.device.type!r}"
        return native_libraries.refusal({"cpu"}, set())

    return backends.Implementation(run, refusal)


HISTOGRAM = {"native": _native("digit_histogram"), "reference": backends.reference(digit_histogram_reference)}
MASK = {"native": _native("threshold_mask"), "reference": backends.reference(threshold_mask_reference)}
