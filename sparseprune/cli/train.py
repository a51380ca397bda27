"""``sparseprune train``: train with the masks held, or as a recipe says; stop or kill it, and it goes on exactly."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import arguments as shared
from .console import print_json, progress_bar, stderr
from .errors import sentences
from .recipe import is_recipe, resume_command, run_recipe

if TYPE_CHECKING:
    from ..masks import Masks
    from ..training import Epoch, History, Progress


@sentences
def command(
    context: typer.Context,
    model: shared.ModelOrRecipe,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to write to, usually that of the masks. Needed for MODEL."),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="masks.safetensors of a pruned run. Without it: dense."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training set.")] = 40,
    batch_size: Annotated[int, typer.Option(min=1, help="Images of a step.")] = 64,
    lr: Annotated[float | None, typer.Option(help="Learning rate. Default: 0.1 for sgd, else 0.001.")] = None,
    momentum: Annotated[float, typer.Option(help="Of sgd.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Of all parameters.")] = 5e-4,
    optimizer: Annotated[str, typer.Option(metavar="NAME", help="sgd, adam or adamw.")] = "sgd",
    schedule: Annotated[str, typer.Option(metavar="NAME", help="cosine, step or constant.")] = "cosine",
    milestone: Annotated[
        list[int] | None, typer.Option(metavar="EPOCH", help="For --schedule step; repeatable.")
    ] = None,
    gamma: Annotated[float, typer.Option(help="For --schedule step: factor at each milestone.")] = 0.1,
    data: shared.Data = "digits",
    data_dir: shared.DataDir = None,
    image: shared.Input = None,
    init: shared.Init = None,
    weights: shared.Weights = None,
    model_option: shared.ModelOption = None,
    seed: shared.Seed = 0,
    device: shared.Device = "auto",
    dtype: shared.Dtype = "float32",
    resume: Annotated[
        bool | None,
        typer.Option("--resume/--restart", help="Go on from the checkpoint in DIR if there is one, or start anew."),
    ] = None,
    json: shared.Json = False,
    debug: shared.Debug = False,
) -> None:
    """Train MODEL with the masks held, and test it after every epoch; or all that a RECIPE says.

    Starts from the init.safetensors beside the masks, so from the network that was pruned. Writes
    checkpoint.pt, history.json, model.safetensors and run.json. Ctrl-C saves and says how to go on.

    A recipe is a YAML file, and only --out, --data-dir and --resume or --restart go with it.

    Example: sparseprune train lenet_300_100 --masks runs/lenet-snip/masks.safetensors --out runs/lenet-snip

    Example: sparseprune train examples/rigl.yaml
    """
    if is_recipe(model):
        run_recipe(context, Path(model), out, data_dir, resume, json)
        return
    if out is None:
        raise ValueError("--out must be given to train a model, got none")
    from ..masks import Masks
    from ..nn import sparsify
    from ..report.runs import HISTORY_FILE
    from ..training import History, TrainingInterrupted, train
    from . import folder, network

    held = Masks.load(masks) if masks is not None else None
    checkpoint = out / folder.CHECKPOINT_FILE
    _check_folder(out, masks, held)
    _check_checkpoint(checkpoint, resume)
    dataset = network.load_data(data, data_dir, image)
    net = network.build(
        model, dataset, image=image, model_options=model_option, init=init, weights=weights, seed=seed,
        device=device, dtype=dtype,
    )  # fmt: skip
    if held is not None:
        held.weights_of(net.model)
        beside = masks.parent / folder.INIT_FILE
        if weights is None and init is None and beside.is_file():
            network.load_weights(net.model, beside)
        sparsify(net.model, held.to(next(net.model.parameters()).device))
    if resume and not checkpoint.exists() and not json:
        stderr().print(f"No checkpoint in {out} yet: starting with epoch 1.", markup=False, highlight=False)

    def begin() -> None:
        out.mkdir(parents=True, exist_ok=True)
        _describe(out, model, masks, held)

    with progress_bar(model, "batch", quiet=json) as show:
        earlier = folder.read_history(out / HISTORY_FILE) if resume else History()
        follow = _Follower(out / HISTORY_FILE, begin, show, earlier, quiet=json or stderr().is_terminal)
        try:
            history = train(
                net.model, dataset, epochs=epochs, batch_size=batch_size, lr=lr, momentum=momentum,
                weight_decay=weight_decay, optimizer=optimizer, schedule=schedule,
                milestones=tuple(milestone or ()),
                gamma=gamma, seed=seed, checkpoint=checkpoint, resume=bool(resume), progress=follow,
            )  # fmt: skip
        except TrainingInterrupted as stop:
            sentence = str(stop)
            raise KeyboardInterrupt(f"{sentence[0].upper()}{sentence[1:]}. To go on: {resume_command()}") from None
    folder.write_json(out / HISTORY_FILE, history.to_list())
    network.save_weights(net.model, out / folder.MODEL_FILE)
    last, best = history[-1], history.best
    if json:
        print_json(
            {
                "model": model,
                "out": str(out),
                "density": held.density if held is not None else 1.0,
                "final_error": last.test_error,
                "best_error": best.test_error,
                "best_epoch": best.epoch,
                "history": history.to_list(),
            }
        )
        return
    typer.echo(
        f"test error {last.test_error:.2%} after {last.epoch} epochs "
        f"(best {best.test_error:.2%}, epoch {best.epoch}), training loss {last.train_loss:.4f}"
    )
    stderr().print(
        f"Wrote {folder.MODEL_FILE} and {HISTORY_FILE} to {out}", style="green", markup=False, highlight=False
    )


class _Follower:
    """Turns progress into the bar's movement, history.json, and lines where there is no bar.

    The folder is made at the first batch: until then a wrong setting must leave no trace.
    """

    def __init__(
        self,
        path: Path,
        begin: Callable[[], None],
        show: Callable[[int, int, str], None],
        earlier: History,
        quiet: bool,
    ) -> None:
        self.path, self.begin, self.show, self.earlier, self.quiet = path, begin, show, list(earlier), quiet
        self.note = ""

    def __call__(self, event: Progress) -> None:
        if self.begin is not None:
            self.begin()
            self.begin = None
        if event.record is not None:
            self._record(event.record, event.epochs)
        done, total = (event.epoch - 1) * event.steps + event.step, event.epochs * event.steps
        self.show(done, total, f"epoch {event.epoch}/{event.epochs}  {self.note}")

    def _record(self, done: Epoch, epochs: int) -> None:
        from .folder import write_json

        self.earlier = [*(epoch for epoch in self.earlier if epoch.epoch < done.epoch), done]
        write_json(self.path, [asdict(epoch) for epoch in self.earlier])
        self.note = f"loss {done.train_loss:.3f}, test error {done.test_error:.2%}"
        if not self.quiet:
            line = f"epoch {done.epoch}/{epochs}: {self.note}, {done.seconds:.1f} s"
            stderr().print(line, markup=False, highlight=False)


def _check_folder(out: Path, path: Path | None, held: Masks | None) -> None:
    """Refuse a folder with another run's masks: its results would be taken for those."""
    from ..report.runs import MASKS_FILE, RUN_FILE
    from . import folder

    folder.check_writable(out)
    there = out / MASKS_FILE
    if held is None and there.exists():
        raise ValueError(
            f"--out must be a folder without masks for a dense run, got {str(out)!r}; or give --masks {there}"
        )
    if held is not None and there.exists() and there.resolve() != path.resolve() and not folder.same_masks(there, held):
        raise ValueError(f"--out must be a folder without another run, got {str(out)!r} with other {MASKS_FILE}")
    if (out / RUN_FILE).exists() and not folder.read_run(out):
        raise ValueError(f"--out must be a folder with whole files, got {str(out / RUN_FILE)!r}, which is damaged")


def _check_checkpoint(checkpoint: Path, resume: bool | None) -> None:
    """Starting anew must not silently throw away an unfinished run."""
    from ..training import load_checkpoint

    if resume is not None or not checkpoint.exists():
        return
    saved = load_checkpoint(checkpoint)
    epochs = saved["config"].get("epochs", 0)
    if saved["epoch"] < epochs:
        raise ValueError(
            f"--out must be a folder without an unfinished run, got {str(checkpoint)!r} with "
            f"{saved['epoch']} of {epochs} epochs done: go on with --resume, or start anew with --restart"
        )


def _describe(out: Path, model: str, path: Path | None, held: Masks | None) -> None:
    """run.json and masks.safetensors for a folder that has none: so every run's folder can be reported."""
    from ..report.runs import MASKS_FILE
    from . import folder
    from .info import versions

    if held is not None and not (out / MASKS_FILE).exists():
        shutil.copyfile(path, out / MASKS_FILE)
    if not folder.read_run(out):
        criterion = held.metadata.get("criterion", "masks") if held is not None else None
        folder.write_run(
            out, {"model": model, "criterion": criterion, "masks": held is not None, "versions": versions()}
        )
