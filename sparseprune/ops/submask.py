"""A mask within a mask: of the weights that a mask keeps, counted row by row, one bit or one value each."""

from __future__ import annotations

import torch
from torch import Tensor

from . import backends
from .bitmask import BitMask
from .known import known_part, remember_count, remember_part
from .mask_bits import pack_mask, unpack_mask


def keep_within(mask: BitMask, kept: BitMask, *, backend: str = backends.DEFAULT) -> BitMask:
    """The mask of those of ``mask``'s weights that ``kept`` [their number] keeps."""
    words = backends.call_again("spread_bits", SPREAD, backend, mask.words, kept.words)
    remember_count(words, kept.count())
    remember_part(words, mask.words, kept.words)
    return BitMask._trusted(words, mask.shape)


def within(mask: BitMask, part: BitMask, count: int, *, backend: str = backends.DEFAULT) -> tuple[BitMask, int, int]:
    """The inverse: which of ``mask``'s ``count`` weights ``part`` keeps, how many those are, and how many others."""
    if (known := known_part(part.words, mask.words)) is not None:
        return BitMask._trusted(known, (count,)), part.count(), 0
    words, counts = backends.call_again("collect_bits", COLLECT, backend, mask.words, part.words, count)
    return BitMask._trusted(words, (count,)), *counts.tolist()


def zero_pruned_(weight: Tensor, mask: BitMask, *, backend: str = "auto") -> None:
    """Set to zero, in place, what ``mask`` does not keep of ``weight`` [O, I], whatever it holds."""
    backends.call_again("zero_pruned_", ZERO, backend, weight, mask.words)
    _written(weight)


def is_zero_outside(weight: Tensor, words: Tensor, *, backend: str = "auto") -> bool:
    """Is ``weight`` [O, I] zero where a mask's packed words keep nothing? NaN is not."""
    return backends.call_again("is_zero_outside", IS_ZERO, backend, weight, words)


def collect_values(weight: Tensor, mask: BitMask, *, backend: str = "auto") -> Tensor:
    """The values of ``weight`` [O, I] that ``mask`` keeps, row by row."""
    return backends.call_again("collect_values", COLLECT_VALUES, backend, weight, mask.words)


def spread_values_(weight: Tensor, mask: BitMask, values: Tensor, *, backend: str = "auto") -> None:
    """The inverse: ``weight`` [O, I] takes ``values``, in place; what ``mask`` does not keep is not touched."""
    backends.call_again("spread_values_", SPREAD_VALUES, backend, weight, mask.words, values)
    _written(weight)


def _written(weight: Tensor) -> None:
    """Let autograd, and what is remembered of the weight, know; for ops of ours torch does not."""
    if not weight.is_inference():
        torch.autograd.graph.increment_version(weight)


def zero_reference(weight: Tensor, words: Tensor) -> None:
    weight.masked_fill_(~unpack_mask(words, weight.shape[1]), 0)


def is_zero_reference(weight: Tensor, words: Tensor) -> bool:
    return not (pack_mask(weight.bool()) & ~words).any()


def collect_values_reference(weight: Tensor, words: Tensor) -> Tensor:
    return weight.masked_select(unpack_mask(words, weight.shape[1]))


def spread_values_reference(weight: Tensor, words: Tensor, values: Tensor) -> None:
    weight.masked_scatter_(unpack_mask(words, weight.shape[1]), values)


def spread_reference(words: Tensor, kept: Tensor) -> Tensor:
    mask = unpack_mask(words, 32 * words.shape[1])
    return pack_mask(mask.masked_scatter(mask, unpack_mask(kept, 32 * kept.shape[1])[0, : int(mask.sum())]))


def collect_reference(words: Tensor, part: Tensor, count: int) -> list[Tensor]:
    mask, wanted = (unpack_mask(w, 32 * words.shape[1]) for w in (words, part))
    kept = wanted[mask][None]
    return [pack_mask(kept), torch.stack([kept.sum(), (wanted & ~mask).sum()])]


SPREAD = {"native": backends.native("spread_bits", gpu=False), "reference": backends.reference(spread_reference)}
COLLECT = {"native": backends.native("collect_bits", gpu=False), "reference": backends.reference(collect_reference)}
ZERO = {"native": backends.native("zero_pruned_", gpu=False), "reference": backends.reference(zero_reference)}
IS_ZERO = {"native": backends.native("is_zero_outside", gpu=False), "reference": backends.reference(is_zero_reference)}
COLLECT_VALUES = {
    "native": backends.native("collect_values", gpu=False),
    "reference": backends.reference(collect_values_reference),
}
SPREAD_VALUES = {
    "native": backends.native("spread_values_", gpu=False),
    "reference": backends.reference(spread_values_reference),
}
