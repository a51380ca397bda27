"""CUB's sort, top-k and compaction of float32 scores on a GPU, for whoever selects with them by hand.

``cub.cu`` becomes a library when the package is built in place with nvcc (``setup.py``), so that a machine without a
compiler can run it.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from .rows import AbsentError

LIBRARY = Path(__file__).resolve().parent / "lib" / "libcub.so"


def sort_descending(scores: Tensor) -> Tensor:
    """``cub::DeviceRadixSort::SortKeysDescending``."""
    result = torch.empty_like(scores)
    _call("sort_descending", scores, result, scores.numel())
    return result


def at_least(scores: Tensor, bound: float) -> Tensor:
    """``cub::DeviceSelect::If``: the scores that are not below ``bound``, in order."""
    result, count = torch.empty_like(scores), torch.empty(1, dtype=torch.int64, device=scores.device)
    _call("select_at_least", scores, bound, result, count, scores.numel())
    return result[: int(count)]


def top_k(scores: Tensor, k: int) -> Tensor:
    """``cub::DeviceTopK::MaxKeys``: the ``k`` largest scores in any order."""
    result = scores.new_empty(k)
    _call("top_k", scores, result, scores.numel(), k)
    return result


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(LIBRARY))
    library.error_string.restype = ctypes.c_char_p
    return library


def _call(name: str, *arguments: Tensor | int | float) -> None:
    if not all(a.is_cuda for a in arguments if isinstance(a, Tensor)):
        raise AbsentError("CUB computes on a GPU")
    if not LIBRARY.exists():
        raise AbsentError("the library of CUB's functions was not built: that takes nvcc and an installation in place")
    function = getattr(_library(), name, None)
    if function is None:
        raise AbsentError(f"the CUDA toolkit that {LIBRARY.name} was built with has no {name} in CUB")
    values = [_argument(a) for a in arguments]
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    size = ctypes.c_size_t(0)

    def run(memory: int | None) -> None:
        if error := function(ctypes.c_void_p(memory), ctypes.byref(size), *values, stream):
            raise RuntimeError(f"CUB's {name} failed: {_library().error_string(error).decode()}")

    run(None)  # asks for the size of the temporary memory
    memory = torch.empty(max(1, size.value), dtype=torch.uint8, device="cuda")
    run(memory.data_ptr())


def _argument(value: Tensor | int | float) -> ctypes._SimpleCData:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_int64(value) if isinstance(value, int) else ctypes.c_float(value)
