"""The CUDA kernels, run on the CPU by the machine in ``tests/simt``: values and determinism."""

from __future__ import annotations

import shutil

import pytest
import torch
from cases import FLOATS, GPU_OPS, LAYERS, LINEAR, Op, conv_inputs, linear_inputs, packed_inputs
from oracle import assert_as_accurate, assert_same_bits
from simt.build import build
from simt.harness import Emulated

from sparseprune.ops.mask_bits import pack_reference, unpack_reference

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the emulated kernels with")


@pytest.fixture(scope="module")
def emulated(pytestconfig):
    return Emulated(build(pytestconfig.cache.mkdir("simt")))


def as_list(result):
    return result if isinstance(result, list) else [result]


def op_named(name: str) -> Op:
    return next(op for op in GPU_OPS if op.name == name)


def dtypes(op: Op) -> tuple[torch.dtype, ...]:
    return FLOATS if op in LAYERS or op.name == "topk_mask" else (torch.float32,)


CASES = [pytest.param(op, dtype, id=f"{op.name}-{str(dtype)[6:]}") for op in GPU_OPS for dtype in dtypes(op)]


def check(machine: Emulated, op: Op, inputs) -> None:
    run, reference = getattr(machine, op.name), op.implementations["reference"].run
    if op.exact:
        assert_same_bits(as_list(run(*inputs)), as_list(reference(*inputs)))
    else:
        assert_as_accurate(run(*inputs), reference, inputs)


@pytest.mark.parametrize(("op", "dtype"), CASES)
def test_agrees_with_the_reference(emulated, op, dtype):
    """On the cases of every other backend, each under another schedule."""
    for seed, make in enumerate(op.inputs.values()):
        emulated.set_seed(seed)
        check(emulated, op, make(dtype, "cpu"))


@pytest.mark.parametrize("op", GPU_OPS, ids=lambda op: op.name)
def test_arrays_may_start_at_any_element(emulated, op):
    for dtype in dtypes(op)[:1]:
        for make in list(op.inputs.values())[:8]:
            check(Emulated(emulated.kernels, shift=1), op, make(dtype, "cpu"))


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
    assert_as_accurate(getattr(emulated, name)(*inputs), op_named(name).implementations["reference"].run, inputs)


# Three strips of 256 columns, several slices of the rows, tiles of more than 2048 survivors, groups of samples.
PACKED = (21, 600, 150, 0.3)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", ["forward", "input_grad", "values_grad"])
def test_packed_weights_of_many_strips(emulated, monkeypatch, kind, dtype):
    monkeypatch.setitem(LINEAR, "large", PACKED)
    inputs = packed_inputs(linear_inputs, kind, "large")(dtype, "cpu")
    name = "packed_linear" if kind == "forward" else f"packed_linear_{kind}"
    results = []
    for seed in range(2):
        emulated.set_seed(seed)
        results.append(getattr(emulated, name)(*inputs))
    assert_as_accurate(results[0], op_named(name).implementations["reference"].run, inputs)
    assert_same_bits(results[:1], results[1:])


@pytest.mark.parametrize("missing", [-3, 3])
def test_a_wrong_number_of_packed_values_touches_nothing_outside(emulated, missing):
    """The machine stops what does; that results are of use is not promised."""
    x, values, words, bias = packed_inputs(linear_inputs, "forward", "prime")(torch.float32, "cpu")
    grad, kept = torch.randn(len(x), len(words)), len(values) - missing
    wrong = torch.randn(kept)
    assert emulated.packed_linear(x, wrong, words, bias).shape == grad.shape
    assert emulated.packed_linear_input_grad(grad, wrong, words, x.shape[1]).shape == x.shape
    assert emulated.packed_linear_values_grad(grad, x, words, kept).shape == (kept,)


@pytest.mark.parametrize("name", ["masked_linear_weight_grad", "masked_conv2d_weight_grad"])
def test_gradients_of_pruned_weights_are_positive_zero(emulated, name):
    for make in op_named(name).inputs.values():
        inputs = make(torch.float32, "cpu")
        result = getattr(emulated, name)(*inputs)
        pruned = ~unpack_reference(inputs[2], result[0].numel() if len(result) else 0).view(result.shape)
        assert torch.equal(result[pruned].view(torch.int32), torch.zeros(int(pruned.sum()), dtype=torch.int32))


def test_half_types_convert_as_torch_does(emulated):
    """Every 7th pattern of each half type, widened and narrowed by x 1."""
    one = torch.ones(1, 1, dtype=torch.int32)
    words = torch.cat([one, torch.zeros_like(one)], 1)
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.arange(-(2**15), 2**15, 7, dtype=torch.int16).view(dtype)
        x = x[x.isfinite() & (x != 0)].unsqueeze(1)
        assert torch.equal(emulated.masked_linear(x, one.to(dtype), words, None), x)


def test_rows_of_many_words_are_counted(emulated):
    keep = torch.rand(3, 5000) < 0.4
    assert torch.equal(emulated.count_mask(pack_reference(keep)), keep.sum(1))


@pytest.mark.parametrize("op", GPU_OPS, ids=lambda op: op.name)
def test_results_do_not_depend_on_the_schedule(emulated, op):
    case = {"topk_mask": "large, 30%"}.get(op.name, "dilated" if "conv" in op.name else "panel")
    make = op.inputs.get(case) or op.inputs["ragged"]
    inputs = make(torch.float32, "cpu")
    results = []
    for seed in range(4):
        emulated.set_seed(seed)
        results.append(as_list(getattr(emulated, op.name)(*inputs)))
        assert_same_bits(results[seed], results[0])
