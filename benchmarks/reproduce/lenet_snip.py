"""LeNet-300-100 by SNIP on MNIST, table 1 of Lee et al. 2019 (arXiv:1810.02340): 1.6 % error at 95 %, 2.4 % at 98 %.

    python -m benchmarks.reproduce.lenet_snip --data-dir FOLDER [--sparsity 0.95] [--epochs 250] [--seed 0]

The recipe is the paper's: SGD with momentum 0.9, batches of 100, weight decay 5e-4, learning rate 0.1 divided by ten
every 25,000 steps, weights drawn by Glorot's rule. All 60,000 training images are used; the error reported is the last epoch's, not the best.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch
import torch.nn.functional as F

import sparseprune as sp
from sparseprune.training import Progress, train

PUBLISHED = {0.95: 0.016, 0.98: 0.024}
STEPS_PER_EPOCH = 600


def run(data_dir: str, sparsity: float, epochs: int, seed: int) -> dict[str, object]:
    data = sp.data.load("mnist", data_dir)
    generator = torch.Generator().manual_seed(seed)
    model = sp.models.lenet_300_100(input_shape=data.input_shape, generator=generator)
    sp.models.initialize_(model, "xavier_normal", generator)
    batch = next(iter(data.batches("train", 100, generator)))
    masks = sp.prune(model, sp.SNIP(F.cross_entropy, [batch]), sparsity=sparsity)
    sp.sparsify(model, masks)
    milestones = [m for m in range(25_000 // STEPS_PER_EPOCH, epochs, 25_000 // STEPS_PER_EPOCH)]
    schedule = {"schedule": "step", "milestones": milestones} if milestones else {"schedule": "cosine"}

    def report(event: Progress) -> None:
        if event.record is not None:
            print(f"epoch {event.epoch}: {event.record.test_error:.2%} test error", flush=True)

    history = train(
        model, data, epochs=epochs, batch_size=100, lr=0.1, weight_decay=5e-4, seed=seed, progress=report, **schedule
    )
    return {
        "sparsity": sparsity,
        "kept": masks.counts(),
        "epochs": epochs,
        "seed": seed,
        "test_error": history.epochs[-1].test_error,
        "best_test_error": min(e.test_error for e in history.epochs),
        "published_test_error": PUBLISHED.get(sparsity),
        "seconds": sum(e.seconds for e in history.epochs),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--epochs", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    result = run(args.data_dir, args.sparsity, args.epochs, args.seed)
    path = Path(__file__).with_name(f"lenet_snip_{args.sparsity:.0%}_seed{args.seed}.json".replace("%", ""))
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{path}: {result['test_error']:.2%} (published {result['published_test_error']})")


if __name__ == "__main__":
    main()
