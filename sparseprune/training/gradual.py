"""Gradual magnitude pruning: the density follows a schedule while the network trains."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn

from ..arguments import typed
from ..masks import Masks
from ..nn import held_masks, sparsify
from ..ops.products import Product
from ..patterns import Global, Pattern
from ..prunable import Exclude, all_kept
from ..schedules import cubic
from .method import Method, check_count


class GradualPruning(Method):
    """Every ``every`` steps from ``begin`` to ``end`` the smallest |w| go, so that d(t) is the schedule's.

        t = (step - begin) / (end - begin),   kept = round(d0 schedule(d / d0, t) n)

    With ``cubic`` and d0 the density at the start, that is d + (d0 - d)(1 - t)^3 (Zhu and Gupta's AGP). With
    ``end == begin`` all of it happens at that step: one shot, then fine-tuning. Pruned weights stay pruned.

    Args:
        model: its linear and 2-D convolution weights become sparse layers at once; masks it holds are where it starts.
        optimizer: of its parameters.
        density: the final one, kept / prunable weights.
        begin, end, every: in optimizer steps; the event at ``end`` takes place even if ``every`` does not lead there.
        schedule: ``(density, progress) -> density``; see ``sparseprune.schedules``.
        pattern: ``Global()`` or ``LayerWise(allocation)``.
        exclude: what is never pruned; see ``prunable``.

    Raises:
        TypeError, ValueError: an argument is wrong.

    Source: Zhu and Gupta 2017, arXiv:1710.01878, equation 1.
    """

    @typed
    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        *,
        density: float,
        begin: int,
        end: int,
        every: int = 100,
        schedule: Callable[[float, float], float] = cubic,
        pattern: Pattern = Global(),
        exclude: Exclude | Collection[Exclude] = (),
    ) -> None:
        every_one, held = all_kept(model, exclude), held_masks(model)
        start = Masks({name: held.get(name, mask) for name, mask in every_one.items()})
        if isinstance(density, bool) or not isinstance(density, (int, float)) or not 0 < density <= start.density:
            raise ValueError(f"density must be in (0, {start.density:.4g}], the present one, got {density!r}")
        self.begin, self.every = check_count("begin", begin), check_count("every", every)
        self.end = check_count("end", end, begin)
        self.density, self.schedule, self.pattern = density, schedule, pattern
        sparsify(model, start, optimizer=optimizer)
        super().__init__(model, optimizer)
        self.names = list(start)
        self.start, self.total = start.count(), start.numel()

    def target(self, step: int) -> int:
        """How many weights are kept after the event at ``step``."""
        if step >= self.end:
            return round(self.density * self.total)
        progress = (step - self.begin) / (self.end - self.begin)
        return round(self.start * self.schedule(self.density * self.total / self.start, progress))

    def _advance(self) -> bool:
        due = self.begin <= self.steps <= self.end
        if not due or ((self.steps - self.begin) % self.every and self.steps != self.end):
            return False
        held, weights = self.masks, self._weights()
        masks = Masks({name: held[name] for name in self.names})
        scores = {name: Product(weights[name], None, "|w|") for name in self.names}
        keep = min(self.target(self.steps), masks.count())
        self._hold(self.pattern.select(scores, masks, keep, dict.fromkeys(self.names, 0)))
        return True

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "start": self.start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.start = state["start"]
