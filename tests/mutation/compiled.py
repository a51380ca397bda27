"""Compiles mutants: the CPU library at one SIMD level with AddressSanitizer, or the emulated CUDA kernels."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

from cases import isa_levels
from cpu.build import FLAGS, KERNELS, LEVELS, DoesNotCompile, compiled, digest, level_flags, run, texts
from mutation.mutants import ROOT, Mutant
from simt.build import KERNELS as CUDA_KERNELS
from simt.build import build, included

CPU = ROOT / "csrc/cpu"
UNITS = (*KERNELS, "group_topk_mask")
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-sanitize=vptr")


@cache
def lines_compiled(unit: str, level: str) -> frozenset[tuple[str, int]]:
    """(file, line) of csrc/cpu that the preprocessor leaves for this unit at this level."""
    text = run("g++", "-E", *FLAGS, *level_flags(level), str(CPU / f"{unit}.cpp"))
    found, file, number = set(), "", 0
    for line in text.splitlines():
        if marker := re.match(r'# (\d+) "([^"]*)"', line):
            file, number = marker[2], int(marker[1])
            continue
        if line.strip() and file.startswith(str(CPU)):
            found.add((Path(file).name, number))
        number += 1
    return frozenset(found)


def units_of(mutant: Mutant) -> tuple[str, list[str]] | None:
    """A level that this machine can run at which the line is compiled, the best first, and the units it is in."""
    name = Path(mutant.file).name
    for level in reversed(isa_levels()):
        if units := [u for u in UNITS if (name, mutant.line) in lines_compiled(u, level)]:
            return level, units
    return None


def _torch() -> Path:
    return Path(importlib.util.find_spec("torch").submodule_search_locations[0])


def _torch_object(folder: Path, source: Path) -> Path:
    torch = _torch()
    includes = [f"-isystem{torch / 'include' / part}" for part in ("", "torch/csrc/api/include")]
    read = [path.read_text() for path in (source, *sorted((ROOT / "csrc/torch").glob("*.h")))]
    result = folder / f"{source.stem}-{digest(str(torch), *read)}.o"
    if not result.exists():
        folder.mkdir(parents=True, exist_ok=True)
        target = "-DTORCH_TARGET_VERSION=0x020a000000000000"
        run("g++", *FLAGS, target, *includes, "-c", str(source), "-o", str(result))
    return result


def cpu_library(folder: Path, mutant: Mutant | None, level: str, units: list[str]) -> Path:
    """The CPU library with the mutant in these units at this level; the rest is compiled once."""
    objects = [_torch_object(folder, ROOT / "csrc/torch/library.cpp")]
    objects += [_torch_object(folder, source) for source in sorted((ROOT / "csrc/torch").glob("cpu_*.cpp"))]
    objects += [compiled(folder, name, texts(), SANITIZED) for name in ("isa", "scratch")]
    changed = dict(texts())
    if mutant is not None:
        changed[Path(mutant.file).name] = mutant.apply(mutant.text)
    for unit in sorted({path.stem for path in CPU.glob("*.cpp")} - {"isa", "scratch"}):
        for each in LEVELS:
            sources = changed if each == level and unit in units else texts()
            objects.append(compiled(folder, unit, sources, (*level_flags(each), *SANITIZED)))
    library = folder / f"libmutant-{digest(*map(str, objects))}.so"
    if not library.exists():
        link = [f"-L{_torch() / 'lib'}", "-Wl,--as-needed", "-ltorch_cpu"]
        run("g++", "-shared", *SANITIZED, "-o", str(library), *map(str, objects), *link)
    return library


def cuda_module(folder: Path, mutant: Mutant | None) -> tuple[str, list[str]]:
    """The emulated kernels with the mutant, and the files of csrc/cuda that it is in."""
    if mutant is None:
        return build(folder).__file__, list(CUDA_KERNELS)
    name = Path(mutant.file).name
    try:
        module = build(folder, {name: lambda _: mutant.apply(mutant.text)}).__file__
    except RuntimeError as error:
        raise DoesNotCompile(str(error)[-2000:]) from None
    sources = {path.name: path.read_text() for path in (ROOT / "csrc/cuda").iterdir()}
    return module, [kernel for kernel in CUDA_KERNELS if name in included(f"{kernel}.cu", sources)]
