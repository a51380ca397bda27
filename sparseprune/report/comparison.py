"""Several runs in one figure: a table of results, density by layer, training curves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from .density import ROW_INCHES, draw_density, prepare_rows, redden
from .runs import Run
from .style import COLOURS, DEAD, GRID, INK, MARKERS, MUTED, bare, percent, percent_tick

MOST_BARS = 40
COLUMNS = ("run", "model", "criterion", "density", "kept", "dead layers", "best error", "last error")
# Where each column starts, as a share of the width; long run names get the most room.
COLUMN_STARTS = (0.03, 0.29, 0.46, 0.58, 0.67, 0.79, 0.88, 0.945)


def result_row(run: Run) -> tuple[str, ...]:
    """The cells of ``COLUMNS`` for one run; "-" where there is nothing to say."""
    return (
        run.name,
        run.model,
        run.criterion,
        percent(run.density),
        f"{run.kept:,}" if run.layers else "all",
        str(len(run.dead_layers)) if run.layers else "-",
        "-" if run.best_error is None else percent(run.best_error),
        "-" if run.final_error is None else percent(run.final_error),
    )


def comparison_figure(runs: Sequence[Run]) -> Figure:
    """Compare runs: one row of the table each, one panel a network, curves where any run has been trained.

    Runs over the same layers share a panel; a run alone in its panel is drawn as bars.

    Args:
        runs: at least one.

    Raises:
        ValueError: there are no runs.
    """
    if not runs:
        raise ValueError("runs must hold at least one run, got none")
    panels = _panels(runs)
    trained = any(run.history for run in runs)
    heights = [_panel_inches(runs, members) for members in panels]
    table_height = 0.45 + 0.26 * (len(runs) + 1)
    body_height = max(sum(heights), 5.2 if trained else 0.0)
    figure = Figure(figsize=(13, table_height + body_height), layout="constrained")
    table, body = figure.subfigures(2, 1, height_ratios=(table_height, body_height))
    _draw_table(table, runs, table_height)
    both = trained and panels
    left, right = body.subfigures(1, 2, width_ratios=(1.35, 1)) if both else (body, body)
    if panels:
        density_axes = left.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
        for axes, members in zip(density_axes, panels, strict=True):
            _draw_panel(axes, runs, members)
    if trained:
        # Beside a tall panel the curves would stretch over its whole height: they keep their own.
        spare = max(body_height - 7.0, 0.0) if both else 0.0
        upper = right.subfigures(2, 1, height_ratios=(body_height - spare, spare))[0] if spare else right
        _draw_curves(upper, runs)
    return figure


def _panels(runs: Sequence[Run]) -> list[list[int]]:
    def key(number: int) -> tuple[tuple[str, int], ...]:
        return tuple((layer.name, layer.total) for layer in runs[number].layers)

    masked = [number for number, run in enumerate(runs) if run.layers]
    first_seen = {layers: masked.index(number) for number in reversed(masked) for layers in [key(number)]}
    ordered = sorted(masked, key=lambda number: (first_seen[key(number)], number))
    return [list(members) for _, members in groupby(ordered, key=key)]


def _panel_inches(runs: Sequence[Run], members: Sequence[int]) -> float:
    layers = len(runs[members[0]].layers)
    rows = layers * len(members) if layers * len(members) <= MOST_BARS else layers
    return 0.9 + ROW_INCHES * max(rows, 4)


def _draw_table(figure: SubFigure, runs: Sequence[Run], inches: float) -> None:
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    first = 1 - 0.32 / inches
    for column, start in zip(COLUMNS, COLUMN_STARTS, strict=True):
        axes.text(start, first, column, fontsize=8.5, color=MUTED, va="center")
    for number, run in enumerate(runs):
        height = first - 0.26 * (number + 1) / inches
        axes.plot([0.018], [height], marker=_marker(number), color=_colour(number), markersize=7, clip_on=False)
        for column, start, text in zip(COLUMNS, COLUMN_STARTS, result_row(run), strict=True):
            alarming = column == "dead layers" and bool(run.dead_layers)
            weight = "bold" if column == "run" else "normal"
            axes.text(
                start,
                height,
                _shorten(text, column),
                fontsize=9,
                weight=weight,
                va="center",
                color=DEAD if alarming else INK,
            )


def _draw_panel(axes: Axes, runs: Sequence[Run], members: Sequence[int]) -> None:
    model = runs[members[0]].model
    if len(members) == 1:
        draw_density(axes, runs[members[0]].layers, _colour(members[0]))
        axes.set_title(f"density by layer: {runs[members[0]].name}", loc="left", fontsize=9.5, color=INK)
        return
    layers = runs[members[0]].layers
    every = [layer.density for number in members for layer in runs[number].layers]
    low = prepare_rows(axes, [layer.name for layer in layers], every)
    slot = 0.8 / len(members)
    # Bars while there is room for them; a network of fifty layers is easier read as dots.
    as_bars = len(members) * len(layers) <= MOST_BARS
    for order, number in enumerate(members):
        shift = (order + 0.5) * slot - 0.4
        living = [(row, layer) for row, layer in enumerate(runs[number].layers) if not layer.dead]
        heights, shares = [row + shift for row, _ in living], [layer.density * 100 for _, layer in living]
        if as_bars:
            axes.barh(heights, shares, height=slot * 0.9, color=_colour(number), zorder=2)
        else:
            axes.plot(
                shares,
                heights,
                marker=_marker(number),
                color=_colour(number),
                markersize=5,
                linestyle="none",
                zorder=3,
                clip_on=False,
            )
        for row, layer in enumerate(runs[number].layers):
            if layer.dead:
                redden(axes, row)
                axes.plot(
                    [low],
                    [row + shift],
                    marker="x",
                    color=DEAD,
                    markersize=6,
                    markeredgewidth=1.8,
                    linestyle="none",
                    zorder=4,
                    clip_on=False,
                )
    if not as_bars:
        axes.hlines(range(len(layers)), *axes.get_xlim(), color=GRID, linewidth=0.6, zorder=0)
    axes.set_title(f"density by layer: {model}", loc="left", fontsize=9.5, color=INK)


def _draw_curves(figure: SubFigure | Figure, runs: Sequence[Run]) -> None:
    error, loss = figure.subplots(2, 1, sharex=True)
    for number, run in enumerate(runs):
        if not run.history:
            continue
        epochs = [row.epoch for row in run.history]
        # A dot only where a line of one point would be invisible.
        style = {
            "color": _colour(number),
            "linewidth": 1.6,
            "marker": _marker(number) if len(epochs) == 1 else "",
        }
        error.plot(epochs, [row.test_error * 100 for row in run.history], **style)
        loss.plot(epochs, [row.train_loss for row in run.history], **style)
    for axes, title in ((error, "test error"), (loss, "training loss")):
        bare(axes, "both")
        axes.set_title(title, loc="left", fontsize=9.5, color=INK)
    error.yaxis.set_major_formatter(FuncFormatter(percent_tick))
    error.set_ylim(bottom=0)
    if all(row.train_loss > 0 for run in runs for row in run.history):
        loss.set_yscale("log")
        loss.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        loss.yaxis.set_minor_formatter(NullFormatter())
    loss.set_xlabel("epoch", fontsize=8, color=MUTED)
    loss.xaxis.set_major_locator(MaxNLocator(integer=True))


def _shorten(text: str, column: str) -> str:
    room = {"run": 34, "model": 22, "criterion": 16}.get(column, 20)
    return text if len(text) <= room else text[: room - 3] + "..."


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _marker(number: int) -> str:
    return MARKERS[number % len(MARKERS)]
