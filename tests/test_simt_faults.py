"""Faults planted in the CUDA kernels, and arrays one element too short: the machine in ``tests/simt`` sees each."""

from __future__ import annotations

import shutil

import pytest
import torch
from cases import GPU_OPS, weight_and_words
from oracle import assert_as_accurate, assert_same_bits
from simt.build import build
from simt.harness import Emulated, KernelFault
from simt.planted import without
from simt.selection import assert_selects

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the emulated kernels with")
BARRIER = "__syncthreads();"
RACE = r"(reads|writes|updates) shared memory that (thread \(\d+, 0, 0\)|other threads) (wrote|read), and no barrier"
UNWRITTEN = r"(reads|updates) shared memory that no thread of its block has written"
# fault -> op, file, edit, what the machine says, or None where the result is wrong
FAULTS = {
    "tile not complete": ("masked_linear", "tile_gemm.cuh", without(BARRIER, 0), f"{RACE}|{UNWRITTEN}"),
    "tile overwritten in use": ("masked_linear", "tile_gemm.cuh", without(BARRIER, 1), RACE),
    "warp sums not complete": ("topk_mask", "block.cuh", without(BARRIER, 0), f"{RACE}|{UNWRITTEN}"),
    "histogram not cleared in time": ("topk_mask", "topk_mask.cu", without(BARRIER, 0), f"{RACE}|{UNWRITTEN}"),
    "histogram not complete": ("topk_mask", "topk_mask.cu", without(BARRIER, 1), RACE),
    "histogram without atomics": (
        "topk_mask",
        "topk_mask.cu",
        without(
            "atomicAdd(&histogram[key_of(scores[i], largest) >> kShift], 1u)",
            0,
            "++histogram[key_of(scores[i], largest) >> kShift]",
        ),
        RACE,
    ),
    "shared memory not initialised": (
        "topk_mask",
        "topk_mask.cu",
        without("histogram[bin] = 0;", 0, "(void)histogram;"),
        UNWRITTEN,
    ),
    "one bin too many": (
        "topk_mask",
        "topk_mask.cu",
        without("bin < kBins; bin += kThreads) search", 0, "bin <= kBins; bin += kThreads) search"),
        "kernel start_kernel.* writes 8 bytes between the arrays of `workspace`",
    ),
    "more collected than fit": (
        "topk_mask",
        "topk_mask.cu",
        without("next.inside <= search.capacity", 0, "next.inside <= 8 * search.capacity"),
        "kernel pass_kernel.* writes [48] bytes between the arrays of `workspace`",
    ),
    "slots collected without their place": (
        "topk_mask",
        "topk_mask.cu",
        without("search.places[at] = place - i;", 0, "search.places[at] = place;"),
        None,
    ),
    "ties to the highest index": (
        "topk_mask",
        "topk_mask.cu",
        without("search.last_place() - group", 0, "group"),
        None,
    ),
    "vector load of what is misaligned": (
        "topk_mask",
        "score_values.cuh",
        without("reinterpret_cast<uintptr_t>(from) % sizeof(uint4) == 0", 0, "true"),
        "kernel first_pass_kernel.* a misaligned access",
    ),
    "vector load of what is not all there": (
        "topk_mask",
        "score_values.cuh",
        without("count == kGroup<Value> &&", 0, ""),
        r"kernel first_pass_kernel.* reads \d+ bytes? outside of its buffers, .* behind the end of `scores",
    ),
    "write behind the last word": (
        "pack_mask",
        "mask_bits.cu",
        without("if (base + lane < total) words", 0, "words"),
        r"kernel pack_kernel, .* writes 4 bytes outside of its buffers, \d+ bytes? behind the end of `words`",
    ),
    "one word too many": (
        "pack_mask",
        "mask_bits.cu",
        without("if (base + lane < total) words", 0, "if (base + lane <= total) words"),
        r"kernel pack_kernel, .* writes 4 bytes outside of its buffers, 0 bytes behind the end of `words`",
    ),
    "read behind the last column": (
        "pack_mask",
        "mask_bits.cu",
        without("column < columns && mask", 0, "column <= columns && mask"),
        r"kernel pack_kernel, .* reads 1 byte outside of its buffers, 0 bytes behind the end of `mask`",
    ),
    "write behind the last column": (
        "unpack_mask",
        "mask_bits.cu",
        without("if (column < columns) mask", 0, "mask"),
        r"kernel unpack_kernel, .* writes 1 byte outside of its buffers, \d+ bytes? behind the end of `mask`",
    ),
    "pruned weight multiplied": (
        "masked_linear",
        "tile_gemm.cuh",
        without(
            "(word >> lane) & 1u ? widen(source.data[at]) : Acc<T>(0)",
            0,
            "at < source.rows * source.columns ? Acc<T>((word >> lane) & 1u) * widen(source.data[at]) : Acc<T>(0)",
        ),
        None,
    ),
    "strip not complete": (
        "packed_linear_input_grad",
        "packed_linear_input_grad.cu",
        without(BARRIER, 0),
        f"{RACE}|{UNWRITTEN}",
    ),
    "strip overwritten in use": ("packed_linear_input_grad", "packed_linear_input_grad.cu", without(BARRIER, 1), RACE),
    "survivor of another word": (
        "packed_linear_input_grad",
        "packed_linear_input_grad.cu",
        without("part.before + __popc", 0, "__popc"),
        None,
    ),
    "survivors not all listed": (
        "packed_linear_values_grad",
        "packed_linear_values_grad.cu",
        without(BARRIER, 0),
        f"{RACE}|{UNWRITTEN}",
    ),
    "samples not complete": (
        "packed_linear_values_grad",
        "packed_linear_values_grad.cu",
        without(BARRIER, 1),
        f"{RACE}|{UNWRITTEN}",
    ),
    "samples overwritten in use": (
        "packed_linear_values_grad",
        "packed_linear_values_grad.cu",
        without(BARRIER, 2),
        RACE,
    ),
    "gradient behind the last value": (
        "packed_linear_values_grad",
        "packed_linear_values_grad.cu",
        without("const int64_t place = places[list[at] / kStrip] + at;", 0, "const int64_t place = at - 1;"),
        r"kernel values_grad_kernel.* writes 4 bytes outside of its buffers, 4 bytes before `out`",
    ),
    "lane left out of a mask": (
        "count_mask",
        "mask_bits.cu",
        without("__shfl_xor_sync(kFullWarp", 0, "__shfl_xor_sync(1u"),
        "kernel count_kernel, .*a warp primitive's mask does not name the calling lane|a shuffle reads a lane",
    ),
    "barrier in a branch": (
        "masked_linear",
        "tile_gemm.cuh",
        without(BARRIER, 0, f"if (threadIdx.x < 99) {BARRIER}"),
        f"no thread can go on: thread .* waits at a block barrier|{RACE}|{UNWRITTEN}",
    ),
    "lane that does not come": (
        "pack_mask",
        "mask_bits.cu",
        without(
            "const uint32_t bits = __ballot_sync", 0, "if (lane == 3) continue;\nconst uint32_t bits = __ballot_sync"
        ),
        "kernel pack_kernel, .*no thread can go on: thread .* waits for lanes of its warp",
    ),
}
FILES = {"pack_mask": "mask_bits", "unpack_mask": "mask_bits", "count_mask": "mask_bits"}


