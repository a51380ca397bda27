"""What a run needs around it, set before the process starts: an allocator that keeps its heap, threads bound to cores.

glibc hands blocks above 32 MiB back to the system and faults them in anew at every call: eager PyTorch, which
allocates a temporary for every ``W * M``, becomes up to five times slower by it, and any library that allocates less
would look good for the wrong reason. So both sides run with the heap kept. Unbound OpenMP threads are now and then
stacked on one core by a guest's scheduler, which halves whatever happens to run.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KEPT_HEAP = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
BOUND_THREADS = {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}
PEERS = ("numpy", "scipy", "triton", "sparseprop")


def tuned(base: Mapping[str, str], device: str = "cpu") -> dict[str, str]:
    """``base`` with the heap kept and, for a run on the CPU, the threads bound; and without interpreted Triton.

    A run on a GPU leaves threads alone: binding pins the main thread, and every compiler it starts, to one core.
    """
    kept = {key: value for key, value in base.items() if key != "TRITON_INTERPRET"}
    return {**kept, **KEPT_HEAP, **(BOUND_THREADS if device == "cpu" else {})}


def is_tuned(device: str = "cpu") -> bool:
    return tuned(os.environ, device) == dict(os.environ)


def facts(device: str) -> dict[str, Any]:
    """What a figure is worth nothing without."""
    import torch  # not above: what only starts other processes does without it

    found: dict[str, Any] = {
        "device": device,
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tuned": is_tuned(device),
        "commit": commit(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        found["cuda"] = torch.version.cuda
    for package in PEERS:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def commit() -> str | None:
    """The commit of the sources, with a plus if they have been changed since; None outside of a checkout."""
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "") if head.returncode == 0 else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    name = fields.get("model name", platform.machine())
    return f"{name} (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else name
