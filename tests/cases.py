"""The table behind the contract tests: every op, its backends, and the inputs that have broken kernels before."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparseprune.ops import (
    choice,
    group_topk_mask,
    mask_bits,
    masked_conv2d,
    masked_linear,
    packed_conv2d,
    packed_linear,
    topk_mask,
)
from sparseprune.ops.bitmask import as_rows

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
ISA_VARIABLE = "SPARSEPRUNE_CPU_ISA"


def isa_levels() -> list[str]:
    """The SIMD levels that this build has and this machine can run; none without the compiled libraries."""
    try:
        from sparseprune import _C
    except ImportError:
        return []
    info = _C.build_info()
    return info["simd_levels"][: info["simd_levels"].index(info["simd_level"]) + 1]  # they ascend


@dataclass(frozen=True)
class Backend:
    """A way to run an op in a test: a backend's name and, for native code on a CPU, a forced SIMD level."""

    name: str
    isa: str | None = None

    def __str__(self) -> str:
        return f"{self.name}-{self.isa}" if self.isa else self.name

    @contextmanager
    def forced(self) -> Iterator[None]:
        before = os.environ.get(ISA_VARIABLE)
        if self.isa:
            os.environ[ISA_VARIABLE] = self.isa
        try:
            yield
        finally:
            if self.isa:
                os.environ.pop(ISA_VARIABLE)
            if before is not None:
                os.environ[ISA_VARIABLE] = before


def backends(implementations: Mapping[str, Any]) -> list[Backend]:
    """Every backend of a dictionary, native code at each SIMD level. The reference is the oracle, not a case."""
    found = []
    for name in implementations:
        if name == "native" and isa_levels():
            found += [Backend(name, isa) for isa in isa_levels()]
        elif name != "reference":
            found.append(Backend(name))
    return found


@dataclass(frozen=True)
class Op:
    """A registered op with the inputs it is tested on; ``inputs`` maps a case to ``(dtype, device) -> arguments``."""

    name: str
    run: Callable[..., Any]
    implementations: Mapping[str, Any]
    inputs: Mapping[str, Callable[[torch.dtype, str], list[Any]]]
    exact: bool = False
    on_gpu: bool = True


