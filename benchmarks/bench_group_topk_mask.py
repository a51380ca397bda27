"""k of every group of scores beside what pruning code does: torch.topk or sort and a scatter, torch.ao's sparsifier.

Expected at 4096 x 4096 in float32: one read of 67 MB, 0.7 ms at 92 GB/s. 2:4 is ranked in registers and bound by that
read, 4:8 by some four comparisons a score; torch.topk handles groups of four one at a time, 100 times as long.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

import sparseprune as sp
from sparseprune.ops.group_topk_mask import IMPLEMENTATIONS

from .rows import OURS, PEER, AbsentError, Plan, Row, Timed, WrongResultError, ours, unless_refused


@lru_cache(maxsize=1)
def _scores(edge: int, dtype: str, device: str) -> Tensor:
    r = torch.Generator(device).manual_seed(0)
    return torch.randn(edge, edge, generator=r, device=device).abs_().to(getattr(torch, dtype))


@lru_cache(maxsize=1)
def _expected(edge: int, dtype: str, device: str, k: int, group: int) -> tuple[sp.BitMask, Tensor]:
    """The exact mask and the least score that is kept of every group."""
    scores = _scores(edge, dtype, device)
    mask = sp.group_topk_mask(scores, k, group, backend="reference")
    kept = scores.where(mask.to_bool(), torch.inf).view(-1, group)
    return mask, kept.amin(1, keepdim=True)


def by_topk(scores: Tensor, k: int, group: int) -> Tensor:
    groups = scores.view(-1, group)
    best = torch.topk(groups, k, sorted=False).indices
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, best, True)


def by_sort(scores: Tensor, k: int, group: int) -> Tensor:
    groups = scores.view(-1, group)
    best = torch.sort(groups, descending=True).indices[:, :k]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, best, True)


AO = "torch.ao.pruning"
PEERS: dict[str, Callable[[Tensor, int, int], Tensor]] = {"topk + scatter": by_topk, "sort + scatter": by_sort}


def torch_ao(scores: Tensor, k: int, group: int) -> Callable[[], Tensor]:
    """Its sparsifier, on a layer whose weights are the scores."""
    try:
        pruning = importlib.import_module("torch.ao.pruning")
    except ImportError as error:
        raise AbsentError(f"torch.ao.pruning is not to be had: {error}") from error
    layer = torch.nn.Linear(*scores.shape, bias=False, device="meta")
    layer.weight = torch.nn.Parameter(scores, requires_grad=False)
    model = torch.nn.Sequential(layer)
    sparsifier = pruning.WeightNormSparsifier(1.0, (1, group), group - k, norm=1)
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])

    def run() -> Tensor:
        with torch.no_grad():
            layer.parametrizations.weight[0].mask.fill_(1)
            sparsifier.step()
        return layer.parametrizations.weight[0].mask.bool()

    return run


def check_peer(mask: Tensor, groups: Tensor, least: Tensor) -> None:
    """All above the least kept score of a group are kept and none below it; ties go either way."""
    mask = mask.view_as(groups)
    if bool((mask < (groups > least)).any()) or bool((mask > (groups >= least)).any()):
        raise WrongResultError("a mask disagrees with the least kept score of a group")


def check_ours(mask: sp.BitMask, expected: sp.BitMask) -> None:
    if mask != expected:
        raise WrongResultError("the mask differs from the reference's")


def _build(edge: int, dtype: str, device: str, k: int, group: int, side: str, kind: str) -> Timed:
    scores = _scores(edge, dtype, device)
    mask, least = _expected(edge, dtype, device, k, group)
    moved = scores.numel() * (scores.element_size() + 1 / 8)
    if kind == PEER:
        run: Callable[[], Any] = torch_ao(scores, k, group) if side == AO else partial(PEERS[side], scores, k, group)
        return Timed(run, partial(check_peer, groups=scores.view(-1, group), least=least), bytes=moved)
    select = partial(sp.group_topk_mask, scores, k, group, backend=side)
    unless_refused(select)
    return Timed(select, partial(check_ours, expected=mask), bytes=moved)


def rows(plan: Plan) -> Iterator[Row]:
    edge = plan.pick(quick=64, cpu=4096, cuda=8192)
    for dtype in plan.dtypes:
        for k, group in ((2, 4), (4, 8), (8, 32), (edge // 10, edge)):
            name = f"group_topk_mask, {edge} x {edge}, {k} of {'a row' if group == edge else group}"
            sides = [*((side, PEER) for side in (*PEERS, AO)), *((side, OURS) for side in ours(IMPLEMENTATIONS))]
            for side, kind in sides:
                build = partial(_build, edge, dtype, plan.device, k, group, side, kind)
                yield Row("group_topk_mask", name, side, kind, build, dtype=dtype)


def test_group_topk_mask(row, measure):
    measure(row)
