"""Variance nullity: keep the weights whose influence on the output differs between examples, or is large."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .base import Scores, Weights
from .batches import Batches, BatchLoss, batch_losses, check_data
from .per_sample import chunks, per_sample_gradients
from .taps import LayerCall, Tapped
from .units import broadcast, by_unit, check_per

__all__ = ["VarianceNullity"]

NORMS = {
    "sum": lambda parts: sum(part.abs() for part in parts),
    "euclidean": lambda parts: sum(part.square() for part in parts).sqrt(),
    "max": lambda parts: torch.stack([part.abs() for part in parts]).amax(0),
}


@dataclass(frozen=True, eq=False)
class VarianceNullity:
    """``score = max(Y / Y_crit, mean / mean_tolerance)``: at most 1 where a weight (or unit) may be pruned.

        S_pk = d o_pk / d theta,  N_p = ||S_p|| over the outputs k,  Y = (P - 1) var(N) / sigma0^2

    over P examples p. Under the hypothesis that N has variance sigma0^2, Y follows chi-square with P - 1 degrees of
    freedom; Y below its quantile Y_crit at ``alpha`` says that the variance is smaller. A constant influence has no
    variance either, so the mean must be small too. theta is a weight, or the value of a unit behind its activation
    (a map's at all positions at once); all weights that come into a unit get its score.

    Args:
        batches: any number of (input, target), examples in the first dimension; the targets are not used.
        per: "weight" or "unit".
        alpha: level of the test, in (0, 1).
        sigma0_squared: the variance below which an influence counts as none; in the units of S^2, so inputs should be
            standardised.
        mean_tolerance: the mean up to which an influence counts as none; None: sigma0.
        norm: over the outputs: "sum", "euclidean" or "max".

    Raises:
        TypeError: ``batches`` not an iterable of pairs.
        ValueError: an argument out of range, fewer than two examples, a weight used by something else than linear and
            convolution layers.

    Source: Engelbrecht 2001, A new pruning heuristic based on variance analysis of sensitivity information, IEEE
    Transactions on Neural Networks 12 (6).
    """

    batches: Batches
    per: str = "weight"
    alpha: float = 0.01
    sigma0_squared: float = 1e-3
    mean_tolerance: float | None = None
    norm: str = "sum"

    def __post_init__(self) -> None:
        check_data(_no_loss, self.batches)
        check_per(self.per)
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(map(repr, NORMS))}, got {self.norm!r}")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha must be in (0, 1), got {self.alpha}")
        for name, value in (("sigma0_squared", self.sigma0_squared), ("mean_tolerance", self.mean_tolerance)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")

    def __call__(self, model: nn.Module, params: Weights) -> Scores:
        from scipy.special import chdtri  # scipy loads slowly, and only this needs it

        moments = {name: _Moments() for name in params}
        with batch_losses(model, params, _no_loss) as loss:
            examples = 0
            for batch in self.batches:
                inputs, _ = loss.split(batch)
                examples += len(inputs)
                for name, norms in self._influences(loss, inputs):
                    moments[name].add(norms)
        if examples < 2:
            raise ValueError(f"batches must hold at least two examples for a variance, got {examples}")
        critical = float(chdtri(examples - 1, 1 - self.alpha))
        tolerance = math.sqrt(self.sigma0_squared) if self.mean_tolerance is None else self.mean_tolerance
        scores = {}
        for name, weight in params.items():
            mean, squares = moments[name].mean, moments[name].squares
            score = torch.maximum(squares / (self.sigma0_squared * critical), mean / tolerance)
            scores[name] = score.to(weight.dtype).expand(weight.shape if self.per == "weight" else (len(weight),))
        return broadcast(scores, params) if self.per == "unit" else {n: s.contiguous() for n, s in scores.items()}

    def _influences(self, loss: BatchLoss, inputs: Tensor) -> Iterator[tuple[str, Tensor]]:
        """N_p, by weight, for a few examples p after the other: (n, *weight.shape), or (n, K) for units."""
        run = Tapped(loss, inputs, units=self.per == "unit")
        handed: list[dict[LayerCall, Tensor]] = []
        for output in range(run.output[0].numel()):
            one = torch.zeros_like(run.output)
            one.view(len(inputs), -1)[:, output] = 1
            handed.append({})
            run.backward(one, handed[-1].__setitem__)
        for name, weight in loss.weights.items():
            calls = [call for call in run.calls if call.name == name]
            for rows in chunks(len(inputs), weight.numel()):
                parts = [sum(self._sensitivity(c, found[c], rows) for c in calls if c in found) for found in handed]
                parts = [part for part in parts if isinstance(part, Tensor)]  # no use of it reaches that output
                empty = weight.new_zeros(rows.stop - rows.start, *weight.shape[: None if self.per == "weight" else 1])
                yield name, (NORMS[self.norm](parts) if parts else empty).detach()

    def _sensitivity(self, call: LayerCall, gradient: Tensor, rows: slice) -> Tensor:
        if self.per == "weight":
            return per_sample_gradients(call, gradient, rows)
        return by_unit(call, gradient[rows]).sum(2)


def _no_loss(output: Tensor, target: Tensor) -> Tensor:
    return output.mean()


class _Moments:
    """Mean and sum of squared deviations over any number of parts, in float64.

    Source: Chan, Golub, LeVeque 1979, Updating formulae and a pairwise algorithm for computing sample variances.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        values = values.double()
        count, mean = len(values), values.mean(0)
        gap, total = mean - self.mean.to(mean.device), self.count + count
        self.squares = (
            self.squares.to(mean.device) + (values - mean).square().sum(0) + gap**2 * self.count * count / total
        )
        self.mean = self.mean.to(mean.device) + gap * count / total
        self.count = total
