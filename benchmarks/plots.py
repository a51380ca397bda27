"""Two kinds of figure: speed-up against density with the crossover marked, and time against size."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .rows import OURS
from .saved import Run, Taken, crossover

COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#000000",
    "#999999",
    "#882255",
)  # safe for most eyes


def draw(run: Run, name: str, folder: Path) -> list[Path]:
    """Draws what the run has points for, one file a figure: NAME-OP-density.png, NAME-OP-size.png."""
    written = []
    for op in run.ops:
        rows = [row for row in run.rows if row.op == op]
        for suffix, figure in (("density", _by_density(run, rows)), ("size", _by_size(rows))):
            if figure is not None:
                written.append(folder / f"{name}-{op}-{suffix}.png")
                figure.savefig(written[-1], dpi=130)
    return written


def _by_density(run: Run, rows: list[Taken]) -> Figure | None:
    curves = {}
    for group, dtype in dict.fromkeys((row.group, row.dtype) for row in rows):
        points = run.speedups(group, dtype)
        if len(points) > 1:
            curves[f"{group.split(', ', 1)[1]}, {dtype}"] = points
    if not curves:
        return None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for i, (label, points) in enumerate(curves.items()):
        densities, ratios = zip(*points, strict=True)
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(densities, ratios, "o-" if i < len(COLOURS) else "o--", color=colour, label=label, markersize=4)
        if (at := crossover(points)) is not None:
            axes.plot([at], [1], "X", color=colour, markersize=9, markeredgecolor="black")
            axes.annotate(f"{at:.2g}", (at, 1), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="density", ylabel="times faster than the best dense (below 1: slower)")
    axes.set_title(f"{rows[0].op}: speed-up against density, X where it crosses dense")
    _finish(axes)
    return figure


def _by_size(rows: list[Taken]) -> Figure | None:
    rows = [row for row in rows if row.size is not None]
    kinds = list(dict.fromkeys(_without_size(row) for row in rows))
    if len({row.size for row in rows}) < 2:
        return None
    figure = Figure(figsize=(6 * len(kinds), 5), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        sides = dict.fromkeys((row.side, row.kind) for row in rows if _without_size(row) == kind)
        for i, (side, whose) in enumerate(sides):
            points = sorted((r.size, r.ms) for r in rows if r.side == side and _without_size(r) == kind)
            style = "o-" if whose == OURS else "s--"
            axes.plot(*zip(*points, strict=True), style, color=COLOURS[i % len(COLOURS)], label=side, markersize=4)
        axes.set(xscale="log", yscale="log", xlabel="size", ylabel="ms", title=kind)
        _finish(axes)
    return figure


def _without_size(row: Taken) -> str:
    """The group's name without the part that says the size: what is compared in one panel."""
    parts = [part for part in row.group.split(", ") if f"{row.size / 1e6:g} M" not in part]
    return ", ".join(parts)


def _finish(axes: Axes) -> None:
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(fontsize=8)
