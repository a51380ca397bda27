"""Compiles the CUDA kernels for the SIMT machine (``include/simt.h``) and calls them on CPU tensors."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import re
import subprocess
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pybind11
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
KERNELS = ("mask_bits", "masked_conv2d", "masked_linear", "topk_mask")
MACHINE = ("simt", "selftest")
DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)  # in the order of sparseprune::cuda::Dtype
GUARD = 64  # bytes before and after every output, a multiple of any vector load

# -fno-gnu-unique: several builds live in one process. With three blocks at most every kernel has to stride.
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
KERNEL_FLAGS = (*FLAGS, "-DSPARSEPRUNE_MAX_BLOCKS=3", f"-I{HERE / 'include'}", f"-I{CSRC / 'include'}")
Edit = Callable[[str], str]


def build(folder: Path, edits: Mapping[str, Edit] | None = None) -> ModuleType:
    """The emulated kernels as a module, built in ``folder`` unless the same sources were built there before.

    Args:
        folder: where the compiler's results go and stay.
        edits: file name in csrc/cuda -> a function from its text to the text to be compiled instead. Only
            what includes an edited file is compiled again.
    """
    sources = {path.name: path.read_text() for path in sorted((CSRC / "cuda").glob("*.cu*"))}
    target = _target(folder, sources)
    reused = None
    if edits:
        build(folder)
        reused = target
        for name, edit in edits.items():
            edited = edit(sources[name])
            if edited == sources[name]:
                raise ValueError(f"the edit of {name} must change it")
            sources[name] = edited
        target = _target(folder, sources)
    module = target / f"simt_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not module.exists():
        target.mkdir(parents=True, exist_ok=True)
        for name, text in sources.items():
            (target / name).write_text(text)
        stale = {name for name in KERNELS if not reused or _included(f"{name}.cu", sources) & edits.keys()}
        _compile(target, module, stale, reused)
    # pybind11 keeps one module per name, and there may be several builds in a process.
    spec = importlib.util.spec_from_file_location(f"build_{target.name}.simt_kernels", module)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def _target(folder: Path, sources: Mapping[str, str]) -> Path:
    """A folder named by everything that the build depends on."""
    headers = [*sorted((CSRC / "include/sparseprune/cuda").iterdir()), *sorted((HERE / "include").iterdir())]
    texts = [path.read_text() for path in [*headers, *sorted(HERE.glob("*.cpp"))]]
    parts = [
        sysconfig.get_config_var("EXT_SUFFIX"),
        pybind11.__version__,
        *KERNEL_FLAGS,
        *sources.values(),
        *texts,
    ]
    return folder / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _included(name: str, sources: Mapping[str, str]) -> set[str]:
    """The file and those of its folder that it includes, directly or not."""
    found = {name}
    for other in re.findall(r'#include "([\w.]+)"', sources[name]):
        found |= _included(other, sources)
    return found


def _compile(target: Path, module: Path, kernels: set[str], reused: Path | None) -> None:
    """The kernels and the machine become one library, which has no other thread-locals; the module another.

    Objects that are not to be compiled are those in ``reused``.
    """
    python = [f"-isystem{sysconfig.get_paths()['include']}", f"-isystem{pybind11.get_include()}"]
    units = [[*KERNEL_FLAGS, "-x", "c++", "-c", f"{name}.cu", "-o", f"{name}.o"] for name in sorted(kernels)]
    if reused is None:
        hidden = [*KERNEL_FLAGS, "-O0", "-fvisibility=hidden", *python]
        units.insert(0, [*hidden, "-c", str(HERE / "bindings.cpp"), "-o", "bindings.o"])
        units += [[*KERNEL_FLAGS, "-c", str(HERE / f"{name}.cpp"), "-o", f"{name}.o"] for name in MACHINE]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda unit: _run(target, unit), units))
    objects = [f"{name}.o" for name in (*KERNELS, *MACHINE, "bindings")]
    paths = {name: str((target if (target / name).exists() else reused) / name) for name in objects}
    library = f"libsimt_{target.name}.so"
    code = [path for name, path in paths.items() if name != "bindings.o"]
    _run(target, ["-shared", "-Wl,-Bsymbolic", f"-Wl,-soname,{library}", *code, "-o", library])
    unfinished = module.with_suffix(".tmp")
    _run(target, ["-shared", paths["bindings.o"], library, "-Wl,-rpath,$ORIGIN", "-o", str(unfinished)])
    unfinished.replace(module)


def _run(folder: Path, arguments: Sequence[str]) -> None:
    result = subprocess.run(["g++", *arguments], cwd=folder, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"g++ {' '.join(arguments)}\n{result.stderr}")


class Guarded:
    """An output filled with 0xff (NaN, -1) between two strips of bytes that the kernel must not touch."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        size = torch.Size(shape).numel() * dtype.itemsize
        self._bytes = torch.full((size + 2 * GUARD,), 0xFF, dtype=torch.uint8)
        self._strips = (self._bytes[:GUARD], self._bytes[GUARD + size :])
        for strip in self._strips:
            strip.fill_(0xA5)
        self.tensor = self._bytes[GUARD : GUARD + size].view(dtype).view(shape)

    @property
    def address(self) -> int:
        return self.tensor.data_ptr()

    def get(self) -> Tensor:
        if any((strip != 0xA5).any() for strip in self._strips):
            raise AssertionError("a kernel wrote outside of its output")
        return self.tensor


