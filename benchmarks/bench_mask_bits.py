"""Packing, unpacking and counting masks: pure movement of bytes, so the limit is the memory's.

Expected at 4096 x 4096: packing reads 16 MB, 0.18 ms at 92 GB/s (less from a cache of 32 MB); counting reads 2 MB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import numpy
import torch
from torch import Tensor

from sparseprune.ops import mask_bits

from .rows import OURS, PEER, AbsentError, Plan, Row, Timed, WrongResultError, ours, unless_refused


@lru_cache(maxsize=1)
def _masks(edge: int, device: str) -> tuple[Tensor, Tensor]:
    """bool [edge, edge] and its words."""
    keep = torch.rand(edge, edge, generator=torch.Generator().manual_seed(0)) < 0.3
    return keep.to(device), mask_bits.pack_reference(keep).to(device)


def _numpy(job: str, keep: Tensor, words: Tensor) -> Callable[[], Any]:
    if keep.is_cuda:
        raise AbsentError("numpy computes on the CPU")
    bools, octets = keep.numpy(), words.numpy().view(numpy.uint8)
    return {
        "pack": lambda: numpy.packbits(bools, axis=1, bitorder="little").view(numpy.int32),
        "unpack": lambda: numpy.unpackbits(octets, axis=1, count=bools.shape[1], bitorder="little").view(bool),
        "count": lambda: numpy.bitwise_count(octets).sum(1, dtype=numpy.int64),
    }[job]


def _ours(job: str, keep: Tensor, words: Tensor, backend: str) -> Callable[[], Any]:
    calls = {
        "pack": partial(mask_bits.pack_mask, keep),
        "unpack": partial(mask_bits.unpack_mask, words, keep.shape[1]),
        "count": partial(mask_bits.count_mask, words),
    }
    run = partial(calls[job], backend=backend)
    unless_refused(run)
    return run


def _build(job: str, edge: int, device: str, side: str) -> Timed:
    keep, words = _masks(edge, device)
    run = _numpy(job, keep, words) if side == "numpy" else _ours(job, keep, words, side)
    expected = {"pack": words, "unpack": keep, "count": keep.sum(1)}[job]

    def check(result: Any) -> None:
        if not torch.equal(torch.as_tensor(result, device=expected.device), expected):
            raise WrongResultError(f"{side} does not {job} the mask as the reference does")

    moved = {"pack": 1.125, "unpack": 1.125, "count": 0.125}[job] * keep.numel()
    return Timed(run, check, bytes=moved, capturable=side == "native")


def rows(plan: Plan) -> Iterator[Row]:
    edge = plan.pick(quick=128, cpu=4096, cuda=16384)
    dictionaries = {"pack": mask_bits.PACK, "unpack": mask_bits.UNPACK, "count": mask_bits.COUNT}
    for job, implementations in dictionaries.items():
        for side in ("numpy", *ours(implementations, auto=False)):
            kind = PEER if side == "numpy" else OURS
            group = f"{job}_mask, {edge} x {edge}"
            yield Row(f"{job}_mask", group, side, kind, partial(_build, job, edge, plan.device, side), dtype="bool")


def test_mask_bits(row, measure):
    measure(row)
