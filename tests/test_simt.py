"""The CUDA kernels, run on the CPU by the machine in ``tests/simt``: values, determinism, caught faults."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
from cases import FLOATS, LAYERS, OPS, Op, conv_inputs, linear_inputs, weight_and_words
from oracle import assert_as_accurate, assert_same_bits
from simt.harness import Emulated, build

from sparseprune.ops.mask_bits import pack_reference, unpack_reference

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="no g++ to compile the emulated kernels with"
)
SEEDS = range(8)


@pytest.fixture(scope="module")
def folder(pytestconfig):
    return pytestconfig.cache.mkdir("simt")


@pytest.fixture(scope="module")
def emulated(folder):
    return Emulated(build(folder))


def as_list(result):
    return result if isinstance(result, list) else [result]


def same_outcome(emulated, op: Op, inputs) -> bool:
    """Whether a (possibly broken) kernel still gives what the reference gives."""
    run, reference = getattr(emulated, op.name), op.implementations["reference"].run
    try:
        if op.exact:
            assert_same_bits(as_list(run(*inputs)), as_list(reference(*inputs)))
        else:
            assert_as_accurate(run(*inputs), reference, inputs)
    except AssertionError:
        return False
    return True


def op_named(name: str) -> Op:
    return next(op for op in OPS if op.name == name)


def dtypes(op: Op) -> tuple[torch.dtype, ...]:
    if op in LAYERS:
        return FLOATS
    return (torch.float32, torch.float64) if op.name == "topk_mask" else (torch.float32,)


CASES = [pytest.param(op, dtype, id=f"{op.name}-{str(dtype)[6:]}") for op in OPS for dtype in dtypes(op)]


@pytest.mark.parametrize(("op", "dtype"), CASES)
def test_agrees_with_the_reference(emulated, op, dtype):
    """On the cases of every other backend, each under another schedule."""
    run, reference = getattr(emulated, op.name), op.implementations["reference"].run
    for seed, make in enumerate(op.inputs.values()):
        inputs = make(dtype, "cpu")
        emulated.set_seed(seed)
        if op.exact:
            assert_same_bits(as_list(run(*inputs)), as_list(reference(*inputs)))
        else:
            assert_as_accurate(run(*inputs), reference, inputs)


# More tiles of 64 x 64 than the three blocks of the build, ragged in every direction.
LARGE = {
    "linear": (linear_inputs, (131, 97, 197, 0.3)),
    "conv": (conv_inputs, (3, 6, 150, (9, 7), (3, 3), (1, 1), (1, 1), (1, 1), 1, 0.3)),
    "strided conv": (conv_inputs, (2, 70, 34, (11, 13), (3, 2), (2, 3), (1, 2), (2, 1), 2, 0.3)),
}


@pytest.mark.parametrize("kind", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize("case", LARGE)
def test_many_tiles(emulated, monkeypatch, case, kind):
    make, size = LARGE[case]
    family = "masked_linear" if make is linear_inputs else "masked_conv2d"
    monkeypatch.setitem(make.__globals__["LINEAR" if make is linear_inputs else "CONV"], "large", size)
    name = family if kind == "forward" else f"{family}_{kind}"
    inputs = make(kind, "large")(torch.float32, "cpu")
    assert_as_accurate(
        getattr(emulated, name)(*inputs), op_named(name).implementations["reference"].run, inputs
    )


@pytest.mark.parametrize("name", ["masked_linear_weight_grad", "masked_conv2d_weight_grad"])
def test_gradients_of_pruned_weights_are_positive_zero(emulated, name):
    for make in op_named(name).inputs.values():
        inputs = make(torch.float32, "cpu")
        result = getattr(emulated, name)(*inputs)
        pruned = ~unpack_reference(inputs[2], result[0].numel() if len(result) else 0).view(result.shape)
        assert torch.equal(
            result[pruned].view(torch.int32), torch.zeros(int(pruned.sum()), dtype=torch.int32)
        )


def test_half_types_convert_as_torch_does(emulated):
    """Every 7th pattern of each half type, widened and narrowed by x 1."""
    one = torch.ones(1, 1, dtype=torch.int32)
    words = torch.cat([one, torch.zeros_like(one)], 1)
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.arange(-(2**15), 2**15, 7, dtype=torch.int16).view(dtype)
        x = x[x.isfinite() & (x != 0)].unsqueeze(1)
        assert torch.equal(emulated.masked_linear(x, one.to(dtype), words, None), x)


def test_many_tensors_share_one_selection(emulated):
    """More tensors than a slice of the table (64), more chunks than a block's scan (256), ties across all."""
    scores = [torch.randint(0, 3, (1, 2)).float() for _ in range(300)]
    reference = op_named("topk_mask").implementations["reference"].run
    for k in (0, 1, 299, 600, 601):
        assert_same_bits(emulated.topk_mask(scores, [], k), reference(scores, [], k))


def test_signed_zeros_are_one_score(emulated):
    for dtype in (torch.float32, torch.float64):
        scores = [torch.tensor([[-0.0, 0.0, -1.0, 0.0, -0.0]], dtype=dtype)]
        assert [emulated.topk_mask(scores, [], k)[0][0, 0].item() for k in range(6)] == [0, 1, 3, 11, 27, 31]


def test_rows_of_many_words_are_counted(emulated):
    keep = torch.rand(3, 5000) < 0.4
    assert torch.equal(emulated.count_mask(pack_reference(keep)), keep.sum(1))


