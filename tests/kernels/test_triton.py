"""The Triton launchers beside plain PyTorch: several tiles of every kind, ties across blocks, refusals.

Interpreted where there is no GPU. The contract tests run the same launchers as backends over the table of small cases.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from cases import weight_and_words
from oracle import assert_as_accurate, assert_same_bits

from sparseprune import kernels
from sparseprune.kernels import mask_bits, masked_conv2d, masked_linear, tiles, topk_mask
from sparseprune.ops import mask_bits as mask_ops
from sparseprune.ops import masked_conv2d as conv_ops
from sparseprune.ops import masked_linear as linear_ops
from sparseprune.ops.topk_mask import topk_mask_reference

DEVICE = "cpu" if kernels.INTERPRETED else "cuda"
DTYPES = (torch.float16, torch.float32, torch.float64) + (() if kernels.INTERPRETED else (torch.bfloat16,))

# (batch, in, out, density): every dimension crosses tiles of 16 to 128, whole and with a rest; then one element,
# nothing to sum, an empty batch, everything pruned and everything kept.
LINEAR = (
    (3, 193, 67, 0.4), (131, 67, 193, 0.4), (129, 128, 64, 0.2), (1, 1, 1, 1.0), (7, 0, 5, 0.5), (0, 9, 5, 0.5),
    (5, 40, 6, 0.0), (5, 40, 6, 1.0),
)  # fmt: skip

# (batch, in, out, size, kernel, stride, padding, dilation, groups)
CONV = {
    "tiles": (2, 11, 70, (9, 8), (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "groups": (1, 140, 6, (5, 4), (3, 2), (2, 1), (2, 0), (1, 2), 2),
    "one": (1, 1, 1, (1, 1), (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "wasted padding": (1, 2, 3, (2, 3), (3, 3), (3, 2), (3, 3), (1, 1), 1),
    "unread pixels": (2, 3, 5, (7, 6), (1, 1), (3, 4), (0, 0), (1, 1), 1),
}


def exactly_summed(tensor):
    """float64 is its own oracle, so its sums must be exact in any order: multiples of 2^-12 here, whose products need
    more bits than float32 has and fewer than float64 has."""
    return (tensor * 2**12).round() / 2**12 if tensor.dtype == torch.float64 else tensor


def values(*shape, dtype):
    return exactly_summed(torch.randn(shape, device=DEVICE).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", LINEAR, ids=str)
def test_linear(sizes, dtype):
    batch, inputs, outputs, density = sizes
    weight, words = weight_and_words((outputs, inputs), density, dtype, DEVICE)
    weight, bias = exactly_summed(weight), values(outputs, dtype=dtype)
    x, grad = values(batch, inputs, dtype=dtype), values(batch, outputs, dtype=dtype)
    for b in (bias, None):
        call = [x, weight, words, b]
        assert_as_accurate(masked_linear.masked_linear(*call), linear_ops.forward_reference, call)
    call = [grad, weight, words]
    assert_as_accurate(masked_linear.masked_linear_input_grad(*call), linear_ops.input_grad_reference, call)
    call = [grad, x, words]
    dw = masked_linear.masked_linear_weight_grad(*call)
    assert_as_accurate(dw, linear_ops.weight_grad_reference, call)
    assert not dw[~mask_ops.unpack_reference(words, inputs)].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("least", "inputs", "outputs"),
    [(32, 193, 67), (64, 513, 320), (100, 31, 700)],
    ids=["uneven", "many", "one and many"],
)
def test_linear_in_slices(least, inputs, outputs, dtype, monkeypatch):
    monkeypatch.setattr(masked_linear, "_MIN_SLICE", least)
    weight, words = weight_and_words((outputs, inputs), 0.4, dtype, DEVICE)
    weight, bias = exactly_summed(weight), values(outputs, dtype=dtype)
    x, grad = values(5, inputs, dtype=dtype), values(5, outputs, dtype=dtype)
    for b in (bias, None):
        call = [x, weight, words, b]
        y = masked_linear.masked_linear(*call)
        assert_as_accurate(y, linear_ops.forward_reference, call)
        assert_same_bits([masked_linear.masked_linear(*call)], [y])
    call = [grad, weight, words]
    assert_as_accurate(masked_linear.masked_linear_input_grad(*call), linear_ops.input_grad_reference, call)


@pytest.mark.parametrize("terms", [1, 31, 32, 500, 512, 4096, 4097, 2**31 - 1])
@pytest.mark.parametrize("grid", [1, 7, 64, 512, 10_000])
def test_slices_cover_every_term_once_and_none_is_empty(terms, grid):
    for tile in (*masked_linear.FORWARD[2], *masked_linear.INPUT_GRAD[4]):
        slices, length = masked_linear._split(terms, tile, grid)
        assert length % tile.BK == 0 and (slices - 1) * length < terms <= slices * length
        assert slices == 1 or (length >= masked_linear._MIN_SLICE and slices * grid <= tiles.MAX_PROGRAMS)


def test_linear_slices_are_not_rounded_to_half(monkeypatch):
    """Each slice's sum is beyond float16's range, the whole is the bias."""
    monkeypatch.setattr(masked_linear, "_MIN_SLICE", 64)
    x = torch.full((1, 128), 64.0, dtype=torch.float16, device=DEVICE)
    weight = torch.full((3, 128), 64.0, dtype=torch.float16, device=DEVICE)
    weight[:, 64:] *= -1
    words = mask_ops.pack_reference(torch.ones(3, 128, dtype=torch.bool, device=DEVICE))
    bias = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float16, device=DEVICE)
    assert masked_linear.masked_linear(x, weight, words, bias).tolist() == [[1, 2, 3]]
    words = mask_ops.pack_reference(torch.ones(128, 3, dtype=torch.bool, device=DEVICE))
    assert not masked_linear.masked_linear_input_grad(x, weight.T.contiguous(), words).any()


@pytest.fixture
def precision_of_torch():
    """What torch is told is forgotten again."""
    conv = torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = conv


def test_precision_is_the_users_setting_of_torch(precision_of_torch):
    for setting, ours in (("high", "tf32x3"), ("medium", "tf32"), ("highest", "ieee")):
        torch.set_float32_matmul_precision(setting)
        assert tiles.linear_precision() == ours
    for allowed, ours in ((True, "tf32"), (False, "ieee")):
        torch.backends.cudnn.allow_tf32 = allowed
        assert tiles.conv_precision() == ours


@pytest.mark.parametrize("stated", ["tf32", "ieee"])
def test_precision_is_also_what_torch_is_told_otherwise(stated, precision_of_torch):
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = stated
    assert tiles.linear_precision() == tiles.conv_precision() == stated


def conv_inputs(case, dtype):
    batch, inputs, outputs, size, kernel, stride, padding, dilation, groups = CONV[case]
    weight, words = weight_and_words((outputs, inputs // groups, *kernel), 0.5, dtype, DEVICE)
    out = conv_ops.output_size(size, kernel, stride, padding, dilation)
    x, grad = values(batch, inputs, *size, dtype=dtype), values(batch, outputs, *out, dtype=dtype)
    return x, grad, exactly_summed(weight), words, (list(stride), list(padding), list(dilation), groups)


def check_conv(case, dtype):
    x, grad, weight, words, geometry = conv_inputs(case, dtype)
    for bias in (values(len(weight), dtype=dtype), None):
        call = [x, weight, words, bias, *geometry]
        assert_as_accurate(masked_conv2d.masked_conv2d(*call), conv_ops.forward_reference, call)
    call = [grad, weight, words, list(x.shape), *geometry]
    assert_as_accurate(masked_conv2d.masked_conv2d_input_grad(*call), conv_ops.input_grad_reference, call)
    call = [grad, x, words, list(weight.shape), *geometry]
    dw = masked_conv2d.masked_conv2d_weight_grad(*call)
    assert_as_accurate(dw, conv_ops.weight_grad_reference, call)
    assert not dw.flatten(1)[~mask_ops.unpack_reference(words, weight[0].numel())].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CONV)
def test_conv2d(case, dtype):
    check_conv(case, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("least", [20, 48], ids=["7 slices of one step, two empty", "3 slices of two steps"])
def test_conv2d_weight_grad_in_slices(least, dtype, monkeypatch):
    monkeypatch.setattr(masked_conv2d, "_MIN_SLICE", least)
    x, grad, weight, words, geometry = conv_inputs("tiles", dtype)  # 144 positions, 32 a step
    call = [grad, x, words, list(weight.shape), *geometry]
    assert_as_accurate(masked_conv2d.masked_conv2d_weight_grad(*call), conv_ops.weight_grad_reference, call)


def test_conv2d_weight_grad_slices_are_not_rounded_to_half(monkeypatch):
    """Each slice's sum is beyond float16's range, the whole is zero."""
    monkeypatch.setattr(masked_conv2d, "_MIN_SLICE", 32)
    x = torch.full((2, 1, 8, 8), 64.0, dtype=torch.float16, device=DEVICE)
    grad = torch.stack([x[0], -x[0]])
    words = mask_ops.pack_reference(torch.ones(1, 1, dtype=torch.bool, device=DEVICE))
    dw = masked_conv2d.masked_conv2d_weight_grad(grad, x, words, [1, 1, 1, 1], [1, 1], [0, 0], [1, 1], 1)
    assert dw.item() == 0


def test_conv2d_beyond_int32_positions(monkeypatch):
    monkeypatch.setattr(masked_conv2d, "_INT32_POSITIONS", 0)
    check_conv("tiles", torch.float32)


def test_index_arithmetic_beyond_int32():
    """A block whose words, scores and offsets lie beyond 2^31, by the function that all bit kernels share."""
    triton = pytest.importorskip("triton")
    import triton.language as tl

    @triton.jit
    def last_offset(out_ptr, block, total_words, cols, words_per_row, BLOCK: tl.constexpr):
        words, _, offsets, _ = mask_bits.tile_of_words(
            tl.program_id(0) + block, total_words, cols, words_per_row, BLOCK
        )
        tl.store(out_ptr, tl.max(words))
        tl.store(out_ptr + 1, tl.max(tl.max(offsets, axis=1), axis=0))

    out = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    rows, cols = 3 * 2**20, 2**16 - 64
    blocks = rows * (cols // 32) // mask_bits.BLOCK
    last_offset[(1,)](out, blocks - 1, rows * (cols // 32), cols, cols // 32, BLOCK=mask_bits.BLOCK, **tiles.LAUNCH)
    assert out.tolist() == [rows * (cols // 32) - 1, rows * cols - 1]


@pytest.mark.parametrize("shape", [(3, 5), (2, 5000), (1, 9000), (300, 1), (5, 64), (0, 7), (4, 0)], ids=str)
@pytest.mark.parametrize("density", [0.3, 0.0, 1.0])
def test_masks(shape, density):
    keep = torch.rand(shape, device=DEVICE) < density
    words = mask_bits.pack_mask(keep)
    assert_same_bits([words], [mask_ops.pack_reference(keep)])
    assert_same_bits([mask_bits.unpack_mask(words, shape[1])], [keep])
    assert_same_bits([mask_bits.count_mask(words)], [keep.sum(1)])


def check_topk(scores, k, masks=None):
    candidates = [] if masks is None else [mask_ops.pack_reference(m) for m in masks]
    actual = topk_mask.topk_mask(scores, candidates, k)
    *words, status, _ = topk_mask_reference(scores, [], candidates, [0] * len(scores), k, None, True)
    assert_same_bits(actual, [*words, status[:2]])
    counts = [int(mask_ops.unpack_reference(w, s.shape[1]).sum()) for w, s in zip(actual, scores, strict=False)]
    assert sum(counts) == min(k, int(actual[-1][1]))


SELECTABLE = (torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", SELECTABLE)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.37, 1.0, 2.0])
def test_topk_of_many_values(share, dtype):
    scores = [torch.randn(s, device=DEVICE).to(dtype) for s in ((40, 131), (1, 1), (7, 0), (1, 4200), (3, 3))]
    check_topk(scores, round(share * sum(s.numel() for s in scores)))


@pytest.mark.parametrize("dtype", SELECTABLE)
def test_topk_ties_go_to_the_first_across_blocks_and_tensors(dtype):
    """4,096 scores a block: the kept ones end inside the second block of the second tensor, in the middle of a word."""
    scores = [torch.full((2, 50), 0.5), torch.full((3, 3000), 0.5), torch.full((9, 9), 0.5)]
    check_topk([s.to(DEVICE, dtype) for s in scores], 100 + 5017)


@pytest.mark.parametrize("dtype", SELECTABLE)
def test_topk_of_zeros_signs_and_infinities(dtype):
    inf = float("inf")
    values = torch.tensor([0.0, -0.0, inf, -inf, 1.0, -1.0, torch.finfo(dtype).tiny / 4, -torch.finfo(dtype).tiny / 4])
    scores = [s.to(DEVICE, dtype) for s in (values[torch.randint(8, (5, 23))], torch.zeros(1, 90), values[None])]
    scores[2] *= -1
    for k in (0, 1, 17, 60, 100, 160, 212, 213):
        check_topk(scores, k)


@pytest.mark.parametrize("dtype", SELECTABLE)
def test_topk_tells_neighbours_apart(dtype):
    """Every bit of a key decides: neighbours of numbers of either sign below and above 2, and all powers of two."""
    bits = torch.int32 if dtype == torch.float32 else torch.int64
    centres = torch.tensor([1.0, -1.0, 2.0**20, -(2.0**20), 0.0], dtype=dtype)
    near = centres.view(bits)[:, None] + torch.arange(150, dtype=bits)
    powers = torch.arange(-120, 120).to(dtype).exp2()
    scores = [near.view(dtype), torch.stack([powers, -powers])]
    scores = [s.flatten()[torch.randperm(s.numel())].view(s.shape).to(DEVICE) for s in scores]
    for k in (175, 345, 600, 880, 1050, 1229):  # inside each run of neighbours, and next to the end
        check_topk(scores, k)


@pytest.mark.parametrize("dtype", SELECTABLE)
def test_topk_among_candidates_only(dtype):
    """What does not compete is never looked at: it is NaN here, or would win."""
    masks = [torch.rand(s, device=DEVICE) < 0.4 for s in ((6, 77), (1, 130), (2, 2))]
    masks[2][:] = False
    scores = [torch.randn(m.shape, device=DEVICE).round(decimals=1).to(dtype) for m in masks]
    scores = [torch.where(m, s, float("nan")) for m, s in zip(masks, scores, strict=True)]
    scores[1][~masks[1]] = float("inf")
    total = sum(int(m.sum()) for m in masks)
    for k in (0, 1, total // 3, total, total + 5):
        check_topk(scores, k, masks)
    check_topk(scores, 3, [torch.zeros_like(m) for m in masks])


def test_topk_reports_the_first_tensor_with_a_competing_nan():
    scores = [torch.ones(2, 3, device=DEVICE) for _ in range(4)]
    for i in (3, 1):
        scores[i][1, 2] = float("nan")
        assert topk_mask.topk_mask(scores, [], 5)[-1].tolist() == [i, 24]
    everyone_else = [mask_ops.pack_reference(~s.isnan()) for s in scores]
    assert topk_mask.topk_mask(scores, everyone_else, 5)[-1].tolist() == [-1, 22]


def test_topk_of_nothing():
    assert_same_bits(topk_mask.topk_mask([], [], 0), [torch.tensor([-1, 0])])
    empty = [torch.zeros(0, 4, device=DEVICE), torch.zeros(3, 0, device=DEVICE)]
    check_topk(empty, 2)


def test_bfloat16_is_refused_where_interpreted(monkeypatch):
    half = torch.zeros(1, dtype=torch.bfloat16, device=DEVICE)
    monkeypatch.setattr(kernels, "INTERPRETED", True)
    assert "bfloat16 wrongly" in kernels.refusal([torch.zeros(1), None, half])


def test_what_cannot_run_is_refused_with_a_reason(monkeypatch):
    value, words = torch.zeros(1, device=DEVICE), torch.zeros(1, dtype=torch.int32, device=DEVICE)
    assert kernels.refusal([value, None, words]) is None
    assert "torch.complex64 is not one of" in kernels.refusal([value.to(torch.complex64)])
    monkeypatch.setattr(kernels, "INTERPRETED", False)
    assert "needs CUDA tensors" in kernels.refusal([torch.zeros(1)])
    monkeypatch.setitem(sys.modules, "triton", None)
    assert kernels.refusal([]) == "triton is not installed"


def test_importing_the_package_does_not_import_triton():
    code = "import sys; sys.modules['triton'] = None; import sparseprune.kernels as k; print(k.refusal([]))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert out.stdout.strip() == "triton is not installed"
