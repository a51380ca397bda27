"""Linear layer with a packed weight mask, forward and both gradients.

``y = x (W.m)^T + b``, ``dx = g (W.m)``, ``dW = (g^T x).m``; a pruned weight is replaced by zero, never multiplied.

A program computes one ``[BM, BN]`` tile of its result. The mask comes as one tile of words per tile of weights and is
expanded in registers. The forward computes ``y^T = (W.m) x^T``: with the weight as the first operand of the product
its masked tile goes from registers straight into the tensor cores of sm_90, as the second it would go through shared
memory first. The input gradient needs the weight tile transposed, which only shared memory can do, so there it is the
second operand. The weight gradient applies the mask to the finished sum.

Small batches have too few tiles for a GPU, so there the forward and the input gradient split their sums into slices,
whose results are added in a fixed order.

Products of float32 follow ``torch.set_float32_matmul_precision``: exact float32 ("ieee") at "highest", which is torch's
default; three TF32 products ("tf32x3") at "high", which lose the last two bits of every term, for few terms more than
twice PyTorch's own error; one ("tf32") at "medium". Halves are summed in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .mask_bits import expand_words
from .tiles import Tile, TileTable, accumulator, linear_precision, partial_sums, pick, slices_of, tiles

# Chosen from the compiled kernels' resources on sm_80, sm_90 and sm_100 (no spills, within 163 KB of shared memory),
# not timed. Narrow: batches up to BN, bound by reading the weight, so many small programs.
FORWARD: TileTable = {
    2: (Tile(64, 32, 64, 4, 4), Tile(128, 128, 64, 8, 3)),
    4: (Tile(64, 32, 32, 4, 3), Tile(64, 64, 32, 4, 3)),
    8: (Tile(32, 16, 32, 4, 2), Tile(64, 32, 32, 4, 2)),
}
# BM: batch, BN: inputs, BK: outputs. With BK = 32 float32 spills 300-400 bytes, float64 as much on sm_100 (Triton 3.6).
INPUT_GRAD: TileTable = {
    2: (Tile(32, 64, 64, 4, 3), Tile(128, 128, 64, 8, 3)),
    4: (Tile(32, 64, 16, 4, 3), Tile(64, 64, 16, 4, 3)),
    8: (Tile(32, 32, 16, 4, 2), Tile(32, 64, 16, 4, 2)),
}
# BM: outputs, BN: inputs, BK: batch.
WEIGHT_GRAD: TileTable = {
    2: (Tile(64, 64, 32, 4, 3), Tile(128, 128, 64, 8, 3)),
    4: (Tile(32, 64, 32, 4, 3), Tile(64, 64, 32, 4, 3)),
    8: (Tile(32, 32, 32, 4, 2), Tile(32, 64, 32, 4, 2)),
}

# A slice of a long sum has at least this many terms: at batch 16 in half precision its float32 results, written and
# read again, are then an eighth of the bytes of the weights that it reads.
_MIN_SLICE = 512


@triton.jit
def _forward_kernel(
    x_ptr, weight_ptr, words_ptr, bias_ptr, y_ptr, batch, outputs, inputs, words_per_row, slice_inputs, slices,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0) % slices
    pid = tl.program_id(0) // slices
    row_tiles = tl.cdiv(outputs, BM)
    row = (pid % row_tiles).to(tl.int64) * BM + tl.arange(0, BM)
    col = (pid // row_tiles).to(tl.int64) * BN + tl.arange(0, BN)
    row_in = row < outputs
    col_in = col < batch
    acc = tl.zeros((BM, BN), dtype=ACC)
    for start in range(part * slice_inputs, min((part + 1) * slice_inputs, inputs), BK):
        k = start + tl.arange(0, BK)
        word = start // 32 + tl.arange(0, BK // 32)
        words = tl.load(
            words_ptr + row[:, None] * words_per_row + word[None, :],
            mask=row_in[:, None] & (word < words_per_row)[None, :], other=0,
        )  # fmt: skip
        weight = tl.load(
            weight_ptr + row[:, None] * inputs + k[None, :], mask=row_in[:, None] & (k < inputs)[None, :], other=0.0
        )
        weight = tl.where(expand_words(words, BM, BK // 32), weight, 0.0)
        x = tl.load(x_ptr + col[None, :] * inputs + k[:, None], mask=col_in[None, :] & (k < inputs)[:, None], other=0.0)
        acc = tl.dot(weight, x, acc, input_precision=PRECISION, out_dtype=ACC)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + row, mask=row_in, other=0.0).to(ACC)[:, None]
    out = y_ptr + (part.to(tl.int64) * batch + col)[None, :] * outputs + row[:, None]
    tl.store(out, acc.to(y_ptr.dtype.element_ty), mask=row_in[:, None] & col_in[None, :])


@triton.jit
def _input_grad_kernel(
    grad_ptr, weight_ptr, words_ptr, dx_ptr, batch, outputs, inputs, words_per_row, slice_outputs, slices,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0) % slices
    pid = tl.program_id(0) // slices
    col_tiles = tl.cdiv(inputs, BN)
    row = (pid // col_tiles).to(tl.int64) * BM + tl.arange(0, BM)
    col = (pid % col_tiles) * BN + tl.arange(0, BN)
    word = (pid % col_tiles) * (BN // 32) + tl.arange(0, BN // 32)
    row_in = row < batch
    col_in = col < inputs
    acc = tl.zeros((BM, BN), dtype=ACC)
    for start in range(part * slice_outputs, min((part + 1) * slice_outputs, outputs), BK):
        k = tl.cast(start, tl.int64) + tl.arange(0, BK)
        k_in = k < outputs
        words = tl.load(
            words_ptr + k[:, None] * words_per_row + word[None, :],
            mask=k_in[:, None] & (word < words_per_row)[None, :], other=0,
        )  # fmt: skip
        weight = tl.load(
            weight_ptr + k[:, None] * inputs + col[None, :], mask=k_in[:, None] & col_in[None, :], other=0.0
        )
        weight = tl.where(expand_words(words, BK, BN // 32), weight, 0.0)
        grad = tl.load(grad_ptr + row[:, None] * outputs + k[None, :], mask=row_in[:, None] & k_in[None, :], other=0.0)
        acc = tl.dot(grad, weight, acc, input_precision=PRECISION, out_dtype=ACC)
    out = dx_ptr + (part.to(tl.int64) * batch + row)[:, None] * inputs + col[None, :]
    tl.store(out, acc.to(dx_ptr.dtype.element_ty), mask=row_in[:, None] & col_in[None, :])


@triton.jit
def _weight_grad_kernel(
    grad_ptr, x_ptr, words_ptr, dw_ptr, batch, outputs, inputs, words_per_row,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    col_tiles = tl.cdiv(inputs, BN)
    row = (pid // col_tiles).to(tl.int64) * BM + tl.arange(0, BM)
    col = (pid % col_tiles) * BN + tl.arange(0, BN)
    word = (pid % col_tiles) * (BN // 32) + tl.arange(0, BN // 32)
    row_in = row < outputs
    col_in = col < inputs
    acc = tl.zeros((BM, BN), dtype=ACC)
    for start in range(0, batch, BK):
        k = tl.cast(start, tl.int64) + tl.arange(0, BK)
        k_in = k < batch
        grad = tl.load(grad_ptr + k[None, :] * outputs + row[:, None], mask=k_in[None, :] & row_in[:, None], other=0.0)
        x = tl.load(x_ptr + k[:, None] * inputs + col[None, :], mask=k_in[:, None] & col_in[None, :], other=0.0)
        acc = tl.dot(grad, x, acc, input_precision=PRECISION, out_dtype=ACC)
    words = tl.load(
        words_ptr + row[:, None] * words_per_row + word[None, :],
        mask=row_in[:, None] & (word < words_per_row)[None, :], other=0,
    )  # fmt: skip
    acc = tl.where(expand_words(words, BM, BN // 32), acc, 0.0)
    out = dw_ptr + row[:, None] * inputs + col[None, :]
    tl.store(out, acc.to(dw_ptr.dtype.element_ty), mask=row_in[:, None] & col_in[None, :])


def _split(terms: int, tile: Tile, grid: int) -> tuple[int, int]:
    """How many slices a sum has, none of them empty, and the terms of each: whole steps."""
    length = tiles(tiles(terms, tile.BK), slices_of(terms, _MIN_SLICE, grid)) * tile.BK
    return max(1, tiles(terms, length)) if length else 1, length


def masked_linear(x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None) -> Tensor:
    """``x`` [N, I], ``weight`` [O, I], ``words`` [O, W], ``bias`` [O] or None -> [N, O]."""
    (batch, inputs), outputs = x.shape, weight.shape[0]
    y = x.new_empty(batch, outputs)
    if not y.numel():
        return y
    tile = pick(FORWARD, x.dtype, batch)
    grid = tiles(outputs, tile.BM) * tiles(batch, tile.BN)
    slices, length = _split(inputs, tile, grid)
    partial = partial_sums(y, slices)
    with torch.cuda.device_of(x):
        _forward_kernel[(grid * slices,)](
            x, weight, words, bias if slices == 1 else None, partial, batch, outputs, inputs, words.shape[1], length,
            slices, ACC=accumulator(x.dtype), PRECISION=linear_precision(), **tile.options(),
        )  # fmt: skip
    if slices == 1:
        return y
    total = partial.sum(0)
    return (total if bias is None else total + bias).to(y.dtype)


def masked_linear_input_grad(grad: Tensor, weight: Tensor, words: Tensor) -> Tensor:
    """``grad`` [N, O], ``weight`` [O, I], ``words`` [O, W] -> [N, I]."""
    batch, (outputs, inputs) = grad.shape[0], weight.shape
    dx = grad.new_empty(batch, inputs)
    if not dx.numel():
        return dx
    tile = pick(INPUT_GRAD, grad.dtype, batch)
    grid = tiles(batch, tile.BM) * tiles(inputs, tile.BN)
    slices, length = _split(outputs, tile, grid)
    partial = partial_sums(dx, slices)
    with torch.cuda.device_of(grad):
        _input_grad_kernel[(grid * slices,)](
            grad, weight, words, partial, batch, outputs, inputs, words.shape[1], length, slices,
            ACC=accumulator(grad.dtype), PRECISION=linear_precision(), **tile.options(),
        )  # fmt: skip
    return dx if slices == 1 else partial.sum(0).to(dx.dtype)


def masked_linear_weight_grad(grad: Tensor, x: Tensor, words: Tensor) -> Tensor:
    """``grad`` [N, O], ``x`` [N, I], ``words`` [O, W] -> [O, I], exactly zero at pruned slots."""
    (batch, outputs), inputs = grad.shape, x.shape[1]
    dw = grad.new_empty(outputs, inputs)
    if dw.numel():
        tile = pick(WEIGHT_GRAD, grad.dtype, inputs)
        with torch.cuda.device_of(grad):
            _weight_grad_kernel[(tiles(outputs, tile.BM) * tiles(inputs, tile.BN),)](
                grad, x, words, dw, batch, outputs, inputs, words.shape[1],
                ACC=accumulator(grad.dtype), PRECISION=linear_precision(), **tile.options(),
            )  # fmt: skip
    return dw