def test_the_first_nan_that_competes_is_reported(emulated):
    scores = [torch.randn(3, 40), torch.randn(2, 70), torch.randn(1, 5), torch.randn(4, 4)]
    for i in (1, 3):
        scores[i][1, -1] = float("nan")
    assert emulated.topk_mask(scores, [], 7)[-1].tolist() == [1, sum(s.numel() for s in scores)]
    candidates = [torch.ones(s.shape, dtype=torch.bool) for s in scores]
    candidates[1][1, -1] = False
    words = [pack_reference(c) for c in candidates]
    assert emulated.topk_mask(scores, words, 7)[-1].tolist() == [3, sum(s.numel() for s in scores) - 1]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_results_do_not_depend_on_the_schedule(emulated, op):
    case = {"topk_mask": "large, 30%"}.get(op.name, "dilated" if "conv" in op.name else "panel")
    make = op.inputs.get(case) or op.inputs["ragged"]
    inputs = make(torch.float32, "cpu")
    results = []
    for seed in range(4):
        emulated.set_seed(seed)
        results.append(as_list(getattr(emulated, op.name)(*inputs)))
        assert_same_bits(results[seed], results[0])


def test_the_machine(emulated):
    """Schedules differ by seed and repeat; shared memory is poisoned for every block; warps meet."""
    kernels = emulated._kernels
    orders = []
    for seed in (1, 2, 1):
        kernels.set_seed(seed)
        orders.append(kernels.order_of_threads(96))
        assert sorted(orders[-1]) == list(range(96))
    assert orders[0] == orders[2] != orders[1]
    assert kernels.poisoned_bytes() == [80, 80]
    values = torch.arange(128)
    assert kernels.reverse_warp_sums(values.tolist()) == values.view(4, 32).sum(1).flip(0).tolist()


def without(part: str, occurrence: int = 0, replacement: str = "") -> Callable[[str], str]:
    """An edit that replaces one occurrence of ``part``."""

    def edit(text: str) -> str:
        pieces = text.split(part)
        if len(pieces) <= occurrence + 1:
            raise ValueError(f"there are {len(pieces) - 1} of {part!r}, got occurrence {occurrence}")
        head, tail = part.join(pieces[: occurrence + 1]), part.join(pieces[occurrence + 1 :])
        return head + replacement + tail

    return edit


BARRIER = "__syncthreads();"
SELECT = "(word >> lane) & 1u ? widen(source.data[at]) : Acc<T>(0)"
BALLOT = "const uint32_t bits = __ballot_sync"
WRONG_RESULTS = {
    "tile not complete": ("masked_linear", "tile_gemm.cuh", without(BARRIER, 0)),
    "tile overwritten in use": ("masked_linear", "tile_gemm.cuh", without(BARRIER, 1)),
    "warp sums not complete": ("topk_mask", "block.cuh", without(BARRIER, 0)),
    "warp sums overwritten in use": ("topk_mask", "block.cuh", without(BARRIER, 1)),
    "histogram not cleared in time": ("topk_mask", "topk_mask.cu", without(BARRIER, 0)),
    "histogram not complete": ("topk_mask", "topk_mask.cu", without(BARRIER, 1)),
    "shared memory not initialised": ("topk_mask", "topk_mask.cu", without("histogram[bin] = 0;")),
    "write behind the last word": (
        "pack_mask",
        "mask_bits.cu",
        without("if (base + lane < total) words", 0, "words"),
    ),
    "write behind the last column": (
        "unpack_mask",
        "mask_bits.cu",
        without("if (column < columns) mask", 0, "mask"),
    ),
    "pruned weight multiplied": (
        "masked_linear",
        "tile_gemm.cuh",
        without(SELECT, 0, "Acc<T>((word >> lane) & 1u) * widen(source.data[at])"),
    ),
}
STOPS = {
    "lane left out of a mask": (
        "count_mask",
        "mask_bits.cu",
        without("__shfl_xor_sync(kFullWarp", 0, "__shfl_xor_sync(1u"),
    ),
    "barrier in a branch": (
        "masked_linear",
        "tile_gemm.cuh",
        without(BARRIER, 0, f"if (threadIdx.x < 99) {BARRIER}"),
    ),
    "lane that does not come": (
        "pack_mask",
        "mask_bits.cu",
        without(BALLOT, 0, f"if (lane == 3) continue;\n{BALLOT}"),
    ),
}


def fault_inputs(name: str):
    if name == "topk_mask":
        # Three warps have words in each chunk, each block several chunks: what one overwrites, another reads.
        return [[torch.randint(0, 9, (2, 1500)).float() for _ in range(7)], [], 9000]
    if name == "masked_linear":
        weight, words = weight_and_words((70, 130), 0.5, torch.float32, "cpu")
        return [torch.randn(70, 130), weight, words, None]
    return op_named(name).inputs["ragged"](torch.float32, "cpu")


@pytest.mark.parametrize("fault", WRONG_RESULTS)
def test_a_fault_changes_the_result(emulated, folder, fault):
    """Under some schedule, where the kernel as it is gives the right one."""
    name, file, edit = WRONG_RESULTS[fault]
    broken, inputs = Emulated(build(folder, {file: edit})), fault_inputs(name)
    wrong = []
    for seed in SEEDS:
        emulated.set_seed(seed)
        broken.set_seed(seed)
        assert same_outcome(emulated, op_named(name), inputs), f"seed {seed}"
        wrong.append(not same_outcome(broken, op_named(name), inputs))
    assert any(wrong)


@pytest.mark.parametrize("fault", STOPS)
def test_threads_that_never_meet_are_named(folder, fault):
    name, file, edit = STOPS[fault]
    broken = Emulated(build(folder, {file: edit}))
    message = r"block \(\d+, 0, 0\): (no thread can go on: thread|thread \(\d+, 0, 0\): (a warp|lanes of))"
    with pytest.raises(RuntimeError, match=message):
        getattr(broken, name)(*fault_inputs(name))
