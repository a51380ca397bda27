"""The k largest scores of many tensors, exactly, as packed masks.

No threshold is compared by value at the end: among equal scores the lowest (tensor, flat index) is kept, so exactly
k survive whatever the ties, on every backend and for any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..arguments import typed
from . import backends
from .bitmask import BitMask, as_rows
from .known import remember_count
from .mask_bits import count_mask, pack_reference, unpack_mask, unpack_reference, words_per_row
from .products import FORMULAS, Product, as_operand, as_product, values_in_rows
from .submask import keep_within
from .survivor_scores import SurvivorScores

MOST = 2**63 - 1  # what the op can be told; no tensor has as many


class TopK(NamedTuple):
    """What ``topk_mask`` found.

    Attributes:
        masks: one mask a tensor.
        threshold: float64, no dimensions: the least score that is kept (the greatest, where the smallest are); NaN if
            none is.
        counts: int64 [tensors]: how many are kept in each.
    """

    masks: list[BitMask]
    threshold: Tensor
    counts: Tensor


@typed
def topk_mask(
    scores: Sequence[Tensor | Product | SurvivorScores],
    k: int | Tensor,
    *,
    masks: Sequence[BitMask] | None = None,
    floors: Sequence[int] | None = None,
    ceilings: Sequence[int] | None = None,
    largest: bool = True,
    abs: bool = False,
    names: Sequence[str] | None = None,
    check: bool = True,
    backend: str = backends.DEFAULT,
) -> TopK:
    """Keep the ``k`` largest of all the scores together.

    Args:
        scores: tensors of any shapes and strides, float16, bfloat16, float32 or float64 (they are compared in the
            widest dtype among them, at least float32), or :class:`Product` formulas of a weight and its gradient, or
            :class:`SurvivorScores`, all on one device. +inf and -inf are ordinary values and -0.0 equals 0.0.
        k: how many to keep over all tensors; or an int64 tensor of one element on the scores' device, which is then
            read there.
        masks: the slots that compete, one mask a tensor; the scores of the others are never looked at. All compete
            where it is None.
        floors: the least number to keep in each tensor, or all it has, where it has fewer.
        ceilings: the largest number to keep in each tensor.
        largest: False keeps the ``k`` smallest.
        abs: compare absolute values; for tensors only, as a formula says so itself.
        names: what to call the tensors in error messages.
        check: False does not look at the results, so nothing waits for a GPU and the call can be captured in a graph:
            a ``k`` above what competes keeps all, and after a NaN the masks mean nothing and the threshold is NaN.
        backend: "auto", "native", "triton" or "reference".

    Returns:
        Masks, threshold and counts. The counts sum to ``k``. Among equal scores the lowest (tensor, flat index) is
        kept. Floors and ceilings take from their tensors the best and leave the worst, and the rest of ``k`` is spent
        globally.

    Raises:
        TypeError: scores are not floating-point tensors, or ``k`` is not an integer.
        ValueError: a competing score is NaN (the tensor is named), ``k`` is negative or more than compete, floors
            and ceilings do not allow ``k``, or shapes and devices disagree.

    >>> kept = topk_mask([torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0])], k=3)
    >>> [m.to_bool().tolist() for m in kept.masks], float(kept.threshold), kept.counts.tolist()
    ([[True, True], [False, True]], 1.0, [2, 1])
    """
    if isinstance(scores, Sequence) and any(isinstance(score, SurvivorScores) for score in scores):
        options = {"floors": floors, "ceilings": ceilings, "largest": largest, "abs": abs, "names": names}
        return _among_survivors(scores, masks, k, options | {"check": check, "backend": backend})
    products = _check_scores(scores, abs, names)
    names = [f"scores[{i}]" for i in range(len(products))] if names is None else list(names)
    candidates = [] if masks is None else [m.words for m in _check_masks(masks, products)]
    k, k_tensor = _check_k(k, products)
    if not products:
        if k:
            raise ValueError(f"k must be between 0 and the 0 competing scores, got {k}")
        return TopK([], torch.tensor(float("nan"), dtype=torch.float64), torch.empty(0, dtype=torch.int64))
    selection = _Selection(products, candidates, largest, names, check, backend)
    if floors is None and ceilings is None:
        words, threshold, counts = selection.best(k, k_tensor)
    else:
        if k_tensor is not None:
            raise ValueError("k must be an int where floors or ceilings are given, got a tensor")
        # What competes is counted on the device; without that floors and ceilings are bounded by the shapes alone.
        sizes = [m.count() for m in masks] if masks is not None and check else [p.numel() for p in products]
        bounds = _check_bounds(floors, ceilings, sizes, k)
        words, threshold, counts = selection.best_within(k, *bounds)
    kept = [BitMask._trusted(w, p.shape) for w, p in zip(words, products, strict=True)]
    if check:  # which has waited for a GPU already
        for w, count in zip(words, counts.tolist(), strict=True):
            remember_count(w, count)
    return TopK(kept, threshold[0], counts)


def _among_survivors(
    scores: Sequence[Tensor | Product | SurvivorScores], masks: Sequence[BitMask] | None, k: int | Tensor, options: Any
) -> TopK:
    """The same of scores that are of some slots only: where just those compete, the others are not looked at."""
    if masks is None or len(masks) != len(scores):
        return topk_mask([_whole(score) for score in scores], k, masks=masks, **options)
    left = [isinstance(s, SurvivorScores) and (m is s.mask or m == s.mask) for s, m in zip(scores, masks, strict=True)]
    values = [s.values if on else _whole(s) for s, on in zip(scores, left, strict=True)]
    compete = None
    if not all(left):
        compete = [BitMask.ones(s.values.shape) if on else m for s, m, on in zip(scores, masks, left, strict=True)]
    found = topk_mask(values, k, masks=compete, **options)
    kept = [keep_within(m, c) if on else c for m, c, on in zip(masks, found.masks, left, strict=True)]
    return found._replace(masks=kept)


def _whole(score: Tensor | Product | SurvivorScores) -> Tensor | Product:
    return score.tensor() if isinstance(score, SurvivorScores) else score


class _Selection:
    """One call's scores, ready for the op, to be asked for different k."""

    def __init__(
        self,
        products: list[Product],
        candidates: list[Tensor],
        largest: bool,
        names: list[str],
        check: bool,
        backend: str,
    ) -> None:
        self.names, self.check, self.backend, self.largest = names, check, backend, largest
        self.products, self.candidates = products, candidates
        self.formulas = [FORMULAS.index(p.formula) for p in products]
        self.weights = [as_operand(p.weight, p.dtype) for p in products]
        self.gradients = [
            w.new_empty(0, 0) if p.gradient is None else as_operand(p.gradient, p.dtype)
            for p, w in zip(products, self.weights, strict=True)
        ]

    def best(self, k: int, k_tensor: Tensor | None = None) -> tuple[list[Tensor], Tensor, Tensor]:
        """The words of the k best, the threshold and the counts."""
        return self._select(range(len(self.products)), self.candidates, k, k_tensor)

    def best_within(self, k: int, floors: list[int], ceilings: list[int]) -> tuple[list[Tensor], Tensor, Tensor]:
        """The same with bounds on the counts."""
        if self.check:  # without bounds first: mostly they hold anyway
            found = self.best(k)
            if all(f <= n <= c for f, n, c in zip(floors, found[2].tolist(), ceilings, strict=True)):
                return found
        candidates = self.candidates or [BitMask.ones(p.shape, p.device).words for p in self.products]
        allowed = [self._alone(i, candidates[i], ceiling) for i, ceiling in enumerate(ceilings)]
        required = [self._alone(i, candidates[i], floor) for i, floor in enumerate(floors)]
        rest = [a & ~r for a, r in zip(allowed, required, strict=True)]
        chosen, _, _ = self._select(range(len(self.products)), rest, k - sum(floors))
        words = [r | c for r, c in zip(required, chosen, strict=True)]
        # Everything that is kept, to learn its least score and its counts.
        return self._select(range(len(self.products)), words, k)

    def _alone(self, i: int, candidates: Tensor, k: int) -> Tensor:
        return self._select([i], [candidates], k)[0][0]

    def _select(
        self, tensors: Sequence[int], candidates: list[Tensor], k: int, k_tensor: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        *words, status, threshold = _topk_mask(
            [self.weights[i] for i in tensors],
            [self.gradients[i] for i in tensors],
            candidates,
            [self.formulas[i] for i in tensors],
            min(k, MOST),
            k_tensor,
            self.largest,
            self.backend,
        )
        if self.check:
            nan, competing = status[:2].tolist()
            if nan >= 0:
                raise ValueError(f"scores must not be NaN, got NaN in {self.names[tensors[nan]]}")
            if k_tensor is not None:
                k = int(k_tensor)
            if not 0 <= k <= competing:
                raise ValueError(f"k must be between 0 and the {competing} competing scores, got {k}")
        return words, threshold, status[2:]


def _check_scores(scores: Sequence[Tensor | Product], absolute: bool, names: Sequence[str] | None) -> list[Product]:
    if names is not None and len(names) != len(scores):
        raise ValueError(f"names must have one entry a tensor, got {len(names)} for {len(scores)}")
    products = []
    for i, score in enumerate(scores):
        products.append(as_product(score, absolute, names[i] if names else f"scores[{i}]"))
        if score.device != scores[0].device:
            raise ValueError(f"scores must be on one device, got {scores[0].device} and {score.device}")
    return products


def _check_masks(masks: Sequence[BitMask], scores: Sequence[Product]) -> Sequence[BitMask]:
    if len(masks) != len(scores):
        raise ValueError(f"masks must have one entry a tensor, got {len(masks)} for {len(scores)}")
    for i, (mask, score) in enumerate(zip(masks, scores, strict=True)):
        if not isinstance(mask, BitMask):
            raise TypeError(f"masks[{i}] must be a BitMask, got {type(mask).__name__}")
        if mask.shape != score.shape or mask.device != score.device:
            raise ValueError(
                f"masks[{i}] must have shape {tuple(score.shape)} on {score.device}, "
                f"got {tuple(mask.shape)} on {mask.device}"
            )
    return masks


def _check_k(k: int | Tensor, scores: Sequence[Product]) -> tuple[int, Tensor | None]:
    if isinstance(k, Tensor):
        if k.dtype != torch.int64 or k.numel() != 1 or (scores and k.device != scores[0].device):
            raise ValueError(f"k must be one int64 on the scores' device, got {k.numel()} of {k.dtype} on {k.device}")
        return 0, k.reshape(1)
    if k < 0:
        raise ValueError(f"k must be between 0 and the number of competing scores, got {k}")
    return k, None


def _check_bounds(
    floors: Sequence[int] | None, ceilings: Sequence[int] | None, sizes: list[int], k: int
) -> tuple[list[int], list[int]]:
    bounds = []
    for name, given, default in (("floors", floors, [0] * len(sizes)), ("ceilings", ceilings, sizes)):
        given = default if given is None else given
        if len(given) != len(sizes):
            raise ValueError(f"{name} must have one entry a tensor, got {len(given)} for {len(sizes)}")
        if any(isinstance(b, bool) or not isinstance(b, int) for b in given):
            raise TypeError(f"{name} must be integers, got {list(given)}")
        if given and min(given) < 0:
            raise ValueError(f"{name} must not be negative, got {min(given)}")
        bounds.append([min(b, n) for b, n in zip(given, sizes, strict=True)])
    least, most = bounds
    if any(f > c for f, c in zip(least, most, strict=True)):
        raise ValueError(f"floors must not be above ceilings, got {least} and {most}")
    if sum(least) > k:
        raise ValueError(f"floors must fit in k, got a sum of {sum(least)} for k={k}")
    if sum(most) < k <= sum(sizes):
        raise ValueError(f"ceilings must allow k, got a sum of {sum(most)} for k={k}")
    return least, most


def _values(scores: list[Tensor], gradients: list[Tensor], formulas: list[int], largest: bool) -> list[Tensor]:
    """Rows of what the larger is the better of, all in one dtype."""
    wide = torch.float64 if any(s.dtype == torch.float64 for s in scores) else torch.float32
    values = []
    for i, (score, formula) in enumerate(zip(scores, formulas, strict=True)):
        gradient = gradients[i] if "g" in FORMULAS[formula] else score
        values.append(values_in_rows(score.to(wide), gradient.to(wide), formula, largest))
    return values


def topk_mask_reference(
    scores: list[Tensor],
    gradients: list[Tensor],
    candidates: list[Tensor],
    formulas: list[int],
    k: int,
    k_tensor: Tensor | None,
    largest: bool,
) -> list[Tensor]:
    """Concatenate, sort stably, keep the first k."""
    k = k if k_tensor is None else int(k_tensor)
    rows = _values(scores, gradients, formulas, largest)
    competing = [
        unpack_reference(c, s.shape[1]) if candidates else torch.ones_like(s, dtype=torch.bool)
        for s, c in zip(rows, candidates or rows, strict=True)
    ]
    parts = [s[m] for s, m in zip(rows, competing, strict=True)]
    values = torch.cat(parts or [torch.empty(0)]) + 0.0  # -0.0 becomes 0.0
    order = torch.sort(values, descending=True, stable=True).indices[: max(k, 0)]
    kept = torch.zeros_like(values, dtype=torch.bool)
    kept[order] = True
    words, counts, start = [], [], 0
    for mask in competing:
        stop = start + int(mask.sum())
        words.append(pack_reference(mask.masked_scatter(mask, kept[start:stop])))
        counts.append(int(kept[start:stop].sum()))
        start = stop
    nan = [i for i, (s, m) in enumerate(zip(rows, competing, strict=True)) if s[m].isnan().any()]
    status = torch.tensor([nan[0] if nan else -1, len(values), *counts], device=values.device)
    known = len(order) > 0 and not nan
    threshold = values[order[-1:]].double() if known else values.new_full((1,), torch.nan, dtype=torch.float64)
    return [*words, status, threshold if largest else -threshold + 0.0]


def _by_triton(
    scores: list[Tensor],
    gradients: list[Tensor],
    candidates: list[Tensor],
    formulas: list[int],
    k: int,
    k_tensor: Tensor | None,
    largest: bool,
) -> list[Tensor]:
    """The Triton kernel takes plain rows of one dtype and gives words; the rest is made of them."""
    rows = [v.contiguous() for v in _values(scores, gradients, formulas, largest)]
    *words, status = _TRITON.run(rows, candidates, k)
    counts = [count_mask(w).sum().reshape(1) for w in words]
    least = [
        torch.where(unpack_mask(w, r.shape[1]), r, torch.inf).amin().reshape(1)
        for w, r in zip(words, rows, strict=True)
        if r.numel()
    ]
    threshold = torch.cat([rows[0].new_full((1,), torch.inf), *least]).amin(0, keepdim=True).double()
    unknown = (torch.cat(counts).sum() == 0) | (status[0] >= 0)
    threshold = torch.where(unknown, torch.nan, threshold if largest else -threshold + 0.0)
    return [*words, torch.cat([status, *counts]), threshold]


def _triton_refusal(*args: Any) -> str | None:
    if not args[0]:
        return "there are no scores"
    return "it takes k from the host, got a tensor" if args[5] is not None else _TRITON.refusal(*args)


def _fake(scores: list[Tensor], *_: Any) -> list[Tensor]:
    words = [s.new_empty(r, words_per_row(c), dtype=torch.int32) for s in scores for r, c in [as_rows(s.shape)]]
    device = scores[0].device if scores else torch.device("cpu")
    status = torch.empty(2 + len(scores), dtype=torch.int64, device=device)
    return [*words, status, torch.empty(1, dtype=torch.float64, device=device)]


_TRITON = backends.triton("topk_mask", "topk_mask")

IMPLEMENTATIONS = {
    "native": backends.native("topk_mask", halves=True),
    "triton": _TRITON._replace(run=_by_triton, refusal=_triton_refusal),
    "reference": backends.reference(topk_mask_reference),
}

_topk_mask = backends.register(
    "topk_mask",
    "(Tensor[] scores, Tensor[] gradients, Tensor[] candidates, int[] formulas, int k, Tensor? k_tensor, bool largest, "
    "str backend) -> Tensor[]",
    IMPLEMENTATIONS,
    _fake,
    strided=True,
)
