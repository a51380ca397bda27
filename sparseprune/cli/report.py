"""``sparseprune report``: one figure and one table of several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import arguments as shared
from .console import print_json, stderr
from .errors import sentences

WIDTH_OF_A_FILE = 160


@sentences
def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders written by prune or train.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="The figure. Default: report.png, of a single run in its folder."),
    ] = None,
    json: shared.Json = False,
    debug: shared.Debug = False,
) -> None:
    """Compare runs: density by layer, training curves, and a table of results.

    Example: sparseprune report runs/lenet-snip runs/lenet-random --out lenets.png
    """
    from ..report import comparison_figure, density_figure, load_run, save_figure

    loaded = [load_run(folder) for folder in runs]
    out = out or (runs[0] / "report.png" if len(runs) == 1 else Path("report.png"))
    single = len(loaded) == 1 and not loaded[0].history and bool(loaded[0].layers)
    figure = density_figure(loaded[0]) if single else comparison_figure(loaded)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, out)
    if json:
        rows = [
            {
                "run": str(folder),
                "model": run.model,
                "criterion": run.criterion,
                "density": run.density,
                "kept": run.kept,
                "total": run.total,
                "dead_layers": [layer.name for layer in run.dead_layers],
                "epochs": len(run.history),
                "best_error": run.best_error,
                "final_error": run.final_error,
            }
            for folder, run in zip(runs, loaded, strict=True)
        ]
        print_json({"runs": rows, "figure": str(out)})
        return
    _print_table(loaded)
    stderr().print(f"\nWrote {out}", style="green", markup=False, highlight=False)


def _print_table(runs: list) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from ..report.comparison import COLUMNS, result_row

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(COLUMNS):
        # Only the name may be broken, and only on a terminal that is too narrow.
        table.add_column(column, justify="left" if number < 3 else "right", no_wrap=number > 0, overflow="fold")
    for run in runs:
        table.add_row(*result_row(run), style="red" if run.dead_layers else None)
    console = Console()
    (console if console.is_terminal else Console(width=WIDTH_OF_A_FILE)).print(table)
