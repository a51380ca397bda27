"""Run a recipe: one training a seed, each in a folder of its own, stopped and resumed at any moment."""

from __future__ import annotations

import copy
import importlib.metadata
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import models
from ..data import Dataset, load
from ..masks import Masks
from ..nn import held_masks, sparsify
from ..patterns import Global, LayerWise
from ..pruning import prune
from ..report.runs import (
    CHECKPOINT_FILE,
    HISTORY_FILE,
    INIT_FILE,
    MASKS_FILE,
    MODEL_FILE,
    save_weights,
    write_json,
    write_run,
)  # fmt: skip
from ..training import GramSchmidtTraining, Method, Progress, train
from ..training.batches import training_order
from ..training.random_state import seeded
from ..training.supermasks import MaskedModel
from .document import read_yaml
from .methods import METHODS, make_penalty, method_arguments
from .names import ALLOCATIONS, CRITERIA, DTYPES, SCHEDULES, Given, scoring_batches
from .recipe import Recipe

RECIPE_FILE = "recipe.yaml"
RESULTS_FILE = "results.json"
ACTIVATIONS = 1024  # images whose activations gram-schmidt looks at


def run(
    recipe: Recipe,
    out: str | os.PathLike[str] | None = None,
    *,
    resume: bool | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    progress: Callable[[int, Progress], Any] | None = None,
) -> dict[str, Any]:
    """Train once for every seed, and write what came of it.

    The folder gets the recipe with all defaults (recipe.yaml), the results of all seeds (results.json), and for each a
    folder seed0, ... with run.json, init.safetensors, masks.safetensors, model.safetensors, history.json and
    checkpoint.pt, as ``sparseprune train`` writes them.

    Args:
        recipe: what to run; it decides model, masks, data order and the method's draws of a seed.
        out: the folder; default: the recipe's.
        resume: True goes on with a folder of the same recipe, with the bits of a run that was never stopped; False
            starts anew; None refuses a folder with a recipe.
        data_dir: where the data is, instead of the recipe's.
        progress: called with the seed and what ``train`` tells.

    Returns:
        What results.json holds: errors and density of each seed, and the final errors' mean and standard deviation.

    Raises:
        ValueError: a value of the recipe does not suit the model or the data (with key and line), or the folder
            belongs to another recipe. Nothing is written then.
        TrainingInterrupted: Ctrl-C; ``resume=True`` goes on.
    """
    if (out := out or recipe.out) is None:
        raise ValueError("out must be given, in the recipe or beside it, got none")
    folder = Path(out)
    _check_folder(recipe, folder, resume)
    known = {**recipe.data, **({"dir": data_dir} if data_dir else {})}
    names = {"data_dir": "dir"}
    dataset = recipe.located("data", lambda: load(known["name"], known.get("dir"), size=known.get("size")), names)
    rows = {}
    for seed in recipe.seeds:
        one = _Seed(recipe, dataset, seed, folder)
        rows[str(seed)] = one.run(bool(resume), progress or (lambda seed, event: None))
    errors = [row["final_error"] for row in rows.values()]
    spread = statistics.stdev(errors) if len(errors) > 1 else 0.0
    results = {"seeds": rows, "mean_error": statistics.fmean(errors), "std_error": spread}
    write_json(folder / RESULTS_FILE, results)
    return results


def _check_folder(recipe: Recipe, folder: Path, resume: bool | None) -> None:
    path = folder / RECIPE_FILE
    if not path.exists() or resume is False:
        return
    if resume is None:
        raise ValueError(
            f"out must be a folder without a run, got {str(folder)!r} with {RECIPE_FILE}: resume or restart it"
        )
    saved = Recipe._read(read_yaml(path.read_text(encoding="utf-8"), str(path))).to_dict()
    for key, value in recipe.to_dict().items():
        if key not in ("out", "device") and saved.get(key) != value:
            raise recipe.node.child(key).error(f"must be {saved.get(key)!r} as in {path}, got {value!r}")
    if missing := sorted(set(saved) - set(recipe.to_dict()) - {"out", "device"}):
        raise ValueError(f"recipe must have the key {missing[0]!r} as {path}, got none")


def _masks_for(model: nn.Module, path: str) -> Masks:
    masks = Masks.load(path).to(next(model.parameters()).device)
    masks.weights_of(model)  # says what does not fit
    return masks


