"""The k largest scores of many tensors, exactly: radix select over order-preserving integer keys.

``key(x)`` is x's bits with the sign bit flipped (x >= 0) or all bits flipped (x < 0), as an unsigned integer; -0.0 is
taken as 0.0, so keys are ordered and tied exactly as scores are. From the most significant byte down, each pass
histograms the next byte of the keys that agree with the bytes already known, and one program then moves on to the byte
in which the k-th largest lies. After the last byte the k-th largest key is known, and how many of its equals are still
wanted; they go to the lowest (tensor, flat index) by a prefix sum over counts per block.

A program owns ``BLOCK`` consecutive words of one tensor's mask, a ``[BLOCK, 32]`` tile of its scores in flat order, and
writes whole words. Only integers are added atomically, so the same bits come out in any order of execution. The state
stays on the device: no pass waits for the host.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .mask_bits import join_bits, tile_of_words
from .tiles import LAUNCH, tiles

BLOCK = 128
# Bits of a key decided by a pass: 256 bins are flushed by a block of 4,096 scores, 2,048 would cost half as many
# global atomics as there are scores.
DIGIT = 8

# The running state, int64 on the device.
_PREFIX = tl.constexpr(0)  # the bits of the k-th largest key known so far
_WANTED = tl.constexpr(1)  # how many keys are still wanted among those that agree with the prefix
_NAN = tl.constexpr(2)  # tensors minus the index of the first one with a NaN, or 0
_COMPETING = tl.constexpr(3)  # slots that compete
_STATE_SIZE = 4


@triton.jit
def _keys(scores):
    """Unsigned keys of float32 or float64 scores: larger key, larger score."""
    scores = tl.where(scores == 0, 0.0, scores)
    if scores.dtype == tl.float64:
        bits = scores.to(tl.int64, bitcast=True)
        return (bits ^ ((bits >> 63) | (-9223372036854775807 - 1))).to(tl.uint64, bitcast=True)
    else:  # both branches would be compiled without it
        bits = scores.to(tl.int32, bitcast=True)
        return (bits ^ ((bits >> 31) | (-2147483647 - 1))).to(tl.uint32, bitcast=True)


@triton.jit
def _tile(scores_ptr, candidates_ptr, total_words, cols, words_per_row, BLOCK: tl.constexpr):
    """The words of this program, whether each exists, its scores ``[BLOCK, 32]`` and whether each competes."""
    words, exists, offsets, competing = tile_of_words(
        tl.program_id(0).to(tl.int64), total_words, cols, words_per_row, BLOCK
    )
    if candidates_ptr is not None:
        bits = tl.load(candidates_ptr + words, mask=exists, other=0)[:, None] >> tl.arange(0, 32)[None, :]
        competing &= (bits & 1) != 0
    # The scores of others may be NaN: they are not loaded.
    return words, exists, tl.load(scores_ptr + offsets, mask=competing, other=0.0), competing


@triton.jit(do_not_specialize=["nan_mark", "shift", "total_words", "words_per_row"])
def _histogram_kernel(
    scores_ptr, candidates_ptr, state_ptr, bins_ptr, nan_mark, shift, total_words, cols, words_per_row,
    DIGIT: tl.constexpr, FIRST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    _, _, scores, competing = _tile(scores_ptr, candidates_ptr, total_words, cols, words_per_row, BLOCK)
    if FIRST:
        has_nan = tl.max((competing & (scores != scores)).to(tl.int32))
        tl.atomic_max(state_ptr + _NAN, tl.cast(nan_mark, tl.int64), mask=has_nan != 0)
    keys = _keys(scores)
    if not FIRST:
        prefix = tl.load(state_ptr + _PREFIX).to(keys.dtype)
        competing &= ((keys ^ prefix) >> (shift + DIGIT)) == 0
    # Zeros (pruned weights, dead units) may be most of the scores: counted by a sum, they do not queue at one bin.
    zero = scores == 0
    digits = ((keys >> shift) & ((1 << DIGIT) - 1)).to(tl.int32)
    counts = tl.histogram(
        tl.reshape(digits, (BLOCK * 32,)), 1 << DIGIT, mask=tl.reshape(competing & (scores != 0), (BLOCK * 32,))
    )
    zeros = tl.sum((competing & zero).to(tl.int32))
    bins = tl.arange(0, 1 << DIGIT)
    # The key of zero is a one followed by zeros.
    counts += tl.where(bins == ((1 << (DIGIT - 1)) if FIRST else 0), zeros, 0)
    tl.atomic_add(bins_ptr + bins, counts.to(tl.int64), mask=counts != 0)


@triton.jit(do_not_specialize=["k", "shift"])
def _descend_kernel(bins_ptr, state_ptr, k, shift, DIGIT: tl.constexpr, FIRST: tl.constexpr):
    bins = tl.arange(0, 1 << DIGIT)
    counts = tl.load(bins_ptr + bins)
    total = tl.sum(counts)
    if FIRST:
        tl.store(state_ptr + _COMPETING, total)
        prefix = tl.zeros((), dtype=tl.int64)
        wanted = tl.minimum(tl.cast(k, tl.int64), total)
    else:
        prefix = tl.load(state_ptr + _PREFIX)
        wanted = tl.load(state_ptr + _WANTED)
    above = total - tl.cumsum(counts, 0)  # keys in higher bins; falls with the bin
    # The highest bin that still has ``wanted`` keys in it or above. With none wanted it is the last bin of every pass,
    # and the prefix ends as all ones, which is the key of a NaN: nothing is larger and nothing is taken of its equals.
    digit = tl.sum((above + counts >= wanted).to(tl.int32)) - 1
    tl.store(state_ptr + _PREFIX, prefix | (digit.to(tl.int64) << shift))
    tl.store(state_ptr + _WANTED, wanted - tl.sum(tl.where(bins > digit, counts, 0)))


@triton.jit(do_not_specialize=["total_words", "words_per_row"])
def _ties_kernel(
    scores_ptr, candidates_ptr, state_ptr, ties_ptr, total_words, cols, words_per_row, BLOCK: tl.constexpr
):
    _, _, scores, competing = _tile(scores_ptr, candidates_ptr, total_words, cols, words_per_row, BLOCK)
    keys = _keys(scores)
    ties = competing & (keys == tl.load(state_ptr + _PREFIX).to(keys.dtype))
    tl.store(ties_ptr + tl.program_id(0), tl.sum(ties.to(tl.int32)).to(tl.int64))


@triton.jit(do_not_specialize=["total_words", "words_per_row"])
def _write_kernel(
    scores_ptr, candidates_ptr, state_ptr, ties_ptr, words_ptr, total_words, cols, words_per_row, BLOCK: tl.constexpr
):
    words, exists, scores, competing = _tile(scores_ptr, candidates_ptr, total_words, cols, words_per_row, BLOCK)
    keys = _keys(scores)
    threshold = tl.load(state_ptr + _PREFIX).to(keys.dtype)
    tie = (competing & (keys == threshold)).to(tl.int32)
    in_word = tl.sum(tie, axis=1)
    earlier = (tl.cumsum(in_word, 0) - in_word)[:, None] + tl.cumsum(tie, 1) - tie  # ties before this one in the tile
    first = tl.load(ties_ptr + tl.program_id(0))  # ties up to this block's end, all tensors
    first -= tl.sum(in_word)
    take = (tie != 0) & (first + earlier < tl.load(state_ptr + _WANTED))
    tl.store(words_ptr + words, join_bits((competing & (keys > threshold)) | take), mask=exists)


def topk_mask(scores: list[Tensor], candidates: list[Tensor], k: int) -> list[Tensor]:
    """``scores`` [R_i, C_i] all float32 or all float64, ``candidates`` words [R_i, W_i] or no list entries at all ->
    the words of every tensor and ``status`` int64 [2]: first tensor with a NaN or -1, number of competing slots."""
    if not scores:
        return [torch.tensor([-1, 0])]
    device = scores[0].device
    words = [torch.empty(s.shape[0], 2 * tiles(s.shape[1], 64), dtype=torch.int32, device=device) for s in scores]
    parts = [
        (i, s, candidates[i] if candidates else None, w)
        for i, (s, w) in enumerate(zip(scores, words, strict=True))
        if w.numel()
    ]
    blocks = [tiles(w.numel(), BLOCK) for *_, w in parts]
    key_bits = 8 * scores[0].element_size()
    bins = torch.zeros(key_bits // DIGIT, 1 << DIGIT, dtype=torch.int64, device=device)
    state = torch.zeros(_STATE_SIZE, dtype=torch.int64, device=device)
    with torch.cuda.device_of(scores[0]):
        for level, histogram in enumerate(bins):
            shift, options = key_bits - DIGIT * (level + 1), {"DIGIT": DIGIT, "FIRST": level == 0, **LAUNCH}
            for (i, s, c, w), n in zip(parts, blocks, strict=True):
                _histogram_kernel[(n,)](
                    s, c, state, histogram, len(scores) - i, shift, w.numel(), s.shape[1], w.shape[1],
                    BLOCK=BLOCK, **options,
                )  # fmt: skip
            _descend_kernel[(1,)](histogram, state, k, shift, **options)
        ties = torch.empty(sum(blocks), dtype=torch.int64, device=device)
        own = ties.split(blocks)
        for (_, s, c, w), n, t in zip(parts, blocks, own, strict=True):
            _ties_kernel[(n,)](s, c, state, t, w.numel(), s.shape[1], w.shape[1], BLOCK=BLOCK, **LAUNCH)
        torch.cumsum(ties, 0, out=ties)
        for (_, s, c, w), n, t in zip(parts, blocks, own, strict=True):
            _write_kernel[(n,)](s, c, state, t, w, w.numel(), s.shape[1], w.shape[1], BLOCK=BLOCK, **LAUNCH)
    nan = state[_NAN.value]
    status = torch.stack([torch.where(nan == 0, -1, len(scores) - nan), state[_COMPETING.value]])
    return [*words, status]
