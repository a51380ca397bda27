"""Triton kernels: one file an op, named as the op in ``sparseprune.ops``, importing only torch and triton.

A file holds, top to bottom: what a program computes, the ``@triton.jit`` kernels, the table of block sizes, and the
launchers, which take exactly the arguments of the op (already validated, contiguous, on one device) and return new
tensors. Launchers know no autograd, no defaults and no user errors; ``refusal`` says beforehand what they cannot take.

The kernels run compiled on CUDA tensors, or on tensors of any device in Triton's interpreter when the environment
variable ``TRITON_INTERPRET=1`` was set before this package was imported.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable

import torch
from torch import Tensor

# Triton reads the same variable, with the same words for yes, when it decorates a kernel.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in {"1", "true", "on", "yes", "y"}

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_PACKED = (torch.bool, torch.int32)
# The oldest architecture the kernels are compiled for in the tests.
_MIN_CAPABILITY = (8, 0)


def refusal(tensors: Iterable[Tensor | None]) -> str | None:
    """Why these kernels cannot take these tensors, or None if they can.

    Args:
        tensors: the tensor arguments of one call, any mixture of values, masks and None.
    """
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    for tensor in tensors:
        if tensor is None:
            continue
        reason = _refuses_dtype(tensor.dtype) or _refuses_device(tensor.device)
        if reason is not None:
            return reason
    return None


def _refuses_dtype(dtype: torch.dtype) -> str | None:
    if dtype not in _DTYPES + _PACKED:
        return f"dtype {dtype} is not one of {', '.join(map(str, _DTYPES))}"
    if INTERPRETED and dtype == torch.bfloat16:
        return "Triton's interpreter computes torch.bfloat16 wrongly: it multiplies the bit patterns"
    return None


def _refuses_device(device: torch.device) -> str | None:
    if INTERPRETED:
        return None
    if device.type != "cuda":
        return f"Triton needs CUDA tensors, or TRITON_INTERPRET=1 before the import, got a tensor on {device}"
    if (capability := torch.cuda.get_device_capability(device)) < _MIN_CAPABILITY:
        return f"Triton kernels need compute capability 8.0 or newer, got {capability[0]}.{capability[1]}"
    return None
