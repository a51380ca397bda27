"""Quadratic SNIP: keep the weights whose removal changes the loss to second order, ``score = |w g - w^2 h / 2|``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..arguments import typed
from .base import Scores, Weights
from .batches import Batches, Loss, batch_losses, check_data
from .second_order import check_diagonal, hessian_diagonal

__all__ = ["QuadraticSNIP"]


@typed
@dataclass(frozen=True, eq=False)
class QuadraticSNIP:
    """``score = |w_j g_j - w_j^2 h_j / 2|``, g the gradient and h the Hessian's diagonal of the mean loss.

    Taylor's series at w, evaluated with w_j at zero: ``L(0) = L(w) - g_j w_j + h_j w_j^2 / 2``. The curvature enters
    with the sign opposite to the gradient's, and both terms carry w_j. Exact for one weight of a quadratic loss.

    Args:
        loss: ``loss(output, target)`` -> the mean over the batch, one number; examples must not meet in it; twice
            differentiable.
        batches: any number of (input, target); held in memory for two passes.
        diagonal: how h is computed: "ggn" (exact for piecewise linear networks), "exact", "hutchinson", "recursion" or
            "recursion_gn"; see :class:`OBD`.
        samples, seed: of "hutchinson".
        signed: the predicted rise of the loss itself, ``w^2 h / 2 - w g``: what lowers it goes first.

    Raises:
        TypeError: ``loss`` not callable, ``batches`` not an iterable of pairs.
        ValueError: ``diagonal`` unknown or not for this model, ``samples`` or ``seed`` out of range, no batch.

    Source: SNIP (Lee et al. 2019, arXiv:1810.02340) carried to second order.
    """

    loss: Loss
    batches: Batches
    diagonal: str = "ggn"
    samples: int = 100
    seed: int = 0
    signed: bool = False

    def __post_init__(self) -> None:
        check_data(self.loss, self.batches)
        check_diagonal(self.diagonal, self.samples, self.seed)

    def __call__(self, model: nn.Module, params: Weights) -> Scores:
        with batch_losses(model, params, self.loss) as loss:
            batches = list(self.batches)
            gradient = loss.mean(batches, loss.gradient)
            curvature = hessian_diagonal(loss, batches, self.diagonal, self.samples, self.seed)
        scores = {}
        for name, weight in params.items():
            weight = weight.detach()
            rise = weight * (curvature[name] * weight / 2 - gradient[name])
            scores[name] = rise if self.signed else rise.abs()
        return scores
