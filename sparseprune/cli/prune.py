"""``sparseprune prune``: choose the weights to keep and write masks, table and figure."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from . import arguments as shared
from .console import print_json, progress_bar, stderr
from .errors import sentences


@sentences
def command(
    model: shared.Model,
    criterion: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="random, magnitude, relative-magnitude, lamp, synflow; with data snip, iterative-snip, quadratic-snip,"
            " grasp, synaptic-saliency, exact, taylor, taylor-units, fisher, fisher-units, true-fisher, obd, obs,"
            " skeletonization, variance-nullity, fourier; with --initial movement, magnitude-increase, sign-preserved.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write to. Default: runs/MODEL-CRITERION.")
    ] = None,
    sparsity: Annotated[float | None, typer.Option(help="Share of weights to remove, in [0, 1).")] = None,
    density: Annotated[float | None, typer.Option(help="Share of weights to keep, in (0, 1].")] = None,
    keep: Annotated[int | None, typer.Option(help="Number of weights to keep.")] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="How many times to score. Default: 100 for synflow and iterative-snip, else 1."),
    ] = None,
    schedule: Annotated[
        str, typer.Option(metavar="NAME", help="one-shot, linear, exponential or cubic.")
    ] = "exponential",
    scope: Annotated[
        str, typer.Option(metavar="NAME", help="Compare scores globally, or within each layer.")
    ] = "global",
    allocation: Annotated[
        str | None, typer.Option(metavar="NAME", help="For --scope layer: uniform (default) or erk.")
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Layer or weight to spare, * matches anything; repeatable."),
    ] = None,
    min_per_layer: Annotated[
        str, typer.Option(metavar="N", help="Keep at least N weights of each layer, or that share below 1.")
    ] = "0",
    data: shared.Data = None,
    data_dir: shared.DataDir = None,
    samples_per_class: Annotated[
        int | None, typer.Option(min=1, help="For criteria with data: images of each class. Default: 10.")
    ] = None,
    batches: Annotated[
        int | None,
        typer.Option(min=1, help="For criteria with data, instead: so many random batches of 128."),
    ] = None,
    bn: Annotated[
        str | None,
        typer.Option(
            metavar="MODE",
            help="Batch norm for the snips (but quadratic), grasp and synaptic-saliency: train (default) or, with --weights,"
            " eval.",
        ),
    ] = None,
    initial: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Weights before training, as init.safetensors of a run; with --weights after it."
        ),
    ] = None,
    image: shared.Input = None,
    init: shared.Init = None,
    weights: shared.Weights = None,
    model_option: shared.ModelOption = None,
    seed: shared.Seed = 0,
    device: shared.Device = "auto",
    dtype: shared.Dtype = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove another run's training from DIR.")] = False,
    json: shared.Json = False,
    debug: shared.Debug = False,
) -> None:
    """Choose which weights of MODEL to keep.

    Writes masks.safetensors, init.safetensors (the weights it started from), run.json and density.png.

    Example: sparseprune prune resnet50 --criterion synflow --density 0.01 --input 3x224x224
    """
    import torch

    from ..pruning import prune
    from ..recipes.names import BN_MODES, CRITERIA, SCHEDULES, Given, scoring_batches
    from ..report import Run, density_figure, save_figure
    from ..report.runs import MASKS_FILE, RUN_FILE, layers_of
    from . import folder, network
    from .info import versions
    from .options import choose, choose_pattern, parse_min_per_layer

    chosen = choose("--criterion", criterion, CRITERIA)
    pattern = choose_pattern(scope, allocation)
    density_at = choose("--schedule", schedule, SCHEDULES)
    floor = parse_min_per_layer(min_per_layer)
    default = "train" if chosen.trains_bn and not weights else "eval"
    mode = choose("--bn", bn or default, BN_MODES)
    if chosen.needs_data and mode == "train" and not chosen.trains_bn:
        raise ValueError(f"--bn must be eval for {criterion}, which takes examples one by one, got 'train'")
    if chosen.needs_initial != (initial is not None):
        need = "must be given for" if chosen.needs_initial else "must not come with"
        raise ValueError(f"--initial {need} {criterion}, got {str(initial) if initial else 'none'}")
    steps = steps or chosen.steps
    if chosen.needs_data:
        data = data or "digits"
        if samples_per_class and batches:
            raise ValueError("--samples-per-class must not come with --batches, got both")
    elif samples_per_class or batches:
        raise ValueError(
            f"--samples-per-class and --batches must come with a criterion that takes data, got {criterion}"
        )
    out = out or Path("runs", f"{model.replace(':', '-').replace('/', '-')}-{criterion}")
    arguments: dict[str, Any] = {
        "model": model, "criterion": criterion, "sparsity": sparsity, "density": density, "keep": keep,
        "steps": steps, "schedule": schedule, "scope": scope, "allocation": allocation,
        "exclude": exclude or [], "min_per_layer": min_per_layer, "data": data, "bn": mode,
        "samples_per_class": samples_per_class, "batches": batches, "input": image, "init": init,
        "weights": str(weights) if weights else None, "initial": str(initial) if initial else None,
        "model_options": model_option or [], "seed": seed, "dtype": dtype,
    }  # fmt: skip
    stale = folder.stale_training(out, arguments, overwrite)
    dataset = network.load_data(data, data_dir, image)
    net = network.build(
        model, dataset, image=image, model_options=model_option, init=init, weights=weights, seed=seed,
        device=device, dtype=dtype,
    )  # fmt: skip
    if net.shape is None and criterion == "synflow":
        raise ValueError(f"--input must be given for {model}, which does not say what images it takes, got none")
    parameter = next(net.model.parameters())
    example = None
    if net.shape is not None:
        example = torch.ones(1, *net.shape, device=parameter.device, dtype=parameter.dtype)
    batch_list = (
        scoring_batches(dataset, samples_per_class, batches, seed, parameter.dtype) if chosen.needs_data else []
    )
    start = network.read_weights(initial, "--initial") if initial else None
    rule = chosen.make(Given(batch_list, example, torch.Generator().manual_seed(seed), mode, start))
    folder.check_writable(out)
    started = time.monotonic()
    with progress_bar(f"{criterion} on {model}", "step", quiet=json) as show:
        masks = prune(
            net.model, rule, sparsity=sparsity, density=density, keep=keep, steps=steps, schedule=density_at,
            pattern=pattern, exclude=exclude or (), min_per_layer=floor, example_input=example,
            progress=lambda event: show(event.step, event.steps, f"density {event.density:.4g}"),
        )  # fmt: skip
    seconds = time.monotonic() - started
    run = {
        "model": model,
        "criterion": criterion,
        "masks": True,
        "density": masks.density,
        "kept": masks.count(),
        "total": masks.numel(),
        "seconds": round(seconds, 3),
        "arguments": arguments,
        "device": str(parameter.device),
        "versions": versions(),
        "summary": masks.summary.to_dict() if masks.summary else None,
    }
    told = {key: str(run[key]) for key in ("model", "criterion", "density", "kept", "total")}
    out.mkdir(parents=True, exist_ok=True)
    for path in stale:
        path.unlink()
    masks.save(out / MASKS_FILE, {**told, "seed": str(seed), "steps": str(steps), **versions()})
    network.save_weights(net.model, out / folder.INIT_FILE)
    figure = density_figure(Run(out.resolve().name, model, criterion, layers_of(masks)))
    save_figure(figure, out / folder.FIGURE_FILE)
    folder.write_run(out, run)
    if json:
        print_json({**run, "out": str(out)})
        return
    typer.echo(str(masks))
    files = ", ".join((MASKS_FILE, folder.INIT_FILE, RUN_FILE, folder.FIGURE_FILE))
    stderr().print(f"\n{seconds:.1f} s. Wrote {files} to {out}", style="green", markup=False, highlight=False)
    if dataset is not None:
        place = ["--data-dir", str(data_dir)] if data_dir else []
        follow = [
            "sparseprune",
            "train",
            model,
            "--masks",
            str(out / MASKS_FILE),
            "--data",
            str(data),
            *place,
        ]
        stderr().print(f"Next: {shlex.join([*follow, '--out', str(out)])}", markup=False, highlight=False)
