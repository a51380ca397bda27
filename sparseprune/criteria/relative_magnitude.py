"""Relative magnitude: weights beside the size that is usual in their layer, ``score = |w| / mean_l |w|``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .base import Scores, Weights

__all__ = ["RelativeMagnitude"]

SCALES = ("mean", "std")


@dataclass(frozen=True)
class RelativeMagnitude:
    """``score = |w| / s_l``, s_l the mean of |w| ("mean") or the standard deviation of w ("std") in layer l.

    A score below c is a weight that the rule ``|w| < c s_l`` removes, so one threshold serves all layers:
    ``sum((score >= c).sum() for score in scores.values())`` is how many to keep. The mean and the deviation run over the
    weights that are there: zeros are taken to be pruned.

    Args:
        scale: "mean" or "std" (of all that is there, divided by its number).

    Raises:
        ValueError: ``scale`` unknown.

    Source: the threshold by the layer's standard deviation: Han, Pool, Tran, Dally 2015, arXiv:1506.02626, section 3.
    """

    scale: str = "mean"

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(map(repr, SCALES))}, got {self.scale!r}")

    def __call__(self, model: nn.Module, params: Weights) -> Scores:
        return {name: self._relative(weight.detach()) for name, weight in params.items()}

    def _relative(self, weight: Tensor) -> Tensor:
        there = weight[weight != 0].double()
        if there.numel() == 0:
            return torch.zeros_like(weight)
        scale = float(there.abs().mean() if self.scale == "mean" else there.std(correction=0))
        return weight.abs() / (scale or 1.0)  # a layer of one constant has no deviation
