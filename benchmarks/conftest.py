"""Settings of every benchmark: which rows, on which device, with which limits, and until when."""

from __future__ import annotations

import time

import pytest
import torch

from .environment import facts, is_tuned
from .limits import measure_limits
from .measure import Measure, clock_of
from .rows import AbsentError, Plan, Row

PLAN = pytest.StashKey[Plan]()
LIMITS = pytest.StashKey[dict[str, float]]()
STARTED = time.monotonic()


def pytest_addoption(parser):
    group = parser.getgroup("sparseprune benchmarks")
    group.addoption("--quick", action="store_true", help="toy sizes: proves that it runs, measures nothing")
    group.addoption("--bench-device", default="cpu", choices=("cpu", "cuda"))
    group.addoption("--row-seconds", type=float, default=0.4, help="time spent on timing one row")
    group.addoption("--time-budget", type=float, help="seconds after which no further row is taken")
    group.addoption("--graphs", action="store_true", help="also time replays of CUDA graphs")


def pytest_configure(config):
    # A run of the tests from the root loads this file too late for its options: then there are no rows to take.
    # What is red or absent is never timed, which is no reason to warn.
    config.addinivalue_line("filterwarnings", "ignore::pytest_benchmark.logger.PytestBenchmarkWarning")
    config.stash[PLAN] = Plan(config.getoption("--bench-device", "cpu"), config.getoption("--quick", False))


def pytest_report_header(config):
    plan = config.stash[PLAN]
    if not is_tuned(plan.device):
        return "benchmarks: allocator and threads are not tuned, eager PyTorch will look slow; run python -m benchmarks"
    return f"benchmarks: {plan.device}, allocator keeps its heap, threads bound"


def pytest_generate_tests(metafunc):
    if "row" in metafunc.fixturenames:
        metafunc.parametrize("row", list(metafunc.module.rows(metafunc.config.stash[PLAN])), ids=str)


def pytest_collection_modifyitems(config, items):
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=clock_of(config.stash[PLAN].device)))


@pytest.fixture(scope="session")
def limits(request):
    plan = request.config.stash[PLAN]
    request.config.stash[LIMITS] = measure_limits(plan.device, plan.quick)
    return request.config.stash[LIMITS]


@pytest.fixture
def measure(request, benchmark, limits):
    """Takes one row, or skips it with the reason why this machine cannot."""
    budget = request.config.getoption("--time-budget")
    if budget is not None and time.monotonic() - STARTED > budget:
        pytest.skip("the time for this run is spent")
    plan = request.config.stash[PLAN]
    seconds = 0.005 if plan.quick else request.config.getoption("--row-seconds")
    take = Measure(plan, limits, benchmark, seconds, request.config.getoption("--graphs"))

    def or_skip(row: Row) -> None:
        torch.manual_seed(0)
        try:
            take(row)
        except AbsentError as reason:
            pytest.skip(str(reason))

    return or_skip


def pytest_benchmark_update_json(config, benchmarks, output_json):
    plan = config.stash[PLAN]
    output_json["machine_info"] = facts(plan.device)
    output_json["machine_info"]["quick"] = plan.quick
    output_json["machine_info"]["limits"] = config.stash.get(LIMITS, {})


def pytest_benchmark_group_stats(config, benchmarks, group_by):
    """Groups stay in the order they were written, ratios are read within one."""
    groups: dict[str, list] = {}
    for bench in benchmarks:
        groups.setdefault(bench["group"] or bench["fullname"], []).append(bench)
    return list(groups.items())
