"""Dynamic sparse training against a fixed random topology: an MLP on digits with 2 % of its weights.

    python -m benchmarks.reproduce.dynamic_digits

MLP 64-300-100-10, He normal, ERK topology, SGD 0.1 with momentum 0.9, weight decay 1e-4, cosine to 0, batch 64, 40 epochs,
1,437 training and 360 test samples; updates every 20 steps (SparseMomentum: every epoch) until three quarters. Test
accuracy in percent, one number a seed, goes to dynamic_digits.json.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import sparseprune as sp
from sparseprune import training as tr

DENSITY, EPOCHS, BATCH, TRAIN, SEEDS = 0.02, 40, 64, 1437, (0, 1)
STEPS = EPOCHS * -(-TRAIN // BATCH)
UNTIL = STEPS * 3 // 4
METHODS = {
    "fixed": lambda model, optimizer, seed: None,
    "SET": lambda model, optimizer, seed: tr.SET(model, optimizer, every=20, until=UNTIL, seed=seed),
    "RigL": lambda model, optimizer, seed: tr.RigL(model, optimizer, every=20, until=UNTIL, seed=seed),
    "SparseMomentum": lambda model, optimizer, seed: tr.SparseMomentum(
        model, optimizer, every=STEPS // EPOCHS, until=UNTIL, seed=seed
    ),
    "DSR": lambda model, optimizer, seed: tr.DSR(model, optimizer, every=20, until=UNTIL, seed=seed),
}


def digits() -> tuple[Tensor, Tensor]:
    """Images and labels in a fixed random order, standardised by the training part."""
    x, y = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    x = x.float()[order] / 16
    return (x - x[:TRAIN].mean()) / x[:TRAIN].std(), y[order]


def accuracy(name: str, seed: int) -> float:
    """Train once and test."""
    x, y = digits()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    for layer in model[::2]:
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    criterion = sp.Random(torch.Generator().manual_seed(seed))
    sp.sparsify(model, sp.prune(model, criterion, density=DENSITY, pattern=sp.LayerWise(sp.erk)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    method = METHODS[name](model, optimizer, seed)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for batch in torch.randperm(TRAIN, generator=generator).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            scheduler.step()
            if method is not None:
                method.step()
    return 100 * (model(x[TRAIN:]).argmax(1) == y[TRAIN:]).double().mean().item()


def main() -> None:
    torch.set_num_threads(1)
    results = {name: [round(accuracy(name, seed), 2) for seed in SEEDS] for name in METHODS}
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps({"density": DENSITY, "test_accuracy": results}, indent=2) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
