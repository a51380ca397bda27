"""The runs of a sweep: what they are made of, and what is told of them in sweep.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..pruning import prune_many
from ..recipes.names import CRITERIA, Given, scoring_batches
from ..report import SweepPoint
from . import network
from .options import parse_min_per_layer

_load = cache(network.load_data)  # a worker makes many runs


@dataclass(frozen=True)
class Settings:
    """What all runs of a sweep have in common; runs of other settings are not comparable."""

    model: str
    model_options: list[str] | None
    init: str | None
    data: str | None
    data_dir: str | None
    input: str | None
    steps: int | None
    min_per_layer: str
    device: str


@dataclass(frozen=True)
class SweepRun:
    """One run: the density that was asked for, what was kept, and how many layers there are."""

    density: float
    point: SweepPoint
    layers: int

    @property
    def key(self) -> tuple[str, int, float]:
        return self.point.criterion, self.point.seed, self.density

    def row(self) -> dict[str, Any]:
        """As it stands in sweep.json."""
        return {**asdict(self.point), "density": self.density, "compression": self.point.compression}


def run_densities(
    settings: Settings,
    criterion: str,
    seed: int,
    densities: list[float],
    ended: Callable[[SweepRun], Any] = lambda run: None,
) -> list[SweepRun]:
    """Prune the model of one seed by one criterion to each density.

    Args:
        ended: told of each run when it ends.
    """
    given, choice, found = settings, CRITERIA[criterion], []
    dataset = _load(given.data, Path(given.data_dir) if given.data_dir else None, given.input)
    net = network.build(
        given.model, dataset, image=given.input, model_options=given.model_options, init=given.init, weights=None,
        seed=seed, device=given.device, dtype="float32",
    )  # fmt: skip
    if net.shape is None and criterion == "synflow":
        raise ValueError(f"--input must be given for {given.model}, which does not say what images it takes, got none")
    device = next(net.model.parameters()).device
    example = None if net.shape is None else torch.ones(1, *net.shape, device=device)
    batches = scoring_batches(dataset, None, None, seed, torch.float32) if choice.needs_data else []
    mode = "train" if choice.trains_bn else "eval"

    def finished(number: int, masks: Any) -> None:
        counts = masks.counts()
        empty = tuple(layer for layer, count in counts.items() if count == 0)
        connected = masks.summary.connected
        point = SweepPoint(criterion, seed, masks.count(), masks.numel(), min(counts.values()), empty, connected)
        found.append(SweepRun(part[number], point, len(counts)))
        ended(found[-1])

    # A criterion that draws random numbers draws them anew for each run, whatever other runs there are.
    shared = hasattr(choice.make(Given(batches, example, torch.Generator(), mode, None)), "plan")
    for part in [densities] if shared else [[density] for density in densities]:
        rule = choice.make(Given(batches, example, torch.Generator().manual_seed(seed), mode, None))
        prune_many(
            net.model, rule, density=part, steps=given.steps or choice.steps, example_input=example,
            min_per_layer=parse_min_per_layer(given.min_per_layer), finished=finished,
        )  # fmt: skip
    return found


def read_runs(path: Path, settings: Settings) -> list[SweepRun]:
    """The runs of the same settings that a sweep.json holds; none where it is missing, damaged or of others."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if any(content[name] != value for name, value in asdict(settings).items()):
            return []
        names = [field.name for field in fields(SweepPoint)]
        points = [{name: row[name] for name in names} for row in content["runs"]]
        points = [SweepPoint(**point | {"collapsed": tuple(point["collapsed"])}) for point in points]
        return [SweepRun(row["density"], p, content["layers"]) for row, p in zip(content["runs"], points, strict=True)]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def content_of(settings: Settings, runs: list[SweepRun]) -> dict[str, Any]:
    """What sweep.json holds."""
    return {**asdict(settings), "layers": runs[0].layers, "runs": [run.row() for run in runs]}
