"""Compile the launches of the Triton launchers without a GPU, and print what came out as JSON lines.

Run as a program, because the test process interprets kernels, which is decided once per process: without arguments it
compiles a representative part for sm_80, sm_90 and sm_100 (a minute), with ``--all`` every case for each (three). The
launchers run on meta tensors with launches recorded instead of made, so that what is compiled is what would be
launched: the same tiles, the same arguments, specialised as Triton specialises them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, KernelInterface

from sparseprune.kernels import mask_bits, masked_conv2d, masked_linear, topk_mask

TYPES = {
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64",
    torch.int32: "*i32", torch.int64: "*i64", torch.uint8: "*u8",
}  # fmt: skip
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
TENSOR_CORE = re.compile(r"^\s*(?:@\S+ )?(mma\.sync|wgmma\.mma_async|tcgen05\.mma)", re.M)
LAYER_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Launch(NamedTuple):
    case: str
    dtype: torch.dtype
    kernel: JITFunction
    args: dict[str, Any]
    options: dict[str, int]


def meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def words(rows: int, cols: int) -> Tensor:
    return meta(rows, 2 * -(-cols // 64), dtype=torch.int32)


def linear(batch: int, outputs: int, inputs: int, bias: bool) -> Callable[[torch.dtype], None]:
    def run(dtype: torch.dtype) -> None:
        x, grad = meta(batch, inputs, dtype=dtype), meta(batch, outputs, dtype=dtype)
        weight, bits = meta(outputs, inputs, dtype=dtype), words(outputs, inputs)
        masked_linear.masked_linear(x, weight, bits, meta(outputs, dtype=dtype) if bias else None)
        masked_linear.masked_linear_input_grad(grad, weight, bits)
        masked_linear.masked_linear_weight_grad(grad, x, bits)

    return run


def at(precision: str, run: Callable[[torch.dtype], None]) -> Callable[[torch.dtype], None]:
    """The same under torch.set_float32_matmul_precision, and with or without TF32 in convolutions."""

    def run_at(dtype: torch.dtype) -> None:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = precision != "highest"
        run(dtype)

    return run_at


def conv(
    batch: int, channels: int, outputs: int, size: int, kernel: int, stride: int, padding: int, groups: int = 1
) -> Callable[[torch.dtype], None]:
    def run(dtype: torch.dtype) -> None:
        out = (size + 2 * padding - kernel) // stride + 1
        x, grad = meta(batch, channels, size, size, dtype=dtype), meta(batch, outputs, out, out, dtype=dtype)
        weight = meta(outputs, channels // groups, kernel, kernel, dtype=dtype)
        bits = words(outputs, weight[0].numel())
        geometry = ([stride] * 2, [padding] * 2, [1, 1], groups)
        masked_conv2d.masked_conv2d(x, weight, bits, None, *geometry)
        masked_conv2d.masked_conv2d_input_grad(grad, weight, bits, list(x.shape), *geometry)
        masked_conv2d.masked_conv2d_weight_grad(grad, x, bits, list(weight.shape), *geometry)

    return run


def topk(dtype: torch.dtype) -> None:
    topk_mask.topk_mask([meta(512, 4608, dtype=dtype)], [words(512, 4608)], 1)
    topk_mask.topk_mask([meta(512, 27, dtype=dtype)], [], 1000)


def masks(rows: int, cols: int) -> Callable[[torch.dtype], None]:
    def run(dtype: torch.dtype) -> None:
        mask_bits.pack_mask(meta(rows, cols, dtype=dtype))
        mask_bits.unpack_mask(words(rows, cols), cols)
        mask_bits.count_mask(words(rows, cols))

    return run


class Case(NamedTuple):
    """Launchers to run for each dtype. The representative part has the dtypes ``everywhere`` for every architecture and
    those ``once`` for one of them."""

    run: Callable[[torch.dtype], None]
    dtypes: tuple[torch.dtype, ...]
    everywhere: tuple[torch.dtype, ...] = ()
    once: tuple[torch.dtype, ...] = ()


HALF_AND_SINGLE = (torch.float16, torch.float32)
SINGLE = (torch.float32,)

# Wide and narrow tiles, sizes that are and are not multiples of 16 (which decides the width of the loads), and ones,
# which Triton turns into constants.
CASES = {
    "linear wide": Case(
        linear(4096, 4096, 4096, bias=True), LAYER_DTYPES, HALF_AND_SINGLE, (torch.bfloat16, torch.float64)
    ),
    "linear narrow": Case(linear(16, 1024, 64, bias=False), LAYER_DTYPES, (), HALF_AND_SINGLE),
    "linear sliced": Case(linear(16, 4096, 4096, bias=True), LAYER_DTYPES, (), (torch.float16,)),
    "linear high": Case(at("high", linear(4096, 4096, 4096, bias=True)), SINGLE, (), SINGLE),
    "linear medium": Case(at("medium", linear(4096, 4096, 4096, bias=True)), SINGLE, SINGLE),
    "linear medium narrow": Case(at("medium", linear(16, 4096, 4096, bias=True)), SINGLE),
    "conv tf32": Case(at("medium", conv(32, 256, 256, 14, 3, 1, 1)), SINGLE, (), SINGLE),
    "linear ones": Case(linear(1, 1, 1, bias=True), LAYER_DTYPES, (), (torch.float32,)),
    "conv 3x3": Case(conv(32, 256, 256, 14, 3, 1, 1), LAYER_DTYPES, HALF_AND_SINGLE, (torch.float64,)),
    "conv stem": Case(conv(32, 3, 64, 224, 7, 2, 3), LAYER_DTYPES, (), (torch.float32,)),
    "conv narrow": Case(conv(1, 64, 64, 4, 1, 2, 0, groups=2), LAYER_DTYPES, (), HALF_AND_SINGLE),
    "conv ones": Case(conv(1, 1, 1, 1, 1, 1, 0), LAYER_DTYPES, (), (torch.float32,)),
    "topk": Case(topk, (torch.float32, torch.float64), (torch.float32,), (torch.float64,)),
    "masks": Case(masks(4096, 4096), (torch.bool,), (torch.bool,)),
    "masks ones": Case(masks(1, 1), (torch.bool,), (), (torch.bool,)),
}
ARCHITECTURES = (80, 90, 100)
# Of the three it has the least shared memory, and the least room to hide a spill.
TIGHTEST = 80


def launches() -> Iterator[Launch]:
    """Every launch of every case."""
    recorded: list[tuple[JITFunction, tuple[Any, ...], dict[str, Any]]] = []
    KernelInterface.__getitem__ = lambda kernel, _: lambda *args, **kwargs: recorded.append((kernel, args, kwargs))
    seen = set()
    for name, case in CASES.items():
        for dtype in case.dtypes:
            at("highest", lambda _: None)(dtype)
            case.run(dtype)
            for kernel, args, kwargs in recorded:
                named = {**dict(zip(kernel.arg_names, args, strict=False)), **kwargs}
                options = {option: named.pop(option) for option in OPTIONS if option in named}
                launch = Launch(name, dtype, kernel, named, options)
                if (key := repr((kernel.fn.__module__, kernel.fn.__name__, source(launch)[1:], options))) not in seen:
                    seen.add(key)
                    yield launch
            recorded.clear()


def source(launch: Launch) -> tuple[Any, dict[str, str], dict[str, Any], dict[tuple[int], Any]]:
    """Kernel, signature, constants and attributes, specialised as at a launch: None and 1 become constants, and
    multiples of 16 are known to be."""
    signature, constants, attributes = {}, {}, {}
    for i, (name, parameter) in enumerate(zip(launch.kernel.arg_names, launch.kernel.params, strict=True)):
        value = launch.args[name]
        plain = parameter.do_not_specialize and not isinstance(value, Tensor)
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1 and not plain):
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = TYPES[value.dtype] if isinstance(value, Tensor) else "i32" if value < 2**31 else "i64"
        if not plain and (isinstance(value, Tensor) or value % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    return launch.kernel, signature, constants, attributes


def resources(cubin: bytes) -> dict[str, int]:
    """Registers and bytes of stack (spills and local arrays) a thread, by the disassembler that comes with Triton."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        tool = triton.knobs.nvidia.cuobjdump.path
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {name: int(re.search(rf"\b{name}:(\d+)", text)[1]) for name in ("REG", "STACK")}


