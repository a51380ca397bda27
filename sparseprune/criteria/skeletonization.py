"""Skeletonization: keep the units that the error would miss, ``score = -dE/d alpha``, alpha the gate of a unit."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import typed
from .base import Scores, Weights
from .batches import Batches, Loss, batch_losses, check_data
from .outputs import loss_gradient
from .units import broadcast, gate_gradients

__all__ = ["Skeletonization", "linear_error"]


@typed
def linear_error(output: Tensor, target: Tensor) -> Tensor:
    """``(1/N) sum_n sum_j |t_nj - o_nj|``; for class labels o is the softmax of the output and t is one-hot.

    A squared error's derivative vanishes where the network is right, and with it all relevance; this one's does not.

    >>> linear_error(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 0.0]]))
    tensor(2.5000)
    """
    if not target.is_floating_point():
        output, target = output.softmax(1), F.one_hot(target, output.shape[1]).to(output)
    return (target - output).abs().sum() / len(output)


@typed
@dataclass(frozen=True, eq=False)
class Skeletonization:
    """Relevance of a unit, ``rho = -dE/d alpha``: to first order what the error rises by when the unit goes.

    alpha multiplies the unit's value behind batch norm and activation and is one. The batches are taken in order, a
    moving average forgets the early ones: ``rho(t+1) = decay rho(t) + (1 - decay) (-dE(t)/d alpha)``, divided by
    ``1 - decay^t`` so that the start at zero leaves no trace. All weights that come into a unit get its score, which
    is negative where removal is expected to help. Batch norm uses its running statistics, dropout is off.

    Args:
        loss: E: ``loss(output, target)`` -> one number; ``linear_error`` is the published one.
        batches: any number of (input, target), examples in the first dimension; their order counts.
        decay: of the moving average, in [0, 1).

    Raises:
        TypeError: ``loss`` not callable, ``batches`` not an iterable of pairs.
        ValueError: ``decay`` out of range, no batch, a weight used by something else than linear and convolution layers.

    Source: Mozer, Smolensky 1989, Skeletonization: a technique for trimming the fat from a network, section 2.
    """

    loss: Loss
    batches: Batches
    decay: float = 0.8

    def __post_init__(self) -> None:
        check_data(self.loss, self.batches)
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {self.decay}")

    def __call__(self, model: nn.Module, params: Weights) -> Scores:
        averages = {name: weight.detach().new_zeros(len(weight)) for name, weight in params.items()}
        steps = 0
        with batch_losses(model, params, self.loss) as loss:

            def gradient(output: Tensor, target: Tensor) -> list[Tensor]:
                return [loss_gradient(loss, output, target)]

            for count, [gates], _ in gate_gradients(loss, self.batches, gradient):
                steps += 1
                for name, average in averages.items():
                    average.mul_(self.decay).sub_(gates[name].sum(0), alpha=(1 - self.decay) / count)
        return broadcast({n: average / (1 - self.decay**steps) for n, average in averages.items()}, params)
