"""Signal propagation in sparse networks, Lee et al. 2020 (arXiv:1906.06307): table 1, figure 1, and the repair.

    python -m benchmarks.reproduce.signal_propagation --data-dir FOLDER [--seeds 2] [--steps 400]

784-(100)x6-10 on MNIST. Singular values of the input-output Jacobian of the tanh network drawn from N(0, variance),
beside the published means; of orthogonal and Gaussian initialisation pruned by SNIP to several sparsities; and of the
network pruned by 90 % before and after the repair of isometry, with the training loss of both. Writes
signal_propagation.json and signal_propagation.png beside itself.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

import sparseprune as sp
from sparseprune.diagnostics import approximate_isometry_, jacobian_spectrum, spectra_by_sparsity

PUBLISHED = {1e-4: 2.46e-07, 1e-3: 5.74e-04, 1e-2: 4.49e-01}
SPARSITIES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95)
SCHEMES = {"orthogonal": "orthogonal", "Gaussian": "lecun_normal"}
INPUTS = 10
VARIANCE_SEEDS = 10
SPARSITY = 0.9


def network(activation: type[nn.Module], seed: int, scheme: str = "orthogonal") -> nn.Module:
    sizes = (784, *[100] * 6, 10)
    layers = [layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b), activation())]
    model = nn.Sequential(nn.Flatten(), *layers[:-1])
    return sp.models.initialize_(model, scheme, torch.Generator().manual_seed(seed))


def batches(data: sp.data.Dataset, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from data.batches("train", 100, generator)


def by_variance(data: sp.data.Dataset) -> list[dict[str, Any]]:
    rows = []
    for variance, published in PUBLISHED.items():
        values = []
        for seed in range(VARIANCE_SEEDS):
            model = network(nn.Tanh, seed)
            generator = torch.Generator().manual_seed(seed)
            for layer in model:
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, 0, variance**0.5, generator)
            values.append(jacobian_spectrum(model, next(batches(data, seed))[0][:INPUTS]).values)
        values = torch.stack(values)
        rows.append({
            "variance": variance, "mean": values.mean().item(), "std": values.std(correction=0).item(),
            "mean_by_seed": values.mean((1, 2)).tolist(), "published_mean": published,
        })  # fmt: skip
    return rows


def by_sparsity(data: sp.data.Dataset, seeds: int) -> list[dict[str, Any]]:
    rows = []
    for name, activation in (("linear", nn.Identity), ("tanh", nn.Tanh)):
        for scheme, drawn in SCHEMES.items():
            found: dict[float, list[Tensor]] = {sparsity: [] for sparsity in SPARSITIES}
            for seed in range(seeds):
                x, y = next(batches(data, seed))
                criterion = sp.SNIP(F.cross_entropy, [(x, y)])
                spectra = spectra_by_sparsity(network(activation, seed, drawn), criterion, x[:INPUTS], SPARSITIES)
                for sparsity, spectrum in spectra.items():
                    found[sparsity].append(spectrum.values)
            for sparsity, values in found.items():
                values = torch.stack(values)
                rows.append({
                    "network": name, "init": scheme, "sparsity": sparsity, "mean": values.mean().item(),
                    "std": values.std(correction=0).item(),
                })  # fmt: skip
    return rows


def repaired(data: sp.data.Dataset, seeds: int, steps: int) -> list[dict[str, Any]]:
    rows = []
    for name, activation in (("linear", nn.Identity), ("tanh", nn.Tanh)):
        for seed in range(seeds):
            x, y = next(batches(data, seed))
            for repair in (False, True):
                model = network(activation, seed)
                masks = sp.prune(model, sp.SNIP(F.cross_entropy, [(x, y)]), sparsity=SPARSITY)
                if repair:
                    approximate_isometry_(model, masks)
                sp.sparsify(model, masks)
                spectrum = jacobian_spectrum(model, x[:INPUTS])
                losses = train(model, data, seed, steps)
                rows.append({
                    "network": name, "seed": seed, "repaired": repair, "mean": spectrum.mean, "std": spectrum.std,
                    "test_error": test_error(model, data), "losses": losses,
                })  # fmt: skip
                print(name, seed, repair, spectrum.mean, rows[-1]["test_error"], flush=True)
    return rows


def train(model: nn.Module, data: sp.data.Dataset, seed: int, steps: int) -> list[float]:
    """Mean training loss of each 20 steps; SGD with learning rate 0.1 and momentum 0.9, the paper's."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _, (x, y) in zip(range(steps), batches(data, seed)):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses).reshape(-1, 20).mean(1).tolist()


def test_error(model: nn.Module, data: sp.data.Dataset) -> float:
    wrong = 0
    for x, y in data.batches("test", 1000):
        with torch.no_grad():
            wrong += (model(x).argmax(1) != y).sum().item()
    return wrong / data.count("test")


def draw(result: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    variances = [row["variance"] for row in result["by_variance"]]
    first.loglog(variances, [row["mean"] for row in result["by_variance"]], "o-", label="here")
    first.loglog(
        variances, [row["published_mean"] for row in result["by_variance"]], "kx", markersize=9, label="published"
    )
    first.set(xlabel="variance of the weights", ylabel="mean singular value", title="tanh network at initialisation")
    for name, line in (("linear", "-"), ("tanh", "--")):
        for scheme, colour in (("orthogonal", "#2f6db3"), ("Gaussian", "#e8912d")):
            rows = [r for r in result["by_sparsity"] if (r["network"], r["init"]) == (name, scheme)]
            means = [r["mean"] for r in rows]
            second.semilogy(
                [r["sparsity"] for r in rows], means, line, marker="o", color=colour, label=f"{name}, {scheme}"
            )
    second.set(xlabel="sparsity", title="pruned by SNIP at initialisation")
    for name, line in (("linear", "-"), ("tanh", "--")):
        for repair, colour in ((False, "#6b7280"), (True, "#2f9e77")):
            rows = [r for r in result["repair"] if (r["network"], r["repaired"]) == (name, repair)]
            losses = torch.tensor([r["losses"] for r in rows]).mean(0)
            mean = sum(r["mean"] for r in rows) / len(rows)
            label = f"{name}, {'repaired' if repair else 'pruned'}: mean singular value {mean:.2g}"
            third.plot(range(20, 20 * len(losses) + 1, 20), losses, line, color=colour, label=label)
    third.set(xlabel="training step", ylabel="training loss", title="90 % pruned, before and after the repair")
    for axes in (first, second, third):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    data = sp.data.load("mnist", args.data_dir)
    result = {
        "by_variance": by_variance(data),
        "by_sparsity": by_sparsity(data, args.seeds),
        "repair": repaired(data, args.seeds, args.steps),
        "seeds": args.seeds,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(result, indent=1) + "\n")
    draw(result, path.with_suffix(".png"))
    for row in result["by_variance"]:
        print(f"variance {row['variance']:g}: mean {row['mean']:.3g}, published {row['published_mean']:.3g}")


if __name__ == "__main__":
    main()
