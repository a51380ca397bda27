"""Compiles the CUDA kernels for the SIMT machine (``include/simt.h``)."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pybind11
from filelock import FileLock

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
KERNELS = (
    "mask_bits",
    "masked_conv2d",
    "masked_linear",
    "packed_linear",
    "packed_linear_input_grad",
    "packed_linear_values_grad",
    "packed_rows",
    "topk_mask",
)
MACHINE = ("simt", "memory", "sanitizers")
SANITIZED = (*KERNELS, "selftest")
# -fno-gnu-unique: several builds live in one process.
FLAGS = (
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-fno-gnu-unique",
)
MACHINE_FLAGS = (*FLAGS, f"-I{HERE / 'include'}", f"-I{CSRC / 'include'}")
# The sanitizers' own libraries are not linked: what their code calls are functions of the machine (sanitizers.cpp).
KERNEL_FLAGS = (
    *MACHINE_FLAGS,
    "-DSPARSEPRUNE_MAX_BLOCKS=simt::max_blocks()",
    "-DSPARSEPRUNE_MAX_COLLECTED=simt::max_collected()",
    "-DSPARSEPRUNE_GAP=simt::kGap",
    "-DSPARSEPRUNE_FORBID=simt::forbid",
    "-fsanitize=thread,alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero",
    "--param=tsan-instrument-func-entry-exit=0",
)
Edit = Callable[[str], str]


def build(folder: Path, edits: Mapping[str, Edit] | None = None, kernels: Sequence[str] = KERNELS) -> ModuleType:
    """The emulated kernels as a module. What was compiled from the same text in ``folder`` is not compiled again.

    Args:
        folder: where the compiler's results go and stay.
        edits: file name in csrc/cuda -> a function from its text to the text to be compiled instead.
        kernels: the files that the edits apply to; the others are compiled as they are.
    """
    original = {path.name: path.read_text() for path in sorted((CSRC / "cuda").glob("*.cu*"))}
    edited = dict(original)
    for name, edit in (edits or {}).items():
        edited[name] = edit(original[name])
        if edited[name] == original[name]:
            raise ValueError(f"the edit of {name} must change it")
    # The edited ones first: of the templates that several instantiate, the linker keeps the first.
    names = sorted(KERNELS, key=lambda name: name not in kernels)
    units = [_kernel_unit(name, edited if name in kernels else original) for name in names]
    headers = [*sorted((CSRC / "include/sparseprune/cuda").iterdir()), *sorted((HERE / "include").iterdir())]
    common = "\0".join([path.read_text() for path in [*headers, HERE / "memory.h"]])
    units.append(Unit("selftest", KERNEL_FLAGS, {"selftest.cpp": (HERE / "selftest.cpp").read_text()}))
    units += [Unit(n, MACHINE_FLAGS, {f"{n}.cpp": (HERE / f"{n}.cpp").read_text()}) for n in MACHINE]
    python = [f"-isystem{sysconfig.get_paths()['include']}", f"-isystem{pybind11.get_include()}"]
    hidden = (*MACHINE_FLAGS, "-O0", "-fvisibility=hidden", *python)
    units.append(Unit("bindings", hidden, {"bindings.cpp": (HERE / "bindings.cpp").read_text()}))
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda unit: _object(folder, unit, common), units))
    return _load(_link(folder, objects))


@dataclass(frozen=True)
class Unit:
    """What one object is compiled from: the first text, which includes the others."""

    name: str
    flags: tuple[str, ...]
    texts: Mapping[str, str]


def _kernel_unit(name: str, sources: Mapping[str, str]) -> Unit:
    first = {f"{name}.cu": sources[f"{name}.cu"]}
    texts = first | {n: sources[n] for n in sorted(included(f"{name}.cu", sources))}
    return Unit(name, (*KERNEL_FLAGS, "-x", "c++"), texts)


def included(name: str, sources: Mapping[str, str]) -> set[str]:
    """The file and those of its folder that it includes, directly or not."""
    found = {name}
    for other in re.findall(r'#include "([\w.]+)"', sources[name]):
        found |= included(other, sources)
    return found


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def made_once(result: Path, make: Callable[[Path], None]) -> Path:
    """The file, which ``make`` writes to the path that it is given where it is missing.

    Of several processes one makes it and the others wait; nobody sees it half made.
    """
    result.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{result}.lock"):
        if not result.exists():
            unfinished = result.with_suffix(".tmp")
            make(unfinished)
            unfinished.replace(result)
    return result


def _object(folder: Path, unit: Unit, common: str) -> Path:
    """The compiled object, in a folder named by everything that it depends on."""
    target = folder / f"{unit.name}-{digest(common, pybind11.__version__, *unit.flags, *unit.texts.values())}"

    def compile_(unfinished: Path) -> None:
        for name, text in unit.texts.items():
            (target / name).write_text(text)
        _run(target, [*unit.flags, f"-I{HERE}", "-c", next(iter(unit.texts)), "-o", unfinished.name])

    return made_once(target / "object.o", compile_)


def _link(folder: Path, objects: Sequence[Path]) -> Path:
    """The kernels and the machine become one library, which has no other thread-locals; the bindings a module."""
    target = folder / f"module-{digest(*map(str, objects))}"

    def link(unfinished: Path) -> None:
        library = f"lib{target.name}.so"
        code = [str(path) for path in objects[:-1]]
        _run(target, ["-shared", "-Wl,-Bsymbolic", f"-Wl,-soname,{library}", *code, "-o", library])
        _run(target, ["-shared", str(objects[-1]), library, "-Wl,-rpath,$ORIGIN", "-o", unfinished.name])

    return made_once(target / f"simt_kernels{sysconfig.get_config_var('EXT_SUFFIX')}", link)


def _load(module: Path) -> ModuleType:
    # pybind11 keeps one module per name, and there may be several builds in a process.
    name = f"build_{module.parent.name.replace('-', '_')}.simt_kernels"
    spec = importlib.util.spec_from_file_location(name, module)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def _run(folder: Path, arguments: Sequence[str]) -> None:
    result = subprocess.run(["g++", *arguments], cwd=folder, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"g++ {' '.join(arguments)}\n{result.stderr}")


def kernel_at(module: ModuleType, offset: int) -> str:
    """The kernel that starts at this offset in a build's library."""
    library = next(Path(module.__file__).parent.glob("libmodule-*.so"))
    listed = subprocess.run(["nm", "-C", str(library)], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        address, _, name = line.partition(" ")
        if address and int(address, 16) == offset and (found := re.search(r"(\w+(<.*>)?)\(", name)):
            return found[1]
    return f"+{offset:#x}"
