"""The global threshold beside what pruning code does: concatenate, then kthvalue, topk, sort or numpy.partition.

Expected, 25.6 M scores on two cores: one read of 102 MB is 1.1 ms; a radix selection reads twice to thrice, 4-8 ms;
kthvalue about 190 ms on one thread, sort 2 s. numpy.partition (AVX-512 quickselect, 25 ms) is the strongest rival
until most scores are tied zeros, the normal state of iterative pruning, where it falls behind everybody. On a GPU
kthvalue gives a slice to one thread block: expected to lose to sort by 20x and to one read by far more. The rivals to
fear there are CUB's: its top-k reads the scores about as often as ours does, after `cat` has copied them.
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

TENSORS = 54  # as many as a ResNet-50 has
SAMPLE = 2**16


@lru_cache(maxsize=1)
def _scores(count: int, zeros: float, device: str) -> list[Tensor]:
    """``count`` scores in tensors of uneven size, the given share of them zero."""
    r = torch.Generator(device).manual_seed(0)
    parts = torch.tensor([(1 + i % 9) ** 2 for i in range(TENSORS)]).double()
    sizes = (parts / parts.sum() * count).long().tolist()
    sizes[-1] += count - sum(sizes)
    scores = [torch.randn(n, generator=r, device=device).abs_() for n in sizes]
    return [s.mul_(torch.rand(s.shape, generator=r, device=device) >= zeros) for s in scores]


@lru_cache(maxsize=1)
def _expected(count: int, zeros: float, device: str, k: int) -> tuple[list[sp.BitMask], float]:
    """The exact masks and the smallest score that is kept."""
    scores = _scores(count, zeros, device)
    masks = sp.topk_mask(scores, k, backend="reference").masks
    return masks, min(float(s[m.to_bool()].min()) for s, m in zip(scores, masks, strict=True) if m.count())


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


def check_ours(masks: Sequence[sp.BitMask], expected: Sequence[sp.BitMask]) -> None:
    if any(actual != mask for actual, mask in zip(masks, expected, strict=True)):
        raise WrongResultError("a mask differs from the reference's")


def _build(count: int, zeros: float, device: str, side: str, kind: str) -> Timed:
    scores, k = _scores(count, zeros, device), count // 10
    masks, threshold = _expected(count, zeros, device, k)
    moved = 4 * count + count / 8
    if kind == PEER:
        run: Callable[[], Any] = partial(PEERS[side], scores, k)
        return Timed(run, partial(check_peer, scores=scores, threshold=threshold), bytes=moved)

    def select() -> list[sp.BitMask]:
        return sp.topk_mask(scores, k, backend=side).masks

    unless_refused(select)
    return Timed(select, partial(check_ours, expected=masks), bytes=moved)


def rows(plan: Plan) -> Iterator[Row]:
    counts = plan.pick(quick=(5_000,), cpu=(1_000_000, 25_600_000), cuda=(14_700_000, 25_600_000, 100_000_000))
    for zeros in (0.0, 0.85):
        for count in counts:
            group = f"topk_mask, {count / 1e6:g} M scores in {TENSORS} tensors, keep 10 %, {zeros:.0%} zeros"
            sides = [*((side, PEER) for side in PEERS), *((side, OURS) for side in ours(IMPLEMENTATIONS))]
            for side, kind in sides:
                yield Row(
                    "topk_mask", group, side, kind, partial(_build, count, zeros, plan.device, side, kind), size=count
                )


def test_topk_mask(row, measure):
    measure(row)
