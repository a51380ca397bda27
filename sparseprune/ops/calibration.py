"""calibrate(): measure the masked products on this machine, once, and fit the constants that choices are made by."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import write_atomically
from . import costs, masked_conv2d, masked_linear
from .backends import Call
from .choice import describe
from .costs import DENSE, Work
from .mask_bits import pack_mask

ROUNDS = 5
CAUTION = 1.25  # of 384 products of random shapes 4 % were then chosen wrong by more than a tenth (Zen 5)
SECONDS = 2e-4  # the least that one timing takes; shorter calls are repeated
NOISE = 5e-6  # seconds, of a call of a few
DENSITIES = (0.02, 0.1, 0.4, 0.9)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
# (batch, in, out)
LINEAR = (
    (1, 256, 256), (1, 128, 16), (1, 784, 300), (1, 1024, 1024), (1, 300, 1024), (1, 4096, 4096), (1, 2048, 4096),
    (8, 512, 512), (4, 1024, 256), (2, 2048, 512), (8, 1024, 1024), (4, 784, 64), (8, 1024, 16),
    (5, 500, 3000), (3, 500, 3500), (8, 600, 2000), (5, 3500, 550), (1, 36, 1500),
    (4, 4096, 2048), (8, 4096, 4096), (2, 2048, 2048), (5, 1100, 4000), (7, 2200, 2100),
    (16, 256, 256), (32, 512, 512), (64, 128, 256), (16, 2048, 1024), (128, 512, 512), (512, 256, 128), (64, 128, 16),
    (128, 784, 300),
)  # fmt: skip
# (batch, in, out, size, kernel, stride, groups)
CONV = (
    (1, 64, 64, 56, 1, 1, 1), (1, 64, 256, 28, 1, 1, 1), (8, 64, 64, 14, 1, 1, 1), (1, 256, 64, 28, 1, 1, 1),
    (1, 256, 512, 14, 1, 1, 1), (4, 128, 128, 28, 1, 2, 1), (8, 256, 128, 14, 1, 1, 1),
    (1, 256, 256, 7, 1, 1, 1), (8, 128, 256, 7, 1, 1, 1), (1, 512, 512, 7, 1, 1, 1), (8, 512, 256, 7, 1, 1, 1),
    (2, 256, 512, 14, 1, 2, 1), (1, 1024, 256, 7, 1, 1, 1), (16, 64, 64, 7, 1, 1, 1),
    (1, 512, 2048, 7, 1, 1, 1), (4, 2048, 512, 7, 1, 1, 1), (1, 1024, 1024, 4, 1, 1, 1), (16, 1024, 512, 7, 1, 1, 1),
    (1, 64, 64, 28, 3, 1, 1), (4, 32, 64, 28, 3, 1, 1), (1, 128, 128, 14, 3, 1, 1), (8, 64, 64, 14, 3, 1, 1),
    (16, 32, 32, 16, 3, 1, 1), (1, 256, 128, 14, 3, 1, 1), (2, 64, 128, 28, 3, 2, 1), (1, 64, 96, 14, 5, 1, 1),
    (1, 128, 128, 7, 3, 1, 1), (8, 64, 128, 7, 3, 1, 1), (1, 256, 256, 7, 3, 1, 1), (1, 64, 128, 14, 3, 2, 1),
    (1, 512, 256, 7, 3, 1, 1), (16, 32, 32, 7, 3, 1, 1), (4, 256, 128, 7, 3, 1, 1), (1, 64, 64, 8, 3, 1, 1),
    (1, 128, 128, 7, 5, 1, 1), (2, 128, 128, 4, 3, 1, 1), (1, 256, 200, 4, 1, 1, 1), (1, 160, 48, 7, 5, 2, 1),
    (1, 512, 512, 7, 3, 1, 1), (4, 256, 512, 7, 3, 1, 1), (4, 512, 512, 4, 3, 1, 1), (1, 512, 512, 2, 3, 1, 1), (16, 256, 256, 7, 3, 1, 1),
    (2, 8, 8, 6, 3, 1, 1), (1, 1, 6, 28, 5, 1, 1), (16, 1, 6, 28, 5, 1, 1), (16, 6, 16, 14, 5, 1, 1),
    (1, 16, 16, 32, 3, 1, 1), (16, 16, 16, 32, 3, 1, 1), (8, 16, 32, 32, 3, 2, 1), (1, 3, 64, 64, 7, 2, 1),
    (1, 16, 32, 56, 3, 1, 1), (8, 3, 64, 32, 3, 1, 1), (4, 16, 64, 28, 1, 1, 1), (4, 96, 16, 14, 1, 1, 1),
    (8, 16, 200, 4, 5, 1, 1), (1, 16, 32, 4, 3, 1, 1), (8, 16, 64, 7, 3, 1, 1), (4, 64, 16, 8, 3, 2, 1),
    (1, 64, 64, 14, 3, 1, 64), (1, 64, 64, 28, 3, 1, 4), (4, 64, 64, 7, 3, 1, 64), (4, 128, 128, 7, 3, 1, 8),
    (1, 128, 128, 14, 3, 1, 2),
)  # fmt: skip


Ways = Mapping[str, Callable[[], Any]]
Sample = tuple[Work, Mapping[str, float]]


def calibrate(path: Path | str | None = None) -> Path:
    """Measure on this machine, with the present number of threads, and write the file that choices are made by.

    Takes about half a minute. Nothing else of the package does this: without it the package's own constants are used.

    Args:
        path: the file; None means this processor's file in the user's cache folder, which is in use from now on.

    Returns:
        The path.

    Raises:
        RuntimeError: the compiled CPU kernels are missing.
    """
    path = costs.cache_file() if path is None else Path(path)
    fits = measure_and_fit()
    found = {"cpu": costs.cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__, "ops": fits}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write((json.dumps(found, indent=1) + "\n").encode()))
    costs.reload()
    return path


def measure_and_fit() -> dict[str, dict[str, dict[str, Any]]]:
    """op -> kind -> candidate -> constants and margin."""
    if "native" not in costs.candidates(torch.float32):
        raise RuntimeError("calibrate must have the compiled CPU kernels, got an installation without them")
    samples: dict[str, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    layers = [linear_calls(*shape) for shape in LINEAR]
    layers += [conv_calls(layout, *shape) for layout in LAYOUTS for shape in CONV]
    for calls in layers:
        dense: dict[str, dict[str, float]] = {}  # of each op: it does not depend on the density
        for work, ways in calls:
            seconds = measure({n: run for n, run in ways.items() if work.op not in dense or n not in DENSE})
            dense.setdefault(work.op, {n: s for n, s in seconds.items() if n in DENSE})
            samples[work.op][work.kind].append((work, {**dense[work.op], **seconds}))
    return {op: {kind: fit(found) for kind, found in kinds.items()} for op, kinds in samples.items()}


def linear_calls(batch: int, n_in: int, n_out: int) -> Iterator[tuple[Work, Ways]]:
    """The three products of a linear layer at each density."""
    x = torch.randn(batch, n_in)
    for weight, words in _pruned(n_out, n_in):
        yield from map(described, masked_linear.products(x, weight, words, None))


def conv_calls(
    layout: torch.memory_format, batch: int, n_in: int, n_out: int, size: int, kernel: int, stride: int, groups: int
) -> Iterator[tuple[Work, Ways]]:
    """The three products of a convolution at each density."""
    x = torch.randn(batch, n_in, size, size).contiguous(memory_format=layout)
    for weight, words in _pruned(n_out, n_in // groups, kernel, kernel):
        weight = weight.contiguous(memory_format=layout)  # as model.to(memory_format=...) makes it
        yield from map(described, masked_conv2d.products(x, weight, words, None, stride, kernel // 2, 1, groups))


def _pruned(*shape: int) -> Iterator[tuple[Tensor, Tensor]]:
    for density in DENSITIES:
        keep = torch.rand(shape) < density
        yield torch.randn(shape) * keep, pack_mask(keep.flatten(1))


def described(call: Call) -> tuple[Work, Ways]:
    """What a call is to the cost model, and each way to run it that the model knows."""
    work = describe(call.op, *call.args)
    names = [name for name in costs.candidates(work.dtype) if name in call.implementations]
    return work, {name: partial(call.implementations[name].run, *call.args) for name in names}


@torch.no_grad()
def measure(ways: Ways) -> dict[str, float]:
    """The least seconds of each way: in turns, so that what else the machine does meets all of them."""
    # One thread's own time is not disturbed by other processes; that of several threads can only be seen on the clock.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    for run in ways.values():
        run()
    repeats = {name: max(1, int(SECONDS / max(_timed(run, 1, clock), 1e-7))) for name, run in ways.items()}
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, run in ways.items():
            best[name] = min(best[name], _timed(run, repeats[name], clock))
    return best


def _timed(run: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(repeats):
        run()
    return (clock() - start) / repeats


def fit(samples: Sequence[Sample]) -> dict[str, Any]:
    """Non-negative least squares of predicted / measured - 1 for each candidate, and the margin.

    The margin is the gain from which on a prediction for the sparse kernel can be believed: CAUTION times the largest
    that was predicted where the measurement then was a loss of more than 5 %, and more than ``NOISE``.
    """
    from scipy.optimize import nnls  # half a second to import

    found: dict[str, Any] = {}
    for name in samples[0][1]:
        rows = torch.tensor([work.terms(name) for work, _ in samples], dtype=torch.float64)
        rows /= torch.tensor([seconds[name] for _, seconds in samples], dtype=torch.float64)[:, None]
        scale = rows.amax(0)
        solution, _ = nnls((rows / scale).numpy(), torch.ones(len(samples), dtype=torch.float64).numpy())
        found[name] = (torch.from_numpy(solution) / scale).tolist()
    believed = [1.0]
    for work, seconds in samples:
        predicted = {name: work.seconds(name, constants) for name, constants in found.items()}
        dense, measured = (min(s for n, s in times.items() if n in DENSE) for times in (predicted, seconds))
        if measured < min(0.95 * seconds["native"], seconds["native"] - NOISE):
            believed.append(dense / predicted["native"])
    return {**found, "margin": CAUTION * max(believed)}
