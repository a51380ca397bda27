"""Indices beyond 2^31 in the CUDA kernels: the last elements of arrays that are reserved, not allocated.

Every case has more than 2^31 elements in some array, and only the blocks that own the first and the last run.
"""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.nn.functional as F
from simt.build import build
from simt.harness import KernelFault
from simt.planted import without
from simt.reserved import OuterBlocks, reserved

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the emulated kernels with")
BIG = 2**31
TILE = 64  # rows and columns of a product that one block computes


@pytest.fixture(scope="module")
def folder(pytestconfig):
    return pytestconfig.cache.mkdir("simt")


@pytest.fixture
def machine(folder):
    with OuterBlocks(build(folder)) as machine:
        yield machine


# Of the 2^26 + 126 words the last block owns 126, of which the last one and half of the one before are padding.
COLUMNS = BIG + 125 * 32 - 16


def bits_of(words):
    return (words.unsqueeze(1) >> torch.arange(32) & 1).flatten().bool()


def test_pack(machine):
    mask = reserved((1, COLUMNS), torch.bool)
    mask[0, -2000:] = torch.rand(2000) < 0.5
    words = machine.pack_mask(mask)
    assert torch.equal(bits_of(words[0, -66:]), F.pad(mask[0, -(64 * 32 + 16) :], (0, 48)))


