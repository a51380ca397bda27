"""Linear maps and maxima over the positions of a feature map [channels, positions], the same for every channel."""

from __future__ import annotations

import torch
from torch import Tensor

from . import backends


def map_positions(
    x: Tensor, starts: Tensor, sources: Tensor, factors: Tensor, *, backend: str = backends.DEFAULT
) -> Tensor:
    """``y[:, j]``, the sum of ``factors[e] x[:, sources[e]]`` over e from ``starts[j]`` to ``starts[j + 1]``.

    Args:
        x: [C, P], float32 or float64.
        starts: int32 [width + 1], ascending from 0 to n.
        sources: int32 [n], positions of x.
        factors: [n], of x's dtype.

    Returns:
        [C, width].
    """
    return backends.call_again("map_positions", MAP, backend, x, starts, sources, factors)


def max_positions(x: Tensor, windows: Tensor, width: int, *, backend: str = backends.DEFAULT) -> tuple[Tensor, Tensor]:
    """``y[:, j] = max_t x[:, windows[j, t]]``, and which position it was: the first, where several are largest.

    Args:
        x: [C, P], float32 or float64.
        windows: int32 [n, taps]; negative entries are no positions.
        width: of the results, at least n; beyond n they are 0 and -1.
    """
    y, winners = backends.call_again("max_positions", MAX, backend, x, windows, width)
    return y, winners


def max_positions_grad(grad: Tensor, winners: Tensor, width: int, *, backend: str = backends.DEFAULT) -> Tensor:
    """The gradient [C, width] of x from that of :func:`max_positions`."""
    return backends.call_again("max_positions_grad", MAX_GRAD, backend, grad, winners, width)


def map_reference(x: Tensor, starts: Tensor, sources: Tensor, factors: Tensor) -> Tensor:
    to = torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff().long())
    return x.new_zeros(x.shape[0], len(starts) - 1).index_add_(1, to, x[:, sources.long()] * factors)


def max_reference(x: Tensor, windows: Tensor, width: int) -> list[Tensor]:
    y, winners = x.new_zeros(x.shape[0], width), torch.full((x.shape[0], width), -1, dtype=torch.int32)
    for j, window in enumerate(windows):
        positions = window[window >= 0].long()
        if len(positions):
            values = x[:, positions]
            y[:, j] = values.amax(1)
            first = (values == y[:, j : j + 1]).int().argmax(1)
            winners[:, j] = positions[first].int()
    return [y, winners]


def max_grad_reference(grad: Tensor, winners: Tensor, width: int) -> Tensor:
    x_grad = grad.new_zeros(grad.shape[0], width + 1)  # the last for those without a winner
    return x_grad.scatter_add_(1, winners.long().where(winners >= 0, width), grad)[:, :width].contiguous()


MAP = {"native": backends.native("map_positions"), "reference": backends.reference(map_reference)}
MAX = {"native": backends.native("max_positions"), "reference": backends.reference(max_reference)}
MAX_GRAD = {"native": backends.native("max_positions_grad"), "reference": backends.reference(max_grad_reference)}
