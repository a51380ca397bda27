"""The architecture, read from the sources: which part may use which, and one name per op in every layer."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sparseprune"

# part -> the parts of ours that it may import. Read it as the drawing of the design: arrows only point down.
ARROWS = {
    "arguments": set(),
    "files": set(),
    "ops": {"files"},
    "masks": {"ops", "files"},
    "progress": set(),
    "schedules": set(),
    "allocation": set(),
    "patterns": {"allocation", "masks", "ops"},
    "criteria": {"masks", "ops"},
    "nn": {"masks", "ops"},
    "summary": {"criteria", "masks", "ops"},
    "prunable": {"masks", "nn"},
    "runs": {"masks", "patterns", "progress"},
    "unread": {"masks", "ops", "runs"},
    "pruning": {"criteria", "masks", "nn", "ops", "patterns", "progress", "prunable", "runs", "schedules", "summary", "unread"},
    "surgery": {"masks", "prunable", "pruning", "runs"},
    "models": set(),
    "data": set(),
    "diagnostics": {"allocation", "criteria", "masks", "models", "nn", "ops", "patterns", "prunable", "pruning", "summary"},
    "training": {"allocation", "data", "masks", "nn", "files", "ops", "patterns", "prunable", "pruning", "schedules"},
    "report": {"diagnostics", "masks", "training", "files"},
    "recipes": {
        "allocation", "criteria", "data", "files", "masks", "models", "nn", "patterns", "pruning", "report", "schedules",
        "training",
    },
    "cli": {
        "allocation", "criteria", "data", "diagnostics", "files", "masks", "models", "nn", "ops", "patterns",
        "pruning", "recipes", "report", "schedules", "summary", "training",
    },
}  # fmt: skip
EVERYWHERE = ("arguments",)
PUBLIC = (
    "prune prune_many compensate Masks BitMask Random Magnitude SNIP GraSP SynFlow ExactSaliency Fisher FourierAmplitude LAMP Movement "
    "OBD OBS QuadraticSNIP RelativeMagnitude Shares SignPreserved Skeletonization SynapticSaliency Taylor "
    "KarninSensitivity Trajectory VarianceNullity linear_error one_shot linear exponential cubic uniform erk topk_mask "
    "Product kth_value quantile straight_through_topk distributed_topk_mask group_topk_mask NM "
    "masked_linear masked_conv2d packed_linear packed_conv2d pack_values unpack_values SparseLinear SparseConv2d sparsify "
    "densify set_storage compact held_masks dense_gradients attach explain calibrate to_semi_structured"
).split()
OPS = ("mask_bits", "topk_mask", "masked_linear", "masked_conv2d")
CPU_OPS = (*OPS, "group_topk_mask", "sparse_rows", "dense_scores", "position_maps", "submask")


def imported(path: Path) -> set[str]:
    """The dotted names a file imports, relative ones resolved; those used for typing only are not counted."""
    tree = ast.parse(path.read_text())
    package = ("sparseprune", *path.relative_to(PACKAGE).parent.parts) if PACKAGE in path.parents else ()
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


SOURCES = [p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.name != "__init__.py"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_arrows(path):
    part = part_of(path)
    assert part in ARROWS, f"{part} is not in the drawing"
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "sparseprune" and len(parts) > 1:
            target = parts[1]
            if target in ARROWS and target not in (part, *EVERYWHERE):
                assert target in ARROWS[part], f"{part} must not import {target}"


def test_kernels_import_nothing_of_ours():
    for path in (ROOT / "kernels").glob("*.py"):
        for name in imported(path):
            assert not name.startswith("sparseprune") or name.startswith("sparseprune.kernels"), f"{path.name}: {name}"


@pytest.mark.parametrize("folder", ["cpu", "cuda", "include"])
def test_kernels_in_cpp_include_nothing_of_torch(folder):
    files = [p for p in (ROOT / "csrc" / folder).rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh")]
    assert files
    for path in files:
        includes = re.findall(r'#include\s*[<"]([^>"]+)', path.read_text())
        assert not [i for i in includes if i.startswith(("torch/", "ATen/", "c10/", "pybind11/", "Python.h"))], path


@pytest.mark.parametrize("op", OPS)
def test_one_name_per_op_in_every_layer(op):
    for place in (f"kernels/{op}.py", f"csrc/cuda/{op}.cu"):
        assert (ROOT / place).exists(), place


@pytest.mark.parametrize("op", CPU_OPS)
def test_one_name_per_op_on_a_cpu(op):
    for place in (f"sparseprune/ops/{op}.py", f"csrc/cpu/{op}.cpp", f"csrc/include/sparseprune/{op}.h"):
        assert (ROOT / place).exists(), place


def test_public_names():
    import sparseprune

    assert not [name for name in PUBLIC if not hasattr(sparseprune, name)]
    assert all(getattr(sparseprune, name).__doc__ for name in PUBLIC)
    assert sparseprune.models.resnet50 and sparseprune.__version__


def test_import_is_lean():
    """Importing the package starts no GPU and loads nothing that only the command line or a plot needs."""
    heavy = ["matplotlib", "typer", "rich", "sklearn", "triton", "PIL", "yaml"]
    code = (
        "import sys, sparseprune, torch; assert not torch.cuda.is_initialized();"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert out.stdout.strip() == "[]"


def test_sources_leave_nothing_open_and_speak_of_the_project_alone():
    words = re.compile(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError|breakpoint)\b")
    for folder in ("sparseprune", "kernels", "csrc", "benchmarks"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh"):
                assert not words.search(path.read_text()), path
