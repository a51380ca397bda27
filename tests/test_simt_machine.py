"""The machine that runs CUDA kernels on the CPU (``tests/simt``): what it computes, and that it catches faults."""

from __future__ import annotations

import shutil

import pytest
import torch
from simt.build import build
from simt.harness import Emulated, KernelFault

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the emulated kernels with")
VALUES = torch.arange(64, dtype=torch.int32)


@pytest.fixture(scope="module")
def machine(pytestconfig):
    return Emulated(build(pytestconfig.cache.mkdir("simt")))


def test_schedules_differ_by_seed_and_repeat(machine):
    orders = []
    for seed in (1, 2, 1):
        machine.set_seed(seed)
        orders.append(machine.selftest("order", VALUES, 97, threads=96)[:96].tolist())
        assert sorted(orders[-1]) == list(range(96))
    assert orders[0] == orders[2] != orders[1]


def test_shared_memory_is_poisoned_for_every_block(machine):
    assert machine.selftest("poison", VALUES, 2, blocks=2).tolist() == [80, 80]


def test_warps_meet(machine):
    values = torch.arange(128, dtype=torch.int32)
    assert machine.selftest("reverse", values, 4, threads=128).tolist() == values.view(4, 32).sum(1).flip(0).tolist()


def test_warp_primitives(machine):
    """Each of them over the even and the odd lanes of two warps, against sums and comparisons in Python."""
    values = torch.randint(0, 40, (64,), dtype=torch.int32)
    result = machine.selftest("warp", values, 64 * 12).view(64, 12).tolist()
    for thread in range(64):
        others = range(thread // 32 * 32 + thread % 2, thread // 32 * 32 + 32, 2)
        seen = [int(values[i]) for i in others]
        own, every, some, one_of = int(values[thread]), ~0, 0, 0
        for value in seen:
            every, some, one_of = every & value, some | value, one_of ^ value
        bits = {rest: sum(1 << i % 32 for i, v in zip(others, seen, strict=True) if v % 3 == rest) for rest in range(3)}
        expected = [sum(seen), -sum(seen), min(seen), -max(seen), max(seen), -min(seen), every, some, one_of]
        expected += [bits[own % 3], bits[0], (7 in seen) + 2]
        assert [v % 2**32 for v in result[thread]] == [v % 2**32 for v in expected], thread


def test_atomics_and_barriers_order_shared_memory(machine):
    assert machine.selftest("histogram", VALUES, 4).tolist() == [16] * 4
    assert machine.selftest("exchange", VALUES, 64).tolist() == [i ^ 1 for i in range(64)]
    packed = torch.arange(64, dtype=torch.uint8).view(torch.int32)
    assert torch.equal(machine.selftest("bytes", VALUES, 16), packed)


@pytest.mark.parametrize(
    ("kernel", "message"),
    {
        "racy_histogram": r"(reads|writes) shared memory that (other threads|thread \(\d+, 0, 0\)) (wrote|read), and",
        "racy_exchange": r"shared memory that (no thread of its block has written|thread .* no barrier lies between)",
        "behind_dynamic_shared": r"writes 1 byte outside of its buffers",
        "write_input": r"writes `values`, which is an input",
        "overflow": r"an integer overflow at selftest\.cpp:\d+",
        "shift": r"a shift by more bits than there are at selftest\.cpp:\d+",
        "outside_of_array": r"an index outside of its array at selftest\.cpp:\d+",
        "caller_not_in_mask": r"a warp primitive's mask does not name the calling lane",
        "source_not_in_mask": r"a shuffle reads a lane that its mask does not name",
        "other_primitive": r"lanes of a warp meet at different primitives or masks",
        "lane_returned": r"no thread can go on: .* waits for lanes of its warp; .*\(3, 0, 0\) has returned",
        "barrier_in_branch": r"no thread can go on: .* waits at a block barrier; .*\(7, 0, 0\) has returned",
    }.items(),
)
def test_a_fault_is_named(machine, kernel, message):
    """Under every schedule, with kernel, block and thread."""
    values = VALUES[:32] if kernel == "outside_of_array" else VALUES
    values = values + 2**20 if kernel == "overflow" else values + (kernel == "outside_of_array")
    name = kernel.removeprefix("racy_")
    for seed in range(4):
        machine.set_seed(seed)
        with pytest.raises(KernelFault, match=rf"kernel {name}.*, block \(0, 0, 0\), .*thread \(\d+, 0, 0\).*") as e:
            machine.selftest(kernel, values, 64, threads=len(values))
        assert e.match(message)


@pytest.mark.parametrize("start", range(4))
def test_vector_loads_must_be_aligned(machine, start):
    values = torch.tensor([start, 1, 2, 3, 4, 5, 6, 7], dtype=torch.int32)
    if start == 0:
        assert machine.selftest("vector", values, 1, threads=1).item() == 6
    else:
        with pytest.raises(KernelFault, match=r"thread \(0, 0, 0\): a misaligned access at selftest\.cpp:\d+"):
            machine.selftest("vector", values, 1, threads=1)


@pytest.mark.parametrize(("size", "threads"), [(4, 1), (6, 1), (8, 1)])
def test_vector_loads_must_end_within_the_buffer(machine, size, threads):
    values = torch.full((size,), 4, dtype=torch.int32)
    if size == 8:
        assert machine.selftest("vector", values, 1, threads=threads).item() == 16
    else:
        with pytest.raises(KernelFault, match=r"outside of its buffers, \d+ bytes? behind the end of `values`"):
            machine.selftest("vector", values, 1, threads=threads)


def test_a_view_may_start_anywhere(machine):
    """The arrays of a machine with a shift are misaligned for vectors, not for their own type."""
    shifted = Emulated(machine.kernels, shift=1)
    assert shifted.selftest("histogram", VALUES, 4).tolist() == [16] * 4
    with pytest.raises(KernelFault, match="a misaligned access"):
        shifted.selftest("vector", torch.zeros(4, dtype=torch.int32), 1, threads=1)


def test_buffers_must_lie_apart(machine):
    values = torch.zeros(16, dtype=torch.int32)
    address = values.data_ptr()
    with pytest.raises(ValueError, match="`a` and `b` must lie 16 bytes apart"):
        machine.kernels.set_buffers([("b", address + 40, 8, True), ("a", address, 32, False)])
