"""Settings of every benchmark: two sides of one table run in one process, with as many threads as there are cores."""

from __future__ import annotations

import platform

import torch


def pytest_benchmark_update_machine_info(config, machine_info):
    """What a figure is worth nothing without."""
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["platform"] = platform.platform()
    machine_info["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None


def pytest_benchmark_group_stats(config, benchmarks, group_by):
    """Groups stay in the order they were written, ratios are read within one."""
    groups: dict[str, list] = {}
    for bench in benchmarks:
        groups.setdefault(bench["group"] or bench["fullname"], []).append(bench)
    return list(groups.items())
