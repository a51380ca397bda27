"""The global threshold beside what pruning code does: concatenate, then kthvalue, topk, sort or numpy.partition.

The bound is one read of the scores: 102 MB for 25.6 M, 3 to 6 ms on two cores that read 16 to 32 GB/s. A sample of 65,536
brackets the threshold, one scan writes the masks and puts 0.8 % aside, so a little more than one read is expected at
every size, and two where the threshold is tied. kthvalue is about 200 ms on one thread, sort 2 s. numpy.partition
(quickselect) is the strongest rival until most scores are tied zeros, the normal state of iterative pruning, where it
falls behind everybody. Formulas read two arrays: the bound is twice that, and scoring first writes and reads one more. On
a GPU kthvalue gives a slice to one thread block: expected to lose to sort by 20x and to one read by far more. The rivals
to fear there are CUB's: its top-k reads the scores about as often as ours does, after `cat` has copied them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import prune

import sparseprune as sp
from sparseprune.ops.topk_mask import IMPLEMENTATIONS

from . import cub
from .published import published_threshold
from .rows import OURS, PEER, AbsentError, Plan, Row, Timed, WrongResultError, ours, unless_refused

TENSORS = 161  # as many as a ResNet-50 has parameters
SAMPLE = 2**16


@lru_cache(maxsize=1)
def _scores(count: int, zeros: float, device: str) -> list[Tensor]:
    """``count`` scores in tensors of uneven size, the given share of them zero."""
    r = torch.Generator(device).manual_seed(0)
    parts = torch.tensor([(1 + i % 9) ** 2 for i in range(min(TENSORS, count // 2000))]).double()
    sizes = (parts / parts.sum() * count).long().tolist()
    sizes[-1] += count - sum(sizes)
    scores = [torch.randn(n, generator=r, device=device).abs_() for n in sizes]
    return [s.mul_(torch.rand(s.shape, generator=r, device=device) >= zeros) for s in scores]


@lru_cache(maxsize=1)
def _gradients(count: int, device: str) -> list[Tensor]:
    r = torch.Generator(device).manual_seed(1)
    return [torch.randn(s.shape, generator=r, device=device) for s in _scores(count, 0.0, device)]


@lru_cache(maxsize=1)
def _threshold(count: int, zeros: float, device: str, k: int) -> float:
    return float(torch.cat(_scores(count, zeros, device)).kthvalue(count - k + 1).values)


def by_kthvalue(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    return [m.bool() for m in published_threshold(scores, k)]


def by_topk(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    flat = torch.cat(scores)
    kept = torch.zeros_like(flat, dtype=torch.bool)
    kept[torch.topk(flat, k, sorted=False).indices] = True
    return list(kept.split([s.numel() for s in scores]))


def by_sort(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    threshold = torch.cat(scores).sort(descending=True).values[k - 1]
    return [s >= threshold for s in scores]


def by_partition(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    if scores[0].is_cuda:
        raise AbsentError("numpy computes on the CPU")
    flat = torch.cat(scores).numpy()
    flat.partition(len(flat) - k)
    threshold = float(flat[len(flat) - k])
    return [s >= threshold for s in scores]


def by_cub_sort(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    threshold = cub.sort_descending(torch.cat(scores))[k - 1]
    return [s >= threshold for s in scores]


def by_cub_topk(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    threshold = cub.top_k(torch.cat(scores), k).min()
    return [s >= threshold for s in scores]


def by_cub_select(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    """Sorts only what is above a bound that a sample suggests, unless that is too little."""
    flat = torch.cat(scores)
    sample = flat[:: max(1, len(flat) // SAMPLE)]
    rank = round(1.05 * k / len(flat) * len(sample)) + 16
    bound = sample.topk(min(rank, len(sample))).values[-1]
    candidates = cub.at_least(flat, float(bound))
    threshold = cub.sort_descending(candidates if len(candidates) >= k else flat)[k - 1]
    return [s >= threshold for s in scores]


def by_torch_prune(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    modules = [torch.nn.Module() for _ in scores]
    for module, score in zip(modules, scores, strict=True):
        module.register_parameter("weight", torch.nn.Parameter(score, requires_grad=False))
    pruned = sum(s.numel() for s in scores) - k
    prune.global_unstructured([(m, "weight") for m in modules], prune.L1Unstructured, amount=pruned)
    return [m.weight_mask.bool() for m in modules]


PEERS: dict[str, Callable[[Sequence[Tensor], int], list[Tensor]]] = {
    "cat + kthvalue": by_kthvalue,
    "cat + topk": by_topk,
    "cat + sort": by_sort,
    "cat + numpy.partition": by_partition,
    "cat + CUB DeviceRadixSort": by_cub_sort,
    "cat + CUB DeviceTopK": by_cub_topk,
    "cat + CUB DeviceSelect, then sort": by_cub_select,
    "torch.nn.utils.prune": by_torch_prune,
}


def check_peer(masks: Sequence[Tensor], scores: Sequence[Tensor], threshold: float) -> None:
    """All above the smallest kept score are kept and none below it; ties go either way, as they do in pruning code."""
    for mask, score in zip(masks, scores, strict=True):
        if bool((mask < (score > threshold)).any()) or bool((mask > (score >= threshold)).any()):
            raise WrongResultError(f"a mask disagrees with the threshold {threshold}")


def check_ours(masks: Sequence[sp.BitMask], scores: Sequence[Tensor], k: int, threshold: float) -> None:
    """Exactly k, and of those equal to the threshold the first."""
    kept = [mask.to_bool() for mask in masks]
    check_peer(kept, scores, threshold)
    tied = torch.cat([m[s == threshold] for m, s in zip(kept, scores, strict=True)])
    if sum(int(m.sum()) for m in kept) != k or bool((tied[1:] > tied[:-1]).any()):
        raise WrongResultError(f"not the first {k}")


def _build(count: int, zeros: float, device: str, side: str, kind: str) -> Timed:
    scores, k = _scores(count, zeros, device), count // 10
    threshold, moved = _threshold(count, zeros, device, k), 4 * count + count / 8
    if kind == PEER:
        run: Callable[[], Any] = partial(PEERS[side], scores, k)
        return Timed(run, partial(check_peer, scores=scores, threshold=threshold), bytes=moved)

    def select() -> list[sp.BitMask]:
        return sp.topk_mask(scores, k, backend=side).masks

    unless_refused(select)
    return Timed(select, partial(check_ours, scores=scores, k=k, threshold=threshold), bytes=moved)


def _build_product(count: int, device: str, side: str) -> Timed:
    """|w g|, as SNIP scores: evaluated in the selection, or stored first."""
    weights, gradients, k = _scores(count, 0.0, device), _gradients(count, device), count // 10
    scores = [(w * g).abs() for w, g in zip(weights, gradients, strict=True)]
    threshold = float(torch.cat(scores).kthvalue(count - k + 1).values)

    def fused() -> list[sp.BitMask]:
        return sp.topk_mask([sp.Product(w, g) for w, g in zip(weights, gradients, strict=True)], k).masks

    def stored() -> list[sp.BitMask]:
        return sp.topk_mask([(w * g).abs() for w, g in zip(weights, gradients, strict=True)], k).masks

    def published() -> list[Tensor]:
        return by_kthvalue([(w * g).abs() for w, g in zip(weights, gradients, strict=True)], k)

    if side == "cat + kthvalue":
        return Timed(published, partial(check_peer, scores=scores, threshold=threshold), bytes=8 * count)
    run = fused if side == "auto" else stored
    return Timed(run, partial(check_ours, scores=scores, k=k, threshold=threshold), bytes=8 * count + count / 8)


def rows(plan: Plan) -> Iterator[Row]:
    counts = plan.pick(quick=(20_000,), cpu=(25_600_000,), cuda=(14_700_000, 25_600_000, 100_000_000))
    for zeros in plan.pick(quick=(0.0,), cpu=(0.0, 0.5, 0.9, 0.99), cuda=(0.0, 0.5, 0.9, 0.99)):
        for count in counts:
            group = f"topk_mask, {count / 1e6:g} M scores, keep 10 %, {zeros:.0%} zeros"
            sides = [*((side, PEER) for side in PEERS), *((side, OURS) for side in ours(IMPLEMENTATIONS))]
            for side, kind in sides:
                yield Row(
                    "topk_mask", group, side, kind, partial(_build, count, zeros, plan.device, side, kind), size=count
                )
    for count in plan.pick(quick=(20_000,), cpu=(1_000_000, 4_000_000, 100_000_000, 500_000_000), cuda=(10**9,)):
        group = f"topk_mask, {count / 1e6:g} M scores, keep 10 %, any size"
        for side, kind in (("cat + kthvalue", PEER), ("auto", OURS)):
            yield Row("topk_mask", group, side, kind, partial(_build, count, 0.0, plan.device, side, kind), size=count)
    for count in counts:
        group = f"topk_mask, {count / 1e6:g} M products |w g|, keep 10 %"
        for side, kind in (("cat + kthvalue", PEER), ("scores stored first", PEER), ("auto", OURS)):
            yield Row("topk_mask", group, side, kind, partial(_build_product, count, plan.device, side), size=count)


def test_topk_mask(row, measure):
    measure(row)
