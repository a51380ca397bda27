"""Eight SynFlow runs by `prune_many` beside the same eight by `prune`: process CPU time of one thread.

    python -m benchmarks.reproduce.prune_many [vgg16_bn-32 resnet18-32]

Expected, of a step on VGG-16 at 32x32 where most weights are left (one AVX2 thread: 77 Gflop/s, 13.7 GB/s): a mask's
products are 1.3 Gflop, 17 ms, and no two masks share them. Of the bytes (28 a weight: the two products read it, its gradient
is written, the selection reads both, newly pruned ones are set to zero: 30 ms) masks of the same weights could at best share the 16 of reading
and zeroing. So were every byte of |W| shared, a step of 86 ms would cost 69: 1.25x, not the 2x of reading weights alone.
What runs can share whole is the scores of equal masks: all of a single step, and floors until one holds.

Writes prune_many.json beside itself.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import sparseprune as sp

from ..bench_prune import NETWORKS
from ..rows import WrongResultError

DENSITIES = [0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
SWEEPS: dict[str, dict[str, Any]] = {
    "8 densities from 0.3, 10 steps": {"density": DENSITIES, "steps": 10},
    "8 densities from 0.3, 1 step": {"density": DENSITIES},
    "8 floors at density 0.3, 10 steps": {
        "density": 0.3, "min_per_layer": [0, 10, 20, 50, 100, 200, 500, 1000], "steps": 10,
    },
}  # fmt: skip


def compare(network: str, sweep: dict[str, Any]) -> dict[str, float]:
    make, shape = NETWORKS[network]
    torch.manual_seed(0)
    model, criterion = make().eval(), sp.SynFlow(torch.ones(1, *shape))
    rows = [{n: v[i] if isinstance(v, list) else v for n, v in sweep.items()} for i in range(len(DENSITIES))]
    sp.prune(model, criterion, density=0.9)
    start = time.process_time()
    alone = [sp.prune(model, criterion, **row) for row in rows]
    middle = time.process_time()
    together = sp.prune_many(model, criterion, **sweep)
    end = time.process_time()
    if alone != together:
        raise WrongResultError("masks differ")
    found = {"alone ms": 1e3 * (middle - start) / len(rows), "together ms": 1e3 * (end - middle) / len(rows)}
    return {name: round(value) for name, value in found.items()} | {
        "ratio": round((middle - start) / (end - middle), 2)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=["vgg16_bn-32", "resnet18-32"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"torch": torch.__version__}
    for network in given.networks:
        results[network] = {name: compare(network, sweep) for name, sweep in SWEEPS.items()}
        print(network, results[network])
    Path(__file__).with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
