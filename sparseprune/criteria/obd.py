"""Optimal Brain Damage: keep the weights whose removal the curvature punishes, ``score = h w^2 / 2``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..arguments import typed
from .base import Scores, Weights
from .batches import Batches, Loss, batch_losses, check_data
from .recursion import NoRuleError
from .second_order import check_diagonal, hessian_diagonal

__all__ = ["OBD"]


@typed
@dataclass(frozen=True, eq=False)
class OBD:
    """``score = h_j w_j^2 / 2`` with ``h_j = d2L / dw_j2``: the change of the loss on removal at a minimum.

    The first derivative is taken to be zero: for trained networks. Away from a minimum h, and so the score, may be
    negative where the diagonal is not a Gauss-Newton one; those weights go first, as their removal is predicted to
    lower the loss. Batch norm uses its running statistics, dropout is off.

    Args:
        loss: ``loss(output, target)`` -> the mean over the batch, one number; examples must not meet in it; twice
            differentiable.
        batches: any number of (input, target); held in memory.
        diagonal: how h is computed:
            "recursion": second derivatives passed back layer by layer, as published; one backward pass. Exact for one
            hidden layer under a loss that is a sum over outputs.
            "recursion_gn": the same without the activations' own curvature, never negative.
            "ggn": one backward pass for each output; exact for piecewise linear networks (ReLU), never negative.
            "exact": one Hessian-vector product for each weight.
            "hutchinson": unbiased from ``samples`` random Hessian-vector products.
            "auto": "recursion", or "ggn" where the model has a function without a rule.
        samples, seed: of "hutchinson".

    Raises:
        TypeError: ``loss`` not callable, ``batches`` not an iterable of pairs.
        ValueError: ``diagonal`` unknown or not for this model, ``samples`` or ``seed`` out of range, no batch.

    Source: LeCun, Denker, Solla 1990, Optimal Brain Damage, eq. 5 to 9.
    """

    loss: Loss
    batches: Batches
    diagonal: str = "auto"
    samples: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        check_data(self.loss, self.batches)
        check_diagonal(self.diagonal, self.samples, self.seed, extra=("auto",))

    def __call__(self, model: nn.Module, params: Weights) -> Scores:
        with batch_losses(model, params, self.loss) as loss:
            batches = list(self.batches)
            try:
                way = "recursion" if self.diagonal == "auto" else self.diagonal
                curvature = hessian_diagonal(loss, batches, way, self.samples, self.seed)
            except NoRuleError:
                if self.diagonal != "auto":
                    raise
                curvature = hessian_diagonal(loss, batches, "ggn")
        return {name: curvature[name] * weight.detach().square() / 2 for name, weight in params.items()}