@dataclass
class _Seed:
    """One training of a recipe."""

    recipe: Recipe
    dataset: Dataset
    seed: int
    out: Path

    def run(self, resume: bool, progress: Callable[[int, Progress], Any]) -> dict[str, Any]:
        recipe, folder = self.recipe, self.out / f"seed{self.seed}"
        network = self._network()
        start = copy.deepcopy(network)
        masks = self._start(network)
        if masks is not None:
            sparsify(network, masks)
        model, make = self._method(network)
        begun = False

        def follow(event: Progress) -> None:
            nonlocal begun
            if not begun:  # a wrong value must leave no trace, so files come with the first batch
                begun = True
                self._begin(folder, start, resume)
            progress(self.seed, event)

        settings = {**recipe.train, "seed": self.seed, "milestones": tuple(recipe.train["milestones"])}
        history = recipe.located("train", lambda: train(
            model, self.dataset, **settings, method=make, penalty=make_penalty(recipe.penalty),
            checkpoint=folder / CHECKPOINT_FILE, resume=resume, progress=follow,
        ))  # fmt: skip
        if isinstance(model, MaskedModel):
            model.hold()
        write_json(folder / HISTORY_FILE, history.to_list())
        save_weights(network, folder / MODEL_FILE)
        held = held_masks(network)
        prune_section, method_section = recipe.prune or {}, recipe.method or {}
        start_title = "given masks" if "masks" in prune_section else prune_section.get("criterion")
        title = " + ".join(filter(None, (start_title, method_section.get("name"))))
        if held:
            held.save(folder / MASKS_FILE, {"criterion": title})
        versions = {"torch": torch.__version__, "sparseprune": importlib.metadata.version("sparseprune")}
        described = {"model": recipe.model["name"], "criterion": title or None, "masks": bool(held)}
        write_run(folder, {**described, "recipe": recipe.to_dict(), "seed": self.seed, "versions": versions})
        return {
            "final_error": history[-1].test_error,
            "best_error": history.best.test_error,
            "density": held.density if held else 1.0,
            "epochs": len(history),
        }

    def _network(self) -> nn.Module:
        recipe = self.recipe
        spec = recipe.model["name"]
        fitting = models.fitting_options(spec, self.dataset.input_shape, len(self.dataset.classes))
        with seeded(self.seed):
            options = {**fitting, **recipe.model["options"]}
            model = recipe.located("model", lambda: models.create(spec, **options), {"spec": "name"})
            if "init" in recipe.model:
                generator = torch.Generator().manual_seed(self.seed)
                recipe.located(
                    "model", lambda: models.initialize_(model, recipe.model["init"], generator), {"scheme": "init"}
                )
        return model.to(self._device(), DTYPES[recipe.dtype])

    def _device(self) -> torch.device:
        name = self.recipe.device
        if name == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            sentence = f"must be a device of this machine, got {name!r}: {reason}"
            raise self.recipe.node.child("device").error(sentence) from error

    def _start(self, model: nn.Module) -> Masks | None:
        """The masks to train with, chosen by the criterion."""
        if (section := self.recipe.prune) is None:
            return None
        parameter = next(model.parameters())
        if "masks" in section:  # another run's, on weights of this recipe's seed: training from scratch
            return self.recipe.located("prune", lambda: _masks_for(model, section["masks"]), {"path": "masks"})
        chosen = CRITERIA[section["criterion"]]
        example = torch.ones(1, *self.dataset.input_shape, device=parameter.device, dtype=parameter.dtype)
        amounts = {key: section[key] for key in ("sparsity", "density", "keep") if key in section}
        pattern = Global() if section["scope"] == "global" else LayerWise(ALLOCATIONS[section["allocation"]])

        def choose() -> Masks:
            samples = section.get("samples_per_class"), section.get("batches")
            batches = scoring_batches(self.dataset, *samples, self.seed, parameter.dtype) if chosen.needs_data else []
            given = Given(batches, example, torch.Generator().manual_seed(self.seed), section["bn"], None)
            return prune(
                model, chosen.make(given), **amounts, steps=section["steps"], schedule=SCHEDULES[section["schedule"]],
                pattern=pattern, exclude=section["exclude"], min_per_layer=section["min_per_layer"],
            )  # fmt: skip

        return self.recipe.located("prune", choose)

    def _method(self, network: nn.Module) -> tuple[nn.Module, Callable[..., Method] | None]:
        """What to train, and what makes the method that changes its masks."""
        section, train_section = self.recipe.method, self.recipe.train
        if section is None:
            return network, None
        chosen = METHODS[section["name"]]
        steps = len(training_order(self.dataset, train_section["batch_size"], self.seed, 0))
        arguments = method_arguments(section, self.seed, train_section["epochs"], steps)
        if chosen.kind is GramSchmidtTraining:
            parameter, generator = next(network.parameters()), torch.Generator().manual_seed(self.seed)
            x, _ = next(iter(self.dataset.batches("train", ACTIVATIONS, generator)))
            arguments["batch"] = x.to(parameter.device, parameter.dtype)
        if chosen.learned:
            with seeded(self.seed):  # of the first scores
                return self.recipe.located("method", lambda: chosen.kind(network, **arguments)), None
        return network, lambda model, optimizer: self.recipe.located(
            "method", lambda: chosen.kind(model, optimizer, **arguments)
        )

    def _begin(self, folder: Path, start: nn.Module, resume: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.recipe.save(self.out / RECIPE_FILE)
        save_weights(start, folder / INIT_FILE)
        if not resume:
            (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
        (self.out / RESULTS_FILE).unlink(missing_ok=True)
