"""How float32 products are computed on a GPU, and how far a result of each kind may be from float64."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .rows import WrongResultError

# Relative error (Frobenius) that separates a product in that arithmetic from a wrong one: some fifty times what sums
# of a few thousand random terms show, far below what one wrong slot in a million would add in float32.
LARGEST_ERROR = {"float32": 2e-5, "tf32": 5e-3, "bfloat16": 3e-2, "float16": 4e-3}


@contextmanager
def float32_products(kind: str) -> Iterator[None]:
    """Within: float32 products on a GPU are "tf32" (tensor cores, 10 bits of mantissa) or strictly float32.

    torch's own defaults differ between matmul (strict) and convolution (TF32), so neither is left alone. The older
    switches are used: with the newer ones set, torch raises wherever its own compiler still reads the older.
    """
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    try:
        _allow_tf32(places, [kind == "tf32"] * 2)
        yield
    finally:
        _allow_tf32(places, before)


def _allow_tf32(places: Sequence[Any], values: Sequence[bool]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please use the new API")
        for place, value in zip(places, values, strict=True):
            place.allow_tf32 = value


def check_close(name: str, actual: Tensor, exact: Tensor, kind: str, times: float = 1) -> None:
    """``|actual - exact| <= times LARGEST_ERROR |exact|`` in the Frobenius norm, and no NaN."""
    if actual.shape != exact.shape:
        raise WrongResultError(f"{name} has shape {tuple(actual.shape)}, not {tuple(exact.shape)}")
    tiny = torch.finfo(torch.float64).tiny
    error = float((actual.detach().double() - exact).norm() / exact.norm().clamp_min(tiny))
    if not error <= (largest := times * LARGEST_ERROR[kind]):
        raise WrongResultError(f"{name} is off by {error:.3g}, more than {largest:.3g} for {kind}")
