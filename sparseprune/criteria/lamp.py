"""LAMP: magnitude that is fair between layers, ``score = w_u^2 / sum of w_v^2 over the layer's |w_v| >= |w_u|``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .base import Scores, Weights

__all__ = ["LAMP"]


@dataclass(frozen=True)
class LAMP:
    """The share of a weight in what would be left of its layer's squared norm, were all smaller ones removed.

    The largest weight of every layer scores 1, so no layer is emptied while another has two weights left. Among equal
    magnitudes the first stands before the others.

    Source: Lee, Park, Mo, Ahn, Shin 2021, arXiv:2010.07611, eq. 4.
    """

    def __call__(self, model: nn.Module, params: Weights) -> Scores:
        return {name: _share_of_survivors(weight.detach()) for name, weight in params.items()}


def _share_of_survivors(weight: Tensor) -> Tensor:
    squares = weight.flatten().double().square()
    ordered, order = squares.sort(descending=True, stable=True)
    # A layer of zeros has no norm to share.
    shares = ordered / ordered.cumsum(0).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.empty_like(shares).scatter_(0, order, shares).reshape(weight.shape)
