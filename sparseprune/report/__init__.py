"""Reports of runs: what a run folder holds, and figures of it."""

from .collapse import SweepPoint, collapse_figure
from .comparison import comparison_figure
from .density import density_figure, draw_density, save_figure
from .runs import Layer, Run, load_run

__all__ = [
    "Layer",
    "Run",
    "SweepPoint",
    "collapse_figure",
    "comparison_figure",
    "density_figure",
    "draw_density",
    "load_run",
    "save_figure",
]
