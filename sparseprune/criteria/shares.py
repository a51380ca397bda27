"""Shares: any criterion's scores divided by their sum over the network, ``score = s_j / sum_k |s_k|``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .base import Scores, Weights, check_criterion

__all__ = ["Shares"]


@dataclass(frozen=True, eq=False)
class Shares:
    """``score = s_j / sum_k |s_k|`` over all weights: ``Shares(SNIP(loss, batches))`` is SNIP as published.

    The order, and so every mask, is that of the criterion inside; the numbers can be compared between networks and
    batches. Scores that are all zero stay zero. The sum runs over all weights that are scored, pruned ones at zero.

    Args:
        criterion: any criterion.

    Raises:
        TypeError: ``criterion`` is not callable.

    Source: Lee, Ajanthan, Torr 2019, arXiv:1810.02340, eq. 6.

    >>> shares = Shares(lambda model, params: {"weight": torch.tensor([[1.0, 3.0]])})
    >>> shares(None, {})["weight"].tolist()
    [[0.25, 0.75]]
    """

    criterion: Callable[[nn.Module, Weights], Any]

    def __post_init__(self) -> None:
        check_criterion(self.criterion)

    def __call__(self, model: nn.Module, params: Weights) -> Scores:
        scores = self.criterion(model, params)
        total = sum(float(score.abs().sum(dtype=torch.float64)) for score in scores.values())
        return {name: score / total if total else score.clone() for name, score in scores.items()}
