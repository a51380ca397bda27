"""Collapse curves: how little of a layer is left, against compression; figure 3 of Tanaka et al. 2020."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from .style import COLOURS, DEAD, INK, MARKERS, MUTED, bare

__all__ = ["SweepPoint", "collapse_figure"]


@dataclass(frozen=True)
class SweepPoint:
    """One run of a sweep.

    Attributes:
        criterion, seed: of the run.
        kept, total: weights.
        smallest: the least number that any layer keeps.
        collapsed: names of layers that keep nothing.
        connected: whether a path from input to output is left; None if unknown.
    """

    criterion: str
    seed: int
    kept: int
    total: int
    smallest: int
    collapsed: tuple[str, ...]
    connected: bool | None

    @property
    def compression(self) -> float:
        """All weights / those kept."""
        return self.total / max(self.kept, 1)


def collapse_figure(title: str, points: Sequence[SweepPoint], layers: int) -> Figure:
    """Weights left in the smallest layer against compression: one line a criterion and seed.

    Args:
        title: of the figure.
        points: at least one.
        layers: of the network; with as many weights as these each could keep one, and no more compression is possible.

    Raises:
        ValueError: there are no points.
    """
    if not points:
        raise ValueError("points must hold at least one run, got none")
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.add_subplot()
    criteria = list(dict.fromkeys(point.criterion for point in points))
    for number, criterion in enumerate(criteria):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        for seed in dict.fromkeys(point.seed for point in points):
            line = sorted(
                (p.compression, p.smallest, p.connected is False)
                for p in points
                if p.criterion == criterion and p.seed == seed
            )
            axes.plot([x for x, _, _ in line], [y for _, y, _ in line], color=colour, marker=marker, ms=5, lw=1.4)
            broken = [(x, y) for x, y, cut in line if cut]
            axes.plot(*zip(*broken, strict=True), "x", color=DEAD, ms=10) if broken else None
        axes.plot([], [], color=colour, marker=marker, label=criterion)
    axes.plot([], [], "x", color=DEAD, label="no path left")
    axes.axvline(points[0].total / layers, color=MUTED, lw=1, ls="--", label="one weight a layer")
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=-0.2)
    axes.set_xlabel("compression: all weights / those kept", fontsize=9, color=INK)
    axes.set_ylabel("weights left in the smallest layer", fontsize=9, color=INK)
    bare(axes, "both")
    axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, color=INK, weight="bold")
    return figure
