"""Magnitude: keep the largest weights, ``score = |w|``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..ops.products import Product
from .base import ProductCriterion, Weights

__all__ = ["Magnitude"]


@dataclass(frozen=True)
class Magnitude(ProductCriterion):
    """``score = |w|``.

    Over a whole network at initialisation this ranks layers by their initial spread and empties the widest
    first; after training it is the usual choice.

    Source: Janowsky 1989; Han et al. 2015, arXiv:1506.02626.
    """

    def products(self, model: nn.Module, params: Weights) -> dict[str, Product]:
        return {name: Product(weight.detach(), None, "|w|") for name, weight in params.items()}
