"""Pack, unpack and count bit masks: bit j of word w of a row is element ``32 w + j``, unused bits are zero.

A program owns ``BLOCK`` consecutive words of the flattened ``[R, W]`` words, that is a ``[BLOCK, 32]`` tile of
elements, so that a long single row and many short rows are spread alike. The other kernels expand words in registers
with ``expand_words`` (a tile of words becomes a tile of booleans): one load a word, never one an element.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import LAUNCH, tiles

# 4,096 elements a program: 32 a thread of 4 warps, and one row of a 4096-wide weight.
BLOCK = 128


@triton.jit
def expand_words(words, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """``[ROWS, WORDS]`` int32 -> ``[ROWS, 32 * WORDS]`` bool."""
    bits = (words[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1  # [ROWS, WORDS, 32]
    return tl.reshape(bits, (ROWS, WORDS * 32)) != 0


@triton.jit
def join_bits(bits):
    """``[WORDS, 32]`` bool -> ``[WORDS]`` int32. The bits are distinct powers of two, so their sum is their union."""
    return tl.sum(bits.to(tl.int32) << tl.arange(0, 32)[None, :], axis=1).to(tl.int32)


@triton.jit
def tile_of_words(block, total_words, cols, words_per_row, BLOCK: tl.constexpr):
    """Words ``[BLOCK]``, whether each exists, element offsets ``[BLOCK, 32]`` in the ``[R, C]`` tensor, and whether
    each exists. Offsets rise with the word and the bit: the tile is in flat order."""
    words = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = words < total_words
    row = words // words_per_row
    col = (words - row * words_per_row)[:, None] * 32 + tl.arange(0, 32)[None, :]
    return words, exists, row[:, None] * cols + col, exists[:, None] & (col < cols)


@triton.jit(do_not_specialize=["total_words", "words_per_row"])
def _pack_kernel(mask_ptr, words_ptr, total_words, cols, words_per_row, BLOCK: tl.constexpr):
    words, exists, offsets, inside = tile_of_words(tl.program_id(0), total_words, cols, words_per_row, BLOCK)
    keep = tl.load(mask_ptr + offsets, mask=inside, other=0) != 0
    tl.store(words_ptr + words, join_bits(keep), mask=exists)


@triton.jit(do_not_specialize=["total_words", "words_per_row"])
def _unpack_kernel(words_ptr, mask_ptr, total_words, cols, words_per_row, BLOCK: tl.constexpr):
    words, exists, offsets, inside = tile_of_words(tl.program_id(0), total_words, cols, words_per_row, BLOCK)
    bits = tl.load(words_ptr + words, mask=exists, other=0)[:, None] >> tl.arange(0, 32)[None, :]
    tl.store(mask_ptr + offsets, (bits & 1).to(tl.uint8), mask=inside)


@triton.jit(do_not_specialize=["words_per_row", "blocks_per_row"])
def _count_kernel(words_ptr, counts_ptr, words_per_row, blocks_per_row, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    row = (pid // blocks_per_row).to(tl.int64)
    word = (pid % blocks_per_row) * BLOCK + tl.arange(0, BLOCK)
    bits = tl.load(words_ptr + row * words_per_row + word, mask=word < words_per_row, other=0)
    # Unsigned, so that shifting brings in zeros; Triton has no portable population count.
    bits = bits.to(tl.uint32, bitcast=True)
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    bits = bits + (bits >> 8)
    bits = (bits + (bits >> 16)) & 0x3F
    tl.store(counts_ptr + pid, tl.sum(bits.to(tl.int32), axis=0))


def pack_mask(mask: Tensor) -> Tensor:
    """``mask`` [R, C] bool -> words [R, W] int32."""
    rows, cols = mask.shape
    words = torch.empty(rows, 2 * tiles(cols, 64), dtype=torch.int32, device=mask.device)
    if words.numel():
        with torch.cuda.device_of(mask):
            _pack_kernel[(tiles(words.numel(), BLOCK),)](
                mask.view(torch.uint8), words, words.numel(), cols, words.shape[1], BLOCK=BLOCK, **LAUNCH
            )
    return words


def unpack_mask(words: Tensor, cols: int) -> Tensor:
    """``words`` [R, W] int32 -> mask [R, cols] bool."""
    mask = torch.empty(words.shape[0], cols, dtype=torch.bool, device=words.device)
    if mask.numel():
        with torch.cuda.device_of(words):
            _unpack_kernel[(tiles(words.numel(), BLOCK),)](
                words, mask.view(torch.uint8), words.numel(), cols, words.shape[1], BLOCK=BLOCK, **LAUNCH
            )
    return mask


def count_mask(words: Tensor) -> Tensor:
    """``words`` [R, W] int32 -> set bits of each row [R] int64."""
    rows, words_per_row = words.shape
    blocks = tiles(words_per_row, BLOCK)
    counts = torch.empty(rows, blocks, dtype=torch.int32, device=words.device)
    if counts.numel():
        with torch.cuda.device_of(words):
            _count_kernel[(counts.numel(),)](words, counts, words_per_row, blocks, BLOCK=BLOCK, **LAUNCH)
    return counts.sum(dim=1, dtype=torch.int64)
