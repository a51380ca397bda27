"""Figures of diagnostics: singular values, conservation, distributions, kernels, agreement of masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ..diagnostics import Analysis, Distribution, Pair, Stability
from .density import ROW_INCHES, prepare_rows
from .style import COLOURS, INK, MUTED, bare, percent_tick

COLUMNS = 4
MOST_PANELS = 24
DENSE, PRUNED = COLOURS[7], COLOURS[0]


def layers_figure(analysis: Analysis) -> Figure:
    """Kept weights of each layer, and of these the ones on a path from input to output."""
    rows = analysis.summary.rows
    figure = _figure(9, 1.1 + ROW_INCHES * max(len(rows), 4))
    axes = figure.add_subplot()
    prepare_rows(axes, [row.name for row in rows], [row.density for row in rows])
    places = range(len(rows))
    axes.barh(places, [row.density * 100 for row in rows], height=0.72, color=COLOURS[4], label="kept")
    if all(row.effective_density is not None for row in rows):
        alive = [row.effective_density * 100 for row in rows]
        axes.barh(places, alive, height=0.36, color=PRUNED, label="on a path")
    axes.legend(fontsize=8, frameon=False)
    return figure


def spectra_figure(analysis: Analysis) -> Figure:
    """Left: the singular values of the input-output Jacobian; right: mean and range of every layer's.

    Raises:
        ValueError: the analysis has none of them.
    """
    if analysis.network is None and not analysis.layers:
        raise ValueError("analysis must have singular values to draw, got one without")
    figure = _figure(12, max(3.4, 1.2 + ROW_INCHES * len(analysis.layers)))
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
    if analysis.network is not None:
        _draw_values(left, analysis.network)
    else:
        left.set_axis_off()
    _draw_layers(right, analysis.layers)
    return figure


def _draw_values(axes: Axes, pair: Pair) -> None:
    bare(axes, "both")
    for name, spectrum, colour in (("dense", pair.dense, DENSE), ("pruned", pair.pruned, PRUNED)):
        values = spectrum.values
        ranks = range(1, values.shape[1] + 1)
        axes.fill_between(ranks, values.amin(0), values.amax(0), color=colour, alpha=0.25, linewidth=0)
        axes.plot(ranks, values.mean(0), color=colour, label=name, marker="." if len(ranks) < 30 else "")
    _log_if_positive(axes.set_yscale, [pair.dense.min, pair.pruned.min])
    axes.set_title("singular values of the input-output Jacobian", loc="left", fontsize=9.5, color=INK)
    axes.set_xlabel("rank; mean and range over the inputs", fontsize=8, color=MUTED)
    axes.legend(fontsize=8, frameon=False)


def _draw_layers(axes: Axes, layers: Mapping[str, Pair]) -> None:
    bare(axes, "x")
    for shift, colour, part in ((-0.15, DENSE, "dense"), (0.15, PRUNED, "pruned")):
        spectra = [getattr(pair, part) for pair in layers.values()]
        places = [row + shift for row in range(len(layers))]
        # On a logarithmic axis a rank that was lost has no place: the bar ends at the mean's millionth.
        low = [max(s.min, s.mean * 1e-6) for s in spectra]
        axes.hlines(places, low, [s.max for s in spectra], color=colour, linewidth=2, alpha=0.45)
        axes.plot([s.mean for s in spectra], places, "o", color=colour, markersize=5, label=part)
    means = [s.mean for pair in layers.values() for s in (pair.dense, pair.pruned)]
    _log_if_positive(axes.set_xscale, means)
    axes.axvline(1, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(layers)), list(layers))
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_title("mean and range of each layer's Jacobian; 1 is isometry", loc="left", fontsize=9.5, color=INK)


def conservation_figure(analysis: Analysis) -> Figure:
    """The largest residual of each stream in units of its largest flow.

    Raises:
        ValueError: the analysis has no flows.
    """
    if analysis.conservation is None:
        raise ValueError("analysis must have conservation residuals to draw, got one without")
    streams = analysis.conservation.streams
    figure = _figure(9, 1.1 + ROW_INCHES * max(len(streams), 4))
    axes = figure.add_subplot()
    bare(axes, "x")
    floor = 1e-17
    axes.barh(range(len(streams)), [max(s.relative, floor) for s in streams], height=0.72, color=PRUNED)
    axes.set_xscale("log")
    axes.set_xlim(floor, 10)
    labels = [f"{_short(s.writers)} → {_short(s.readers)}" for s in streams]
    axes.set_yticks(range(len(streams)), labels)
    axes.set_ylim(len(streams) - 0.4, -0.6)
    axes.set_xlabel("largest |in - out| / largest flow; rounding is 1e-16", fontsize=8, color=MUTED)
    return figure


def distributions_figure(distributions: Mapping[str, Distribution]) -> Figure:
    """A histogram of each layer's weights, the kept ones in front; the first 24 layers."""

    def draw(axes: Axes, part: Distribution) -> None:
        bare(axes, "y")
        for counts, colour in ((part.everything, DENSE), (part.kept, PRUNED)):
            axes.stairs(counts.numpy(), part.edges.numpy(), fill=True, color=colour, alpha=0.55)
        axes.set_yscale("symlog", linthresh=1)

    return _panels(distributions, draw, 1.9)


