"""``sparseprune explain`` and ``sparseprune calibrate``: which kernels run, why, and the constants it is chosen by."""

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
    target: Annotated[
        str,
        typer.Argument(metavar="MODEL_OR_RUN", help="A model as for prune, or the folder of a run, which has masks."),
    ],
    masks: Annotated[
        Path | None, typer.Option("--masks", metavar="FILE", help="Masks of a model. Default: the run's.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images at once.")] = 1,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Images in the channels_last layout.")] = False,
    measured: Annotated[bool, typer.Option("--measure", help="Also time every candidate.")] = False,
    data: shared.Data = None,
    data_dir: shared.DataDir = None,
    image: shared.Input = None,
    model_option: shared.ModelOption = None,
    device: shared.Device = "cpu",
    dtype: shared.Dtype = "float32",
    json: shared.Json = False,
    debug: shared.Debug = False,
) -> None:
    """Show, layer by layer, which kernels a pruned network runs, what they were chosen from, and why.

    Example: sparseprune explain resnet50 --masks runs/r50/masks.safetensors --input 3x224x224 --batch 8 --measure
    """
    import torch

    from ..masks import Masks
    from ..nn import explain, sparsify
    from ..ops import costs
    from ..report.runs import MASKS_FILE
    from . import folder, network

    spec = target
    if Path(target).is_dir():
        run = folder.read_run(Path(target))
        arguments = run.get("arguments") or {}
        spec, masks = run.get("model"), masks or Path(target, MASKS_FILE)
        if spec is None:
            raise ValueError(f"MODEL_OR_RUN must be a model or a run's folder, got {target!r}, a folder without a run")
        image, model_option = image or arguments.get("input"), model_option or arguments.get("model_options")
        data = data or arguments.get("data")
    if masks is None:
        raise ValueError(f"--masks must be given for a model, got {target!r} alone")
    net = network.build(
        spec, network.load_data(data, data_dir, image), image=image, model_options=model_option, init=None, weights=None,
        seed=0, device=device, dtype=dtype,
    )  # fmt: skip
    if net.shape is None:
        raise ValueError(f"--input must be given for {spec}, which does not say what images it takes, got none")
    first = next(net.model.parameters())
    sparsify(net.model, Masks.load(masks, first.device))
    example = torch.randn(batch, *net.shape, device=first.device, dtype=first.dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    rows = explain(net.model.to(memory_format=layout), example.contiguous(memory_format=layout), measured=measured)
    constants = costs.source()[0]
    if json:
        print_json({"constants": str(constants), "products": [row.to_dict() for row in rows]})
        return
    _print_table(rows)
    stderr().print(f"Predicted by {constants}", style="green", markup=False, highlight=False)


def _print_table(rows: list) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    names = list(dict.fromkeys(name for row in rows for name in row.predicted))
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("layer", "product", "density", *(f"{name}, ms" for name in names), "chosen", "why"):
        table.add_column(title, justify="left" if title in ("layer", "product", "chosen", "why") else "right")
    for row in rows:
        times = [_milliseconds(row.predicted.get(n), (row.measured or {}).get(n)) for n in names]
        first = row.layer if row.product == "forward" else ""
        table.add_row(first, row.product, f"{row.density:.3g}", *times, row.chosen, row.reason)
    console = Console()
    (console if console.is_terminal else Console(width=WIDTH_OF_A_FILE)).print(table)


def _milliseconds(predicted: float | None, measured: float | None) -> str:
    if predicted is None:
        return ""
    text = f"{1e3 * predicted:.3g}"
    return text if measured is None else f"{text} ({1e3 * measured:.3g})"


@sentences
def calibrate_command(
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to write. Default: this processor's file in your cache folder."),
    ] = None,
    debug: shared.Debug = False,
) -> None:
    """Measure the kernels on this machine (about half a minute), so that choices fit it.

    The file is JSON: read it, delete it, or ship it with SPARSEPRUNE_COSTS=FILE. SPARSEPRUNE_COSTS=shipped ignores it.
    """
    from ..ops.calibration import calibrate

    stderr().print(f"Wrote {calibrate(out)}", style="green", markup=False, highlight=False)