@pytest.fixture(scope="module")
def folder(pytestconfig):
    return pytestconfig.cache.mkdir("simt")


@pytest.fixture(scope="module")
def emulated(folder):
    return Emulated(build(folder))


def op_named(name: str):
    return next(op for op in GPU_OPS if op.name == name)


def fault_inputs(name: str):
    if name == "topk_mask":
        # Every warp has several tiles, and more slots are equal than can be collected. One row is misaligned.
        scores = [torch.randint(0, 5, (2, 1500)).float() for _ in range(7)] + [torch.randint(0, 5, (2, 1501)).float()]
        return [scores, [], [], [0] * 8, 9000, None, True]
    if name == "masked_linear":
        weight, words = weight_and_words((70, 130), 0.5, torch.float32, "cpu")
        return [torch.randn(70, 130), weight, words, None]
    return op_named(name).inputs["panel" if name.startswith("packed") else "ragged"](torch.float32, "cpu")


def check(machine: Emulated, name: str, inputs) -> None:
    if name == "topk_mask":
        assert_selects(machine, *inputs)
        return
    result, reference = getattr(machine, name)(*inputs), op_named(name).implementations["reference"].run
    if op_named(name).exact:
        expected = reference(*inputs)
        assert_same_bits(*(r if isinstance(r, list) else [r] for r in (result, expected)))
    else:
        assert_as_accurate(result, reference, inputs)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(emulated, folder, fault):
    """Under every schedule, where the kernel as it is gives the right result."""
    name, file, edit, message = FAULTS[fault]
    broken = Emulated(build(folder, {file: edit}, kernels=[FILES.get(name, name)]))
    inputs = fault_inputs(name)
    for seed in range(3):
        emulated.set_seed(seed)
        broken.set_seed(seed)
        check(emulated, name, inputs)
        with pytest.raises(KernelFault if message else AssertionError, match=message):
            check(broken, name, inputs)


