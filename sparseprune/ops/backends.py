"""Which implementation of an op runs: the one that was named, or the first that "auto" may choose."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import native as native_libraries

NAMES = ("auto", "native", "triton", "reference")

DEFAULT = os.environ.get("SPARSEPRUNE_BACKEND", "auto")
if DEFAULT not in NAMES:
    raise ValueError(f"SPARSEPRUNE_BACKEND must be one of {', '.join(NAMES)}, got {DEFAULT!r}")


HALVES = {torch.float16, torch.bfloat16}


def always(*_: Any) -> bool:
    """The preference of an implementation that "auto" takes wherever it can run."""
    return True


class Implementation(NamedTuple):
    """One way to compute an op.

    ``run(*args)`` computes it; ``refusal(*args)`` says why it cannot take this call, or None; ``preferred(*args)``
    says whether "auto" should take it here (a slower path must not be chosen only because it exists).
    """

    run: Callable[..., Any]
    refusal: Callable[..., str | None]
    preferred: Callable[..., bool] = always


class Call(NamedTuple):
    """One call of an op: its name, its implementations and its arguments but for the backend."""

    op: str
    implementations: Mapping[str, Implementation]
    args: tuple[Any, ...]


def call(op: str, implementations: Mapping[str, Implementation], backend: str, *args: Any) -> Any:
    """Run ``op`` by the implementation that ``backend`` names, or by the first one that suits the arguments.

    Raises:
        ValueError: the named backend does not exist for this op or refuses the call; it is never retried elsewhere.
    """
    if backend == "auto":
        chosen = next(i for i in implementations.values() if i.preferred(*args) and i.refusal(*args) is None)
        return chosen.run(*args)
    if backend not in implementations:
        raise ValueError(f"backend must be one of auto, {', '.join(implementations)} for {op}, got {backend!r}")
    if reason := implementations[backend].refusal(*args):
        raise ValueError(f"backend {backend!r} refuses this call of {op}: {reason}")
    return implementations[backend].run(*args)


def call_again(op: str, implementations: Mapping[str, Implementation], backend: str, *args: Any) -> Any:
    """:func:`call` for the inner loop of something that chose "native" before: it is not asked again what it refuses.

    The kernel still checks its arguments. Asking costs as much as a small kernel.
    """
    if backend == "native":
        return implementations["native"].run(*args)
    return call(op, implementations, backend, *args)


def reference(run: Callable[..., Any]) -> Implementation:
    """The plain PyTorch implementation: any device, any dtype, the oracle of every test."""
    return Implementation(run, lambda *_: None)


def native(op: str, *, halves: bool = False, gpu: bool = True) -> Implementation:
    """The C++ (CPU) or CUDA (GPU) kernel ``sparseprune_native::<op>``.

    Args:
        halves: it takes half types on a CPU, too.
        gpu: there is a CUDA kernel.
    """

    def run(*args: Any) -> Any:
        return getattr(torch.ops.sparseprune_native, op).default(*args)

    def refusal(*args: Any) -> str | None:
        found = list(tensors(args))
        if not gpu and (others := devices(found) - {"cpu"}):
            return f"there is no native kernel for device type {', '.join(sorted(others))!r}"
        return native_libraries.refusal(devices(found), dtypes(found) - (HALVES if halves else set()))

    return Implementation(run, refusal)


def triton(module: str, op: str) -> Implementation:
    """The launcher ``op`` of ``sparseprune.kernels.<module>``; "auto" takes it on a GPU only, not interpreted."""

    def run(*args: Any) -> Any:
        return getattr(_kernels(module), op)(*args)

    def refusal(*args: Any) -> str | None:
        return _kernels().refusal(list(tensors(args)))

    def on_gpu(*args: Any) -> bool:
        return devices(tensors(args)) == {"cuda"}

    return Implementation(run, refusal, on_gpu)


@cache
def _kernels(module: str = "") -> Any:
    # Imported at first use: Triton takes 0.3 s to import and is not needed on a CPU.
    return importlib.import_module("sparseprune.kernels" + (f".{module}" if module else ""))


def tensors(args: Any) -> Iterator[Tensor]:
    """Every tensor among the arguments, those inside lists included."""
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from tensors(arg)


def contiguous(args: Any) -> list[Any]:
    """The arguments with every tensor contiguous, as kernels expect them."""
    return [
        a.contiguous() if isinstance(a, Tensor) else contiguous(a) if isinstance(a, (list, tuple)) else a for a in args
    ]


def devices(found: Any) -> set[str]:
    return {t.device.type for t in found}


def dtypes(found: Any) -> set[torch.dtype]:
    return {t.dtype for t in found if t.dtype.is_floating_point}


def register(
    op: str,
    schema: str,
    implementations: Mapping[str, Implementation],
    fake: Callable[..., Any],
    strided: bool = False,
    choose: Callable[..., str] | None = None,
) -> Any:
    """Define ``sparseprune::<op>`` and return its overload; the last argument of ``schema`` must be ``str backend``.

    Implementations are given contiguous tensors, unless they are ``strided`` and take any. ``choose(*args)`` names the
    one that "auto" takes, where that is not the first that suits.

    One operator serves all backends, so one fake describes them all. The choice is made when the operator runs, on
    real tensors and outside of Dynamo.
    """
    name = f"sparseprune::{op}"
    torch.library.define(name, schema)
    ready = list if strided else contiguous

    def run(*args: Any) -> Any:
        *given, backend = args
        given = ready(given)
        if backend == "auto" and choose is not None:
            return implementations[choose(*given)].run(*given)
        return call(op, implementations, backend, *given)

    torch.library.impl(name, "default", run)
    torch.library.register_fake(name, lambda *args: fake(*args[:-1]))
    return getattr(torch.ops.sparseprune, op).default


def autocast(x: Tensor, *others: Tensor | None) -> list[Tensor | None]:
    """The arguments in the dtype that autocast asks for on x's device, unchanged where it is off.

    As for ``F.linear``: float64 is left alone.
    """
    device = x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return [x, *others]
    dtype = torch.get_autocast_dtype(device)
    return [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in (x, *others)]
