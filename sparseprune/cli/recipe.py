"""``sparseprune train RECIPE``: run a recipe, seed by seed."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .console import print_json, progress_bar, stderr

if TYPE_CHECKING:
    from ..training import Progress

GO_WITH_A_RECIPE = ("model", "out", "data_dir", "resume", "json", "debug")


def is_recipe(spec: str) -> bool:
    """Whether the argument names a recipe's file."""
    return Path(spec).suffix in (".yaml", ".yml")


def run_recipe(
    context: typer.Context, path: Path, out: Path | None, data_dir: Path | None, resume: bool | None, json: bool
) -> None:
    """Run a recipe and say how each seed ended."""
    from ..recipes import Recipe
    from ..training import TrainingInterrupted
    from .folder import check_writable

    for name in context.params:
        if name not in GO_WITH_A_RECIPE and context.get_parameter_source(name).name == "COMMANDLINE":
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} must not come with a recipe, got both: say it in {path}")
    recipe = Recipe.load(path)
    if out or recipe.out:
        check_writable(Path(out or recipe.out))

    def follow(seed: int, event: Progress) -> None:
        done = recipe.seeds.index(seed) * event.epochs * event.steps + (event.epoch - 1) * event.steps + event.step
        total = len(recipe.seeds) * event.epochs * event.steps
        note = f"seed {seed}, epoch {event.epoch}/{event.epochs}"
        show(done, total, note)
        if event.record is not None and not json and not stderr().is_terminal:
            record = event.record
            line = f"{note}: loss {record.train_loss:.3f}, test error {record.test_error:.2%}, {record.seconds:.1f} s"
            stderr().print(line, markup=False, highlight=False)

    with progress_bar(path.name, "batch", quiet=json) as show:
        try:
            results = recipe.run(out, resume=resume, data_dir=data_dir, progress=follow)
        except TrainingInterrupted as stop:
            sentence = str(stop)
            raise KeyboardInterrupt(f"{sentence[0].upper()}{sentence[1:]}. To go on: {resume_command()}") from None
    if json:
        print_json({"recipe": str(path), "out": str(out or recipe.out), **results})
        return
    for seed, row in results["seeds"].items():
        typer.echo(
            f"seed {seed}: test error {row['final_error']:.2%} (best {row['best_error']:.2%}), density {row['density']:.4g}"
        )
    if len(results["seeds"]) > 1:
        typer.echo(f"mean {results['mean_error']:.2%}, standard deviation {results['std_error']:.2%}")
    stderr().print(f"Wrote {out or recipe.out}", style="green", markup=False, highlight=False)


def resume_command() -> str:
    """What to type to go on."""
    given = [argument for argument in sys.argv[1:] if argument not in ("--resume", "--restart")]
    return shlex.join(["sparseprune", *given, "--resume"])
