"""What is shown: consoles, progress bars with rate and remaining time."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


def stderr() -> Console:
    """The console for people; made anew each time, since sys.stderr may have been replaced."""
    return Console(file=sys.stderr, soft_wrap=True, emoji=False)  # a path may have :x: in it


class _Rate(ProgressColumn):
    """Steps per second, or seconds per step where that is the larger number."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        text = f"{speed:.1f} {self.unit}s/s" if speed >= 1 else f"{1 / speed:.1f} s/{self.unit}"
        return Text(text, style="progress.data.speed")


@contextmanager
def progress_bar(title: str, unit: str, quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr, only where that is a terminal and ``quiet`` is false.

    Yields:
        A function (done, total, note) that moves the bar; without a bar it does nothing.
    """
    console = stderr()
    if quiet or not console.is_terminal:
        yield lambda done, total, note: None
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(unit),
        TimeRemainingColumn(elapsed_when_finished=True), TextColumn("{task.fields[note]}", style="dim"),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=None, note="")
        yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    typer.echo(json.dumps(value, indent=2))
