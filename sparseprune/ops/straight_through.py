"""A top-k mask that gradients pass through as if it were the identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..arguments import typed
from . import backends
from .topk_mask import topk_mask


@typed
def straight_through_topk(
    scores: Sequence[Tensor], k: int, *, abs: bool = False, backend: str = backends.DEFAULT
) -> list[Tensor]:
    """1 at the ``k`` largest of all the scores and 0 elsewhere; the gradient to a score is that to its entry.

    ``mask = topk(score)``, ``dL/dscore := dL/dmask``; with ``abs``, ``mask = topk(|score|)`` and
    ``dL/dscore := dL/dmask sign(score)``. So scores of weights that are not in use learn whether they should be.

    Args:
        scores: tensors of any shapes, all on one device; see ``topk_mask``.
        k: how many are 1, over all tensors.

    Returns:
        One tensor per tensor, of its shape and dtype.

    Raises:
        TypeError, ValueError: as ``topk_mask``.

    Source: Ramanujan et al. 2020, arXiv:1911.13299, section 3 (edge-popup).

    >>> scores = torch.tensor([3.0, 1.0, 2.0], requires_grad=True)
    >>> (straight_through_topk([scores], 2)[0] * torch.tensor([10.0, 20.0, 30.0])).sum().backward()
    >>> scores.grad
    tensor([10., 20., 30.])
    """
    masks = topk_mask(scores, k, abs=abs, backend=backend).masks
    if not masks:
        return []
    kept = [mask.to_bool().to(score.dtype) for mask, score in zip(masks, scores, strict=True)]
    return list(_StraightThrough.apply(abs, *kept, *scores))


class _StraightThrough(torch.autograd.Function):
    """(masks, scores) -> the masks, with the scores' gradients."""

    @staticmethod
    def forward(absolute: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(mask.clone() for mask in tensors[: len(tensors) // 2])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.absolute, *tensors = inputs
        ctx.save_for_backward(*tensors[len(tensors) // 2 :])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scores = ctx.saved_tensors
        signed = [g * s.sign() for g, s in zip(grads, scores, strict=True)] if ctx.absolute else grads
        return None, *(None for _ in scores), *signed