def weight_and_words(shape: tuple[int, ...], density: float, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """A weight with NaN and inf planted in its pruned slots, and the packed words of its mask."""
    keep = torch.rand(shape, device=device) < density
    poison = torch.where(torch.rand(shape, device=device) < 0.5, float("nan"), float("inf"))
    weight = torch.where(keep, torch.randn(shape, device=device), poison).to(dtype)
    return weight, mask_bits.pack_reference(keep.reshape(as_rows(shape)))


# name -> (batch, in, out, density). Batches around 8 and 16 straddle the kernels' small-batch paths, columns the
# 32- and 64-bit words of a row.
LINEAR = {
    "small": (3, 5, 4, 0.5),
    "prime": (13, 67, 31, 0.3),
    "words": (9, 64, 33, 0.2),
    "one row": (8, 33, 1, 0.5),
    "one column": (4, 1, 7, 0.5),
    "one by one": (1, 1, 1, 1.0),
    "vector": (1, 129, 19, 0.4),
    "panel": (70, 40, 18, 0.1),
    "empty batch": (0, 6, 5, 0.5),
    "no output": (3, 6, 0, 0.5),
    "no input": (3, 0, 5, 0.5),
    "all kept": (5, 37, 12, 1.0),
    "all pruned": (5, 37, 12, 0.0),
}

# name -> (batch, in, out, size, kernel, stride, padding, dilation, groups, density)
CONV = {
    "3x3": (2, 3, 5, (7, 6), (3, 3), (1, 1), (1, 1), (1, 1), 1, 0.4),
    "1x1": (2, 9, 7, (5, 5), (1, 1), (1, 1), (0, 0), (1, 1), 1, 0.3),
    "1x1 stride 2": (1, 4, 6, (5, 7), (1, 1), (2, 2), (0, 0), (1, 1), 1, 0.5),
    "stem": (1, 3, 4, (15, 13), (7, 7), (2, 2), (3, 3), (1, 1), 1, 0.2),
    "dilated": (1, 2, 3, (9, 8), (3, 2), (1, 2), (2, 0), (2, 3), 1, 0.5),
    "groups": (2, 6, 4, (5, 4), (3, 3), (2, 1), (1, 0), (1, 1), 2, 0.5),
    "depthwise": (1, 5, 5, (4, 6), (3, 3), (1, 1), (1, 1), (1, 1), 5, 0.6),
    "one position": (3, 40, 5, (2, 2), (2, 2), (2, 2), (0, 0), (1, 1), 1, 0.3),
    "wide": (1, 2, 3, (3, 70), (1, 3), (1, 1), (0, 1), (1, 1), 1, 0.5),
    "empty batch": (0, 3, 4, (5, 5), (3, 3), (1, 1), (1, 1), (1, 1), 1, 0.5),
    "all kept": (1, 4, 3, (5, 5), (3, 3), (1, 1), (1, 1), (1, 1), 1, 1.0),
    "all pruned": (1, 4, 3, (5, 5), (3, 3), (1, 1), (1, 1), (1, 1), 1, 0.0),
}


def linear_inputs(kind: str, case: str) -> Callable[[torch.dtype, str], list[Any]]:
    batch, n_in, n_out, density = LINEAR[case]

    def make(dtype: torch.dtype, device: str) -> list[Any]:
        weight, words = weight_and_words((n_out, n_in), density, dtype, device)
        x = torch.randn(batch, n_in, device=device).to(dtype)
        grad = torch.randn(batch, n_out, device=device).to(dtype)
        if kind == "forward":
            bias = torch.randn(n_out, device=device).to(dtype) if case != "small" else None
            return [x, weight, words, bias]
        return [grad, weight, words] if kind == "input_grad" else [grad, x, words]

    return make


def conv_inputs(kind: str, case: str) -> Callable[[torch.dtype, str], list[Any]]:
    batch, n_in, n_out, size, kernel, stride, padding, dilation, groups, density = CONV[case]
    geometry = [list(stride), list(padding), list(dilation), groups]
    out = choice.output_size(size, kernel, stride, padding, dilation)

    def make(dtype: torch.dtype, device: str) -> list[Any]:
        weight, words = weight_and_words((n_out, n_in // groups, *kernel), density, dtype, device)
        x = torch.randn(batch, n_in, *size, device=device).to(dtype)
        grad = torch.randn(batch, n_out, *out, device=device).to(dtype)
        if kind == "forward":
            bias = torch.randn(n_out, device=device).to(dtype) if case != "3x3" else None
            return [x, weight, words, bias, *geometry]
        if kind == "input_grad":
            return [grad, weight, words, list(x.shape), *geometry]
        return [grad, x, words, list(weight.shape), *geometry]

    return make


def packed_inputs(make_masked: Callable[..., Any], kind: str, case: str) -> Callable[[torch.dtype, str], list[Any]]:
    """The arguments of a masked layer's op as its packed twin takes them: the survivors alone, and the kernel's size."""

    def make(dtype: torch.dtype, device: str) -> list[Any]:
        linear = make_masked is linear_inputs
        first, second, words, *rest = make_masked(kind.replace("values", "weight"), case)(dtype, device)
        if kind == "values_grad":
            shape = [words.shape[0], second.shape[1]] if linear else rest.pop(0)
            kept = int(mask_bits.count_reference(words).sum())
            return [first, second, words, kept, *([] if linear else [shape[2:]]), *rest]
        shape, columns = second.shape, math.prod(second.shape[1:])
        values = second.reshape(words.shape[0], columns)[mask_bits.unpack_reference(words, columns)]
        if linear:
            return [first, values, words, *(rest if kind == "forward" else [columns])]
        return [first, values, words, rest[0], list(shape[2:]), *rest[1:]]  # rest[0]: the bias or the size of x

    return make


def mask_inputs(kind: str, shape: tuple[int, int], density: float) -> Callable[[torch.dtype, str], list[Any]]:
    def make(_: torch.dtype, device: str) -> list[Any]:
        keep = torch.rand(shape, device=device) < density
        words = mask_bits.pack_reference(keep)
        return {"pack": [keep], "unpack": [words, shape[1]], "count": [words]}[kind]

    return make


MASKS = {
    "small": ((3, 5), 0.5),
    "words": ((4, 64), 0.5),
    "ragged": ((7, 97), 0.3),
    "one row": ((1, 333), 0.5),
    "wide": ((3, 2500), 0.5),
    "one column": ((9, 1), 0.5),
    "no rows": ((0, 40), 0.5),
    "no columns": ((6, 0), 0.5),
    "all kept": ((5, 65), 1.0),
    "all pruned": ((5, 65), 0.0),
}


def score_cases() -> dict[str, list[Tensor]]:
    """Score tensors that have broken selections: ties, zeros, infinities, signed zeros, denormals, odd shapes."""
    r = torch.Generator().manual_seed(1)
    normal = [torch.randn(s, generator=r) for s in ((7, 13), (64,), (3, 5, 2, 2), ())]
    infinite = torch.randn(40, generator=r)
    infinite[::7], infinite[3::11] = float("inf"), float("-inf")
    return {
        "normal": normal,
        "one tensor": [torch.randn(97, generator=r)],
        "large": [torch.randn(150, 211, generator=r), torch.rand(1013, generator=r)],
        "equal": [torch.full((5, 9), 0.25), torch.full((33,), 0.25)],
        "two values": [torch.randint(0, 2, (41, 3), generator=r).float(), torch.ones(2, 2)],
        "mostly zeros": [torch.relu(torch.randn(50, 60, generator=r) - 2), torch.zeros(70)],
        "signed zeros": [torch.tensor([0.0, -0.0, 0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0])],
        "zeros at the threshold": [torch.tensor([-0.0, 0.0, -1.0, 0.0, -0.0])],
        "infinities": [infinite, torch.tensor([float("-inf")] * 5)],
        "denormals": [torch.randn(64, generator=r) * 1e-40],
        "sorted": [torch.arange(300.0), torch.arange(300.0, 0, -1)],
        "one bin": [1.0 + torch.rand(500, generator=r) * 1e-6],
        "empty tensors": [torch.zeros(0, 4), torch.randn(6, generator=r), torch.zeros(3, 0)],
        "one element": [torch.tensor([2.0])],
        "nothing": [torch.zeros(0)],
    }


def topk_inputs(case: str, share: float, competing: float) -> Callable[[torch.dtype, str], list[Any]]:
    def make(dtype: torch.dtype, device: str) -> list[Any]:
        scores = [s.to(dtype).reshape(as_rows(s.shape)).to(device) for s in score_cases()[case]]
        candidates, total = [], sum(s.numel() for s in scores)
        if competing < 1:
            masks = [torch.rand(s.shape) < competing for s in scores]
            scores = [torch.where(m.to(device), s, float("nan")) for s, m in zip(scores, masks, strict=True)]
            candidates = [mask_bits.pack_reference(m).to(device) for m in masks]
            total = sum(int(m.sum()) for m in masks)
        return [scores, [], candidates, [0] * len(scores), round(share * total), None, True]

    return make


# name -> (shape, k, group). Groups within and across words, on both sides of 32, and rows of several blocks.
GROUPS = {
    "1:2": ((5, 70), 1, 2),
    "2:4": ((7, 100), 2, 4),
    "2:4 in blocks": ((2, 9000), 2, 4),
    "3:8": ((6, 5, 24), 3, 8),
    "4:16": ((3, 80), 4, 16),
    "5:32": ((3, 160), 5, 32),
    "2:3": ((4, 99), 2, 3),
    "3:5 in blocks": ((2, 9000), 3, 5),
    "7:31": ((3, 217), 7, 31),
    "17:33": ((3, 99), 17, 33),
    "63 of 64": ((2, 192), 63, 64),
    "10:70 in blocks": ((2, 9800), 10, 70),
    "rows": ((4, 1003), 100, 1003),
    "one of a row": ((2, 3, 5, 40), 1, 600),
    "one score": ((1, 1), 1, 1),
    "none of 4": ((3, 12), 0, 4),
    "none of 40": ((3, 80), 0, 40),
    "4 of 4": ((3, 12), 4, 4),
    "6 of 6": ((3, 12), 6, 6),
    "40 of 40": ((3, 80), 40, 40),
    "no rows": ((0, 8), 2, 4),
    "no columns": ((3, 0), 0, 1),
}


def group_values(kind: str, shape: tuple[int, ...]) -> Tensor:
    """Scores of one kind: without ties, almost all tied, zeros of both signs, far apart, or neighbours in float32."""
    normal = torch.randn(shape, dtype=torch.float64)
    return {
        "normal": normal,
        "few": normal.round(),
        "zeros": torch.where(normal > 1, normal, torch.where(normal > 0, 0.0, -0.0)),
        "far": torch.where(normal > 0, torch.inf, -torch.inf).where(normal.abs() < 0.5, 1e-40 * normal),
        "close": 1 + normal.round() * torch.finfo(torch.float32).eps,
    }[kind]


def group_inputs(case: str, kind: str, formula: int, largest: bool) -> Callable[[torch.dtype, str], list[Any]]:
    shape, k, group = GROUPS[case]

    def make(dtype: torch.dtype, device: str) -> list[Any]:
        scores = group_values(kind, shape).to(device, dtype)
        gradient = group_values("few", shape).to(device, dtype) if formula > 1 else None
        if formula > 1:  # infinity times zero is not a number
            scores = scores.clamp(-9, 9)
        return [scores, gradient, formula, k, group, largest]

    return make


def _products(
    module: Any, name: str, cases: Mapping[str, Any], inputs: Callable[..., Any], on_gpu: bool = True
) -> list[Op]:
    """The three ops of a layer: forward, input gradient, gradient of the weight or of its values."""
    last = "weight_grad" if hasattr(module, "WEIGHT_GRAD") else "values_grad"
    kinds = {
        "forward": (name, module._forward, module.FORWARD),
        "input_grad": (f"{name}_input_grad", module._input_grad, module.INPUT_GRAD),
        last: (f"{name}_{last}", getattr(module, f"_{last}"), getattr(module, last.upper())),
    }
    return [
        Op(op, run, table, {case: inputs(kind, case) for case in cases}, on_gpu=on_gpu)
        for kind, (op, run, table) in kinds.items()
    ]


def _mask_ops() -> list[Op]:
    kinds = {
        "pack": (mask_bits._pack, mask_bits.PACK),
        "unpack": (mask_bits._unpack, mask_bits.UNPACK),
        "count": (mask_bits._count, mask_bits.COUNT),
    }
    return [
        Op(f"{kind}_mask", run, table, {case: mask_inputs(kind, *how) for case, how in MASKS.items()}, exact=True)
        for kind, (run, table) in kinds.items()
    ]


def _topk_op() -> Op:
    inputs = {}
    for case in score_cases():
        for share in (0.3, 0.0, 1.0):
            inputs[f"{case}, {share:.0%}"] = topk_inputs(case, share, 1.0)
        inputs[f"{case}, 40% of half"] = topk_inputs(case, 0.4, 0.5)
    return Op("topk_mask", topk_mask._topk_mask, topk_mask.IMPLEMENTATIONS, inputs, exact=True)


def _group_op() -> Op:
    inputs = {f"{case}, few": group_inputs(case, "few", 0, True) for case in GROUPS}
    for case in ("2:4", "3:8", "3:5 in blocks", "rows"):
        for kind in ("normal", "zeros", "far", "close"):
            inputs[f"{case}, {kind}"] = group_inputs(case, kind, 0, True)
    for case in ("2:4", "rows"):
        for formula in range(5):
            inputs[f"{case}, formula {formula}, smallest"] = group_inputs(case, "few", formula, False)
            inputs[f"{case}, formula {formula}"] = group_inputs(case, "normal", formula, True)
    run, table = group_topk_mask._group_topk_mask, group_topk_mask.IMPLEMENTATIONS
    return Op("group_topk_mask", run, table, inputs, exact=True, on_gpu=False)


LAYERS = [
    *_products(masked_linear, "masked_linear", LINEAR, linear_inputs),
    *_products(masked_conv2d, "masked_conv2d", CONV, conv_inputs),
    *_products(packed_linear, "packed_linear", LINEAR, partial(packed_inputs, linear_inputs)),
    *_products(packed_conv2d, "packed_conv2d", CONV, partial(packed_inputs, conv_inputs), on_gpu=False),
]
OPS = [*_mask_ops(), _topk_op(), _group_op(), *LAYERS]
GPU_OPS = [op for op in OPS if op.on_gpu]
