"""The machine's limits, measured: bytes read a second and operations a second, before anything is held against them.

The operations are those of the best large dense product any library here reaches, a little less than the arithmetic
units could do; so a path that reaches 100 % is as good as the best dense product, not perfect. Data that fits in a cache may
pass 100 % of the read limit, which is memory's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from .precision import float32_products

GIGA = 1e9


def measure_limits(device: str, quick: bool = False) -> dict[str, float]:
    """ "read" in GB/s and, per kind of arithmetic ("float32", and "bfloat16", "tf32" on a GPU), GF/s."""
    limits = {"read": _read(device, quick)}
    edge = 256 if quick else 8192 if device == "cuda" else 2048
    if device == "cpu":
        return {**limits, "float32": _product(device, edge, torch.float32)}
    limits["bfloat16"] = _product(device, edge, torch.bfloat16)
    for name in ("tf32", "float32"):
        with float32_products(name):
            limits[name] = _product(device, edge, torch.float32)
    return limits


def bound_ms(limits: dict[str, float], flops: float, bytes_: float, kind: str) -> float:
    """No machine with these limits does this much work in less time."""
    return 1e3 * max(bytes_ / (limits["read"] * GIGA), flops / (limits.get(kind, limits["float32"]) * GIGA))


def _read(device: str, quick: bool) -> float:
    # Far larger than any cache: the L3 of a server is 32 MiB a core complex, the L2 of an H200 60 MB.
    count = 2**20 if quick else 2**26 if device == "cpu" else 2**30
    x = torch.ones(count, device=device)
    other = torch.empty_like(x)
    passes: list[tuple[Callable[[], Any], int]] = [
        (x.sum, 1),
        (x.amax, 1),
        (lambda: torch.dot(x[: 2**30], x[: 2**30]), 1),
        (lambda: other.copy_(x), 2),
    ]
    return max(times * 4 * count / _best_seconds(run, device, quick) / GIGA for run, times in passes)


def _product(device: str, edge: int, dtype: torch.dtype) -> float:
    a, b = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
    candidates: list[Callable[[], Any]] = [lambda: a @ b]
    if device == "cpu" and torch.backends.mkldnn.is_available():
        candidates.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    return max(2 * edge**3 / _best_seconds(run, device, quick=edge < 1024) / GIGA for run in candidates)


def _best_seconds(run: Callable[[], Any], device: str, quick: bool) -> float:
    times = []
    for _ in range(3 if quick else 10):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
