"""``sparseprune analyze``: diagnostics of pruned networks as one self-contained HTML page, or as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import arguments as shared
from .console import print_json, progress_bar, stderr
from .errors import sentences

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..masks import Masks


@dataclass(frozen=True)
class _Subject:
    """One network to look at, and inputs for it."""

    title: str
    model: nn.Module
    masks: Masks
    inputs: Tensor


@sentences
def command(
    targets: Annotated[
        list[Path], typer.Argument(metavar="RUN_OR_MASKS...", help="Folders written by prune or train, or mask files.")
    ],
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="As for prune. Default: what the run or file says.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="HTML", help="The page. Default: analysis.html, of a single run in its folder; with --json none."
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=0, help="Inputs for Jacobians and saliency; 0 leaves these out, which take longest.")
    ] = 4,
    data: shared.Data = None,
    data_dir: shared.DataDir = None,
    image: shared.Input = None,
    weights: shared.Weights = None,
    model_option: shared.ModelOption = None,
    seed: shared.Seed = 0,
    json: shared.Json = False,
    debug: shared.Debug = False,
) -> None:
    """Analyze pruned networks: paths, signal propagation, conservation, what remains; of several also their agreement.

    The weights are those after training where there are any, else those that were pruned. Inputs are test images of
    the run's data, or noise without data.

    Example: sparseprune analyze runs/lenet-snip --out lenet.html
    """
    from ..diagnostics import analyze, stability
    from ..report.page import analysis_page, save_page

    if out is None and not json:
        out = (targets[0] if len(targets) == 1 and targets[0].is_dir() else Path()) / "analysis.html"
    if out is not None and out.is_dir():
        raise ValueError(f"--out must be a file, got {str(out)!r}, which is a folder")
    given = {
        "model": model, "data": data, "data_dir": data_dir, "input": image, "weights": weights,
        "model_options": model_option, "seed": seed, "samples": max(samples, 1),
    }  # fmt: skip
    subjects = [_subject(target, given) for target in targets]
    analyses: dict[str, Any] = {}
    with progress_bar("analyze", "network", quiet=json) as show:
        for number, subject in enumerate(subjects):
            title = subject.title if subject.title not in analyses else f"{subject.title} ({number + 1})"
            show(number, len(subjects), title)
            analyses[title] = analyze(subject.model, subject.masks, subject.inputs, signal=samples > 0)
    shapes = [{name: mask.shape for name, mask in subject.masks.items()} for subject in subjects]
    comparable = len(subjects) > 1 and all(shape == shapes[0] for shape in shapes)
    agreement = stability([subject.masks for subject in subjects]) if comparable else None
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_page(analysis_page(analyses, agreement), out)
    if json:
        runs = [
            {"run": str(target), "title": title, **analysis.to_dict()}
            for target, (title, analysis) in zip(targets, analyses.items(), strict=True)
        ]
        print_json({"runs": runs, "stability": agreement and agreement.to_dict(), "page": out and str(out)})
        return
    for title, analysis in analyses.items():
        typer.echo(f"{title}\n{analysis.summary}\n")
        for note in analysis.notes:
            stderr().print(f"note: {note}", markup=False, highlight=False)
    stderr().print(f"Wrote {out}", style="green", markup=False, highlight=False)


def _subject(target: Path, given: dict[str, Any]) -> _Subject:
    """The network that ``target`` describes, where nothing else is ``given``.

    Raises:
        ValueError: there is no such run or file, it has no masks, or the network cannot be built from what is known.
    """
    import torch

    from ..masks import Masks
    from ..report import load_run
    from ..report.runs import MASKS_FILE
    from . import folder, network

    arguments: dict[str, Any] = {}
    if target.is_dir():
        run = load_run(target)
        if not run.layers:
            raise ValueError(f"RUN_OR_MASKS must have masks, got {str(target)!r}, a dense run")
        home, path, title, spec = target, target / MASKS_FILE, run.name, run.model
        arguments = folder.read_run(target).get("arguments") or {}
    elif target.is_file():
        home, path, title, spec = target.parent, target, target.stem, None
    else:
        raise ValueError(f"RUN_OR_MASKS must be a run's folder or a file of masks, got {str(target)!r}")
    masks = Masks.load(path)
    spec = given["model"] or spec or masks.metadata.get("model")
    if spec is None:
        raise ValueError(f"--model must be given for {str(target)!r}, which does not say what network it is of")
    data, image = given["data"] or arguments.get("data"), given["input"] or arguments.get("input")
    dataset = network.load_data(data, given["data_dir"], image)
    net = network.build(
        spec, dataset, image=image, model_options=given["model_options"] or arguments.get("model_options"),
        init=arguments.get("init"), weights=None, seed=arguments.get("seed", 0), device="cpu",
        dtype=arguments.get("dtype", "float32"),
    )  # fmt: skip
    masks.weights_of(net.model)
    _load_weights(net.model, masks, home, given["weights"])
    if net.shape is None:
        raise ValueError(f"--input must be given for {spec}, which does not say what images it takes, got none")
    generator = torch.Generator().manual_seed(given["seed"])
    if dataset is not None:
        inputs, _ = next(iter(dataset.batches("test", given["samples"], generator)))
    else:
        inputs = torch.randn(given["samples"], *net.shape, generator=generator)
    return _Subject(title, net.model, masks, inputs)


def _load_weights(model: nn.Module, masks: Masks, home: Path, given: Path | None) -> None:
    """Those of --weights, else those after training, else those that were pruned, else the ones just drawn."""
    from ..nn import densify, sparsify
    from . import folder, network

    if given is None and (trained := home / folder.MODEL_FILE).is_file():
        # What training saved holds the masks beside the weights.
        sparsify(model, masks)
        network.load_weights(model, trained)
        densify(model)
        return
    path = given or home / folder.INIT_FILE
    if given is not None or path.is_file():
        network.load_weights(model, path)