def test_unpack(machine):
    words = reserved((1, 2 * ((COLUMNS + 63) // 64)), torch.int32)
    words[0, -66:] = torch.randint(-(2**31), 2**31, (66,)).int()
    assert torch.equal(machine.unpack_mask(words, COLUMNS)[0, -(64 * 32 + 16) :], bits_of(words[0, -66:])[:-48])


def test_count(machine):
    """Eight rows a block."""
    words = reserved((BIG // 128 + 16, 128), torch.int32)
    words[-2:, ::3] = 5
    assert machine.count_mask(words)[-3:].tolist() == [0, 86, 86]


def select(machine, k):
    """Of 2^21 + 2^13 tiles of 1024 slots the first and the last block have 256 or 257 each for every warp."""
    scores = reserved((1, BIG + 2**23), torch.float32)
    best = torch.tensor([-1, -2, -40, -8192, -8191])
    scores[0, best] = torch.tensor([2.0, 3.0, 1.0, 4.0, 1.0])
    return machine.topk_mask([scores], [], [], [0], k, None, True)


def test_topk(machine):
    kept, status, threshold = select(machine, 4)
    assert status.tolist() == [-1, 2 * (BIG + 2**23) // 1024, 4] and threshold == 1
    last = bits_of(kept[0, -256:]).nonzero().flatten()
    # Of the two scores of 1 the one with the lower index.
    assert (last - 8192).tolist() == [-8192, -8191, -2, -1]


def last_rows(shape, scale=1.0):
    """A reserved float32 array, the last rows of whose first dimension are random."""
    array = reserved(shape, torch.float32)
    array[-TILE:] = torch.randn(min(TILE, shape[0]), *shape[1:]) * scale
    return array


def all_kept(rows, columns):
    words = reserved((rows, 2 * ((columns + 63) // 64)), torch.int32)
    inside = torch.full((words.shape[1],), -1, dtype=torch.int32)
    inside[columns // 32 :] = 0
    if columns % 32:
        inside[columns // 32] = 2 ** (columns % 32) - 1
    words[-TILE:] = inside
    return words


def close(result, expected):
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_linear(machine):
    rows = BIG // 39 + 5
    x, weight, words = last_rows((rows, 41)), torch.randn(39, 41), all_kept(39, 41)
    close(machine.masked_linear(x, weight, words, None)[-5:], x[-5:] @ weight.T)


def test_linear_with_large_weight(machine):
    rows = BIG // 39 + 5
    x, weight, words, bias = torch.randn(3, 41), last_rows((rows, 41)), all_kept(rows, 41), last_rows((rows,))
    close(machine.masked_linear(x, weight, words, bias)[:, -5:], x @ weight[-5:].T + bias[-5:])


def test_linear_input_grad(machine):
    rows = BIG // 39 + 5
    grad, weight, words = last_rows((rows, 41)), torch.randn(41, 39), all_kept(41, 39)
    close(machine.masked_linear_input_grad(grad, weight, words)[-5:], grad[-5:] @ weight)


def test_linear_weight_grad(machine):
    rows = BIG // 39 + 5
    grad, x, words = reserved((3, rows), torch.float32), torch.randn(3, 41), all_kept(rows, 41)
    grad[:, -TILE:] = torch.randn(3, TILE)
    close(machine.masked_linear_weight_grad(grad, x, words)[-5:], grad[:, -5:].T @ x)


def test_packed_linear(machine):
    """The last block has the last 7 of 39 rows and the last few samples."""
    batch = BIG // 41 + 5
    x, weight = last_rows((batch, 41)), torch.randn(39, 41)
    result = machine.packed_linear(x, weight.flatten(), all_kept(39, 41), None)
    close(result[-4:, 32:], x[-4:] @ weight[32:].T)


def test_packed_linear_with_many_rows(machine):
    rows = 32 * (BIG // 39 // 32 + 5)
    x, weight, bias, words = torch.randn(39, 41), torch.randn(32, 41), last_rows((rows,)), all_kept(rows, 41)
    words[-64:-32] = 0  # of a block that does not run
    close(machine.packed_linear(x, weight.flatten(), words, bias)[-7:, -32:], x[-7:] @ weight.T + bias[-32:])


def test_packed_linear_input_grad(machine):
    rows = BIG // 39 + 5
    grad, weight = last_rows((rows, 41)), torch.randn(41, 39)
    result = machine.packed_linear_input_grad(grad, weight.flatten(), all_kept(41, 39), 39)
    close(result[-4:], grad[-4:] @ weight)


def test_packed_linear_values_grad(machine):
    rows = 32 * (BIG // 39 // 32 + 5)
    grad, x, words = reserved((41, rows), torch.float32), torch.randn(41, 39), all_kept(rows, 39)
    words[-64:-32] = 0  # of a block that does not run
    grad[:, -32:] = torch.randn(41, 32)
    result = machine.packed_linear_values_grad(grad, x, words, 32 * 39)
    close(result, (grad[:, -32:].T @ x).flatten())


def test_packed_linear_values_grad_with_many_words(machine):
    rows, columns = 2**20 + 32, 2**16
    grad, x, words = last_rows((rows, 3)), torch.randn(3, columns), reserved((rows, columns // 32), torch.int32)
    words[-32:, -8:] = -1
    result = machine.packed_linear_values_grad(grad.T.contiguous(), x, words, 32 * 256)
    close(result, (grad[-32:] @ x[:, -256:]).flatten())


GEOMETRY = ([1, 1], [1, 1], [1, 1], 1)  # stride, padding, dilation, groups


def test_conv(machine):
    batch = BIG // 60 + 7
    x, weight, words = last_rows((batch, 3, 4, 5)), torch.randn(4, 3, 3, 3), all_kept(4, 27)
    result = machine.masked_conv2d(x, weight, words, None, *GEOMETRY)
    close(result[-2:], F.conv2d(x[-2:], weight, padding=1))


def test_conv_with_more_than_32_bits_of_pixels(machine):
    """Where a division of indices may no longer be one of 32 bits."""
    batch = 2 * BIG // 20 + 7
    x, weight = last_rows((batch, 1, 4, 5)), torch.randn(2, 1, 3, 3)
    result = machine.masked_conv2d(x, weight, all_kept(2, 9), None, *GEOMETRY)
    close(result[-2:], F.conv2d(x[-2:], weight, padding=1))


def test_conv_input_grad(machine):
    batch = BIG // 60 + 7
    grad, weight, words = last_rows((batch, 4, 4, 5)), torch.randn(4, 3, 3, 3), all_kept(4, 27)
    result = machine.masked_conv2d_input_grad(grad, weight, words, [batch, 3, 4, 5], *GEOMETRY)
    close(result[-2:], F.conv_transpose2d(grad[-2:], weight, padding=1))


def test_conv_weight_grad(machine):
    """As many channels as make the weight large; the last of them alone has gradients in its group."""
    outputs = BIG // 27 + 5
    grad, x = reserved((1, outputs, 2, 2), torch.float32), torch.randn(1, 3, 2, 2)
    grad[0, -TILE:] = torch.randn(TILE, 2, 2)
    result = machine.masked_conv2d_weight_grad(grad, x, all_kept(outputs, 27), [outputs, 3, 3, 3], *GEOMETRY)
    weight = torch.zeros(5, 3, 3, 3, requires_grad=True)
    F.conv2d(x, weight, padding=1).backward(grad[:, -5:])
    close(result[-5:], weight.grad)


@pytest.mark.parametrize(
    ("file", "part", "narrow"),
    [
        ("tile_gemm.cuh", "const int64_t at = row_of(s) * source.columns", "const int at = row_of(s) * source.columns"),
        ("tile_gemm.cuh", "data[row * columns + address]", "data[int(row * columns) + address]"),
        ("tile_gemm.cuh", "words[row * row_words + column / 32];\n  }\n};\n\n// Fills",
         "words[int(row) * int(columns) / 32];\n  }\n};\n\n// Fills"),
    ],
    ids=["operand", "result", "words"],
)  # fmt: skip
def test_an_index_of_32_bits_is_seen(folder, file, part, narrow):
    kernels = build(folder, {file: without(part, 0, narrow)}, kernels=["masked_linear"])
    with OuterBlocks(kernels) as machine, pytest.raises(KernelFault, match="kernel gemm_kernel.*(outside|overflow)"):
        test_linear(machine) if "data" in part else test_linear_with_large_weight(machine)


def test_a_position_of_32_bits_is_seen(folder):
    part = "return tile * kTileSlots + (step"
    kernels = build(
        folder, {"score_values.cuh": without(part, 0, part.replace("tile *", "int(tile) *"))}, ["topk_mask"]
    )
    with OuterBlocks(kernels) as machine, pytest.raises(KernelFault, match="kernel pass_kernel.*overflow"):
        select(machine, 4)
