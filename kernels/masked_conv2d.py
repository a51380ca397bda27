"""2-D convolution with a packed weight mask, forward and both gradients, as implicit matrix products.

With ``k = (c, i, j)`` a weight's column in row-major order, as in the mask, and ``p = (n, ho, wo)`` a position:

    y[o, p]  = sum_k (W.m)[o, k] x[n, c, ho s - pad + i d, wo s - pad + j d] + b[o]
    dx[c, q] = sum_(i, j, o) (W.m)[o, c, i, j] g[n, o, (h + pad - i d) / s, (w + pad - j d) / s],  where s divides
    dW[o, k] = m[o, k] sum_p g[o, p] x[n, c, ...]

A program computes one ``[BM, BN]`` tile of one group; patches of x and g are gathered, never stored. The forward masks
each weight tile in registers, as the first operand, from a tile of words. The input gradient needs the weight
transposed, output channels innermost: masked words do not follow a transposition, so the masked transpose is written
once (as large as the weight) and read as a plain matrix. The weight gradient masks the finished sum. It splits its long
sum over positions into slices whose partial results are added in a fixed order, because a weight alone has too few
tiles for a GPU and one long float32 sum would lose accuracy.

Products of float32 follow torch's setting for its own convolutions, ``torch.backends.cudnn.allow_tf32``: one TF32
product ("tf32") where it is True, which is torch's default, exact float32 ("ieee") where it is False. Halves are summed
in float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .mask_bits import expand_words
from .tiles import LAUNCH, Tile, TileTable, accumulator, conv_precision, partial_sums, pick, slices_of, tiles

# Chosen from the compiled kernels' resources on sm_80, sm_90 and sm_100 (at most 16 bytes spilled with Triton
# 3.9 and 64 with 3.6, far within 163 KB of shared memory), not timed. A tile of gathered addresses is 8 bytes in
# registers for each: [64, 128] of them spill with Triton 3.6.
# BN: positions; narrow serves small maps and batches.
FORWARD: TileTable = {
    2: (Tile(64, 32, 64, 4, 3), Tile(64, 128, 32, 8, 3)),
    4: (Tile(64, 32, 32, 4, 3), Tile(64, 64, 32, 8, 2)),
    8: (Tile(32, 32, 32, 4, 2), Tile(32, 64, 32, 4, 2)),
}
INPUT_GRAD: TileTable = FORWARD
# BM: output channels, BN: weight columns, BK: positions.
WEIGHT_GRAD: TileTable = {
    2: (Tile(64, 32, 64, 4, 3), Tile(64, 128, 32, 8, 3)),
    4: (Tile(32, 32, 32, 4, 3), Tile(64, 64, 32, 8, 3)),
    8: (Tile(32, 32, 32, 4, 2), Tile(32, 64, 32, 4, 2)),
}
TRANSPOSE = Tile(32, 64, 32, 4, 1)

# A slice of the weight gradient's sum has at least this many positions.
_MIN_SLICE = 2048

# Positions are split into image, row and column in int32 where they fit (half of the range is left for whole tiles):
# an int64 division in the loop of the weight gradient is a call, around which sm_80 spills 3 KB a thread.
_INT32_POSITIONS = 2**30


class Geometry(NamedTuple):
    """Compile-time constants of a convolution: kernel, stride, padding and dilation, by height and width."""

    KH: int
    KW: int
    SH: int
    SW: int
    PH: int
    PW: int
    DH: int
    DW: int


@triton.jit
def _split(position, height, width):
    """A position in ``[n, height, width]`` -> n, the pixel in its plane (int64), its row and column (int32)."""
    pixels = tl.cast(height, position.dtype) * width
    image = position // pixels
    pixel = position - image * pixels
    row = pixel // width
    return image.to(tl.int64), pixel.to(tl.int64), row.to(tl.int32), (pixel - row * width).to(tl.int32)


@triton.jit
def _forward_kernel(
    x_ptr, weight_ptr, words_ptr, bias_ptr, y_ptr,
    positions, channels, height, width, outputs, out_height, out_width, group_inputs, group_outputs, words_per_row,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    row_tiles = tl.cdiv(group_outputs, BM)
    group_tiles = row_tiles * (outputs // group_outputs)
    group = pid % group_tiles // row_tiles
    local = pid % row_tiles * BM + tl.arange(0, BM)
    row_in = local < group_outputs
    row = (group * group_outputs + local).to(tl.int64)
    position = (pid // group_tiles).to(INDEX) * BN + tl.arange(0, BN)
    col_in = position < positions
    image, pixel, out_row, out_col = _split(position, out_height, out_width)
    top = out_row * SH - PH
    left = out_col * SW - PW
    pixels = tl.cast(height, tl.int64) * width
    # An offset in x is a part of the position plus a part of the weight's column.
    base = (image * channels + group * group_inputs) * pixels + top.to(tl.int64) * width + left
    columns = group_inputs * KH * KW
    acc = tl.zeros((BM, BN), dtype=ACC)
    for start in range(0, columns, BK):
        k = start + tl.arange(0, BK)
        k_in = k < columns
        word = start // 32 + tl.arange(0, BK // 32)
        words = tl.load(
            words_ptr + row[:, None] * words_per_row + word[None, :],
            mask=row_in[:, None] & (word < words_per_row)[None, :], other=0,
        )  # fmt: skip
        weight = tl.load(
            weight_ptr + row[:, None] * columns + k[None, :], mask=row_in[:, None] & k_in[None, :], other=0.0
        )
        weight = tl.where(expand_words(words, BM, BK // 32), weight, 0.0)
        down = k // KW % KH * DH
        right = k % KW * DW
        shift = (k // (KH * KW)).to(tl.int64) * pixels + down.to(tl.int64) * width + right
        in_row = top[None, :] + down[:, None]
        in_col = left[None, :] + right[:, None]
        inside = (in_row >= 0) & (in_row < height) & (in_col >= 0) & (in_col < width)
        patch = tl.load(
            x_ptr + base[None, :] + shift[:, None], mask=inside & k_in[:, None] & col_in[None, :], other=0.0
        )
        acc = tl.dot(weight, patch, acc, input_precision=PRECISION, out_dtype=ACC)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + row, mask=row_in, other=0.0).to(ACC)[:, None]
    out_pixels = tl.cast(out_height, tl.int64) * out_width
    out = image * outputs * out_pixels + pixel
    out = y_ptr + out[None, :] + row[:, None] * out_pixels
    tl.store(out, acc.to(y_ptr.dtype.element_ty), mask=row_in[:, None] & col_in[None, :])


@triton.jit
def _masked_transpose_kernel(
    weight_ptr, words_ptr, out_ptr, group_outputs, columns, words_per_row,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """``[groups, O / groups, columns]`` -> ``[groups, columns, O / groups]``, zero at pruned slots."""
    pid = tl.program_id(0)
    row_tiles = tl.cdiv(group_outputs, BM)
    col_tiles = tl.cdiv(columns, BN)
    group = (pid // (row_tiles * col_tiles)).to(tl.int64)
    local = pid // col_tiles % row_tiles * BM + tl.arange(0, BM)
    col = pid % col_tiles * BN + tl.arange(0, BN)
    word = pid % col_tiles * (BN // 32) + tl.arange(0, BN // 32)
    row = group * group_outputs + local
    row_in = local < group_outputs
    inside = row_in[:, None] & (col < columns)[None, :]
    words = tl.load(
        words_ptr + row[:, None] * words_per_row + word[None, :],
        mask=row_in[:, None] & (word < words_per_row)[None, :], other=0,
    )  # fmt: skip
    weight = tl.load(weight_ptr + row[:, None] * columns + col[None, :], mask=inside, other=0.0)
    weight = tl.where(expand_words(words, BM, BN // 32), weight, 0.0)
    out = (group * columns + col)[None, :] * group_outputs + local[:, None]
    tl.store(out_ptr + out, weight, mask=inside)


@triton.jit
def _input_grad_kernel(
    grad_ptr, transposed_ptr, dx_ptr,
    positions, channels, height, width, outputs, out_height, out_width, group_inputs, group_outputs,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    row_tiles = tl.cdiv(group_inputs, BM)
    group_tiles = row_tiles * (outputs // group_outputs)
    group = pid % group_tiles // row_tiles
    local = pid % row_tiles * BM + tl.arange(0, BM)
    row_in = local < group_inputs
    row = (group * group_inputs + local).to(tl.int64)
    position = (pid // group_tiles).to(INDEX) * BN + tl.arange(0, BN)
    col_in = position < positions
    image, pixel, in_row, in_col = _split(position, height, width)
    out_pixels = tl.cast(out_height, tl.int64) * out_width
    base = (image * outputs + group * group_outputs) * out_pixels
    terms = group_outputs * KH * KW
    acc = tl.zeros((BM, BN), dtype=ACC)
    for start in range(0, terms, BK):
        k = start + tl.arange(0, BK)
        k_in = k < terms
        weight = tl.load(
            transposed_ptr + row[:, None] * terms + k[None, :], mask=row_in[:, None] & k_in[None, :], other=0.0
        )
        tap = k // group_outputs
        down = in_row[None, :] + PH - (tap // KW * DH)[:, None]
        right = in_col[None, :] + PW - (tap % KW * DW)[:, None]
        out_row = down // SH
        out_col = right // SW
        inside = (down >= 0) & (right >= 0) & (out_row < out_height) & (out_col < out_width)
        inside &= (out_row * SH == down) & (out_col * SW == right)
        shift = (k - tap * group_outputs).to(tl.int64) * out_pixels
        offset = base[None, :] + shift[:, None] + out_row.to(tl.int64) * out_width + out_col
        grad = tl.load(grad_ptr + offset, mask=inside & k_in[:, None] & col_in[None, :], other=0.0)
        acc = tl.dot(weight, grad, acc, input_precision=PRECISION, out_dtype=ACC)
    pixels = tl.cast(height, tl.int64) * width
    out = image * channels * pixels + pixel
    out = dx_ptr + out[None, :] + row[:, None] * pixels
    tl.store(out, acc.to(dx_ptr.dtype.element_ty), mask=row_in[:, None] & col_in[None, :])


@triton.jit
def _weight_grad_kernel(
    grad_ptr, x_ptr, words_ptr, dw_ptr,
    positions, channels, height, width, outputs, out_height, out_width, group_inputs, group_outputs, words_per_row,
    steps, slices,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    columns = group_inputs * KH * KW
    part = pid % slices
    tile = pid // slices
    row_tiles = tl.cdiv(group_outputs, BM)
    col_tiles = tl.cdiv(columns, BN)
    group = tile // (row_tiles * col_tiles)
    local = tile // col_tiles % row_tiles * BM + tl.arange(0, BM)
    row_in = local < group_outputs
    row = (group * group_outputs + local).to(tl.int64)
    col = tile % col_tiles * BN + tl.arange(0, BN)
    col_in = col < columns
    word = tile % col_tiles * (BN // 32) + tl.arange(0, BN // 32)
    pixels = tl.cast(height, tl.int64) * width
    out_pixels = tl.cast(out_height, tl.int64) * out_width
    down = col // KW % KH * DH
    right = col % KW * DW
    shift = (group * group_inputs + col // (KH * KW)).to(tl.int64) * pixels + down.to(tl.int64) * width + right
    acc = tl.zeros((BM, BN), dtype=ACC)
    for step in range(0, steps):
        position = (part.to(INDEX) * steps + step) * BK + tl.arange(0, BK)
        k_in = position < positions
        image, pixel, out_row, out_col = _split(position, out_height, out_width)
        grad = tl.load(
            grad_ptr + (image * outputs * out_pixels + pixel)[None, :] + row[:, None] * out_pixels,
            mask=row_in[:, None] & k_in[None, :], other=0.0,
        )  # fmt: skip
        top = out_row * SH - PH
        left = out_col * SW - PW
        base = image * channels * pixels + top.to(tl.int64) * width + left
        in_row = top[:, None] + down[None, :]
        in_col = left[:, None] + right[None, :]
        inside = (in_row >= 0) & (in_row < height) & (in_col >= 0) & (in_col < width)
        patch = tl.load(
            x_ptr + base[:, None] + shift[None, :], mask=inside & k_in[:, None] & col_in[None, :], other=0.0
        )
        acc = tl.dot(grad, patch, acc, input_precision=PRECISION, out_dtype=ACC)
    words = tl.load(
        words_ptr + row[:, None] * words_per_row + word[None, :],
        mask=row_in[:, None] & (word < words_per_row)[None, :], other=0,
    )  # fmt: skip
    acc = tl.where(expand_words(words, BM, BN // 32), acc, 0.0)
    out = dw_ptr + (part.to(tl.int64) * outputs + row)[:, None] * columns + col[None, :]
    tl.store(out, acc.to(dw_ptr.dtype.element_ty), mask=row_in[:, None] & col_in[None, :])


def _constants(dtype: torch.dtype, positions: int, geometry: Geometry, tile: Tile) -> dict[str, Any]:
    """What a kernel of products is compiled for."""
    index = tl.int32 if positions <= _INT32_POSITIONS else tl.int64
    given = {"ACC": accumulator(dtype), "PRECISION": conv_precision(), "INDEX": index}
    return {**given, **geometry._asdict(), **tile.options()}


def masked_conv2d(
    x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None,
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """``x`` [N, C, H, W], ``weight`` [O, C / groups, KH, KW], ``words`` [O, W], ``bias`` [O] or None ->
    [N, O, Ho, Wo]."""
    batch, channels, height, width = x.shape
    outputs, group_inputs, *kernel = weight.shape
    geometry = Geometry(*kernel, *stride, *padding, *dilation)
    out_height = (height + 2 * padding[0] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    out_width = (width + 2 * padding[1] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    y = x.new_empty(batch, outputs, out_height, out_width)
    if y.numel():
        positions = batch * out_height * out_width
        tile = pick(FORWARD, x.dtype, positions)
        with torch.cuda.device_of(x):
            _forward_kernel[(groups * tiles(outputs // groups, tile.BM) * tiles(positions, tile.BN),)](
                x, weight, words, bias, y, positions, channels, height, width, outputs, out_height, out_width,
                group_inputs, outputs // groups, words.shape[1],
                **_constants(x.dtype, positions, geometry, tile),
            )  # fmt: skip
    return y


def masked_conv2d_input_grad(
    grad: Tensor, weight: Tensor, words: Tensor, input_size: list[int],
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """``grad`` [N, O, Ho, Wo], ``weight`` [O, C / groups, KH, KW], ``words`` [O, W] -> ``input_size`` [N, C, H, W]."""
    batch, channels, height, width = input_size
    outputs, group_inputs, *kernel = weight.shape
    geometry = Geometry(*kernel, *stride, *padding, *dilation)
    dx = grad.new_empty(input_size)
    if dx.numel():
        positions = batch * height * width
        columns = weight[0].numel() if outputs else 0
        group_outputs = outputs // groups
        transposed = torch.empty_like(weight)
        tile = pick(INPUT_GRAD, grad.dtype, positions)
        with torch.cuda.device_of(grad):
            if weight.numel():
                grid = groups * tiles(group_outputs, TRANSPOSE.BM) * tiles(columns, TRANSPOSE.BN)
                _masked_transpose_kernel[(grid,)](
                    weight, words, transposed, group_outputs, columns, words.shape[1],
                    BM=TRANSPOSE.BM, BN=TRANSPOSE.BN, num_warps=TRANSPOSE.num_warps, **LAUNCH,
                )  # fmt: skip
            _input_grad_kernel[(groups * tiles(group_inputs, tile.BM) * tiles(positions, tile.BN),)](
                grad, transposed, dx, positions, channels, height, width, outputs, *grad.shape[2:],
                group_inputs, group_outputs,
                **_constants(grad.dtype, positions, geometry, tile),
            )  # fmt: skip
    return dx


def masked_conv2d_weight_grad(
    grad: Tensor, x: Tensor, words: Tensor, weight_size: list[int],
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """``grad`` [N, O, Ho, Wo], ``x`` [N, C, H, W], ``words`` [O, W] -> ``weight_size`` [O, C / groups, KH, KW], exactly
    zero at pruned slots."""
    outputs, group_inputs, *kernel = weight_size
    geometry = Geometry(*kernel, *stride, *padding, *dilation)
    dw = grad.new_empty(weight_size)
    if not dw.numel():
        return dw
    batch, channels, height, width = x.shape
    out_height, out_width = grad.shape[2:]
    columns = group_inputs * kernel[0] * kernel[1]
    positions = batch * out_height * out_width
    tile = pick(WEIGHT_GRAD, grad.dtype, columns)
    grid = groups * tiles(outputs // groups, tile.BM) * tiles(columns, tile.BN)
    slices = slices_of(positions, _MIN_SLICE, grid)
    steps = tiles(tiles(positions, tile.BK), slices)
    partial = partial_sums(dw, slices)
    with torch.cuda.device_of(grad):
        _weight_grad_kernel[(grid * slices,)](
            grad, x, words, partial, positions, channels, height, width, outputs, out_height, out_width,
            group_inputs, outputs // groups, words.shape[1], steps, slices,
            **_constants(grad.dtype, positions, geometry, tile),
        )  # fmt: skip
    return dw if slices == 1 else partial.sum(0).to(dw.dtype)