class Emulated:
    """The ops, with the names and arguments that every backend has, run by the emulated CUDA kernels."""

    def __init__(self, kernels: ModuleType) -> None:
        self._kernels = kernels

    def set_seed(self, seed: int) -> None:
        """Chooses the order in which threads and blocks run."""
        self._kernels.set_seed(seed)

    def pack_mask(self, mask: Tensor) -> Tensor:
        rows, columns = mask.shape
        words = Guarded((rows, _row_words(columns)), torch.int32)
        self._kernels.pack_mask(mask.data_ptr(), words.address, rows, columns)
        return words.get()

    def unpack_mask(self, words: Tensor, cols: int) -> Tensor:
        mask = Guarded((len(words), cols), torch.uint8)
        self._kernels.unpack_mask(words.data_ptr(), mask.address, len(words), cols)
        return mask.get().view(torch.bool)

    def count_mask(self, words: Tensor) -> Tensor:
        counts = Guarded((len(words),), torch.int64)
        self._kernels.count_mask(words.data_ptr(), counts.address, *words.shape)
        return counts.get()

    def topk_mask(self, scores: list[Tensor], candidates: list[Tensor], k: int) -> list[Tensor]:
        kept = [Guarded((len(s), _row_words(s.shape[1])), torch.int32) for s in scores]
        status = Guarded((2,), torch.int64)
        rows = [
            (s.data_ptr(), c.data_ptr() if c is not None else 0, w.address, *s.shape)
            for s, c, w in itertools.zip_longest(scores, candidates, kept)
        ]
        self._kernels.topk_mask(
            rows, DTYPES.index(scores[0].dtype if scores else torch.float32), k, status.address
        )
        return [w.get() for w in [*kept, status]]

    def masked_linear(self, x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None) -> Tensor:
        shape = [len(x), x.shape[1], len(weight)]
        address = 0 if bias is None else bias.data_ptr()
        return self._product("masked_linear", [x, weight, words], [address], (len(x), len(weight)), shape)

    def masked_linear_input_grad(self, grad: Tensor, weight: Tensor, words: Tensor) -> Tensor:
        shape = [len(grad), weight.shape[1], len(weight)]
        return self._product(
            "masked_linear_input_grad", [grad, weight, words], [], (shape[0], shape[1]), shape
        )

    def masked_linear_weight_grad(self, grad: Tensor, x: Tensor, words: Tensor) -> Tensor:
        shape = [len(grad), x.shape[1], grad.shape[1]]
        return self._product("masked_linear_weight_grad", [grad, x, words], [], (shape[2], shape[1]), shape)

    def masked_conv2d(
        self, x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None, *geometry: Any
    ) -> Tensor:
        stride, padding, dilation, groups = geometry
        out = [
            (x.shape[d] + 2 * padding[d - 2] - dilation[d - 2] * (weight.shape[d] - 1) - 1) // stride[d - 2]
            + 1
            for d in (2, 3)
        ]
        size = (len(x), len(weight), *out)
        shape = _conv_shape(x.shape, weight.shape, size, *geometry)
        address = 0 if bias is None else bias.data_ptr()
        return self._product("masked_conv2d", [x, weight, words], [address], size, shape)

    def masked_conv2d_input_grad(
        self, grad: Tensor, weight: Tensor, words: Tensor, input_size: Sequence[int], *geometry: Any
    ) -> Tensor:
        shape = _conv_shape(input_size, weight.shape, grad.shape, *geometry)
        return self._product("masked_conv2d_input_grad", [grad, weight, words], [], input_size, shape)

    def masked_conv2d_weight_grad(
        self, grad: Tensor, x: Tensor, words: Tensor, weight_size: Sequence[int], *geometry: Any
    ) -> Tensor:
        shape = _conv_shape(x.shape, weight_size, grad.shape, *geometry)
        return self._product("masked_conv2d_weight_grad", [grad, x, words], [], weight_size, shape)

    def _product(
        self, name: str, inputs: list[Tensor], bias: list[int], size: Sequence[int], shape: list[int]
    ) -> Tensor:
        out = Guarded(size, inputs[0].dtype)
        addresses = [tensor.data_ptr() for tensor in inputs]
        getattr(self._kernels, name)(*addresses, *bias, out.address, shape, DTYPES.index(inputs[0].dtype))
        return out.get()


def _row_words(columns: int) -> int:
    return 2 * ((columns + 63) // 64)


def _conv_shape(
    input_size: Sequence[int],
    weight_size: Sequence[int],
    output_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> list[int]:
    """The members of sparseprune::cuda::Conv2dShape in order."""
    batch, channels, *size = input_size
    sizes = [*size, *weight_size[2:], *output_size[2:]]
    return [batch, channels, weight_size[0], groups, *sizes, *stride, *padding, *dilation]
