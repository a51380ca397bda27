"""Karnin's sensitivity, gathered while training: ``S = -(sum_n g(n) dw(n)) w / (w - w0)``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import typed
from .base import Scores, Weights

__all__ = ["KarninSensitivity", "Trajectory"]


class Trajectory:
    """What each weight did to the loss along its way: ``sum_n g(n) . (w(n+1) - w(n))`` over the optimizer's steps.

    For plain SGD with learning rate eta a step adds ``-(w(n+1) - w(n))^2 / eta``; here the gradients themselves are
    used, so momentum, weight decay and other optimizers are right, too. Costs a copy of the weights and the sums.

    Args:
        model: as it is at the start of the window.
        optimizer: of its parameters; steps are watched until ``close()``.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    >>> with Trajectory(layer, optimizer) as trajectory:
    ...     layer(torch.ones(1, 1)).square().sum().backward()
    ...     optimizer.step()
    >>> list(trajectory.sums)
    ['weight']
    """

    @typed
    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        self._params = dict(model.named_parameters())
        self._before: dict[str, Tensor] = {}
        self._handles = [
            optimizer.register_step_pre_hook(self._remember),
            optimizer.register_step_post_hook(self._accumulate),
        ]
        self.reset()

    def reset(self) -> None:
        """Begin another window here, as after pruning."""
        self.initial = {name: p.detach().clone() for name, p in self._params.items()}
        self.sums = {name: torch.zeros_like(p, requires_grad=False) for name, p in self._params.items()}

    def close(self) -> None:
        """Watch no further steps; what was gathered stays."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> Trajectory:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _remember(self, *_: Any) -> None:
        self._before = {name: p.detach().clone() for name, p in self._params.items() if p.grad is not None}

    def _accumulate(self, *_: Any) -> None:
        for name, before in self._before.items():
            p = self._params[name]
            self.sums[name].addcmul_(p.grad, p.detach() - before)
        self._before = {}


@typed
@dataclass(frozen=True, eq=False)
class KarninSensitivity:
    """``S = -(sum_n g(n) dw(n)) w / (w - w0)``: the loss at ``w = 0`` less that at w, by the mean slope since w0.

    Weights that came back to where they started have no slope and score 0. S is negative where a weight moved towards
    zero from beyond; the published rule takes the absolute value.

    Args:
        trajectory: gathered while training from w0 to w.
        absolute: score |S|, as published; else S.

    Raises:
        TypeError: ``trajectory`` is not a :class:`Trajectory`.
        ValueError: it lacks one of the weights.

    Source: Karnin 1990, A simple procedure for pruning back-propagation trained neural networks, IEEE Transactions on
    Neural Networks 1 (2), eq. 5 to 10.
    """

    trajectory: Trajectory
    absolute: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.trajectory, Trajectory):
            raise TypeError(f"trajectory must be a Trajectory, got {type(self.trajectory).__name__}")

    def __call__(self, model: nn.Module, params: Weights) -> Scores:
        scores = {}
        for name, weight in params.items():
            if name not in self.trajectory.sums:
                raise ValueError(f"trajectory must hold {name!r}, got {', '.join(self.trajectory.sums)}")
            weight = weight.detach()
            way = weight - self.trajectory.initial[name]
            still = way.abs() <= torch.finfo(way.dtype).eps * weight.abs()
            score = -self.trajectory.sums[name] * weight / way.masked_fill(still, 1)
            scores[name] = (score.abs() if self.absolute else score).masked_fill(still, 0)
        return scores
