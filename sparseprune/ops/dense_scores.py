"""The backward pass of a layer of a SynFlow pass that keeps most of its weights."""

from __future__ import annotations

import torch
from torch import Tensor

from . import backends


def dense_scores(
    weight: Tensor,
    grad: Tensor,
    x: Tensor,
    scores: Tensor,
    input_grad: bool = True,
    *,
    backend: str = backends.DEFAULT,
) -> tuple[Tensor, Tensor]:
    """Of ``y = W x`` from its gradient g: that of x, ``W^T g``, and the scores ``W (g x^T)``, from one reading of W.

    Args:
        weight: [O, I], float32 or float64.
        grad: [O, N], N 1 or a multiple of 4.
        x: [I, N].
        scores: [O, I]; the scores are written into it.
        input_grad: whether the gradient of x is wanted.

    Returns:
        The gradient [I, N] of x, empty unless wanted, and the largest entry of ``g x^T``, [1], 0 where all are negative.
    """
    return tuple(backends.call_again("dense_scores", SCORES, backend, weight, grad, x, scores, input_grad))


def scores_reference(weight: Tensor, grad: Tensor, x: Tensor, scores: Tensor, input_grad: bool) -> list[Tensor]:
    gradients = grad @ x.t()
    torch.mul(weight, gradients, out=scores)
    peak = torch.cat([gradients.flatten(), gradients.new_zeros(1)]).amax().reshape(1)
    return [weight.t() @ grad if input_grad else x.new_empty(0, x.shape[1]), peak]


SCORES = {"native": backends.native("dense_scores"), "reference": backends.reference(scores_reference)}
