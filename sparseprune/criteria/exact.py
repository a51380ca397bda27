"""Exact saliency: what the loss really does when a weight goes, ``score = |L(w_j -> 0) - L(w)|``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .base import Scores, Weights
from .batches import Batches, BatchLoss, Loss, batch_losses, check_data, check_examples
from .removals import removal_losses
from .units import broadcast, check_per

__all__ = ["ExactSaliency"]

DTYPES = (None, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class ExactSaliency:
    """``score = |L(w with w_j = 0) - L(w)|`` by evaluating the loss for each weight: what all others estimate.

        per="weight"   one weight at a time
        per="unit"     all weights that come into a unit at once; each of them gets the unit's score

    Many weights of a layer are removed side by side, each in its own copy of the layer's output; what comes before the
    layer is computed once for all of them, and of the layer itself only the one channel that changes. A LeNet-5 takes
    a minute. Batch norm uses its running statistics, dropout is off.

    Args:
        loss: ``loss(output, target)`` -> the mean over the batch, one number; must work under ``torch.func.vmap``.
        batches: any number of (input, target), read once a call.
        per: "weight" or "unit".
        dtype: float64 or float32 to compute in; None: the weights' own. Differences below the dtype's precision of the
            loss are lost: in float32 that is every saliency below 1e-7 of it.

    Raises:
        TypeError: ``loss`` not callable, ``batches`` not an iterable of pairs.
        ValueError: ``per`` or ``dtype`` unknown, no batch, a loss that is not one number.

    Source: the definition that Lee et al. 2019, arXiv:1810.02340, eq. 3 approximates.
    """

    loss: Loss
    batches: Batches
    per: str = "weight"
    dtype: torch.dtype | None = torch.float64

    def __post_init__(self) -> None:
        check_data(self.loss, self.batches)
        check_per(self.per)
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be None, torch.float32 or torch.float64, got {self.dtype}")

    def __call__(self, model: nn.Module, params: Weights) -> Scores:
        # The fused attention kernels have no rule for copies side by side.
        with (
            batch_losses(model, params, self.loss, dtype=self.dtype) as loss,
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
        ):
            changes = self._changes(loss)
        if self.per == "unit":
            return broadcast(changes, params)
        return {name: changes[name].reshape(weight.shape) for name, weight in params.items()}

    def _changes(self, loss: BatchLoss) -> dict[str, Tensor]:
        totals, examples = {}, 0
        for batch in self.batches:
            count = len(batch[0])
            value = loss(batch)[0]
            for name in loss.weights:
                change = (removal_losses(loss, batch, name, units=self.per == "unit") - value) * count
                totals[name] = totals[name] + change if name in totals else change
            examples += count
        check_examples(examples)
        return {name: (total / examples).abs() for name, total in totals.items()}
