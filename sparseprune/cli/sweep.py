"""``sparseprune sweep``: many densities, criteria and seeds, and where layers collapse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import arguments as shared
from .console import print_json, progress_bar, stderr
from .errors import sentences

DENSITIES = (0.1, 0.03, 0.01, 0.003, 0.001)
FIGURE_FILE, SWEEP_FILE = "collapse.png", "sweep.json"


@sentences
def command(
    model: shared.Model,
    criterion: Annotated[
        list[str],
        typer.Option(metavar="NAME", help="As of prune, but for those with --initial; repeatable."),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write to. Default: runs/MODEL-sweep.")
    ] = None,
    density: Annotated[
        list[float] | None, typer.Option(help=f"Share of weights to keep, in (0, 1]; repeatable. Default: {DENSITIES}.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(min=0, help="Of everything random; repeatable. Default: 0.")] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="How many times to score. Default: 100 for synflow and iterative-snip, else 1."),
    ] = None,
    min_per_layer: Annotated[
        str, typer.Option(metavar="N", help="Keep at least N weights of each layer, or that share below 1.")
    ] = "0",
    data: shared.Data = None,
    data_dir: shared.DataDir = None,
    image: shared.Input = None,
    init: shared.Init = None,
    model_option: shared.ModelOption = None,
    device: shared.Device = "auto",
    workers: Annotated[int, typer.Option(metavar="N", min=1, help="Processes that share this machine's cores.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Run on a Ray cluster instead: its address, 'auto', or 'local' to start one here. A run takes one core, "
            "and one GPU with --device cuda.",
        ),
    ] = None,
    json: shared.Json = False,
    debug: shared.Debug = False,
) -> None:
    """Prune MODEL by each criterion to each density from each seed's weights.

    Writes sweep.json after every run and collapse.png at the end: weights left in the smallest layer against
    compression. Runs that sweep.json holds already, of the same settings, are not made again.

    Example: sparseprune sweep vgg16_bn --criterion synflow --criterion magnitude --density 0.01 --density 0.001
    """
    from ..recipes.names import CRITERIA
    from ..report import collapse_figure, save_figure
    from . import folder, network
    from .options import choose, parse_min_per_layer
    from .sweep_runs import Settings, SweepRun, content_of, read_runs, run_densities
    from .workers import in_processes, on_ray

    chosen = {name: choose("--criterion", name, CRITERIA) for name in dict.fromkeys(criterion)}
    if unable := [name for name, choice in chosen.items() if choice.needs_initial]:
        raise ValueError(f"--criterion must need no weights from before training, got {unable[0]}")
    if ray is not None and workers > 1:
        raise ValueError(f"--ray must come without --workers: the cluster has its own, got {workers}")
    densities, seeds = list(dict.fromkeys(density or DENSITIES)), list(dict.fromkeys(seed or [0]))
    parse_min_per_layer(min_per_layer)
    if any(choice.needs_data for choice in chosen.values()):
        data = data or "digits"
    out = out or Path("runs", f"{model.replace(':', '-').replace('/', '-')}-sweep")
    network.load_data(data, data_dir, image)
    folder.check_writable(out)
    where = None if data_dir is None else str(data_dir.resolve())
    settings = Settings(model, model_option, init, data, where, image, steps, min_per_layer, device)
    runs = {run.key: run for run in read_runs(out / SWEEP_FILE, settings)}
    grid = [(name, number, share) for number in seeds for name in chosen for share in densities]
    order = {key: i for i, key in enumerate([*grid, *(key for key in runs if key not in grid)])}
    missing = [key for key in grid if key not in runs]
    with progress_bar(f"sweep of {model}", "run", quiet=json) as show:

        def ended(run: SweepRun) -> None:
            runs[run.key] = run
            out.mkdir(parents=True, exist_ok=True)
            folder.write_json(out / SWEEP_FILE, content_of(settings, sorted(runs.values(), key=lambda r: order[r.key])))
            done = sum(key in runs for key in grid)
            show(done, len(grid), f"{run.point.criterion} at {run.density:g}")

        tasks = [(settings, name, number, [share]) for name, number, share in missing]
        try:
            if ray is not None:
                for found in on_ray(run_densities, tasks, ray, int(device.startswith("cuda"))):
                    ended(*found)
            elif workers > 1 and tasks:
                for found in in_processes(run_densities, tasks, workers):
                    ended(*found)
            else:
                for name, number in dict.fromkeys((name, number) for name, number, _ in missing):
                    shares = [share for share in densities if (name, number, share) in missing]
                    run_densities(settings, name, number, shares, ended)
        except KeyboardInterrupt:
            done = sum(key in runs for key in grid)
            raise KeyboardInterrupt(
                f"Interrupted; {done} of {len(grid)} runs are in {out / SWEEP_FILE}, and the same command makes the rest."
            ) from None
    ordered = [runs[key] for key in order]
    layers = ordered[0].layers
    save_figure(collapse_figure(model, [run.point for run in ordered], layers), out / FIGURE_FILE)
    if json:
        print_json({**content_of(settings, ordered), "out": str(out)})
        return
    for point in [run.point for run in ordered]:
        state = "" if point.connected is not False else "  no path left"
        empty = f"  {len(point.collapsed)} of {layers} layers empty" if point.collapsed else ""
        typer.echo(
            f"{point.criterion:<20} seed {point.seed}  compression {point.compression:>9.1f}  "
            f"smallest layer {point.smallest:>7,}{empty}{state}"
        )
    stderr().print(f"\nWrote {SWEEP_FILE}, {FIGURE_FILE} to {out}", style="green", markup=False, highlight=False)
