"""The CUDA sources by nvcc: no warnings for any architecture, and the registers and memory that each file promises."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"
SOURCES = sorted((CSRC / "cuda").glob("*.cu"))
ARCHITECTURES = ("80", "90", "100")
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
BUDGET = re.compile(r"^// Budget: (\d+) registers, (\d+) bytes of shared memory, no spills\.$", re.MULTILINE)
# ptxas -v, a kernel and an architecture: "Compiling entry function '_Z..' for 'sm_90'", ..., "Used 30 registers, ..."
KERNEL = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)'(.*?)Used (\d+) registers([^\n]*)", re.DOTALL)
FLAGS = (
    "-std=c++17",
    "-O3",
    f"-I{CSRC / 'include'}",
    *(f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES),
    "-Werror=all-warnings",
    "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Werror",
    "-Xptxas=-v,-warn-spills,-warn-lmem-usage",
)

pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc on PATH or in /usr/local/cuda")


@dataclass(frozen=True)
class Usage:
    """What ptxas reports of one kernel for one architecture."""

    kernel: str
    architecture: str
    stack: int
    spills: int
    registers: int
    shared: int


def usages(report: str) -> list[Usage]:
    found = []
    for kernel, architecture, frame, registers, rest in KERNEL.findall(report):
        stack, stores, loads = map(
            int,
            re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", frame).groups(),
        )
        shared = re.search(r"(\d+) bytes smem", rest)
        found.append(
            Usage(kernel, architecture, stack, stores + loads, int(registers), int(shared[1]) if shared else 0)
        )
    return found


@pytest.fixture(scope="module")
def report(pytestconfig):
    """A source -> what the compiler said of it, remembered for as long as what it is compiled from stays."""
    folder = Path(pytestconfig.cache.mkdir("nvcc"))
    version = subprocess.run([NVCC, "--version"], capture_output=True, text=True, check=True).stdout

    def compile_(source: Path) -> str:
        headers = [*sorted((CSRC / "cuda").glob("*.cuh")), *sorted((CSRC / "include").rglob("*.h"))]
        parts = [version, *FLAGS, source.read_text(), *(path.read_text() for path in headers)]
        saved = folder / f"{source.stem}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.txt"
        if not saved.exists():
            unused = saved.with_suffix(".o")
            result = subprocess.run([NVCC, *FLAGS, "-c", str(source), "-o", unused], capture_output=True, text=True)
            unused.unlink(missing_ok=True)
            said = result.stdout + result.stderr
            assert result.returncode == 0, said
            saved.write_text(said)
        return saved.read_text()

    return compile_


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_compiles_and_keeps_its_budget(report, source):
    budget = BUDGET.search(source.read_text())
    assert budget, "the file's header must state what its kernels may use: " + BUDGET.pattern
    found = usages(report(source))
    assert {u.architecture for u in found} == set(ARCHITECTURES)
    kernels = {u.kernel for u in found}
    assert len(found) == len(kernels) * len(ARCHITECTURES)
    assert sum("__global__" in line for line in source.read_text().splitlines()) <= len(kernels)
    for usage in found:
        assert usage.stack == usage.spills == 0, f"a local array or spilled registers: {usage}"
        assert usage.registers <= int(budget[1]), usage
        assert usage.shared <= int(budget[2]), usage
    # A budget that nobody needs says nothing.
    assert max(u.registers for u in found) > int(budget[1]) - 16
    assert max(u.shared for u in found) == int(budget[2])


def test_the_report_is_read():
    """Against ptxas's own words for a kernel that spills."""
    said = (
        "ptxas info    : Compiling entry function '_Z4copyPi' for 'sm_90'\n"
        "ptxas info    : Function properties for _Z4copyPi\n"
        "    48 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads\n"
        "ptxas info    : Used 30 registers, used 1 barriers, 64 bytes smem, 400 bytes cmem[0]\n"
        "ptxas info    : Compiling entry function '_Z4fillPi' for 'sm_80'\n"
        "ptxas info    : Function properties for _Z4fillPi\n"
        "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
        "ptxas info    : Used 8 registers, used 0 barriers\n"
    )
    assert usages(said) == [Usage("_Z4copyPi", "90", 48, 20, 30, 64), Usage("_Z4fillPi", "80", 0, 0, 8, 0)]


def test_a_local_array_is_refused(tmp_path):
    """The compiler's own warnings become errors: this kernel indexes an array by a value known only when it runs."""
    source = tmp_path / "local.cu"
    source.write_text(
        "__global__ void local(const int* in, int* out) {\n"
        "  int counts[64] = {};\n"
        "  for (int i = 0; i < 999; ++i) ++counts[in[i] & 63];\n"
        "  out[threadIdx.x] = counts[in[threadIdx.x] & 63];\n"
        "}\n"
    )
    command = [NVCC, *FLAGS, "-c", str(source), "-o", str(tmp_path / "local.o")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert all(usage.stack for usage in usages(result.stdout + result.stderr))
    assert result.returncode and "local memory" in result.stderr.lower(), result.stderr
