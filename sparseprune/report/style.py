"""The look of all figures: colours, number formats, bare axes."""

from __future__ import annotations

from matplotlib.axes import Axes

INK = "#2b2f36"
MUTED = "#7b828c"
GRID = "#e4e7eb"
DEAD = "#c62f2f"
# Distinguishable with the common colour blindnesses, and none near the red that marks dead layers.
COLOURS = ("#2f6db3", "#e8912d", "#2f9e77", "#8d5bb5", "#56b4e9", "#8c6d46", "#d277b0", "#6b7280")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "d")


def percent(value: float) -> str:
    """A share in [0, 1] with three significant digits: 12.5 %, 0.0312 %; plain 0 and 100."""
    if value in (0.0, 1.0):
        return f"{value * 100:.0f} %"
    # Rounded first: 0.99999 % is written 1.00 %, not 1.000 %.
    share = float(f"{value * 100:.3g}")
    if share >= 0.001:
        digits = 1 if share >= 10 else 2 if share >= 1 else 3 if share >= 0.1 else 4
        return f"{share:.{digits}f} %"
    return f"{share:.1e} %"


def percent_tick(value: float, _: object = None) -> str:
    """An axis tick given in percent: 0.01 %, 5 %."""
    return f"{value:g} %"


def bare(axes: Axes, grid: str) -> None:
    """Leave the frame out and draw a pale grid along ``grid`` ("x", "y" or "both")."""
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", length=0, colors=INK, labelsize=8)
    axes.grid(True, axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
