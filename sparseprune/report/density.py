"""Density by layer as horizontal bars; dead layers in red."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from ..files import write_atomically
from .runs import Layer, Run
from .style import COLOURS, DEAD, INK, MUTED, bare, percent, percent_tick

ROW_INCHES = 0.21
LOG_BELOW = 0.01


def density_figure(run: Run) -> Figure:
    """One run's density by layer.

    Args:
        run: a run with at least one layer.

    Returns:
        A figure that belongs to no window and no global state; ``save_figure`` writes it.

    Raises:
        ValueError: the run has no masks.
    """
    if not run.layers:
        raise ValueError(f"run must have masks to draw, got {run.name} without any")
    figure = Figure(figsize=(9, 1.5 + ROW_INCHES * max(len(run.layers), 4)), layout="constrained")
    axes = figure.add_subplot()
    draw_density(axes, run.layers)
    figure.suptitle(f"{run.model}, {run.criterion}", x=0.012, ha="left", fontsize=13, color=INK, weight="bold")
    dead = len(run.dead_layers)
    warning = f", {dead} dead layer{'s' if dead > 1 else ''}" if dead else ""
    axes.set_title(
        f"{run.kept:,} of {run.total:,} weights kept: density {percent(run.density)}{warning}",
        loc="left",
        fontsize=9,
        color=DEAD if dead else MUTED,
    )
    return figure


def draw_density(axes: Axes, layers: Sequence[Layer], colour: str = COLOURS[0]) -> None:
    """Draw one bar a layer, first layer on top, with counts; the dashed line is the network's density."""
    rows = range(len(layers))
    prepare_rows(axes, [layer.name for layer in layers], [layer.density for layer in layers])
    axes.barh(rows, [layer.density * 100 for layer in layers], height=0.72, color=colour, zorder=2)
    overall = sum(layer.kept for layer in layers) / max(sum(layer.total for layer in layers), 1)
    if overall > 0:
        axes.axvline(overall * 100, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=3)
    for row, layer in enumerate(layers):
        # A column beside the axis: next to the bars, the network's line would strike the numbers through.
        axes.annotate(
            f"{layer.kept:,} of {layer.total:,}",
            (1, row),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=DEAD if layer.dead else MUTED,
        )
        if layer.dead:
            axes.axhspan(row - 0.5, row + 0.5, color=DEAD, alpha=0.09, linewidth=0, zorder=0)
            axes.annotate(
                "dead",
                (0, row),
                xycoords=("axes fraction", "data"),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
                color=DEAD,
                weight="bold",
            )
            redden(axes, row)


def prepare_rows(axes: Axes, names: Sequence[str], densities: Sequence[float]) -> float:
    """Set up rows named after layers and a percent axis, logarithmic when a living layer is below 1 %.

    Returns:
        The left end of the axis, in percent.
    """
    bare(axes, "x")
    axes.set_yticks(range(len(names)), [name.removesuffix(".weight") for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("kept weights, share of the layer", fontsize=8, color=MUTED)
    low, high = 0.0, max([*densities, 0.01]) * 105
    living = [density for density in densities if density > 0]
    if living and min(living) < LOG_BELOW:
        # A power of ten somewhat below the shortest bar, so that this one still has a length.
        low = 10.0 ** math.floor(math.log10(min(living) * 100 * 0.7))
        high = 100.0
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(percent_tick))
    axes.set_xlim(low, min(high, 100))
    return low


def redden(axes: Axes, row: int) -> None:
    """Write a row's name in the colour of dead layers."""
    axes.get_yticklabels()[row].set_color(DEAD)


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int = 150) -> None:
    """Write the figure as PNG, whole or not at all."""
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=dpi, facecolor="white"))
