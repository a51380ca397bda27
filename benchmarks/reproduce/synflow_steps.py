"""A SynFlow run step by step beside the published loop: the time of each step against the density it leaves.

    python -m benchmarks.reproduce.synflow_steps [vgg16_bn-32 resnet18-32 resnet50-224] [--steps 100]

Exponential steps to density 0.01, as the paper. The published loop's steps cost the same whatever the density, so four
are timed after a first, in float32 and, as it overflows that from a ResNet-34 on, in float64. Times are this process's
on all its threads and on the wall, the allocator tuned; the bound is what the weights left need on the positions that differ, at the machine's
measured rate of products, and reading each of those weights three times. Writes synflow_steps.json and
synflow_steps.png beside itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import sparseprune as sp

from ..bench_prune import NETWORKS, published
from ..environment import is_tuned, tuned
from ..limits import bound_ms, measure_limits

DENSITY = 0.01


def clocks() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def milliseconds(start: tuple[float, float], count: int) -> dict[str, float]:
    spent = [1e3 * (now - then) / count for then, now in zip(start, clocks(), strict=True)]
    return {"cpu ms": round(spent[0], 2), "wall ms": round(spent[1], 2)}


def published_step(network: str, dtype: torch.dtype, steps: int = 4) -> dict[str, float]:
    make, shape = NETWORKS[network]
    model, ones = make().eval().to(dtype), torch.ones(1, *shape, dtype=dtype)
    published(model, ones, steps=1, density=0.9)
    start = clocks()
    published(model, ones, steps=steps, density=0.9)
    return milliseconds(start, steps)


def our_steps(network: str, steps: int, limits: dict[str, float]) -> tuple[dict[str, float], list[dict[str, float]]]:
    """The whole run over its steps, planning and the final table included, and each step by itself."""
    make, shape = NETWORKS[network]
    model, ones = make().eval(), torch.ones(1, *shape)
    plans, lines = [], []

    class Watched:
        example_input = ones

        def __call__(self, model: Any, params: Any) -> Any:
            return self.plan(model, params)()

        def plan(self, model: Any, params: Any) -> Any:
            plans.append(sp.SynFlow(ones).plan(model, params))
            return plans[0]

    def line(progress: Any) -> None:
        nonlocal before
        kept = lines[-1]["kept"] if lines else progress.total
        bound = bound_ms(limits, plans[0].operations, 3 * 4 * kept, "float32")
        figures = {"density": progress.density, "kept": progress.kept, **milliseconds(before, 1)}
        lines.append(figures | {"bound ms": round(bound, 3)})
        before = clocks()

    start = before = clocks()
    sp.prune(model, Watched(), density=DENSITY, steps=steps, progress=line)
    return milliseconds(start, steps), lines


def figure(results: dict[str, Any]) -> Figure:
    drawn = Figure(figsize=(4.5 * len(results), 3.6), layout="constrained")
    for axes, (network, result) in zip(drawn.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True):
        density = [line["density"] for line in result["ours by step"][1:]]
        for name, style in (("cpu ms", "-"), ("bound ms", ":")):
            axes.loglog(density, [line[name] for line in result["ours by step"][1:]], style, label=f"ours, {name}")
        for dtype in ("float32", "float64"):
            axes.axhline(result[f"published {dtype}"]["cpu ms"], color="gray", ls="--", lw=1)
            axes.annotate(f"published, {dtype}", (1, result[f"published {dtype}"]["cpu ms"]), ha="left", va="bottom")
        axes.invert_xaxis()
        axes.set(title=network, xlabel="density", ylabel="ms a step")
        axes.legend(frameon=False)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    if not is_tuned():  # the allocator and OpenMP read their settings when a process starts
        os.execve(sys.executable, [sys.executable, "-m", __spec__.name, *sys.argv[1:]], tuned(os.environ))
    limits = measure_limits("cpu")
    results: dict[str, Any] = {}
    for network in given.networks:
        torch.manual_seed(0)
        result = {f"published {d}": published_step(network, getattr(torch, d)) for d in ("float32", "float64")}
        mean, lines = our_steps(network, given.steps, limits)
        result |= {"ours": mean, "ours by step": lines, "steps": given.steps}
        for dtype in ("float32", "float64"):
            beside = result[f"published {dtype}"]
            result[f"times faster than {dtype}"] = {name: round(beside[name] / mean[name], 1) for name in mean}
        over = statistics.median(line["cpu ms"] / line["bound ms"] for line in lines)
        result["median cpu time over the bound"] = round(over, 1)
        results[network] = result
        print(network, {name: value for name, value in result.items() if name != "ours by step"})
    here = Path(__file__).with_suffix("")
    machine = {"processor": platform.processor(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    here.with_suffix(".json").write_text(json.dumps({"machine": machine, "limits": limits, **results}, indent=1) + "\n")
    figure(results).savefig(here.with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
