"""``sparseprune info``: what a bug report needs."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys
from typing import Any

import typer

from . import arguments as shared
from .console import print_json
from .errors import sentences

PACKAGES = ("torch", "triton", "numpy", "safetensors", "torchvision", "timm", "transformers")
ENVIRONMENT = (
    "SPARSEPRUNE_",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TRITON_INTERPRET",
    "CUDA_VISIBLE_DEVICES",
)


@sentences
def command(json: shared.Json = False, debug: shared.Debug = False) -> None:
    """Print versions, CPU, GPUs, compiled parts and usable backends."""
    facts = collect()
    if json:
        print_json(facts)
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        lines = _lines(value)
        typer.echo(f"{name:<{width}}  {lines[0]}")
        for line in lines[1:]:
            typer.echo(f"{'':<{width}}  {line}")


def versions() -> dict[str, str]:
    """The versions that a run's result may depend on."""
    import torch

    return {
        "sparseprune": importlib.metadata.version("sparseprune"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def collect() -> dict[str, Any]:
    """All facts, as JSON can hold them; what this installation lacks says so."""
    import torch

    from ..ops import costs, native

    return {
        "sparseprune": importlib.metadata.version("sparseprune"),
        "python": f"{platform.python_version()} ({sys.executable})",
        "packages": {name: _version(name) for name in PACKAGES},
        "system": platform.platform(),
        "cpu": costs.cpu_name(),
        "cpus usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch cpu level": torch.backends.cpu.get_cpu_capability(),
        "cuda devices": _cuda_devices(),
        "build": _build_info(),
        "cost constants": str(costs.source()[0]),
        "libraries": {device: reason or "loaded" for device, reason in native.loaded().items()},
        "backends on cpu": _backends("cpu"),
        **({"backends on cuda": _backends("cuda")} if torch.cuda.is_available() else {}),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(ENVIRONMENT)},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cuda_devices() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    properties = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [f"{p.name}, sm_{p.major}{p.minor}, {p.total_memory / 2**30:.0f} GiB" for p in properties]


def _build_info() -> dict[str, Any] | str:
    try:
        return importlib.import_module("sparseprune._C").build_info()
    except ModuleNotFoundError:
        return "not built: this installation has no sparseprune._C"
    except (ImportError, RuntimeError) as error:
        return f"does not load: {error}"


def _backends(device: str) -> dict[str, str]:
    """Which backends can take a float32 tensor of the device, and why the others cannot."""
    import torch

    from ..ops.topk_mask import IMPLEMENTATIONS

    probe = torch.zeros(1, 1, device=device)
    # One op stands for all: what a backend refuses here is the device or the installation.
    return {
        name: entry.refusal([probe], [], [], [0], 1, None, True) or "usable" for name, entry in IMPLEMENTATIONS.items()
    }


def _lines(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"{name}: {_lines(item)[0]}" for name, item in value.items()] or ["none"]
    if isinstance(value, list | tuple):
        return [", ".join(map(str, value)) or "none"]
    return [str(value)]
