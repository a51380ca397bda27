"""Indices beyond 2^31 in the CPU kernels: the last elements of arrays that are reserved, not allocated.

The cases are a program's (``cpu/large.cpp``), because a wrong address ends the process that uses it. The selection is not
among them.
"""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from cases import isa_levels
from cpu.build import executable
from simt.planted import without

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the kernels with")
LEVELS = sorted({*isa_levels()[:1], *isa_levels()[-1:]})  # the width of a vector decides how arrays are cut


@pytest.fixture(scope="module")
def folder(pytestconfig):
    return pytestconfig.cache.mkdir("cpu")


def run(folder, level, edits=None, cases=""):
    program = executable(folder, "large", level, (), edits, ("mask_bits", "masked_linear", "masked_conv2d"))
    return subprocess.run([str(program), cases], capture_output=True, text=True)


@pytest.mark.parametrize("level", LEVELS)
def test_the_last_elements_of_large_arrays_are_right(folder, level):
    done = run(folder, level)
    assert done.returncode == 0, done.stderr
    assert len(re.findall("^case ", done.stderr, re.MULTILINE)) == 17


@pytest.mark.parametrize(
    ("file", "index", "cases"),
    [
        ("mask_bits.cpp", "row * cols + 64 * word", "pack"),
        ("linear_small.h", "n * size.in + 64 * first + i", "linear input_grad by slots"),
        ("conv_tile.h", "(number * y.source + phase_y + row * y.source_step) * x.source + phase_x", "conv"),
    ],
    ids=["masks", "linear", "conv"],
)
def test_an_index_of_32_bits_is_seen(folder, file, index, cases):
    assert run(folder, "portable", {file: without(index, 0, f"static_cast<int>({index})")}, cases).returncode != 0
