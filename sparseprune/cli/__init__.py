"""The ``sparseprune`` command: prune, train, report, analyze, explain, calibrate, info."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Annotated

import typer

from . import analyze, explain, info, prune, report, sweep, train

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("prune")(prune.command)
app.command("train")(train.command)
app.command("report")(report.command)
app.command("analyze")(analyze.command)
app.command("explain")(explain.command)
app.command("calibrate")(explain.calibrate_command)
app.command("sweep")(sweep.command)
app.command("info")(info.command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(importlib.metadata.version("sparseprune"))
        raise typer.Exit


@app.callback()
def _commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Prune neural networks: choose weights to remove, keep them out while training, compare the results."""


def main() -> None:
    """The entry point of the ``sparseprune`` command."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # names of any language are shown, whatever the terminal can
            stream.reconfigure(errors="backslashreplace")
    app()
