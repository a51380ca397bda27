"""How one row is taken: build, check, peak memory, warm up, time; in this order, and a red check ends it."""

from __future__ import annotations

import ctypes
import gc
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .limits import GIGA, bound_ms
from .precision import float32_products
from .rows import Plan, Row, Timed

MIB = 2**20
LEAST_ROUND = 1e-3  # seconds; shorter calls are repeated within a round, so that the clock's own cost vanishes
FEW_FAULTS = 8  # pages, some of them huge, that a call may meet for the first time and yet count as warm


@dataclass
class Measure:
    """Takes rows with one pytest-benchmark fixture; ``limits`` are the machine's."""

    plan: Plan
    limits: dict[str, float]
    benchmark: Any
    seconds: float
    graphs: bool = False
    _notes: dict[str, Any] = field(default_factory=dict)

    def __call__(self, row: Row) -> None:
        with float32_products("float32"):
            timed = row.build()
        with float32_products(timed.limit):
            timed.check(timed.run())
            peak = peak_mib(timed.run, self.plan.device)
            warm_up(timed.run, 4 * self.seconds)
            rounds, iterations = self._repeats(timed)
            self.benchmark.group = row.group
            self.benchmark.pedantic(timed.run, rounds=rounds, iterations=iterations)
            self.benchmark.extra_info.update(self._info(row, timed, peak))

    def _repeats(self, timed: Timed) -> tuple[int, int]:
        clock = clock_of(self.plan.device)
        start = clock()
        timed.run()
        once = max(clock() - start, 1e-7)
        iterations = max(1, round(LEAST_ROUND / once)) if once < LEAST_ROUND else 1
        least = 2 if self.plan.quick else 3 if once > 1 else 5
        return max(least, min(50, int(self.seconds / (once * iterations)))), iterations

    def _info(self, row: Row, timed: Timed, peak: float | None) -> dict[str, Any]:
        ms = 1e3 * self.benchmark.stats.stats.median
        info: dict[str, Any] = {
            **{key: getattr(row, key) for key in ("op", "side", "kind", "density", "dtype", "size")},
            "ms": ms,
            "GF/s": timed.flops / ms * 1e3 / GIGA if timed.flops else None,
            "GB/s": timed.bytes / ms * 1e3 / GIGA if timed.bytes else None,
            "percent of limit": 100 * bound_ms(self.limits, timed.flops, timed.bytes, timed.limit) / ms,
            "peak MiB": peak,
        }
        if not timed.flops and not timed.bytes:
            info["percent of limit"] = None
        if self.plan.device == "cuda":
            info["cold ms"] = cold_ms(timed.run)
            info["graph ms"] = graph_ms(timed.run) if self.graphs and timed.capturable else None
        return info


def clock_of(device: str) -> Callable[[], float]:
    """A clock that is read when the device is done."""
    return _synchronized_clock if device == "cuda" else time.perf_counter


def _synchronized_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def warm_up(run: Callable[[], Any], seconds: float) -> None:
    """Calls until two in a row have found their memory in place, which the measure of the peak has handed back.

    The blocks of a call are not where those of the one before were, so this can take several; on a virtual machine a
    page that is met for the first time costs far more than writing it. Ends after ``seconds`` in any case: without a
    kept heap, large temporaries are faulted in at every call.
    """
    start, warm = time.perf_counter(), 0
    while warm < 2 and time.perf_counter() - start < seconds:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        run()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        warm = warm + 1 if faults <= FEW_FAULTS else 0


def peak_mib(run: Callable[[], Any], device: str) -> float | None:
    """Memory that one call holds at its peak beyond what was there before, its result included.

    On a CPU by the kernel's high-water mark of resident pages, so whoever allocates is seen (torch, NumPy, C++); the
    free heap is handed back first. None where the kernel does not keep the mark.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # sets the mark to what is resident now
        before = _status("VmRSS")
        run()
        return max(0.0, _status("VmHWM") - before) / MIB
    except (OSError, AttributeError, KeyError):
        return None


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = {name: value for name, value in (line.split(":", 1) for line in lines)}[key]
    return int(kib.split()[0]) * 1024


def cold_ms(run: Callable[[], Any], rounds: int = 10) -> float:
    """Median time on the GPU with its L2 cache holding something else, by events around the call alone."""
    other = torch.empty(2**28, dtype=torch.int8, device="cuda")  # 256 MiB, several times the L2 of any GPU
    times = []
    for _ in range(rounds):
        other.zero_()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
    return statistics.median(times)


def graph_ms(run: Callable[[], Any], replays: int = 20) -> float | None:
    """Time of one replay of a CUDA graph of the call: without what launching costs. None if it cannot be captured."""
    try:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            run()
        graph.replay()
        start = _synchronized_clock()
        for _ in range(replays):
            graph.replay()
        return (_synchronized_clock() - start) / replays * 1e3
    except RuntimeError:
        return None
