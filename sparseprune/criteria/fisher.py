"""Fisher: keep what the loss curves with most, from gradients of single examples, ``score = w^2 E_n[g_n^2] / 2``."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from torch import Tensor, nn

from ..arguments import typed
from .base import Scores, Weights
from .batches import Batches, BatchLoss, Loss, batch_losses, check_data
from .outputs import loss_gradient, output_factors
from .per_sample import power_means
from .second_order import ggn_diagonal
from .units import broadcast, check_per, gate_gradients, savings

__all__ = ["Fisher"]

KINDS = ("empirical", "true")


@typed
@dataclass(frozen=True, eq=False)
class Fisher:
    """``score = (1/2N) sum_n (dL_n / d gate)^2 - cost * saved``: loss lost, less what removal saves.

        per="weight"   dL_n / d gate = w g_n
        per="unit"     dL_n / d gate = sum_m z_nkm dL_n / dz_nkm, z_k the map of unit k behind its activation

    with g_n the gradient of example n's loss. With ``kind="true"`` g_n^2 is replaced by its mean over targets drawn from
    the model's own prediction, for a log-likelihood; computed exactly, by one backward pass for each output, from the
    Hessian of the loss in the output (for another loss this is the Gauss-Newton matrix). Batch norm uses its running
    statistics, dropout is off.

    Args:
        loss: ``loss(output, target)`` -> the mean over the batch, one number; examples must not meet in it.
        batches: any number of (input, target), examples in the first dimension.
        kind: "empirical" (the given targets) or "true".
        per: "weight" or "unit".
        cost: how much loss a multiply-add is worth. ``saved`` counts those of one example that go with the weight, or
            with the unit: its row, and its share of the layers that read it.

    Raises:
        TypeError: ``loss`` not callable, ``batches`` not an iterable of pairs.
        ValueError: ``kind`` or ``per`` unknown, ``cost`` negative, no batch, a weight used by something else than linear
            and convolution layers; for "true" a loss that is not convex in the output.

    Source: Theis, Korshunova, Tejani, Huszar 2018, arXiv:1801.05787, eq. 6 and 9; true and empirical: Kunstner et al.
    2019, arXiv:1905.12558.
    """

    loss: Loss
    batches: Batches
    kind: str = "empirical"
    per: str = "weight"
    cost: float = 0.0

    def __post_init__(self) -> None:
        check_data(self.loss, self.batches)
        check_per(self.per)
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {self.kind!r}")
        if not 0 <= self.cost < math.inf:
            raise ValueError(f"cost must be at least 0 and finite, got {self.cost}")

    def __call__(self, model: nn.Module, params: Weights) -> Scores:
        with batch_losses(model, params, self.loss) as loss:
            batches, saved = self._saved(loss)
            if self.per == "unit":
                changes = self._units(loss, batches)
                return broadcast({name: changes[name] - self.cost * saved[name] for name in params}, params)
            squares = ggn_diagonal(loss, batches) if self.kind == "true" else power_means(loss, batches, 2)
            changes = {n: squares[n].mul_(weight.detach().square()).div_(2) for n, weight in params.items()}
            return {n: change.sub_(self.cost * saved[n]) if self.cost else change for n, change in changes.items()}

    def _saved(self, loss: BatchLoss) -> tuple[Batches, dict[str, float]]:
        """The batches, the first of which was looked at where there is a cost, and what removal saves."""
        batches = iter(self.batches)
        first = next(batches, None) if self.cost else None
        if first is None:
            return batches, dict.fromkeys(loss.weights, 0.0)
        saved = savings(loss, first)[self.per == "unit"]
        return itertools.chain([first], batches), saved

    def _units(self, loss: BatchLoss, batches: Batches) -> Scores:
        def cotangents(output: Tensor, target: Tensor):
            return (
                output_factors(loss, output, target) if self.kind == "true" else [loss_gradient(loss, output, target)]
            )

        totals, examples = {n: w.new_zeros(len(w), requires_grad=False) for n, w in loss.weights.items()}, 0
        for count, passes, _ in gate_gradients(loss, batches, cotangents):
            examples += count
            for gates in passes:
                for name, total in totals.items():
                    total += gates[name].square().sum(0)
        return {name: total / (2 * examples) for name, total in totals.items()}
