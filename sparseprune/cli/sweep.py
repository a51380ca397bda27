"""``sparseprune sweep``: many densities, criteria and seeds, and where layers collapse."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

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
    json: shared.Json = False,
    debug: shared.Debug = False,
) -> None:
    """Prune MODEL by each criterion to each density from each seed's weights.

    Writes sweep.json and collapse.png: weights left in the smallest layer against compression.

    Example: sparseprune sweep vgg16_bn --criterion synflow --criterion magnitude --density 0.01 --density 0.001
    """
    import torch

    from ..pruning import prune
    from ..recipes.names import CRITERIA, Given, scoring_batches
    from ..report import SweepPoint, collapse_figure, save_figure
    from . import folder, network
    from .options import choose, parse_min_per_layer

    chosen = {name: choose("--criterion", name, CRITERIA) for name in dict.fromkeys(criterion)}
    if unable := [name for name, choice in chosen.items() if choice.needs_initial]:
        raise ValueError(f"--criterion must need no weights from before training, got {unable[0]}")
    densities, seeds = list(dict.fromkeys(density or DENSITIES)), list(dict.fromkeys(seed or [0]))
    floor = parse_min_per_layer(min_per_layer)
    if any(choice.needs_data for choice in chosen.values()):
        data = data or "digits"
    out = out or Path("runs", f"{model.replace(':', '-').replace('/', '-')}-sweep")
    dataset = network.load_data(data, data_dir, image)
    folder.check_writable(out)
    points: list[Any] = []
    total = len(seeds) * len(chosen) * len(densities)
    with progress_bar(f"sweep of {model}", "run", quiet=json) as show:
        for number in seeds:
            net = network.build(
                model, dataset, image=image, model_options=model_option, init=init, weights=None, seed=number,
                device=device, dtype="float32",
            )  # fmt: skip
            if net.shape is None and "synflow" in chosen:
                raise ValueError(
                    f"--input must be given for {model}, which does not say what images it takes, got none"
                )
            parameter = next(net.model.parameters())
            example = None if net.shape is None else torch.ones(1, *net.shape, device=parameter.device)
            for name, choice in chosen.items():
                batches = scoring_batches(dataset, None, None, number, torch.float32) if choice.needs_data else []
                mode = "train" if choice.trains_bn else "eval"
                for share in densities:
                    rule = choice.make(Given(batches, example, torch.Generator().manual_seed(number), mode, None))
                    masks = prune(
                        net.model, rule, density=share, steps=steps or choice.steps, min_per_layer=floor,
                        example_input=example,
                    )  # fmt: skip
                    counts = masks.counts()
                    empty = tuple(layer for layer, count in counts.items() if count == 0)
                    connected = masks.summary.connected
                    point = (name, number, masks.count(), masks.numel(), min(counts.values()), empty, connected)
                    points.append(SweepPoint(*point))
                    show(len(points), total, f"{name} at {share:g}")
    rows = [asdict(point) | {"compression": point.compression} for point in points]
    found = {"model": model, "layers": len(counts), "steps": steps, "min_per_layer": min_per_layer, "runs": rows}
    out.mkdir(parents=True, exist_ok=True)
    folder.write_json(out / SWEEP_FILE, found)
    save_figure(collapse_figure(model, points, len(counts)), out / FIGURE_FILE)
    if json:
        print_json({**found, "out": str(out)})
        return
    for point in points:
        state = "" if point.connected is not False else "  no path left"
        layers = f"  {len(point.collapsed)} of {len(counts)} layers empty" if point.collapsed else ""
        typer.echo(
            f"{point.criterion:<20} seed {point.seed}  compression {point.compression:>9.1f}  "
            f"smallest layer {point.smallest:>7,}{layers}{state}"
        )
    stderr().print(f"\nWrote {SWEEP_FILE}, {FIGURE_FILE} to {out}", style="green", markup=False, highlight=False)
