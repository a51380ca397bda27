"""Fourier amplitudes: keep the units that explain the variance of the output (Lauret 2006, by the extended FAST)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .base import Scores, Weights
from .batches import Batches, BatchLoss, batch_losses, check_data, check_examples
from .removals import ENTRIES, side_by_side, widest_from
from .taps import FOLLOWING, LAYERS, Tapped
from .units import broadcast, by_unit

__all__ = ["FourierAmplitude", "efast"]

CURVES = {"sin": lambda u: u, "arcsin": lambda u: u.arcsin() * (2 / math.pi)}
INDICES = ("first", "total")


def efast(
    function: Callable[[Tensor], Tensor],
    low: Tensor,
    high: Tensor,
    *,
    points: int = 513,
    harmonics: int = 4,
    curve: str = "arcsin",
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Shares of the variance of ``function`` that its factors explain, alone and with all others.

    ``q_h(s) = (low + high)/2 + (high - low)/2 G(sin(w_h s + phi_h))`` for s on ``points`` places of a circle, G the identity
    ("sin") or ``(2/pi) arcsin`` ("arcsin", evenly spread factors). For each factor in turn w_h is high and that of all
    others low; the first index is the share of the power at w_h and its harmonics, the total one that above w_h / 2.

    Args:
        function: (points, K) -> (points, ...); variances of several outputs are added.
        low, high: (K,), the factors' ranges.

    Returns:
        First and total indices, (K,) each, zero where nothing varies.

    Source: Saltelli, Tarantola, Chan 1999, A quantitative model-independent method for global sensitivity analysis.

    >>> first, total = efast(lambda q: 3 * q[:, 0] + 2 * q[:, 1] + q[:, 2], -torch.ones(3), torch.ones(3), curve="sin")
    >>> (14 * first).round(decimals=3).tolist()
    [9.0, 4.0, 1.0]
    """
    count, fast = len(low), (points - 1) // (2 * harmonics)
    slowest = max(fast // (2 * harmonics), 1)
    phases = torch.rand(count, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 * math.pi
    s = torch.arange(points, dtype=torch.float64) * (2 * math.pi / points)
    first, total = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for factor in range(count):
        others = torch.arange(count - 1) % slowest + 1
        if slowest >= count - 1:
            others = torch.linspace(1, slowest, count - 1, dtype=torch.float64).long()
        frequency = torch.cat([others[:factor], torch.tensor([fast]), others[factor:]])
        wave = CURVES[curve](torch.sin(s[:, None] * frequency + phases[factor])).to(low)
        value = function((low + high) / 2 + (high - low) / 2 * wave).reshape(points, -1).double().cpu()
        power = torch.fft.rfft(value - value.mean(0), dim=0).abs().square().sum(1)
        everything = power.sum()
        if everything > 0:
            first[factor] = power[fast : fast * harmonics + 1 : fast].sum() / everything
            total[factor] = 1 - power[: fast // 2 + 1].sum() / everything
    return first, total


@dataclass(frozen=True, eq=False)
class FourierAmplitude:
    """The share of the output's variance that a unit explains when all units of its layer vary over their ranges.

    The factors are the units' values behind batch norm and activation, each over the range that it has on the data (a
    map's mean over positions, and the whole map is set to it); what bypasses the layer is computed from the mean input.
    Each layer is taken by itself, so scores compare its units, and layers by shares. All weights that come into a unit
    get its score. The model's rest is run ``points`` times for each unit.

    Args:
        batches: any number of (input, target), examples in the first dimension; held in memory; targets are not used.
        index: "first" (the unit alone) or "total" (with its interactions).
        points: on the search curve; at least 2 * harmonics * (4 * harmonics) + 1 to tell a unit from the others.
        harmonics: of a unit's frequency that count as its own.
        curve: "arcsin" (evenly spread values) or "sin".
        seed: of the random phases.

    Raises:
        TypeError: ``batches`` not an iterable of pairs.
        ValueError: an argument unknown or out of range, no batch, a weight that is not of linear and convolution layers.

    Source: Lauret, Fock, Mara 2006, A node pruning algorithm based on a Fourier amplitude sensitivity test method, IEEE
    Transactions on Neural Networks 17 (2).
    """

    batches: Batches
    index: str = "first"
    points: int = 513
    harmonics: int = 4
    curve: str = "arcsin"
    seed: int = 0

    def __post_init__(self) -> None:
        check_data(_no_loss, self.batches)
        for name, value, choices in (("index", self.index, INDICES), ("curve", self.curve, CURVES)):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
        if not isinstance(self.harmonics, int) or self.harmonics < 1:
            raise ValueError(f"harmonics must be a positive integer, got {self.harmonics!r}")
        least = 8 * self.harmonics**2 + 1
        if not isinstance(self.points, int) or self.points < least:
            raise ValueError(f"points must be an integer of at least {least}, got {self.points!r}")

    def __call__(self, model: nn.Module, params: Weights) -> Scores:
        with batch_losses(model, params, _no_loss) as loss, torch.no_grad():
            low, high, mean = self._ranges(loss)
            scores = {name: self._shares(loss, name, low[name], high[name], mean) for name in params if name in low}
        zeros = {name: weight.detach().new_zeros(len(weight)) for name, weight in params.items()}
        return broadcast({name: scores.get(name, zero).to(zero) for name, zero in zeros.items()}, params)

    def _ranges(self, loss: BatchLoss) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Least and largest value of every unit, and the mean input, (1, ...)."""
        low: dict[str, Tensor] = {}
        high: dict[str, Tensor] = {}
        total, examples = None, 0
        for batch in self.batches:
            inputs, _ = loss.split(batch)
            for call in Tapped(loss, inputs, units=True).calls:
                values = by_unit(call, call.output).mean(2)
                for ends, found, keep in ((low, values.amin(0), torch.minimum), (high, values.amax(0), torch.maximum)):
                    ends[call.name] = keep(ends[call.name], found) if call.name in ends else found
            total = inputs.sum(0, keepdim=True) + (0 if total is None else total)
            examples += len(inputs)
        check_examples(examples)
        return low, high, total / examples if total.is_floating_point() else inputs[:1]

    def _shares(self, loss: BatchLoss, name: str, low: Tensor, high: Tensor, mean: Tensor) -> Tensor:
        copies = max(1, ENTRIES // widest_from(loss, name, mean))

        def output(values: Tensor, inputs: Tensor) -> Tensor:
            with _Replaced(loss.weights[name], values):
                return loss.output(inputs)

        def function(points: Tensor) -> Tensor:
            return torch.cat([side_by_side(output, chunk, mean) for chunk in points.split(copies)])

        options = {"points": self.points, "harmonics": self.harmonics, "curve": self.curve, "seed": self.seed}
        return efast(function, low, high, **options)[self.index == "total"]


def _no_loss(output: Tensor, target: Tensor) -> Tensor:
    return output.mean()


class _Replaced(TorchFunctionMode):
    """The units of a layer have the values given, (K,), whatever comes into them."""

    def __init__(self, weight: Tensor, values: Tensor) -> None:
        super().__init__()
        self._weight, self._values, self._set = weight, values, []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in FOLLOWING and args and any(args[0] is value for value in self._set):
            return args[0]  # the value is that behind the activation
        result = func(*args, **kwargs)
        if func not in LAYERS or not any(value is self._weight for value in (*args, *kwargs.values())):
            return result
        values = self._values if func is F.linear else self._values.reshape(-1, *[1] * (result.dim() - 2))
        self._set.append(torch.zeros_like(result) + values)
        return self._set[-1]
