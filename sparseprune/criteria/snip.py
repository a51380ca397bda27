"""SNIP: keep the weights whose gates matter to the loss, ``score = |w dL/dw| = |dL(c * w)/dc| at c = 1``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..ops.products import Product
from .base import ProductCriterion, Weights
from .batches import Batches, Loss, batch_losses, check_data

__all__ = ["SNIP"]


@dataclass(frozen=True, eq=False)
class SNIP(ProductCriterion):
    """``score = |w * g|`` with g the gradient of the mean loss over all batches.

    The gradient is accumulated signed and the absolute value taken once, so several batches score as one large
    batch of all their examples (with ``bn="eval"``; batch statistics are those of each batch). Dropout is off.
    The published method divides by the sum of all scores, which does not change their order.

    Args:
        loss: ``loss(output, target)`` -> the mean over the batch, one number. No regulariser.
        batches: any number of (input, target); moved to the weights' device. Read once a call, so a one-shot
            iterator serves one call only.
        bn: batch norm uses its running statistics ("eval") or the batch's ("train"); the running ones stay.

    Raises:
        TypeError: ``loss`` not callable, ``batches`` not an iterable of pairs.
        ValueError: ``bn`` unknown, no batch, a loss that is not one number.

    Source: Lee, Ajanthan, Torr 2019, arXiv:1810.02340, eq. 5 and 6.
    """

    loss: Loss
    batches: Batches
    bn: str = "eval"

    def __post_init__(self) -> None:
        check_data(self.loss, self.batches, self.bn)

    def products(self, model: nn.Module, params: Weights) -> dict[str, Product]:
        with batch_losses(model, params, self.loss, self.bn) as loss:
            gradient = loss.mean(self.batches, loss.gradient)
        return {name: Product(weight.detach(), gradient[name], "|w*g|") for name, weight in params.items()}
