"""No two threads of a CPU kernel touch the same memory: ThreadSanitizer, over threads that it knows.

torch's threads are libgomp's, whose barriers ThreadSanitizer does not see, so the kernels run in a program of their own
(``cpu/races.cpp``). Work is cut much finer than it pays, so that every loop is cut.
"""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from cases import isa_levels
from cpu.build import executable
from simt.planted import without

KERNELS = (
    *("pack_mask", "unpack_mask", "count_mask"),
    *(f"masked_{layer}{kind}" for layer in ("linear", "conv2d") for kind in ("", "_input_grad", "_weight_grad")),
)
FINE = {"common.h": without("kGrainBytes = 1 << 17", 0, "kGrainBytes = 1 << 8")}
LEVELS = sorted({*isa_levels()[:1], *isa_levels()[-1:]})  # how work is cut depends on the width of a vector
# Recent systems place programs where older sanitizers cannot follow, unless told not to.
FIXED = ("setarch", "--addr-no-randomize")
RACE = "WARNING: ThreadSanitizer: data race"


def program(folder, level, edits=FINE):
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the kernels with")
    return executable(folder, "races", level, ("-fsanitize=thread", "-g1"), edits)


def run(path, *arguments, every=False):
    """``every`` race is reported, though kernels share races with the code and memory that they share; and without names,
    which take long."""
    prefix = FIXED if shutil.which(FIXED[0]) and subprocess.run([*FIXED, "true"]).returncode == 0 else ()
    once = int(not every)
    options = {"TSAN_OPTIONS": f"symbolize={once}:suppress_equal_stacks={once}:suppress_equal_addresses={once}"}
    return subprocess.run([*prefix, str(path), *arguments], capture_output=True, text=True, env=options)


@pytest.fixture(scope="module")
def folder(pytestconfig):
    return pytestconfig.cache.mkdir("cpu")


@pytest.mark.parametrize("level", LEVELS)
def test_four_threads_race_nowhere_and_give_one_threads_bits(folder, level):
    done = run(program(folder, level))
    assert done.returncode == 0, done.stderr
    assert {*KERNELS, "topk_mask"} == set(re.findall(r"^kernel (\w+)$", done.stderr, re.MULTILINE))


@pytest.mark.parametrize("level", LEVELS)
def test_a_race_is_seen_in_every_kernel(folder, level):
    said = run(program(folder, level), "overlapping", every=True).stderr
    _, *sections = re.split(r"^kernel ", said, flags=re.MULTILINE)
    assert {section.split()[0] for section in sections if RACE in section} == set(KERNELS)


def test_scratch_memory_that_threads_share_is_seen(folder):
    """The fault that is made most easily: memory of one task allocated outside of the loop over tasks."""
    allocation = "    Scratch<T> dx(NB * 64 * slab), part(NB * 64 * slab);\n"
    loop = "  for_ranges(parallel, slabs, grain, "
    shared = {**FINE, "linear_small.h": lambda text: without(loop, 0, allocation + loop)(without(allocation)(text))}
    done = run(program(folder, "portable", shared))
    assert done.returncode != 0 and RACE in done.stderr and "stream_input_grad" in done.stderr
