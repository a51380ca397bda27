"""Taylor: keep what the loss of each example changes with most, to first order, ``score = E_n |w g_n|``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .base import Scores, Weights
from .batches import Batches, Loss, batch_losses, check_data
from .outputs import loss_gradient
from .per_sample import power_means
from .units import broadcast, check_per, gate_gradients

__all__ = ["Taylor"]


@dataclass(frozen=True, eq=False)
class Taylor:
    """First-order change of the loss, of each example by itself, g_n the gradient of example n's loss.

        per="weight"   score = (1/N) sum_n |w g_n|
        per="unit"     score = T_k / ||T||_2 over the layer,  T_k = (1/N) sum_n |(1/M) sum_m z_nkm dL_n/dz_nkm|

    with z_k the map of unit k behind its batch norm and activation, M its size. All weights that come into a unit
    get its score. Unlike SNIP's, examples that pull in opposite directions do not cancel. Batch norm uses its running
    statistics, dropout is off.

    Args:
        loss: ``loss(output, target)`` -> the mean over the batch, one number; examples must not meet in it.
        batches: any number of (input, target), examples in the first dimension.
        per: "weight" or "unit".

    Raises:
        TypeError: ``loss`` not callable, ``batches`` not an iterable of pairs.
        ValueError: ``per`` unknown, no batch, a weight used by something else than linear and convolution layers.

    Source: Molchanov, Tyree, Karras, Aila, Kautz 2017, arXiv:1611.06440, eq. 8 and 9.
    """

    loss: Loss
    batches: Batches
    per: str = "weight"

    def __post_init__(self) -> None:
        check_data(self.loss, self.batches)
        check_per(self.per)

    def __call__(self, model: nn.Module, params: Weights) -> Scores:
        with batch_losses(model, params, self.loss) as loss:
            if self.per == "weight":
                means = power_means(loss, self.batches, 1)
                return {name: weight.detach().abs() * means[name] for name, weight in params.items()}
            totals = {name: weight.new_zeros(len(weight), requires_grad=False) for name, weight in params.items()}

            def gradient(output, target):
                return [loss_gradient(loss, output, target)]

            for _, [gates], positions in gate_gradients(loss, self.batches, gradient):
                for name, total in totals.items():
                    total += gates[name].abs().sum(0) / positions.get(name, 1)
            tiny = {name: torch.finfo(total.dtype).tiny for name, total in totals.items()}
            return broadcast({n: total / total.norm().clamp(min=tiny[n]) for n, total in totals.items()}, params)
