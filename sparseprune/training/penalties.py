"""Penalties that draw weights towards zero while training, as losses and as gradients of their own.

    l1                  strength sum |w|                                        gradient  strength sign(w)
    l2                  strength / 2 sum w^2                                    gradient  strength w
    weight_elimination  strength / 2 sum u^2 / (1 + u^2), u = w / scale         gradient  strength (w / scale^2) / (1 + u^2)^2
    two_scale           strength sum beta w^2 / (1 + beta w^2) + decay sum w^2  gradient  2 strength beta w / (1 + beta w^2)^2 + 2 decay w

Each works on the weights of linear and convolution layers; biases and norms are spared. Pruned weights are zero, where
all four and their gradients are zero. ``penalty.value(w)`` may be added to a loss, and Adam then rescales its gradient;
``penalty.add_gradients_(model)`` after ``backward()`` adds the same gradient without a graph.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..prunable import Exclude, prunable_parameters


class Penalty:
    """Base: a sum over weights. Call it with a model for the sum over all its prunable weights, with a graph."""

    def value(self, weight: Tensor) -> Tensor:
        """The penalty of one tensor, differentiable."""
        raise TypeError(f"{type(self).__name__} must define value")

    def gradient(self, weight: Tensor) -> Tensor:
        """d value / d weight, in closed form."""
        raise TypeError(f"{type(self).__name__} must define gradient")

    def __call__(self, model: nn.Module, exclude: Exclude | Collection[Exclude] = ()) -> Tensor:
        return torch.stack([self.value(weight) for weight in prunable_parameters(model, exclude)]).sum()

    @torch.no_grad()
    def add_gradients_(self, model: nn.Module, exclude: Exclude | Collection[Exclude] = ()) -> None:
        """Add the gradients to ``weight.grad``, of weights that have one."""
        for weight in prunable_parameters(model, exclude):
            if weight.grad is not None:
                weight.grad += self.gradient(weight)


def _check(**numbers: float) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")


@dataclass(frozen=True)
class L1(Penalty):
    """strength sum |w|."""

    strength: float = 1e-4

    def __post_init__(self) -> None:
        _check(strength=self.strength)

    def value(self, weight: Tensor) -> Tensor:
        return self.strength * weight.abs().sum()

    def gradient(self, weight: Tensor) -> Tensor:
        return self.strength * weight.sign()


@dataclass(frozen=True)
class L2(Penalty):
    """strength / 2 sum w^2."""

    strength: float = 1e-4

    def __post_init__(self) -> None:
        _check(strength=self.strength)

    def value(self, weight: Tensor) -> Tensor:
        return self.strength / 2 * weight.square().sum()

    def gradient(self, weight: Tensor) -> Tensor:
        return self.strength * weight


@dataclass(frozen=True)
class WeightElimination(Penalty):
    """strength / 2 sum u^2 / (1 + u^2), u = w / scale: counts large weights, and lets them be.

    Source: Weigend et al. 1991, Generalization by weight-elimination, NIPS 3, equation 2.

    >>> WeightElimination(strength=2.0).value(torch.tensor([1.0, 3.0]))
    tensor(1.4000)
    """

    strength: float = 1e-4
    scale: float = 1.0

    def __post_init__(self) -> None:
        _check(strength=self.strength, scale=self.scale)
        if not self.scale:
            raise ValueError("scale must be above 0, got 0")

    def value(self, weight: Tensor) -> Tensor:
        u = (weight / self.scale).square()
        return self.strength / 2 * (u / (1 + u)).sum()

    def gradient(self, weight: Tensor) -> Tensor:
        return self.strength * weight / self.scale**2 / (1 + (weight / self.scale).square()).square()


@dataclass(frozen=True)
class TwoScale(Penalty):
    """strength sum beta w^2 / (1 + beta w^2) + decay sum w^2: the second part also bounds large weights.

    Source: Setiono 1997, A penalty-function approach for pruning feedforward neural networks, equation 4.
    """

    strength: float = 0.1
    decay: float = 1e-5
    beta: float = 10.0

    def __post_init__(self) -> None:
        _check(strength=self.strength, decay=self.decay, beta=self.beta)

    def value(self, weight: Tensor) -> Tensor:
        square = weight.square()
        knee = (self.beta * square / (1 + self.beta * square)).sum()
        return self.strength * knee + self.decay * square.sum()

    def gradient(self, weight: Tensor) -> Tensor:
        knee = 2 * self.strength * self.beta * weight / (1 + self.beta * weight.square()).square()
        return knee + 2 * self.decay * weight
