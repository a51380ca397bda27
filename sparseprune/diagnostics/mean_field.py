"""Mean-field gains: the weight scale at which signals and gradients neither grow nor vanish with depth.

Pre-activations are N(0, q); with weights of variance gain^2 / fan_in and biases of variance bias_std^2,
``q = gain^2 E[phi(sqrt(q) z)^2] + bias_std^2`` and ``chi = gain^2 E[phi'(sqrt(q) z)^2]``, z ~ N(0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ..arguments import typed

__all__ = ["mean_field_chi", "mean_field_gain"]

Activation = str | Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": torch.clone,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky_relu": torch.nn.functional.leaky_relu,
}


@typed
def mean_field_chi(activation: Activation, gain: float, variance: float) -> float:
    """``gain^2 E[phi'(sqrt(variance) z)^2]``: the mean squared singular value of a wide layer's Jacobian.

    Above 1 gradients explode with depth, below 1 they vanish.

    Args:
        activation: "linear", "tanh", "relu", "leaky_relu" or any elementwise function of a tensor.
        gain: weights have standard deviation ``gain / sqrt(fan_in)``.
        variance: q, of the pre-activations.

    Raises:
        ValueError: unknown activation; a gain or variance that is negative or not finite.

    Source: Poole et al. 2016, arXiv:1606.05340, eq. 5; Schoenholz et al. 2017, arXiv:1611.01232, eq. 5.

    >>> round(mean_field_chi("relu", 2**0.5, 3.0), 6)
    1.0
    """
    for name, value in (("gain", gain), ("variance", variance)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and not negative, got {value!r}")
    return gain**2 * _moments(_function(activation), variance)[1]


@typed
def mean_field_gain(activation: Activation, *, bias_std: float = 0.0) -> float:
    """The critical gain: ``chi = 1`` at the fixed point of the variance map.

    Without biases it is 1 for tanh (the fixed point is q = 0) and sqrt(2) for ReLU (every q is one). Give it to
    ``models.initialize_(model, "orthogonal", gain=...)``, or "delta_orthogonal" for convolutions.

    Args:
        activation: as for :func:`mean_field_chi`.
        bias_std: standard deviation of the biases.

    Raises:
        ValueError: unknown activation; ``bias_std`` negative, or one for which no gain is critical (ReLU with any).

    Source: Schoenholz et al. 2017, arXiv:1611.01232, section 3; Lee et al. 2020, arXiv:1906.06307, section 4.

    >>> round(mean_field_gain("tanh"), 6), round(mean_field_gain("relu"), 6)
    (1.0, 1.414214)
    """
    function = _function(activation)
    if not 0 <= bias_std < math.inf:
        raise ValueError(f"bias_std must be finite and not negative, got {bias_std!r}")
    low, high = 0.0, 0.0
    if bias_std > 0:
        # The bias variance that makes q critical, q - E[phi^2] / E[phi'^2], grows with q: bracket, then halve.
        high = bias_std**2
        while _critical_bias(function, high) < bias_std**2:
            high *= 2
            if high > 1e6:
                raise ValueError(f"bias_std must leave a critical gain for this activation, got {bias_std!r}")
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if _critical_bias(function, middle) < bias_std**2 else (low, middle)
    # At q = 0 exactly a kink there would be seen from one side only.
    slope = _moments(function, high or 1e-24)[1]
    if not slope > 0:
        raise ValueError("activation must have a slope that is not zero everywhere, got one that has")
    return 1 / math.sqrt(slope)


def _critical_bias(function: Callable[[Tensor], Tensor], variance: float) -> float:
    square, slope = _moments(function, variance)
    return variance - square / slope


def _function(activation: Activation) -> Callable[[Tensor], Tensor]:
    if callable(activation):
        return activation
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be a function or one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    return ACTIVATIONS[activation]


def _moments(function: Callable[[Tensor], Tensor], variance: float) -> tuple[float, float]:
    """E[phi(sqrt(q) z)^2] and E[phi'(sqrt(q) z)^2]."""
    nodes, weight = _quadrature()
    with torch.enable_grad():
        h = (math.sqrt(variance) * nodes).requires_grad_()
        value = function(h)
        (slope,) = torch.autograd.grad(value.sum(), h)
    return (weight @ value.detach() ** 2).item(), (weight @ slope**2).item()


@cache
def _quadrature() -> tuple[Tensor, Tensor]:
    """Nodes and weights of a standard normal (Gauss-Hermite); an even number of nodes avoids a kink at 0."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(180)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
