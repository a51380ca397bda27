"""Reads the pickles of CIFAR without running anything: arrays are rebuilt from their bytes by our own code.

A pickle may name any function to be called. Here only those names are known that numpy writes for an array,
and they stand for the inert classes and functions below; numpy itself never sees the file's contents.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import torch


class _Dtype:
    """Stands for numpy.dtype: remembers the name, ignores the state (byte order and field layout)."""

    def __init__(self, name: Any = None, *_: Any) -> None:
        self.name = name.decode("ascii", "replace") if isinstance(name, bytes) else name

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """Stands for numpy.ndarray: remembers shape, dtype, order and bytes."""

    def __init__(self, *_: Any) -> None:
        self.parts: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        _, *self.parts = state


def _array_from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.parts = (shape, dtype, order == "F", content)
    return array


def _latin1(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("_codecs.encode with other arguments than numpy's")
    return text.encode("latin1")


_KNOWN = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _array_from_buffer for core in ("core", "_core")},
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no data set needs")
        known = _KNOWN[module, name]
        # A pickle can set attributes of what it gets: let that be a function made for it alone.
        return known if isinstance(known, type) else lambda *args: known(*args)


def read_pickled_dict(path: Path) -> dict[str, Any]:
    """Reads a pickled dictionary of numbers, strings, lists and uint8 arrays; arrays become tensors.

    Raises:
        ValueError: the file is truncated, is no such pickle, or asks for any other class or function. Nothing
            that it names is imported or called.
    """
    try:
        loaded = _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        if type(loaded) is not dict:
            raise pickle.UnpicklingError(f"it holds a {type(loaded).__name__}")
        return {_text(key): _unwrap(value) for key, value in loaded.items()}
    except Exception as error:
        # A damaged or hostile pickle can raise anything: opcodes index stacks, build objects, decode text.
        reason = str(error) or type(error).__name__
        raise ValueError(f"data_dir must hold intact python pickles, got {path}: {reason}") from error


def _text(value: Any) -> str:
    return value.decode("utf-8") if type(value) is bytes else str(value)


def _unwrap(value: Any) -> Any:
    if type(value) is not _Array:
        return value
    shape, dtype, fortran, content = value.parts
    if type(dtype) is not _Dtype or dtype.name not in ("u1", "uint8", "|u1"):
        raise pickle.UnpicklingError(f"an array of {getattr(dtype, 'name', dtype)!r}, not of unsigned bytes")
    sizes = [int(size) for size in shape]
    if min(sizes, default=1) < 1 or math.prod(sizes) != len(content):
        raise pickle.UnpicklingError(f"an array of {len(content)} bytes for shape {tuple(sizes)}")
    values = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return values.view(sizes[::-1]).permute(*reversed(range(len(sizes)))) if fortran else values.view(sizes)