def compiled(launch: Launch, arch: int) -> dict[str, Any]:
    built = triton.compile(ASTSource(*source(launch)), target=GPUTarget("cuda", arch, 32), options=launch.options)
    ttir, ptx = built.asm["ttir"], built.asm["ptx"]
    return {
        "case": launch.case,
        "kernel": f"{launch.kernel.fn.__module__.split('.')[-1]}.{launch.kernel.fn.__name__}",
        "dtype": str(launch.dtype).removeprefix("torch."),
        "arch": arch,
        "tile": {name: launch.args[name] for name in ("BM", "BN", "BK") if name in launch.args},
        "shared": built.metadata.shared,
        "precision": launch.args.get("PRECISION"),
        "tensor_core": TENSOR_CORE.findall(ptx),
        "tf32": sum("tf32" in line for line in ptx.splitlines() if TENSOR_CORE.match(line)),
        "word_loads": re.findall(r"tt\.load .*: tensor<([\dx]+)x!tt\.ptr<i32>>", ttir),
        # Of a row of tiles, before it is broadcast: a stride has been multiplied in.
        "strided_offsets": re.findall(r"tt\.addptr .*, tensor<(?:\d+x1|1x\d+)x(i\d+)>", ttir),
        **resources(built.asm["cubin"]),
    }


def main(everything: bool) -> None:
    for launch in launches():
        case = CASES[launch.case]
        if everything or launch.dtype in case.everywhere:
            architectures = ARCHITECTURES
        else:
            architectures = (TIGHTEST,) if launch.dtype in case.once else ()
        for arch in architectures:
            print(json.dumps(compiled(launch, arch)), flush=True)


if __name__ == "__main__":
    main(everything="--all" in sys.argv[1:])
