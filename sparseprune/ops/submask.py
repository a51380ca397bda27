"""A mask within a mask: of the weights that a mask keeps, counted row by row, one bit each."""

from __future__ import annotations

import torch
from torch import Tensor

from . import backends
from .bitmask import BitMask
from .mask_bits import pack_mask, unpack_mask


def keep_within(mask: BitMask, kept: BitMask, *, backend: str = backends.DEFAULT) -> BitMask:
    """The mask of those of ``mask``'s weights that ``kept`` [their number] keeps."""
    first = torch.zeros(len(mask.words) + 1, dtype=torch.int64, device=mask.device)
    torch.cumsum(mask.row_counts(), 0, out=first[1:])
    return BitMask._trusted(backends.call("spread_bits", SPREAD, backend, mask.words, kept.words, first), mask.shape)


def within(mask: BitMask, part: BitMask, count: int, *, backend: str = backends.DEFAULT) -> tuple[BitMask, int, int]:
    """The inverse: which of ``mask``'s ``count`` weights ``part`` keeps, how many those are, and how many others."""
    words, counts = backends.call("collect_bits", COLLECT, backend, mask.words, part.words, count)
    return BitMask._trusted(words, (count,)), *counts.tolist()


def spread_reference(words: Tensor, kept: Tensor, first: Tensor) -> Tensor:
    mask = unpack_mask(words, 32 * words.shape[1])
    return pack_mask(mask.masked_scatter(mask, unpack_mask(kept, 32 * kept.shape[1])[0, : int(first[-1])]))


def collect_reference(words: Tensor, part: Tensor, count: int) -> list[Tensor]:
    mask, wanted = (unpack_mask(w, 32 * words.shape[1]) for w in (words, part))
    kept = wanted[mask][None]
    return [pack_mask(kept), torch.stack([kept.sum(), (wanted & ~mask).sum()])]


SPREAD = {"native": backends.native("spread_bits"), "reference": backends.reference(spread_reference)}
COLLECT = {"native": backends.native("collect_bits"), "reference": backends.reference(collect_reference)}
