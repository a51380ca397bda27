"""The build: what it reports, the choice of SIMD level, what a wheel holds, and how setup.py refuses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from sparseprune import _C
from sparseprune.ops import native

ROOT = Path(__file__).parent.parent
LEVELS = ("portable", "avx2", "avx512")
NEEDED_FEATURES = {
    "portable": set(),
    "avx2": {"avx2", "fma", "bmi", "bmi2", "popcnt"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
}


def available_levels() -> list[str]:
    features = set(_C.build_info()["cpu_features"])
    return [level for level in _C.build_info()["simd_levels"] if NEEDED_FEATURES[level] <= features]


def test_build_info_tells_versions_and_levels(monkeypatch):
    monkeypatch.delenv("SPARSEPRUNE_CPU_ISA", raising=False)
    info = _C.build_info()
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert info["version"] == version[1]
    assert info["stable_abi_target"] == "2.10"
    assert re.match(r"2\.\d+\.\d+", info["torch_version"])
    assert re.match(r"(gcc|clang) \d+", info["compiler"])
    assert bool(info["cuda_version"]) == bool(info["cuda_architectures"])
    assert info["simd_levels"][0] == "portable" and set(info["simd_levels"]) <= set(LEVELS)
    assert info["simd_level"] == available_levels()[-1]


def test_build_info_tells_torchs_threads():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert _C.build_info()["threads"] == threads + 1
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("level", LEVELS)
def test_a_forced_level_is_used_at_the_next_call_or_refused(monkeypatch, level):
    monkeypatch.setenv("SPARSEPRUNE_CPU_ISA", level)
    with monkeypatch.context() as patch:
        patch.delenv("SPARSEPRUNE_CPU_ISA")
        available = level in available_levels()
    if available:
        assert _C.build_info()["simd_level"] == level
    else:
        with pytest.raises(RuntimeError, match=f"must name a level that this CPU has .*, got {level}"):
            _C.build_info()


def test_every_level_computes_the_same_product_with_its_own_code(monkeypatch):
    # 3 x 37 on 300 columns: the sums of the levels differ in their order, so in float32 their last bits do.
    ops = native_ops()
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 300, generator=generator), torch.randn(37, 300, generator=generator)
    mask = torch.rand(37, 300, generator=generator) < 0.5
    exact = x.double() @ torch.where(mask, weight, 0.0).double().T
    results = {}
    for level in available_levels():
        monkeypatch.setenv("SPARSEPRUNE_CPU_ISA", level)
        words = ops.pack_mask(mask)
        assert torch.equal(ops.unpack_mask(words, 300), mask)
        results[level] = ops.masked_linear(x, weight, words, None)
        assert (results[level] - exact).abs().max() < 1e-4
    distinct = {tuple(result.flatten().tolist()) for result in results.values()}
    assert len(distinct) == len(results)


def test_an_unknown_level_is_refused_by_ops_and_build_info(monkeypatch):
    ops = native_ops()
    monkeypatch.setenv("SPARSEPRUNE_CPU_ISA", "sse9")
    sentence = "SPARSEPRUNE_CPU_ISA must be portable, avx2 or avx512, got sse9"
    with pytest.raises(RuntimeError, match=sentence):
        _C.build_info()
    with pytest.raises(RuntimeError, match=sentence):
        ops.pack_mask(torch.ones(1, 1, dtype=torch.bool))


def native_ops():
    assert (Path(native.__file__).parent.parent / "lib" / "libsparseprune_cpu.so").exists()
    torch.ops.load_library(str(Path(native.__file__).parent.parent / "lib" / "libsparseprune_cpu.so"))
    return torch.ops.sparseprune_native


@pytest.fixture(scope="module")
def source_tree(tmp_path_factory) -> Path:
    """A copy of what a build reads, so that the tree under test is not rebuilt."""
    tree = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("csrc", "kernels", "sparseprune", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "lib"))
    return tree


def run_in(tree: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    variables = {**os.environ, **environment}
    return subprocess.run(command, cwd=tree, env=variables, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"SPARSEPRUNE_CUDA": "yes"}, "SPARSEPRUNE_CUDA must be 0 or 1 or unset, got 'yes'"),
        ({"SPARSEPRUNE_CUDA": "1", "PATH": "/nowhere"}, "SPARSEPRUNE_CUDA=1 but nvcc is not in"),
        ({"TORCH_CUDA_ARCH_LIST": "Hopper"}, "TORCH_CUDA_ARCH_LIST must hold architectures such as"),
    ],
)
def test_setup_refuses_what_it_cannot_build(source_tree, environment, sentence):
    has_toolkit = Path("/usr/local/cuda/bin/nvcc").exists()
    if "PATH" in environment:
        if has_toolkit:
            pytest.skip("a toolkit in /usr/local/cuda is always found")
        environment |= {"CUDA_HOME": "", "CUDA_PATH": ""}
    elif "TORCH_CUDA_ARCH_LIST" in environment and not (has_toolkit or shutil.which("nvcc")):
        pytest.skip("architectures are read only where nvcc is found")
    result = run_in(source_tree, "setup.py", "-q", "build_ext", **environment)
    assert result.returncode != 0
    assert sentence in result.stderr


@pytest.mark.slow
def test_a_wheel_holds_the_package_and_its_libraries_only(source_tree, tmp_path):
    build = run_in(
        source_tree,
        *("-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--disable-pip-version-check"),
        *("-w", str(tmp_path), "."),
        SPARSEPRUNE_CUDA="0",
        CI="true",
    )
    assert build.returncode == 0, build.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    packaged = {name for name in names if ".dist-info/" not in name}
    natives = {name for name in packaged if name.endswith(".so")}
    assert {re.sub(r"\.cpython.*\.so", "", name) for name in natives} == {
        "sparseprune/_C",
        "sparseprune/lib/libsparseprune_cpu.so",
    }
    assert {
        "sparseprune/__init__.py",
        "sparseprune/kernels/__init__.py",
        "sparseprune/ops/native.py",
    } <= packaged
    assert all(name.startswith("sparseprune/") for name in packaged)
    assert {name for name in packaged - natives if not name.endswith(".py")} == {"sparseprune/ops/costs.json"}
    expected = {f"sparseprune/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")}
    assert {name for name in packaged if name.startswith("sparseprune/kernels/")} == expected
    assert_levels_share_no_code(source_tree)


def assert_levels_share_no_code(tree: Path) -> None:
    """The linker keeps one of equal weak functions, so those compiled for a level must name it."""
    objects = [path for level in LEVELS[1:] for path in tree.glob(f"build/**/*.{level}.o")]
    kernels = {path.stem for path in (tree / "csrc/cpu").glob("*.cpp")} - {"isa", "scratch"}
    assert len(objects) == 2 * len(kernels)
    for path in objects:
        symbols = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout
        weak = [line.split(maxsplit=2)[2] for line in symbols.splitlines() if re.match(r"\S+ [WVu] ", line)]
        shared = [name for name in weak if "sparseprune::Isa" not in name and "personality" not in name]
        assert not shared, f"{path.name} holds {shared}"
