"""The k largest scores of many tensors, exactly, as packed masks.

No threshold is compared by value at the end: among equal scores the lowest (tensor, flat index) is kept, so exactly
k survive whatever the ties, on every backend and for any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import backends
from .bitmask import BitMask, as_rows
from .mask_bits import pack_reference, unpack_reference, words_per_row

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def topk_mask(
    scores: Sequence[Tensor],
    k: int,
    *,
    masks: Sequence[BitMask] | None = None,
    floors: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    backend: str = backends.DEFAULT,
) -> list[BitMask]:
    """Keep the ``k`` largest of all the scores together.

    Args:
        scores: tensors of any shapes and strides, float16, bfloat16, float32 or float64 (they are compared in the
            widest dtype among them, at least float32), all on one device. +inf and -inf are ordinary values and
            -0.0 equals 0.0.
        k: how many to keep over all tensors.
        masks: the slots that compete, one mask a tensor; the scores of the others are never looked at. All compete
            where it is None.
        floors: the least number to keep in each tensor (or all it has, where it has fewer): its largest ones are
            kept first and the rest of ``k`` is spent globally.
        names: what to call the tensors in error messages.
        backend: "auto", "native", "triton" or "reference".

    Returns:
        One mask a tensor; their counts sum to ``k``. Among equal scores the lowest (tensor, flat index) is kept.

    Raises:
        TypeError: scores are not floating-point tensors, or ``k`` is not an integer.
        ValueError: a competing score is NaN (the tensor is named), ``k`` is negative or more than compete, the
            floors do not fit in ``k``, or shapes and devices disagree.

    >>> kept = topk_mask([torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0])], k=3)
    >>> [m.to_bool().tolist() for m in kept]
    [[True, True], [False, True]]
    """
    scores = _check_scores(scores, names)
    names = [f"scores[{i}]" for i in range(len(scores))] if names is None else list(names)
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k must be an integer, got {type(k).__name__}")
    rows = _as_comparable_rows(scores)
    candidates = [] if masks is None else [m.words for m in _check_masks(masks, scores)]
    competing = [s.numel() for s in scores] if masks is None else [m.count() for m in masks]
    if not 0 <= k <= sum(competing):
        raise ValueError(f"k must be between 0 and the {sum(competing)} competing scores, got {k}")

    if not scores:
        return []
    if floors is None or not any(floors):
        words = _select(rows, candidates, k, names, backend)
    else:
        floors = _check_floors(floors, competing, k)
        if not candidates:
            candidates = [BitMask.ones(s.shape, s.device).words for s in scores]
        kept = [_select([rows[i]], [candidates[i]], floor, [names[i]], backend)[0] for i, floor in enumerate(floors)]
        rest = [c & ~f for c, f in zip(candidates, kept, strict=True)]
        chosen = _select(rows, rest, k - sum(floors), names, backend)
        words = [f | c for f, c in zip(kept, chosen, strict=True)]
    return [BitMask._trusted(w, s.shape) for w, s in zip(words, scores, strict=True)]


def _select(rows: list[Tensor], candidates: list[Tensor], k: int, names: list[str], backend: str) -> list[Tensor]:
    *words, status = _topk_mask(rows, candidates, k, backend)
    nan = int(status[0])
    if nan >= 0:
        raise ValueError(f"scores must not be NaN, got NaN in {names[nan]}")
    return words


def _check_scores(scores: Sequence[Tensor], names: Sequence[str] | None) -> list[Tensor]:
    if isinstance(scores, Tensor) or not isinstance(scores, Sequence):
        raise TypeError(f"scores must be a list of tensors, got {type(scores).__name__}")
    if names is not None and len(names) != len(scores):
        raise ValueError(f"names must have one entry a tensor, got {len(names)} for {len(scores)}")
    for i, score in enumerate(scores):
        if not isinstance(score, Tensor) or score.dtype not in DTYPES:
            kind = f"a {score.dtype} tensor" if isinstance(score, Tensor) else type(score).__name__
            allowed = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
            raise TypeError(f"{names[i] if names else f'scores[{i}]'} must be a tensor of {allowed}, got {kind}")
        if score.device != scores[0].device:
            raise ValueError(f"scores must be on one device, got {scores[0].device} and {score.device}")
    return [s.detach() for s in scores]


def _check_masks(masks: Sequence[BitMask], scores: list[Tensor]) -> Sequence[BitMask]:
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


def _check_floors(floors: Sequence[int], competing: list[int], k: int) -> list[int]:
    if len(floors) != len(competing):
        raise ValueError(f"floors must have one entry a tensor, got {len(floors)} for {len(competing)}")
    if any(isinstance(f, bool) or not isinstance(f, int) for f in floors):
        raise TypeError("floors must be integers")
    if min(floors) < 0:
        raise ValueError(f"floors must not be negative, got {min(floors)}")
    floors = [min(f, n) for f, n in zip(floors, competing, strict=True)]
    if sum(floors) > k:
        raise ValueError(f"floors must fit in k, got a sum of {sum(floors)} for k={k}")
    return floors


def _as_comparable_rows(scores: list[Tensor]) -> list[Tensor]:
    wide = torch.float64 if any(s.dtype == torch.float64 for s in scores) else torch.float32
    return [s.to(wide).reshape(as_rows(s.shape)) for s in scores]


def topk_mask_reference(scores: list[Tensor], candidates: list[Tensor], k: int) -> list[Tensor]:
    """Concatenate, sort stably, keep the first k."""
    if not scores:
        return [torch.tensor([-1, 0])]
    competing = [
        unpack_reference(c, s.shape[1]) if candidates else torch.ones_like(s, dtype=torch.bool)
        for s, c in zip(scores, candidates or scores, strict=True)
    ]
    values = torch.cat([s[m] for s, m in zip(scores, competing, strict=True)]) + 0.0  # -0.0 + 0.0 is 0.0
    order = torch.sort(values, descending=True, stable=True).indices
    kept = torch.zeros_like(values, dtype=torch.bool)
    kept[order[:k]] = True
    words, start = [], 0
    for mask in competing:
        stop = start + int(mask.sum())
        words.append(pack_reference(mask.masked_scatter(mask, kept[start:stop])))
        start = stop
    nan = [i for i, (s, m) in enumerate(zip(scores, competing, strict=True)) if s[m].isnan().any()]
    return [*words, torch.tensor([nan[0] if nan else -1, len(values)], device=values.device)]


def _fake(scores: list[Tensor], candidates: list[Tensor], k: int) -> list[Tensor]:
    words = [s.new_empty(s.shape[0], words_per_row(s.shape[1]), dtype=torch.int32) for s in scores]
    device = scores[0].device if scores else torch.device("cpu")
    return [*words, torch.empty(2, dtype=torch.int64, device=device)]


IMPLEMENTATIONS = {
    "native": backends.native("topk_mask"),
    "triton": backends.triton("topk_mask", "topk_mask"),
    "reference": backends.reference(topk_mask_reference),
}

_topk_mask = backends.register(
    "topk_mask",
    "(Tensor[] scores, Tensor[] candidates, int k, str backend) -> Tensor[]",
    IMPLEMENTATIONS,
    _fake,
)
