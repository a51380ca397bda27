"""What a run of ``prune`` tells of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """What ``prune`` and ``prune_many`` tell their progress callback after every step.

    Attributes:
        step, steps: this step, counted from 1, and how many there are.
        kept, total: weights kept by now, of all prunable ones.
        run: which of ``prune_many``'s runs, counted from 0.
    """

    step: int
    steps: int
    kept: int
    total: int
    run: int = 0

    @property
    def density(self) -> float:
        return self.kept / self.total if self.total else 1.0


@dataclass(frozen=True)
class TraceStep:
    """What ``prune(..., trace=True)`` keeps of a step, in ``masks.trace``.

    Attributes:
        step: counted from 1.
        counts: weights kept by now, by layer.
        totals: of how many.
        log2_flow: log2 R of the network that was scored, before this step's pruning, for criteria that know it
            (SynFlow; -inf where nothing flows); else None.
    """

    step: int
    counts: Mapping[str, int]
    totals: Mapping[str, int]
    log2_flow: float | None = None

    @property
    def densities(self) -> dict[str, float]:
        """Kept / all, by layer."""
        return {name: count / max(self.totals[name], 1) for name, count in self.counts.items()}

    @property
    def density(self) -> float:
        """Kept / all, over all layers."""
        return sum(self.counts.values()) / max(sum(self.totals.values()), 1)

    @property
    def collapsed(self) -> tuple[str, ...]:
        """The layers that keep nothing."""
        return tuple(name for name, count in self.counts.items() if count == 0 and self.totals[name] > 0)
