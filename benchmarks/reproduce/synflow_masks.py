"""SynFlow's masks beside those of the published algorithm, over a whole run.

    python -m benchmarks.reproduce.synflow_masks [vgg16_bn-32 resnet20-32 resnet18-32] [--steps 100] [--modes float64 bfloat16]

Exponential steps to density 0.01 from the weights of seed 0, biases zero, as the paper. The published loop
(benchmarks/published.py) runs in float64. Ours in float64 must keep the same weights to the bit; what else `SynFlow`
computes in is told by the share of the kept weights that differ, an error that grows with every step. Writes
synflow_masks.json beside itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import sparseprune as sp

from ..published import published_synflow

DENSITY = 0.01
MODES = ("float64", "float32")  # bfloat16 is slow on most CPUs, and tf32 is float32 there
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "vgg16_bn-32": (lambda: sp.models.vgg16_bn(num_classes=100), (3, 32, 32)),
    "resnet20-32": (lambda: sp.models.resnet20(), (3, 32, 32)),
    "resnet18-32": (lambda: sp.models.resnet18(num_classes=100, stem="cifar"), (3, 32, 32)),
}


def without_biases(network: str) -> tuple[nn.Module, torch.Tensor]:
    make, shape = NETWORKS[network]
    torch.manual_seed(0)
    model = make().double().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.zero_()
    return model, torch.ones(1, *shape, dtype=torch.float64)


def compare(network: str, steps: int, modes: tuple[str, ...] = MODES) -> dict[str, object]:
    """Digests of the masks in float64, and in how many kept weights other modes differ from them."""
    model, ones = without_biases(network)
    published = sp.Masks({n: m.bool() for n, m in published_synflow(model, ones, DENSITY, steps).items()})
    found: dict[str, object] = {"steps": steps, "kept": published.count(), "of": published.numel()}
    found["published, float64"] = published.digest()
    for mode in modes:
        given = {"precision": mode} if mode in ("tf32", "bfloat16") else {"dtype": getattr(torch, mode)}
        masks = sp.prune(model, sp.SynFlow(ones, **given), density=DENSITY, steps=steps)
        others = (published & ~masks).count()
        found[mode] = masks.digest() if mode == "float64" else {"differ": others, "share": others / masks.count()}
        if mode == "float64" and masks != published:
            raise AssertionError(f"{network}: {others:,} of {masks.count():,} weights kept differ in float64")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--modes", nargs="+", default=MODES, choices=(*MODES, "tf32", "bfloat16"))
    given = parser.parse_args()
    path = Path(__file__).with_suffix(".json")
    results = json.loads(path.read_text()) if path.exists() else {}
    for network in given.networks:
        results[network] = compare(network, given.steps, tuple(given.modes)) | {"torch": torch.__version__}
        print(network, results[network], flush=True)
        path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
