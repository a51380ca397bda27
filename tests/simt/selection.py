"""Exact selection by sorting, in numpy: what the CUDA kernel's results are compared with."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

FORMULAS = (  # in the order of sparseprune::cuda::Formula
    lambda w, g: w,
    lambda w, g: np.abs(w),
    lambda w, g: w * g,
    lambda w, g: np.abs(w * g),
    lambda w, g: np.abs(w) * g,
)


def by_sorting(
    scores: list[Tensor],
    gradients: list[Tensor],
    candidates: list[Tensor],
    formulas: list[int],
    k: int,
    k_tensor: Tensor | None,
    largest: bool,
) -> list[Tensor]:
    """Words, status and threshold: all that compete are sorted, stably, in tensor and flat order before."""
    wide = torch.float64 if any(s.dtype == torch.float64 for s in scores) else torch.float32
    with np.errstate(all="ignore"):
        values = [
            FORMULAS[f](s.to(wide).numpy(), gradients[i].to(wide).numpy() if f >= 2 else None)
            for i, (s, f) in enumerate(zip(scores, formulas, strict=True))
        ]
    competes = [
        bits_of(candidates[i], v.shape[1]) if candidates else np.ones(v.shape, bool) for i, v in enumerate(values)
    ]
    nan = [i for i, (v, c) in enumerate(zip(values, competes, strict=True)) if np.isnan(v[c]).any()]
    flat = np.concatenate([v[c] for v, c in zip(values, competes, strict=True)])
    order = np.argsort(-flat if largest else flat, kind="stable")
    order = order[: max(0, k if k_tensor is None else int(k_tensor))]
    chosen = np.zeros(len(flat), bool)
    chosen[order] = True
    kept = [np.zeros(v.shape, bool) for v in values]
    for mask, c, part in zip(
        kept, competes, np.split(chosen, np.cumsum([c.sum() for c in competes])[:-1]), strict=True
    ):
        mask[c] = part
    status = [nan[0] if nan else -1, len(flat), *(int(mask.sum()) for mask in kept)]
    threshold = flat[order[-1]] if len(order) and not nan else np.nan
    return [*map(words_of, kept), torch.tensor(status), torch.tensor([threshold], dtype=torch.float64)]


def words_of(mask: np.ndarray) -> Tensor:
    """A boolean ``[rows, columns]`` as packed words."""
    padded = np.pad(mask, ((0, 0), (0, -mask.shape[1] % 64)))
    return torch.from_numpy(np.packbits(padded, axis=1, bitorder="little").view(np.int32))


def bits_of(words: Tensor, columns: int) -> np.ndarray:
    """Packed words as a boolean ``[rows, columns]``."""
    bits = np.unpackbits(words.contiguous().numpy().view(np.uint8), axis=1, count=columns, bitorder="little")
    return bits.astype(bool)


def assert_selects(machine, *inputs) -> list[Tensor]:
    """The results are those of sorting, to the last bit; with a NaN only the first tensor that has one is told."""
    *kept, status, threshold = result = machine.topk_mask(*inputs)
    *words, expected, last = by_sorting(*inputs)
    if expected[0] >= 0:
        assert status[0] == expected[0] and threshold.isnan().all()
        return result
    for i, (a, b) in enumerate(zip(kept, words, strict=True)):
        assert torch.equal(a, b), f"tensor {i} differs in {int((a != b).sum())} of {a.numel()} words"
    assert status.tolist() == expected.tolist()
    assert torch.equal(threshold, last) or (threshold.isnan() & last.isnan()).all(), f"{threshold}, not {last}"
    return result
