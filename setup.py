"""Builds the native parts with ninja: two stable-ABI libraries (CPU, CUDA) and the module `sparseprune._C`.

Environment: `SPARSEPRUNE_CUDA` (1: needed, 0: left out, unset: if nvcc is found), `TORCH_CUDA_ARCH_LIST`,
`CUDA_HOME`, `CXX`, `MAX_JOBS`, `SPARSEPRUNE_SANITIZE` (what `-fsanitize=` takes, for the CPU code), and `CI` (warnings
become errors).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
STABLE_ABI_TARGET = (2, 10)
DEFAULT_CUDA_ARCHITECTURES = ("8.0", "9.0", "10.0+PTX")
AVX2_FLAGS = ("-mavx2", "-mfma", "-mbmi", "-mbmi2", "-mpopcnt")
AVX512_FLAGS = (
    *AVX2_FLAGS,
    "-mavx512f",
    "-mavx512bw",
    "-mavx512dq",
    "-mavx512vl",
    "-mprefer-vector-width=512",
)
X86_LEVELS = {"portable": (), "avx2": AVX2_FLAGS, "avx512": AVX512_FLAGS}


@dataclass(frozen=True)
class Cuda:
    """A CUDA toolkit: its compiler, version, the header folders for the host compiler, and -gencode flags."""

    nvcc: str
    version: str
    includes: tuple[str, ...]
    architectures: tuple[str, ...]

    @property
    def gencode(self) -> list[str]:
        flags = []
        for architecture in self.architectures:
            number = architecture.removesuffix("+PTX").replace(".", "")
            flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
            if architecture.endswith("+PTX"):
                flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
        return flags


def output_of(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise SystemExit(f"sparseprune: {shlex.join(command)} failed: {result.stderr.strip()}")
    return result.stdout + result.stderr


def find_nvcc() -> str | None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    named = [str(Path(home, "bin", "nvcc")) for home in homes if home]
    for candidate in (*named, "nvcc", "/usr/local/cuda/bin/nvcc"):
        if found := shutil.which(candidate):
            return found
    return None


def cuda_architectures(nvcc: str) -> tuple[str, ...]:
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    for architecture in listed:
        if not re.fullmatch(r"\d+\.\d[a-z]?(\+PTX)?", architecture):
            raise SystemExit(
                f"sparseprune: TORCH_CUDA_ARCH_LIST must hold architectures such as '8.0;9.0+PTX', got {architecture!r}"
            )
    if listed:
        return tuple(listed)
    known = output_of(nvcc, "--list-gpu-code").split()
    chosen = [a for a in DEFAULT_CUDA_ARCHITECTURES if "sm_" + a.removesuffix("+PTX").replace(".", "") in known]
    if not chosen:
        raise SystemExit(f"sparseprune: {nvcc} knows none of the default architectures; set TORCH_CUDA_ARCH_LIST")
    return (*chosen[:-1], chosen[-1].removesuffix("+PTX") + "+PTX")


def find_cuda() -> Cuda | None:
    """The toolkit to build the CUDA library with, or None.

    nvcc itself is asked where its headers are: the one on PATH is often a wrapper script, from whose own
    folder they cannot be guessed.
    """
    request = os.environ.get("SPARSEPRUNE_CUDA", "")
    if request not in ("", "0", "1"):
        raise SystemExit(f"sparseprune: SPARSEPRUNE_CUDA must be 0 or 1 or unset, got {request!r}")
    if request == "0":
        return None
    nvcc = find_nvcc()
    if nvcc is None:
        if request == "1":
            raise SystemExit("sparseprune: SPARSEPRUNE_CUDA=1 but nvcc is not in CUDA_HOME, PATH or /usr/local/cuda")
        return None
    plan = output_of(nvcc, "--dryrun", "-x", "cu", os.devnull)
    found = re.findall(r"^#\$ (?:SYSTEM_)?INCLUDES=(.*)$", plan, re.MULTILINE)
    includes = tuple(p.removeprefix("-I") for p in shlex.split(" ".join(found)) if p != "-isystem")
    version = re.search(r"release (\d+\.\d+)", output_of(nvcc, "--version"))
    if not includes or version is None:
        raise SystemExit(f"sparseprune: {nvcc} does not say where its headers are or what version it is")
    return Cuda(nvcc, version[1], includes, cuda_architectures(nvcc))


class Build(build_ext):
    """Writes a build.ninja and runs it: incremental, parallel, and aware of header changes."""

    def run(self) -> None:
        in_source = self.inplace or getattr(self, "editable_mode", False)
        target = ROOT if in_source else Path(self.build_lib).resolve()
        # Not build_temp: every editable install gets a new one, and would compile every file again.
        sanitizers = os.environ.get("SPARSEPRUNE_SANITIZE", "")
        variant = f"-{sanitizers.replace(',', '-')}" if sanitizers else ""
        work = ROOT / "build" / f"native-{sys.implementation.cache_tag}{variant}"
        work.mkdir(parents=True, exist_ok=True)
        built = self.write_ninja(work, with_benchmarks=in_source)
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        command = [sys.executable, "-m", "ninja", "-f", str(work / "build.ninja"), "-j", jobs]
        if subprocess.run(command, cwd=ROOT).returncode != 0:
            raise SystemExit("sparseprune: compilation failed; the compiler's message is above")
        for library in (target / "sparseprune" / "lib").glob("*.so"):
            if f"sparseprune/lib/{library.name}" not in built:
                library.unlink()
        for name in built:
            destination = target / name
            destination.parent.mkdir(parents=True, exist_ok=True)
            # Replaced, not overwritten: a process that has the old file mapped must keep its pages.
            temporary = destination.with_name(destination.name + ".new")
            shutil.copy2(work / name, temporary)
            temporary.replace(destination)

    def get_outputs(self) -> list[str]:
        library = Path(self.build_lib, "sparseprune", "lib")
        return [*super().get_outputs(), *map(str, sorted(library.glob("*.so")))]

    def write_ninja(self, work: Path, with_benchmarks: bool) -> list[str]:
        from ninja.ninja_syntax import Writer  # a build requirement: absent when only metadata is asked for

        cuda_sources = sorted(ROOT.glob("csrc/cuda/*.cu"))
        cuda = find_cuda() if cuda_sources else None
        torch = Path(importlib.util.find_spec("torch").submodule_search_locations[0])
        major, minor = STABLE_ABI_TARGET
        config = [
            f'#define SPARSEPRUNE_VERSION "{self.distribution.get_version()}"',
            f'#define SPARSEPRUNE_TORCH_VERSION "{importlib.metadata.version("torch")}"',
            f'#define SPARSEPRUNE_STABLE_ABI_TARGET "{major}.{minor}"',
            f'#define SPARSEPRUNE_CUDA_VERSION "{cuda.version if cuda else ""}"',
            f'#define SPARSEPRUNE_CUDA_ARCHITECTURES "{" ".join(cuda.architectures) if cuda else ""}"',
        ]
        write_if_changed(work / "build_config.h", "\n".join(config) + "\n")

        warnings = ["-Wall", "-Wextra", *(["-Werror"] if os.environ.get("CI") else [])]
        common = [
            "-std=c++17",
            "-O3",
            "-fPIC",
            "-fvisibility=hidden",
            "-ffp-contract=fast",
            "-Icsrc/include",
            *warnings,
        ]
        sanitizers = os.environ.get("SPARSEPRUNE_SANITIZE", "")
        checked = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-g"] if sanitizers else []
        common += checked
        with_torch = [
            f"-DTORCH_TARGET_VERSION=0x{major:02x}{minor:02x}000000000000",
            *(f"-isystem{torch / 'include' / folder}" for folder in ("", "torch/csrc/api/include")),
        ]
        link_torch = [f"-L{torch / 'lib'}", "-Wl,--as-needed", "-ltorch_cpu", *checked]
        levels = X86_LEVELS if platform.machine() in ("x86_64", "AMD64") else {"portable": ()}
        python = Path(sysconfig.get_paths()["include"])
        pybind = Path(importlib.util.find_spec("pybind11").submodule_search_locations[0], "include")

        with open(work / "build.ninja", "w") as file:
            ninja = Writer(file, width=110)
            ninja.variable("builddir", str(work))
            ninja.variable("cxx", os.environ.get("CXX") or "g++")
            ninja.rule("cxx", "$cxx -MMD -MF $out.d $flags -c $in -o $out", "CXX $out", "$out.d", deps="gcc")
            ninja.rule("link", "$cxx -shared -o $out $in $flags", "LINK $out")

            def compile_(source: Path, flags: list[str], tag: str = "", rule: str = "cxx") -> str:
                name = source.relative_to(ROOT)
                target = str(work / "objects" / name.with_name(f"{name.stem}{tag}.o"))
                ninja.build(target, rule, str(name), variables={"flags": shlex.join(flags)})
                return target

            features = compile_(ROOT / "csrc/cpu/isa.cpp", common)
            objects = [features, compile_(ROOT / "csrc/cpu/scratch.cpp", common)]
            for source in sorted(ROOT.glob("csrc/cpu/*.cpp")):
                if source.name in ("isa.cpp", "scratch.cpp"):
                    continue
                for level, flags in levels.items():
                    objects.append(compile_(source, [*common, f"-DSPARSEPRUNE_ISA={level}", *flags], f".{level}"))
            for source in [ROOT / "csrc/torch/library.cpp", *sorted(ROOT.glob("csrc/torch/cpu_*.cpp"))]:
                objects.append(compile_(source, [*common, *with_torch]))
            libraries = ["sparseprune/lib/libsparseprune_cpu.so"]
            ninja.build(str(work / libraries[0]), "link", objects, variables={"flags": shlex.join(link_torch)})

            extension = "sparseprune/_C" + sysconfig.get_config_var("EXT_SUFFIX")
            flags = [*common, f"-I{work}", f"-isystem{python}", f"-isystem{pybind}"]
            module = compile_(ROOT / "csrc/python/module.cpp", flags)
            ninja.build(
                str(work / extension),
                "link",
                [module, features],
                variables={"flags": shlex.join(["-Wl,--as-needed", *checked])},
            )

            if cuda is not None:
                host = [*common, *with_torch, *(f"-isystem{path}" for path in cuda.includes)]
                objects = [compile_(source, host) for source in sorted(ROOT.glob("csrc/torch/cuda_*.cpp"))]
                # The stubs that nvcc writes trip g++'s -Wextra, so the host side gets -Wall only.
                device = [
                    "-std=c++17",
                    "-O3",
                    "-Icsrc/include",
                    *cuda.gencode,
                    "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall",
                ]
                if os.environ.get("CI"):
                    device += ["-Werror=all-warnings", "-Xcompiler=-Werror"]
                ninja.variable("nvcc", cuda.nvcc)
                ninja.rule("nvcc", "$nvcc -MMD -MF $out.d $flags -c $in -o $out", "NVCC $out", "$out.d", deps="gcc")
                ninja.rule("link_cuda", "$nvcc -shared -cudart=static -o $out $in $flags", "LINK $out")
                objects += [compile_(source, device, ".cuda", "nvcc") for source in cuda_sources]
                libraries.append("sparseprune/lib/libsparseprune_cuda.so")
                flags = [f"-L{torch / 'lib'}", "-Xlinker=--as-needed", "-ltorch_cpu", *cuda.gencode]
                ninja.build(str(work / libraries[1]), "link_cuda", objects, variables={"flags": shlex.join(flags)})
                if with_benchmarks:  # what CUB does, for machines that have a GPU and no compiler
                    libraries.append("benchmarks/lib/libcub.so")
                    cub = compile_(ROOT / "benchmarks/cub.cu", device, ".cuda", "nvcc")
                    flags = shlex.join(cuda.gencode)
                    ninja.build(str(work / libraries[2]), "link_cuda", cub, variables={"flags": flags})
        return [*libraries, extension]


def write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


setup(
    packages=[*find_packages(include=["sparseprune", "sparseprune.*"]), "sparseprune.kernels"],
    package_dir={"sparseprune.kernels": "kernels"},
    include_package_data=False,
    package_data={"sparseprune.ops": ["costs.json"]},
    ext_modules=[Extension("sparseprune._C", sources=["csrc/python/module.cpp"])],
    cmdclass={"build_ext": Build},
)