class Trimmed(Emulated):
    """Takes elements from the front or the back of one argument: what is left is all that kernels may touch."""

    trimmed, side = "", "back"

    def __init__(self, kernels) -> None:
        super().__init__(kernels)
        self.seen: set[str] = set()

    def extent(self, name, tensor):
        self.seen.add(name)
        address, size = super().extent(name, tensor)
        if name != self.trimmed:
            return address, size
        return address + (tensor.itemsize if self.side == "front" else 0), size - tensor.itemsize


def dense_inputs(name: str):
    """Inputs of which every element is read: all kept, no padding, rows that fill their words."""
    weight, words = weight_and_words((6, 64), 1.0, torch.float32, "cpu")
    keep = torch.ones(3, 64, dtype=torch.bool)
    geometry = [[1, 1], [0, 0], [1, 1], 1]
    x, grad = torch.randn(2, 16, 3, 3), torch.randn(2, 6, 2, 2)
    return {
        "pack_mask": [keep],
        "unpack_mask": [words, 64],
        "count_mask": [words],
        "topk_mask": [
            [torch.randn(3, 64), torch.randn(2, 64).double()],
            [torch.randn(3, 64), torch.randn(2, 64).double()],
            [words[:3].clone(), words[:2].clone()],
            [2, 3],
            100,
            torch.tensor([100]),
            True,
        ],
        "masked_linear": [torch.randn(5, 64), weight, words, torch.randn(6)],
        "masked_linear_input_grad": [torch.randn(5, 6), weight, words],
        "masked_linear_weight_grad": [torch.randn(5, 6), torch.randn(5, 64), words],
        "packed_linear": [torch.randn(5, 64), weight.flatten(), words, torch.randn(6)],
        "packed_linear_input_grad": [torch.randn(5, 6), weight.flatten(), words, 64],
        "packed_linear_values_grad": [torch.randn(5, 6), torch.randn(5, 64), words, weight.numel()],
        "masked_conv2d": [x, weight.view(6, 16, 2, 2), words, torch.randn(6), *geometry],
        "masked_conv2d_input_grad": [grad, weight.view(6, 16, 2, 2), words, [2, 16, 3, 3], *geometry],
        "masked_conv2d_weight_grad": [grad, x, words, [6, 16, 2, 2], *geometry],
    }[name]


@pytest.mark.parametrize("name", [op.name for op in GPU_OPS])
def test_one_element_less_is_seen_at_both_ends_of_every_array(emulated, name):
    """A kernel that runs over an end by one differs from this in nothing that the machine could know."""
    machine, inputs = Trimmed(emulated.kernels), dense_inputs(name)
    check(machine, name, inputs)
    for array in sorted(machine.seen):
        for side, place in (("front", "before"), ("back", "behind the end of")):
            machine.trimmed, machine.side = array, side
            where = rf" \d+ bytes? {place} `{array}`".replace("[", r"\[").replace("]", r"\]")
            with pytest.raises(
                KernelFault, match=r"kernel \w+.*, block \(\d, 0, 0\), thread \(\d+, 0, 0\): \w+ \d"
            ) as e:
                getattr(machine, name)(*inputs)
            assert e.match(where)
