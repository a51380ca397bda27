"""What each way to compute a masked product costs, predicted from its size, and which one "auto" takes.

    seconds = a + b slots + c multiply-adds + d (values read and written) + e kept slots

with constants fitted to measurements of one device (``calibration.py``). A dense product multiplies every slot, a sparse
one the kept ones, which it has to find first: that is e, which a dense product does not have. They come from the first of these that is there; nothing is ever timed behind a user's back:

    SPARSEPRUNE_COSTS=FILE       that file
    SPARSEPRUNE_COSTS=shipped    those of this package: the same choices in every installation
    (unset)                      what ``calibrate()`` wrote into the user's cache folder, else those of this package
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import native

VARIABLE = "SPARSEPRUNE_COSTS"
SHIPPED = Path(__file__).with_name("costs.json")
DENSE = ("dense", "onednn")


class Work(NamedTuple):
    """One masked product on a CPU.

    Attributes:
        op: as it is registered.
        kind: which of the op's fits holds for it.
        slots, kept: weights in all, and those that the mask keeps.
        vectors: multiply-adds of one weight: the batch, times the positions of the output for a convolution.
        moved: values of activations read and written.
        dtype: of all tensors.
    """

    op: str
    kind: str
    slots: int
    kept: int
    vectors: int
    moved: int
    dtype: torch.dtype

    def terms(self, name: str) -> tuple[float, ...]:
        """What the constants of candidate ``name`` are multiplied with."""
        if name in DENSE:
            return 1.0, self.slots, self.slots * self.vectors, self.moved
        return 1.0, self.slots, self.kept * self.vectors, self.moved, self.kept

    def seconds(self, name: str, constants: Sequence[float]) -> float:
        """The prediction for candidate ``name``."""
        return sum(c * t for c, t in zip(constants, self.terms(name), strict=True))


class Choice(NamedTuple):
    """The candidate taken, why, and the seconds predicted for each."""

    name: str
    reason: str
    predicted: Mapping[str, float]


@lru_cache(maxsize=4096)
def choose(work: Work) -> Choice:
    """A sparse candidate only where it is predicted to win by more than its fit has ever flattered it."""
    fit = constants()[work.op][work.kind]
    predicted = {name: work.seconds(name, fit[name]) for name in candidates(work.dtype) if name in fit}
    dense = min((name for name in predicted if name in DENSE), key=predicted.__getitem__)
    sparse = "native" if "native" in predicted else None
    if sparse is None:
        return Choice(dense, f"the sparse kernels do not take {work.dtype}", predicted)
    gain, margin = predicted[dense] / max(predicted[sparse], 1e-12), fit["margin"]
    if gain >= margin:
        return Choice(sparse, f"{gain:.2g}x as fast as dense", predicted)
    return Choice(dense, f"sparse would be {gain:.2g}x as fast, and {margin:.2g}x is asked", predicted)


@cache
def candidates(dtype: torch.dtype) -> tuple[str, ...]:
    """The ways to compute a product of this dtype on a CPU."""
    found = ["dense"]
    if dtype == torch.float32 and has_onednn():
        found.append("onednn")
    if native.refusal({"cpu"}, {dtype}) is None:
        found.append("native")
    return tuple(found)


@cache
def has_onednn() -> bool:
    """Can oneDNN's product be called directly? ``F.linear`` calls oneMKL for float32, which may be slower."""
    try:
        one = torch.ones(2, 2)
        return torch.equal(onednn_linear(one, one), 2 * one)
    except (AttributeError, RuntimeError):
        return False


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b by oneDNN; float32 on a CPU."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@cache
def constants() -> Mapping[str, Any]:
    """op -> kind -> candidate -> the constants, and the margin.

    Raises:
        ValueError: the file that the environment names cannot be read.
    """
    return source()[1]["ops"]


@cache
def source() -> tuple[Path, Mapping[str, Any]]:
    """The file in use and what it says; ``reload`` after it changed."""
    given = os.environ.get(VARIABLE)
    if given and given != "shipped":
        return Path(given), read(Path(given))
    if given is None and cache_file().exists():
        try:
            return cache_file(), read(cache_file())
        except ValueError as error:
            warnings.warn(f"{error}; the constants of the package are used; delete it", stacklevel=2)
    return SHIPPED, json.loads(SHIPPED.read_text())[simd_level()]


def reload() -> None:
    """Forget the constants: the next choice reads them anew."""
    source.cache_clear(), constants.cache_clear(), choose.cache_clear()


def read(path: Path) -> Mapping[str, Any]:
    """The contents of a file of constants.

    Raises:
        ValueError: it is missing, damaged, or lacks an op that the package's own file has.
    """
    try:
        found = json.loads(path.read_text())
        for op, kinds in json.loads(SHIPPED.read_text())["portable"]["ops"].items():
            for kind, fit in kinds.items():
                for name in fit:
                    torch.tensor(found["ops"][op][kind][name], dtype=torch.float64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{VARIABLE} must be a file that calibrate() wrote, got {str(path)!r}: {error!r}") from error
    return found


def simd_level() -> str:
    """Which of the shipped constants hold: those of AVX-512, of AVX2, or of code without SIMD intrinsics."""
    level = os.environ.get("SPARSEPRUNE_CPU_ISA") or torch.backends.cpu.get_cpu_capability().lower()
    return level if level in ("avx512", "avx2") else "portable"


def cache_file() -> Path:
    """Where ``calibrate()`` writes the constants of this machine's processor."""
    home = Path.home()
    if sys.platform == "darwin":
        folder = home / "Library" / "Caches"
    elif sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return folder / "sparseprune" / f"costs-{re.sub('[^a-z0-9]+', '-', cpu_name().lower()).strip('-')}.json"


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