def kernels_figure(analysis: Analysis) -> Figure:
    """The share of weights kept at each kernel position; the first 24 convolutions.

    Raises:
        ValueError: there are no kernels of more than one position.
    """
    if not analysis.kernels:
        raise ValueError("analysis must have kernels to draw, got one without")
    flat = {name: kernel.reshape(-1, kernel.shape[-1]) for name, kernel in analysis.kernels.items()}

    def draw(axes: Axes, kernel) -> None:
        axes.imshow(kernel.numpy(), cmap="Blues", vmin=0)
        for row, line in enumerate(kernel.tolist()):
            for column, value in enumerate(line):
                dark = value > 0.6 * kernel.max().item()
                text = f"{value * 100:.3g}"
                axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else INK)
        axes.set_axis_off()

    return _panels(flat, draw, 2.2)


def stability_figure(stability: Stability, names: Sequence[str]) -> Figure:
    """Left: Jaccard index of each two masks; right: each layer's share of what is kept, over the masks."""
    count = len(names)
    figure = _figure(12, max(3.4, 1.2 + ROW_INCHES * len(stability.shares)))
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
    left.imshow(stability.matrix.numpy(), cmap="Blues", vmin=0, vmax=1)
    for i in range(count):
        for j in range(count):
            value = stability.matrix[i, j].item()
            colour = "white" if value > 0.6 else INK
            left.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    left.set_xticks(range(count), names, rotation=45, ha="right", fontsize=8)
    left.set_yticks(range(count), names, fontsize=8)
    left.set_title(f"Jaccard index; chance {stability.chance:.2f}", loc="left", fontsize=9.5, color=INK)
    bare(right, "x")
    for row, shares in enumerate(stability.shares.values()):
        right.hlines(row, shares.min().item() * 100, shares.max().item() * 100, color=PRUNED, alpha=0.45, linewidth=2)
        right.plot((shares * 100).tolist(), [row] * count, "o", color=PRUNED, markersize=4)
    right.set_yticks(range(len(stability.shares)), [name.removesuffix(".weight") for name in stability.shares])
    right.set_ylim(len(stability.shares) - 0.4, -0.6)
    right.xaxis.set_major_formatter(FuncFormatter(percent_tick))
    right.set_title("share of all kept weights, one dot a mask", loc="left", fontsize=9.5, color=INK)
    return figure


def _panels(parts: Mapping[str, object], draw, inches: float) -> Figure:
    shown = dict(list(parts.items())[:MOST_PANELS])
    rows = math.ceil(len(shown) / COLUMNS)
    figure = _figure(12, inches * rows + 0.2)
    grid = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for axes, (name, part) in zip(grid, shown.items(), strict=False):
        draw(axes, part)
        axes.set_title(name.removesuffix(".weight"), loc="left", fontsize=9, color=INK)
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    return figure


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _log_if_positive(set_scale, values: Sequence[float]) -> None:
    if values and min(values) > 0:
        set_scale("log")


def _short(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
