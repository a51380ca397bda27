"""Compiles the CPU kernels as a test needs them: for one SIMD level, with other flags, with edited sources."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from simt.build import digest, included, made_once

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
KERNELS = ("mask_bits", "masked_conv2d", "masked_linear", "topk_mask")
AVX2 = ("-mavx2", "-mfma", "-mbmi", "-mbmi2", "-mpopcnt")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")
LEVELS = {"portable": (), "avx2": AVX2, "avx512": AVX512}
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", f"-I{CSRC / 'include'}")
Edit = Callable[[str], str]


class DoesNotCompile(RuntimeError):
    """What the compiler says about an edited source."""


def run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise DoesNotCompile(result.stderr[-2000:])
    return result.stdout


@cache
def texts() -> dict[str, str]:
    """The files of csrc/cpu by their names."""
    return {path.name: path.read_text() for path in sorted((CSRC / "cpu").iterdir())}


@cache
def _declarations() -> str:
    return "\0".join(path.read_text() for path in sorted((CSRC / "include/sparseprune").glob("*.h")))


def level_flags(level: str) -> tuple[str, ...]:
    return (f"-DSPARSEPRUNE_ISA={level}", *LEVELS[level])


def compiled(folder: Path, name: str, sources: Mapping[str, str], flags: Sequence[str]) -> Path:
    """An object of one of these texts, in a folder that is named by those that it includes and by the flags."""
    used = {file: sources[file] for file in sorted(included(f"{name}.cpp", sources))}
    target = folder / f"{name}-{digest(_declarations(), *FLAGS, *flags, *used.values())}"

    def compile_(unfinished: Path) -> None:
        for file, text in used.items():
            (target / file).write_text(text)
        run("g++", *FLAGS, *flags, "-c", str(target / f"{name}.cpp"), "-o", str(unfinished))

    return made_once(target / "object.o", compile_)


def executable(
    folder: Path,
    driver: str,
    level: str,
    flags: Sequence[str] = (),
    edits: Mapping[str, Edit] | None = None,
    kernels: Sequence[str] = (*KERNELS, "scratch"),
) -> Path:
    """A program of this folder, linked with the kernels of one level.

    Args:
        folder: where the compiler's results go and stay.
        driver: the program's source, compiled with the same flags.
        flags: beside those of every build.
        edits: file name in csrc/cpu -> a function from its text to the text to be compiled instead.
        kernels: the files of csrc/cpu that the program needs.
    """
    sources = {**texts(), f"{driver}.cpp": (HERE / f"{driver}.cpp").read_text()}
    for file, edit in (edits or {}).items():
        sources[file] = edit(sources[file])
    flags = (*level_flags(level), *flags)
    objects = [str(compiled(folder, name, sources, flags)) for name in (driver, *kernels)]

    def link(unfinished: Path) -> None:
        run("g++", *flags, "-pthread", *objects, "-o", str(unfinished))

    return made_once(folder / f"{driver}-{digest(*objects)}.program", link)
