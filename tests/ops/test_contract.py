"""Every op on every backend, dtype and case: its values, its refusals, its registration, its gradients."""

from __future__ import annotations

import pytest
import torch
from cases import FLOATS, LAYERS, OPS, Backend, backends
from oracle import assert_as_accurate, assert_same_bits
from torch.library import opcheck

HALF = (torch.float16, torch.bfloat16)
SELECTABLE = (torch.float32, torch.float64)


def dtypes(op):
    if op.name == "topk_mask":
        return SELECTABLE
    return FLOATS if op in LAYERS or op.name == "group_topk_mask" else (torch.float32,)


def contract_cases():
    for op in OPS:
        for backend in backends(op.implementations):
            for dtype in dtypes(op):
                name = f"{op.name}-{backend}-{str(dtype).removeprefix('torch.')}"
                yield pytest.param(op, backend, dtype, id=name)


@pytest.mark.parametrize(("op", "backend", "dtype"), list(contract_cases()))
def test_agrees_with_the_reference_or_refuses(op, backend: Backend, dtype, device):
    implementation = op.implementations[backend.name]
    for make in op.inputs.values():
        inputs = make(dtype, device)
        if reason := implementation.refusal(*inputs):
            with pytest.raises(ValueError, match="refuses this call"):  # a refusal is behaviour, not a skip
                op.run(*inputs, backend.name)
            assert dtype in HALF or device == "cpu" or not op.on_gpu, reason
            continue
        reference = op.implementations["reference"].run
        with backend.forced():
            actual = op.run(*inputs, backend.name)
        if op.exact:
            expected = reference(*inputs)
            assert_same_bits(*((r if isinstance(r, list) else [r]) for r in (actual, expected)))
        else:
            assert_as_accurate(actual, reference, inputs)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_native_results_do_not_depend_on_threads(op):
    if op.implementations["native"].refusal(*next(iter(op.inputs.values()))(torch.float32, "cpu")):
        pytest.skip("this installation was built without the CPU library")
    for make in op.inputs.values():
        inputs = make(torch.float32, "cpu")
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            result = op.run(*inputs, "native")
            results.append(result if isinstance(result, list) else [result])
        assert_same_bits(results[1], results[0])
        assert_same_bits(results[2], results[0])


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_opcheck(op, device):
    """The schema, the fake and the tracing of every op hold for every case, strided inputs included."""
    for make in op.inputs.values():
        inputs = make(torch.float32, device)
        opcheck(op.run, (*inputs, "auto"), test_utils=("test_schema", "test_faketensor"))
    make = next(iter(op.inputs.values()))
    strided = [_strided(a) for a in make(torch.float32, device)]
    opcheck(op.run, (*strided, "auto"))


def _strided(arg):
    """The same values on strides that are not contiguous."""
    if isinstance(arg, torch.Tensor) and arg.dim() > 1 and arg.numel():
        return arg.mT.contiguous().mT
    return arg


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_strides_do_not_matter(op, device):
    for make in op.inputs.values():
        inputs = make(torch.float32, device)
        expected = op.run(*inputs, "auto")
        actual = op.run(*map(_strided, inputs), "auto")
        assert_same_bits(*((r if isinstance(r, list) else [r]) for r in (actual, expected)))


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_unknown_backend_lists_the_choices(op):
    inputs = next(iter(op.inputs.values()))(torch.float32, "cpu")
    with pytest.raises(ValueError, match="backend must be one of auto, .*reference.*got 'metal'"):
        op.run(*inputs, "metal")
