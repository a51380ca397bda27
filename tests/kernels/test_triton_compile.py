"""The Triton kernels compiled for GPUs that are not here: what the assembly must show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ARCHITECTURES = (80, 90, 100)
# What one block may have: 163 KB on sm_80, 227 KB on sm_90 and sm_100.
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
# ptxas parks up to four registers in memory where that lets one more block fit (at 80 or 128 registers); kernels that
# spilled in earnest had 24 to 3,400 bytes.
PARKED = 16
TENSOR_CORE = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
PRODUCTS = {
    f"{layer}.{kernel}"
    for layer in ("masked_linear", "masked_conv2d")
    for kernel in ("_forward_kernel", "_input_grad_kernel", "_weight_grad_kernel")
}
INTEGERS = {"mask_bits._pack_kernel", "mask_bits._unpack_kernel", "mask_bits._count_kernel"} | {
    f"topk_mask._{kernel}_kernel" for kernel in ("histogram", "descend", "ties", "write")
}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """Every compiled kernel of the representative part, with its own cache: nothing is found already built."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    program = Path(__file__).with_name("ahead_of_time.py")
    run = subprocess.run([sys.executable, "-W", "error", program], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_every_kernel_compiles_for_every_architecture(kernels):
    expected = PRODUCTS | INTEGERS | {"masked_conv2d._masked_transpose_kernel"}
    for arch in ARCHITECTURES:
        assert {k["kernel"] for k in kernels if k["arch"] == arch} == expected


def test_products_of_halves_use_the_tensor_cores(kernels):
    wide = [k for k in kernels if k["kernel"] in PRODUCTS and k["dtype"] == "float16" and "narrow" not in k["case"]]
    assert {(k["kernel"], k["arch"]) for k in wide} == {(name, arch) for name in PRODUCTS for arch in ARCHITECTURES}
    for k in wide:
        assert set(k["tensor_core"]) == {TENSOR_CORE[k["arch"]]}, k
    assert all(k["tensor_core"] for k in kernels if k["kernel"] in PRODUCTS and k["dtype"] in ("float16", "bfloat16"))


def test_products_of_float32_are_exact_float32_unless_torch_says_otherwise(kernels):
    """TF32 would show as tensor-core instructions; float64 has its own."""
    exact = [k for k in kernels if k["dtype"] == "float32" and k["precision"] in (None, "ieee")]
    assert {k["kernel"] for k in exact} >= PRODUCTS and not any(k["tensor_core"] for k in exact)


def test_tf32_products_use_the_tensor_cores_once_or_three_times(kernels):
    products = [k for k in kernels if k["kernel"] in PRODUCTS]
    single = {(k["kernel"], k["arch"]): k for k in products if k["case"] in ("linear medium", "conv tf32")}
    linear = {name for name in PRODUCTS if "linear" in name}
    assert {name for name, _ in single} == PRODUCTS
    assert set(single) >= {(name, arch) for name in linear for arch in ARCHITECTURES}
    for k in single.values():
        assert k["precision"] == "tf32" and k["tf32"] == len(k["tensor_core"]) > 0, k
    triple = [k for k in products if k["case"] == "linear high"]
    assert {k["kernel"] for k in triple} == linear
    for k in triple:
        assert k["precision"] == "tf32x3" and k["tf32"] == len(k["tensor_core"]), k
        assert k["tf32"] == 3 * single[k["kernel"], k["arch"]]["tf32"], k


def test_masks_are_loaded_as_words_and_never_per_element(kernels):
    for k in kernels:
        if k["kernel"] not in PRODUCTS | {"masked_conv2d._masked_transpose_kernel"}:
            continue
        tile = k["tile"]
        expected = {
            "masked_linear._forward_kernel": [("BM", "BK")],
            "masked_linear._input_grad_kernel": [("BK", "BN")],
            "masked_linear._weight_grad_kernel": [("BM", "BN")],
            "masked_conv2d._forward_kernel": [("BM", "BK")],
            "masked_conv2d._masked_transpose_kernel": [("BM", "BN")],
            "masked_conv2d._input_grad_kernel": [],
            "masked_conv2d._weight_grad_kernel": [("BM", "BN")],
        }[k["kernel"]]
        assert k["word_loads"] == [f"{tile[rows]}x{tile[cols] // 32}" for rows, cols in expected], k


def test_shared_memory_fits_and_nothing_spills(kernels):
    for k in kernels:
        assert k["shared"] <= SHARED_MEMORY[k["arch"]], k
        assert k["STACK"] <= PARKED, k


def test_offsets_are_int64_where_a_stride_is_multiplied_in(kernels):
    """Not read where a tile is one word wide: there a row of words, without a stride, looks like a column of rows."""
    checked = [k for k in kernels if k["kernel"] in PRODUCTS and not any(w.endswith("x1") for w in k["word_loads"])]
    assert {k["kernel"] for k in checked} == PRODUCTS
    for k in checked:
        assert k["strided_offsets"] and set(k["strided_offsets"]) <= {"i64"}, k
