"""Compiles mutants: the CPU library at one SIMD level with AddressSanitizer, or the emulated CUDA kernels."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from cases import isa_levels
from mutation.mutants import ROOT, Mutant
from simt.build import KERNELS, build

CPU = ROOT / "csrc/cpu"
UNITS = ("mask_bits", "masked_conv2d", "masked_linear", "topk_mask")
AVX2 = ("-mavx2", "-mfma", "-mbmi", "-mbmi2", "-mpopcnt")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")
LEVELS = {"portable": (), "avx2": AVX2, "avx512": AVX512}
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-sanitize=vptr")
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", f"-I{ROOT / 'csrc/include'}")


class DoesNotCompile(Exception):
    """The compiler rejects a mutant, so it is none."""


def run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise DoesNotCompile(result.stderr[-2000:])
    return result.stdout


def file_digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@cache
def _texts() -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(CPU.iterdir())}


@cache
def lines_compiled(unit: str, level: str) -> frozenset[tuple[str, int]]:
    """(file, line) of csrc/cpu that the preprocessor leaves for this unit at this level."""
    text = run("g++", "-E", *FLAGS, f"-DSPARSEPRUNE_ISA={level}", *LEVELS[level], str(CPU / f"{unit}.cpp"))
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


def _object(folder: Path, source: str, texts: Mapping[str, str], level: str) -> Path:
    """An object of csrc/cpu, compiled from these texts in a folder of their own."""
    defines = (f"-DSPARSEPRUNE_ISA={level}", *LEVELS[level]) if level else ()
    flags = (*FLAGS, *SANITIZED, *defines)
    target = folder / f"{source}-{level}-{file_digest(*flags, *texts.values())}"
    result = target / "object.o"
    if not result.exists():
        target.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (target / name).write_text(text)
        run("g++", *flags, "-c", str(target / f"{source}.cpp"), "-o", str(target / "object.tmp"))
        (target / "object.tmp").replace(result)
    return result


def _torch() -> Path:
    return Path(importlib.util.find_spec("torch").submodule_search_locations[0])


def _torch_object(folder: Path, source: Path) -> Path:
    torch = _torch()
    includes = [f"-isystem{torch / 'include' / part}" for part in ("", "torch/csrc/api/include")]
    texts = [path.read_text() for path in (source, ROOT / "csrc/torch/cpu_common.h")]
    result = folder / f"{source.stem}-{file_digest(str(torch), *texts)}.o"
    if not result.exists():
        folder.mkdir(parents=True, exist_ok=True)
        target = "-DTORCH_TARGET_VERSION=0x020a000000000000"
        run("g++", *FLAGS, target, *includes, "-c", str(source), "-o", str(result))
    return result


def cpu_library(folder: Path, mutant: Mutant | None, level: str, units: list[str]) -> Path:
    """The CPU library with the mutant in these units at this level; the rest is compiled once."""
    objects = [_torch_object(folder, ROOT / "csrc/torch/library.cpp")]
    objects += [_torch_object(folder, source) for source in sorted((ROOT / "csrc/torch").glob("cpu_*.cpp"))]
    objects += [_object(folder, name, _texts(), "") for name in ("isa", "scratch")]
    changed = dict(_texts())
    if mutant is not None:
        changed[Path(mutant.file).name] = mutant.apply(mutant.text)
    for unit in UNITS:
        for each in LEVELS:
            texts = changed if each == level and unit in units else _texts()
            objects.append(_object(folder, unit, texts, each))
    library = folder / f"libmutant-{file_digest(*map(str, objects))}.so"
    if not library.exists():
        link = [f"-L{_torch() / 'lib'}", "-Wl,--as-needed", "-ltorch_cpu"]
        run("g++", "-shared", *SANITIZED, "-o", str(library), *map(str, objects), *link)
    return library


def cuda_module(folder: Path, mutant: Mutant | None) -> tuple[str, list[str]]:
    """The emulated kernels with the mutant, and the files of csrc/cuda that it is in."""
    if mutant is None:
        return build(folder).__file__, list(KERNELS)
    name = Path(mutant.file).name
    try:
        module = build(folder, {name: lambda _: mutant.apply(mutant.text)}).__file__
    except RuntimeError as error:
        raise DoesNotCompile(str(error)[-2000:]) from None
    texts = {path.name: path.read_text() for path in (ROOT / "csrc/cuda").iterdir()}

    def includes(file: str) -> bool:
        return file == name or any(includes(i) for i in re.findall(r'#include "([\w.]+)"', texts[file]))

    return module, [kernel for kernel in KERNELS if includes(f"{kernel}.cu")]
