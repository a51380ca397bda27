"""SNIP on LeNet-5 and MNIST: which layers it prunes, and how near it comes to the exact saliency.

    python -m benchmarks.reproduce.lenet5_saliency --data-dir FOLDER [--batch 100] [--seeds 3]

The layer table is that of a public reproduction of SNIP (github.com/szmikler/snip-pruning): classic LeNet-5, 61,706
weights and biases together, pruned to 50 % and to 5 %. Weights are drawn by Glorot's rule and biases by torch's, because
biases that are zero score zero and all go. The exact saliency of all 61,470 weights takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import sparseprune as sp
from sparseprune.report.style import COLOURS, INK, bare

SPARSITIES = (0.5, 0.95)
PUBLISHED = {
    "conv1": (0.047, 0.293), "conv2": (0.118, 0.723), "fc1": (0.525, 0.975), "fc2": (0.214, 0.924), "fc3": (0.330, 0.699),
}  # fmt: skip


def lenet(data: sp.data.Dataset, seed: int) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = sp.models.lenet5(input_shape=data.input_shape, generator=generator)
    biases = {name: p.detach().clone() for name, p in model.named_parameters() if p.dim() == 1}
    sp.models.initialize_(model, "xavier_normal", generator)
    with torch.no_grad():
        for name, value in biases.items():
            model.get_parameter(name).copy_(value)
    return model


def pruned_shares(model: torch.nn.Module, batch: tuple[Tensor, Tensor], sparsity: float) -> dict[str, float]:
    """Of each layer, the share of weights and biases that SNIP removes."""
    scores = sp.SNIP(F.cross_entropy, [batch])(model, dict(model.named_parameters()))
    total = sum(score.numel() for score in scores.values())
    kept = sp.topk_mask(list(scores.values()), round((1 - sparsity) * total)).masks
    counts = {layer: [0, 0] for layer in PUBLISHED}
    for name, mask in zip(scores, kept, strict=True):
        layer = counts[name.partition(".")[0]]
        layer[0] += mask.count()
        layer[1] += mask.numel()
    return {layer: 1 - left / size for layer, (left, size) in counts.items()}


def spearman(first: Tensor, second: Tensor) -> float:
    ranks = torch.stack([value.double().argsort().argsort().double() for value in (first, second)])
    return float(torch.corrcoef(ranks)[0, 1])


def saliencies(model: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    model = model.double()
    batches = [(batch[0].double(), batch[1])]
    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    criteria = {
        "exact": sp.ExactSaliency(F.cross_entropy, batches),
        "SNIP": sp.SNIP(F.cross_entropy, batches),
        "quadratic SNIP": sp.QuadraticSNIP(F.cross_entropy, batches),
        "magnitude": sp.Magnitude(),
    }
    return {
        name: torch.cat([score.flatten() for score in criterion(model, weights).values()])
        for name, criterion in criteria.items()
    }


def run(data_dir: str, batch_size: int, seeds: int) -> tuple[dict[str, object], dict[str, Tensor]]:
    data = sp.data.load("mnist", data_dir)
    shares: dict[str, dict[str, list[float]]] = {str(s): {layer: [] for layer in PUBLISHED} for s in SPARSITIES}
    for seed in range(seeds):
        model = lenet(data, seed)
        batch = next(iter(data.batches("train", batch_size, torch.Generator().manual_seed(seed))))
        for sparsity in SPARSITIES:
            for layer, share in pruned_shares(model, batch, sparsity).items():
                shares[str(sparsity)][layer].append(share)
    batch = next(iter(data.batches("train", batch_size, torch.Generator().manual_seed(0))))
    found = saliencies(lenet(data, 0), batch)
    result = {
        "batch": batch_size,
        "seeds": seeds,
        "pruned": shares,
        "published": {str(s): {layer: row[i] for layer, row in PUBLISHED.items()} for i, s in enumerate(SPARSITIES)},
        "spearman with exact": {
            name: spearman(found["exact"], score) for name, score in found.items() if name != "exact"
        },
        "mean error over mean saliency": {
            name: float((found[name] - found["exact"]).abs().sum() / found["exact"].sum())
            for name in ("SNIP", "quadratic SNIP")
        },
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    return result, found


def figure(result: dict[str, object], found: dict[str, Tensor]):
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(10, 3.2), layout="constrained")
    left, *right = drawn.subplots(1, 3, width_ratios=(1.3, 1, 1))
    for i, sparsity in enumerate(SPARSITIES):
        for j, layer in enumerate(PUBLISHED):
            ours = torch.tensor(result["pruned"][str(sparsity)][layer])
            place = j + (i - 0.5) * 0.3
            left.bar(
                place, 100 * ours.mean(), 0.26, color=COLOURS[i], label=None if j else f"ours, {sparsity:.0%} of all"
            )
            left.plot(
                place, 100 * PUBLISHED[layer][i], "_", color=INK, ms=11, mew=2, label=None if i + j else "published"
            )
    left.set_xticks(range(len(PUBLISHED)), PUBLISHED)
    left.set_ylabel("pruned, %", fontsize=8)
    left.legend(fontsize=7, frameon=False)
    bare(left, "y")
    exact = found["exact"]
    for axes, name in zip(right, ("SNIP", "quadratic SNIP"), strict=True):
        both = (exact > 1e-9) & (found[name] > 1e-9)
        axes.hexbin(exact[both], found[name][both], xscale="log", yscale="log", gridsize=50, bins="log", cmap="Blues")
        ends = (1e-9, float(exact.max()))
        axes.plot(ends, ends, color=INK, lw=0.6)
        axes.set(xlim=ends, ylim=ends)
        axes.set_title(f"{name}: Spearman {result['spearman with exact'][name]:.4f}", fontsize=8)
        axes.set_xlabel("exact saliency", fontsize=8)
        bare(axes, "both")
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    result, found = run(args.data_dir, args.batch, args.seeds)
    path = Path(__file__).with_name("lenet5_saliency.json")
    path.write_text(json.dumps(result, indent=2) + "\n")
    figure(result, found).savefig(path.with_suffix(".png"), dpi=150)
    for sparsity, layers in result["pruned"].items():
        for layer, values in layers.items():
            print(
                f"{sparsity} {layer}: {sum(values) / len(values):.1%} (published {result['published'][sparsity][layer]:.1%})"
            )
    print(result["spearman with exact"])


if __name__ == "__main__":
    main()
