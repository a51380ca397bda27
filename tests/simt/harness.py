"""Calls the kernels that ``build.py`` compiled on CPU tensors, each in memory of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from simt.build import kernel_at
from torch import Tensor

DTYPES = (  # in the order of sparseprune::cuda::Dtype
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)
GUARD = 64  # bytes around everything that a kernel gets, a multiple of any vector load


class KernelFault(RuntimeError):
    """A kernel did what no kernel may; the message names it, the block and the thread."""


class Emulated:
    """The ops, with the names and arguments that every backend has, run by the emulated CUDA kernels.

    Args:
        kernels: a module made by ``build``.
        shift: the elements that every array starts behind a multiple of 64 bytes, as views may.
    """

    def __init__(self, kernels: ModuleType, shift: int = 0) -> None:
        self.kernels = kernels
        self._shift = shift

    def set_seed(self, seed: int) -> None:
        """Chooses the order in which threads and blocks run."""
        self.kernels.set_seed(seed)

    def pack_mask(self, mask: Tensor) -> Tensor:
        rows, columns = mask.shape
        words = self.output((rows, _row_words(columns)), torch.int32)
        self._run("pack_mask", {"mask": mask}, {"words": words}, rows, columns)
        return words

    def unpack_mask(self, words: Tensor, cols: int) -> Tensor:
        mask = self.output((len(words), cols), torch.uint8)
        self._run("unpack_mask", {"words": words}, {"mask": mask}, len(words), cols)
        return mask.view(torch.bool)

    def count_mask(self, words: Tensor) -> Tensor:
        counts = self.output((len(words),), torch.int64)
        self._run("count_mask", {"words": words}, {"counts": counts}, *words.shape)
        return counts

    def topk_mask(
        self,
        scores: list[Tensor],
        gradients: list[Tensor],
        candidates: list[Tensor],
        formulas: list[int],
        k: int,
        k_tensor: Tensor | None,
        largest: bool,
    ) -> list[Tensor]:
        columns = {"scores": scores, "gradients": gradients, "candidates": candidates}
        placed = {n: [self.place(t) for t in column] or [None] * len(scores) for n, column in columns.items()}
        kept = [self.output((len(s), _row_words(s.shape[1])), torch.int32) for s in scores]
        rows = [
            (*map(_address, pointers), *pointers[0].shape, DTYPES.index(pointers[0].dtype), formula)
            for *pointers, formula in zip(*placed.values(), kept, formulas, strict=True)
        ]
        status, threshold = self.output((2 + len(scores),), torch.int64), self.output((1,), torch.float64)
        workspace = self.output((-(-self.kernels.topk_workspace(rows) // 8),), torch.int64)
        k_tensor = self.place(k_tensor)
        inputs = {f"{n}[{i}]": t for n, column in placed.items() for i, t in enumerate(column)} | {"k": k_tensor}
        outputs = {f"kept[{i}]": w for i, w in enumerate(kept)}
        outputs |= {"status": status, "threshold": threshold, "workspace": workspace}
        arguments = [rows, k, _address(k_tensor), largest, *map(_address, (status, threshold, workspace))]
        self._checked("topk_mask", inputs, outputs, arguments)
        return [*kept, status, threshold]

    def masked_linear(self, x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None) -> Tensor:
        sizes = [len(x), x.shape[1], len(weight)]
        inputs = {"x": x, "weight": weight, "words": words, "bias": bias}
        return self._product("masked_linear", inputs, (sizes[0], sizes[2]), sizes)

    def masked_linear_input_grad(self, grad: Tensor, weight: Tensor, words: Tensor) -> Tensor:
        sizes = [len(grad), weight.shape[1], len(weight)]
        inputs = {"grad": grad, "weight": weight, "words": words}
        return self._product("masked_linear_input_grad", inputs, (sizes[0], sizes[1]), sizes)

    def masked_linear_weight_grad(self, grad: Tensor, x: Tensor, words: Tensor) -> Tensor:
        sizes = [len(grad), x.shape[1], grad.shape[1]]
        inputs = {"grad": grad, "x": x, "words": words}
        return self._product("masked_linear_weight_grad", inputs, (sizes[2], sizes[1]), sizes)

    def masked_conv2d(self, x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
        stride, padding, dilation, _ = geometry
        reach = [dilation[d] * (weight.shape[d + 2] - 1) for d in (0, 1)]
        out = [(x.shape[d + 2] + 2 * padding[d] - reach[d] - 1) // stride[d] + 1 for d in (0, 1)]
        size = (len(x), len(weight), *out)
        inputs = {"x": x, "weight": weight, "words": words, "bias": bias}
        return self._product("masked_conv2d", inputs, size, _conv_sizes(x.shape, weight.shape, size, *geometry))

    def masked_conv2d_input_grad(
        self, grad: Tensor, weight: Tensor, words: Tensor, input_size: Sequence[int], *geometry: Any
    ) -> Tensor:
        sizes = _conv_sizes(input_size, weight.shape, grad.shape, *geometry)
        inputs = {"grad": grad, "weight": weight, "words": words}
        return self._product("masked_conv2d_input_grad", inputs, input_size, sizes)

    def masked_conv2d_weight_grad(
        self, grad: Tensor, x: Tensor, words: Tensor, weight_size: Sequence[int], *geometry: Any
    ) -> Tensor:
        sizes = _conv_sizes(x.shape, weight_size, grad.shape, *geometry)
        inputs = {"grad": grad, "x": x, "words": words}
        return self._product("masked_conv2d_weight_grad", inputs, weight_size, sizes)

    def packed_linear(self, x: Tensor, values: Tensor, words: Tensor, bias: Tensor | None) -> Tensor:
        inputs = {"x": x, "values": values, "words": words, "bias": bias}
        return self._packed("packed_linear", inputs, (len(x), len(words)), [*x.shape, len(words)], len(values))

    def packed_linear_input_grad(self, grad: Tensor, values: Tensor, words: Tensor, columns: int) -> Tensor:
        inputs = {"grad": grad, "values": values, "words": words}
        sizes = [len(grad), columns, len(words)]
        return self._packed("packed_linear_input_grad", inputs, (len(grad), columns), sizes, len(values))

    def packed_linear_values_grad(self, grad: Tensor, x: Tensor, words: Tensor, kept: int) -> Tensor:
        inputs = {"grad": grad, "x": x, "words": words}
        return self._packed("packed_linear_values_grad", inputs, (kept,), [*x.shape, len(words)], kept)

    def selftest(self, kernel: str, values: Tensor, size: int, threads: int = 64, blocks: int = 1) -> Tensor:
        """Runs a kernel of selftest.cpp: int32 ``values`` in, ``size`` int32 out, zeros at first."""
        out = self.output((size,), torch.int32).zero_()
        values = self.place(values)
        arguments = [kernel, _address(values), _address(out), blocks, threads]
        self._checked("selftest", {"values": values}, {"out": out}, arguments)
        return out

    def output(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An array for a kernel to write, filled with 0xff (NaN, -1)."""
        size, offset = torch.Size(shape).numel() * dtype.itemsize, GUARD + self._shift * dtype.itemsize
        memory = torch.full((size + 2 * offset,), 0xFF, dtype=torch.uint8)
        return memory[offset : offset + size].view(dtype).view(shape)

    def place(self, tensor: Tensor | None) -> Tensor | None:
        """A copy of an argument far from all other arrays, so that a kernel cannot run from one into another."""
        return tensor if tensor is None else self.output(tensor.shape, tensor.dtype).copy_(tensor)

    def extent(self, name: str, tensor: Tensor) -> tuple[int, int]:
        """Address and bytes of what kernels may touch of an argument."""
        return tensor.data_ptr(), tensor.numel() * tensor.itemsize

    def _product(self, name: str, inputs: Mapping[str, Tensor | None], size: Sequence[int], sizes: list[int]) -> Tensor:
        dtype = next(iter(inputs.values())).dtype
        out = self.output(size, dtype)
        self._run(name, inputs, {"out": out}, sizes, DTYPES.index(dtype))
        return out

    def _packed(
        self, name: str, inputs: Mapping[str, Tensor | None], size: Sequence[int], sizes: list[int], kept: int
    ) -> Tensor:
        dtype = next(iter(inputs.values())).dtype
        options = [sizes, DTYPES.index(dtype)]
        out, workspace = self.output(size, dtype), getattr(self.kernels, f"{name}_workspace")(*options)
        outputs = {"out": out, "workspace": self.output((-(-workspace // 8),), torch.int64)}
        self._run(name, inputs, outputs, *options, kept)
        return out

    def _run(self, name: str, inputs: Mapping[str, Tensor | None], outputs: Mapping[str, Tensor], *rest: Any) -> None:
        placed = {key: self.place(tensor) for key, tensor in inputs.items()}
        addresses = [_address(tensor) for tensor in [*placed.values(), *outputs.values()]]
        self._checked(name, placed, outputs, [*addresses, *rest])

    def _checked(
        self, name: str, inputs: Mapping[str, Tensor | None], outputs: Mapping[str, Tensor], arguments: list[Any]
    ) -> None:
        """Calls a function of the module, which may touch these arrays and nothing else."""
        buffers = [
            (key, *self.extent(key, tensor), writable)
            for arrays, writable in ((inputs, False), (outputs, True))
            for key, tensor in arrays.items()
            if tensor is not None and tensor.numel()
        ]
        self.kernels.set_buffers(buffers)
        try:
            getattr(self.kernels, name)(*arguments)
        except RuntimeError as error:
            named = re.sub(r"\+0x\w+", lambda m: kernel_at(self.kernels, int(m[0], 16)), str(error), count=1)
            raise KernelFault(named) from None


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _row_words(columns: int) -> int:
    return 2 * ((columns + 63) // 64)


def _conv_sizes(
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
