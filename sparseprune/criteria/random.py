"""Random: the baseline every criterion must beat, ``score ~ U(0, 1)``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..arguments import typed
from .base import Scores, Weights

__all__ = ["Random"]

_MIX = 0x9E3779B97F4A7C15


@typed
@dataclass(frozen=True, eq=False)
class Random:
    """``score ~ U(0, 1)``, the same for every device and dtype of the weights.

    The scores come from a private CPU stream, seeded by one number drawn from ``generator``: were they drawn from
    the generator itself, a model initialised under the same seed would get scores that rise with its weights.

    Args:
        generator: advanced by one draw a call. Without one, every call gives the same scores, which depend on
            the seed last given to ``torch.manual_seed``; the global generator is read, never advanced.

    Raises:
        TypeError: ``generator`` is not a ``torch.Generator``.
    """

    generator: torch.Generator | None = None

    def __call__(self, model: nn.Module, params: Weights) -> Scores:
        stream = torch.Generator().manual_seed(self._seed())
        return {
            name: torch.rand(weight.shape, generator=stream, dtype=torch.float32).to(weight.device)
            for name, weight in params.items()
        }

    def _seed(self) -> int:
        if self.generator is None:
            # Multiplied by an odd constant: the plain seed would repeat the stream that drew the weights.
            return (torch.initial_seed() + 1) * _MIX % 2**63
        device = self.generator.device
        return int(torch.randint(2**63 - 1, (), generator=self.generator, device=device))
