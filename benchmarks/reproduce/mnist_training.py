"""Training with masks on MNIST: dynamic sparse training, SNIP, lottery tickets, edge-popup, beside published figures.

    SPARSEPRUNE_DATA=FOLDER python -m benchmarks.reproduce.mnist_training [--only dynamic snip ...] [--seeds 0 1 2]

Every cell (table, network, method, density, seed) is one training run, appended with its test error after every epoch to
mnist_training.json; cells that stand there are not run again, so the script may be stopped and started at any time. The
budgets below are a small part of the published ones, and the page that ``mnist_page.py`` makes says so.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import sparseprune as sp
from sparseprune import training as tr
from sparseprune.data import Dataset
from sparseprune.files import write_atomically

RESULTS = Path(__file__).with_suffix(".json")
STEPS = {100: 600, 60: 1000, 128: 469}  # batch size -> steps of an epoch of 60,000 images
ROUNDS = 13  # twelve prunings
POPUP_DENSITY = 0.5
TABLES = ("dynamic", "snip", "tickets", "popup")


@dataclass(frozen=True)
class Cell:
    """One training run."""

    table: str
    network: str
    method: str
    density: float
    seed: int
    epochs: int


def cells(seed: int) -> Iterator[Cell]:
    """All of one seed."""
    for density in (0.05, 0.02):
        yield Cell("snip", "lenet_300_100", "SNIP", density, seed, 30)
    for density in (0.05, 0.02, 0.01, 0.10):
        for method in ("SET", "RigL", "SparseMomentum", "DSR", "DeepR"):
            yield Cell("dynamic", "lenet_300_100", method, density, seed, 20)
    for number in range(ROUNDS):
        for method in ("ticket", "reinitialized") if number else ("ticket",):
            yield Cell("tickets", "lenet_300_100", f"{method} {number}", round(0.8**number, 4), seed, 2)
    for network in ("Conv-2 / 4", "Conv-4 / 4"):
        yield Cell("popup", network, "EdgePopup", POPUP_DENSITY, seed, 2)
    for density in (0.02, 0.01):
        yield Cell("snip", "lenet5_caffe", "SNIP", density, seed, 10)


def lenet(name: str, data: Dataset, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = getattr(sp.models, name)(input_shape=data.input_shape, generator=generator)
    sp.models.initialize_(model, "xavier_normal", generator)
    return model


def dynamic(cell: Cell, data: Dataset) -> tr.History:
    """An ERK topology that moves until three quarters of the training; SGD with momentum, DeepR without."""
    model = lenet(cell.network, data, cell.seed)
    random = sp.Random(torch.Generator().manual_seed(cell.seed))
    sp.sparsify(model, sp.prune(model, random, density=cell.density, pattern=sp.LayerWise(sp.erk)))
    until = 3 * cell.epochs * STEPS[100] // 4

    def make(model: nn.Module, optimizer: torch.optim.Optimizer) -> tr.Method:
        if cell.method == "DeepR":
            return tr.DeepR(model, optimizer, until=until, seed=cell.seed)
        every = 300 if cell.method in ("SET", "SparseMomentum") else 100
        return getattr(tr, cell.method)(model, optimizer, every=every, until=until, seed=cell.seed)

    rates = {"lr": 0.5, "momentum": 0.0, "weight_decay": 0.0} if cell.method == "DeepR" else {"lr": 0.1}
    return tr.train(model, data, epochs=cell.epochs, batch_size=100, seed=cell.seed, method=make, **rates)


def snip(cell: Cell, data: Dataset) -> tr.History:
    """The paper's recipe, with the learning rate's three steps in a shorter training."""
    model = lenet(cell.network, data, cell.seed)
    batch = next(iter(data.batches("train", 100, torch.Generator().manual_seed(cell.seed))))
    sp.sparsify(model, sp.prune(model, sp.SNIP(F.cross_entropy, [batch]), density=cell.density))
    return tr.train(model, data, epochs=cell.epochs, batch_size=100, lr=0.1, seed=cell.seed)


def tickets(cell: Cell, data: Dataset) -> tr.History:
    """Adam 1.2e-3, batches of 60; a fifth of each layer goes after a round, a tenth of the last layer."""
    method, number = cell.method.split()
    folder = Path("runs", "mnist_tickets")
    folder.mkdir(parents=True, exist_ok=True)
    model = lenet(cell.network, data, cell.seed)
    masks = sp.Masks.ones(sp.pruning.prunable(model))
    if int(number):
        masks = sp.Masks.load(folder / f"seed{cell.seed}-round{number}.safetensors")
    sp.sparsify(model, masks)
    if method == "reinitialized":
        other = lenet(cell.network, data, 1000 + cell.seed)
        model.load_state_dict(other.state_dict())
    settings = {"optimizer": "adam", "lr": 1.2e-3, "weight_decay": 0.0, "schedule": "constant"}
    history = tr.train(model, data, epochs=cell.epochs, batch_size=60, seed=cell.seed, **settings)
    if method == "ticket":
        smaller = {}
        for name, mask in masks.items():
            keep = round((0.9 if name.startswith("fc3") else 0.8) * mask.count())
            smaller[name] = sp.topk_mask([model.get_parameter(name).detach()], keep, abs=True, masks=[mask]).masks[0]
        sp.Masks(smaller).save(folder / f"seed{cell.seed}-round{int(number) + 1}.safetensors")
    return history


def conv(blocks: int) -> nn.Sequential:
    """The lottery tickets' Conv-2 and Conv-4, with a quarter of their channels and units, on 28x28 images."""
    layers: list[nn.Module] = []
    channels, size = 1, 28
    for width in (16, 32)[:blocks]:
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.ReLU()]
        layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2)]
        channels, size = width, size // 2
    layers.append(nn.Flatten())
    for inputs, outputs in ((channels * size * size, 64), (64, 64), (64, 10)):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def popup(cell: Cell, data: Dataset) -> tr.History:
    """Kaiming normal weights scaled by sqrt(1 / density), which never change."""
    torch.manual_seed(cell.seed)
    model = conv(2 if "4 /" in cell.network else 1)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            layer.weight.data /= math.sqrt(cell.density)
    before = [p.detach().clone() for p in model.parameters()]
    wrapped = tr.EdgePopup(model, density=cell.density)
    history = tr.train(wrapped, data, epochs=cell.epochs, batch_size=128, lr=0.1, weight_decay=1e-4, seed=cell.seed)
    if not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)):
        raise RuntimeError("weights must not change under edge-popup")
    return history


RUNS: dict[str, Callable[[Cell, Dataset], tr.History]] = {
    "dynamic": dynamic,
    "snip": snip,
    "tickets": tickets,
    "popup": popup,
}


def stored() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=os.environ.get("SPARSEPRUNE_DATA"))
    parser.add_argument("--only", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    if args.data_dir is None:
        parser.error("--data-dir or SPARSEPRUNE_DATA must name the folder of MNIST")
    torch.set_num_threads(1)
    data = sp.data.load("mnist", args.data_dir)
    for cell in (cell for seed in args.seeds for cell in cells(seed) if cell.table in args.only):
        rows, key = stored(), asdict(cell)
        if any({name: row[name] for name in key} == key for row in rows):
            continue
        started = time.process_time()
        history = RUNS[cell.table](cell, data)
        curve = [round(epoch.test_error, 4) for epoch in history]
        rows.append({**key, "test_errors": curve, "seconds": round(time.process_time() - started, 1)})
        text = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
        write_atomically(RESULTS, lambda file, text=text: file.write(text.encode()))
        print(f"{cell.table} {cell.network} {cell.method} {cell.density} seed {cell.seed}: {curve[-1]:.2%}", flush=True)


if __name__ == "__main__":
    main()
