"""Sparse layers by others: each is built from the same problem, and absent where it is not installed or not able."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .layers import FORWARD, Problem, run_layer
from .rows import AbsentError, Timed


def onednn_linear(p: Problem) -> Timed:
    """oneDNN's own product, which on AMD processors is twice as fast as the oneMKL that ``F.linear`` calls.

    It has no gradient in torch, so the three products are written out: y = x W^T, dx = g W, dW = g^T x.
    """
    if p.device != "cpu" or p.dtype != "float32" or not _has_onednn():
        raise AbsentError("this torch has no oneDNN linear for these tensors")
    x, weight, grad = (p.tensors[name].detach() for name in ("x", "weight", "grad"))

    def product(a: Tensor, b: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")

    def run() -> tuple[Tensor, ...]:
        y = product(x, weight)
        return (y,) if p.phase == FORWARD else (y, product(grad, weight.t()), product(grad.t(), x.t()))

    return p.timed(run, check=partial(p.check, masked=False))


def _has_onednn() -> bool:
    try:
        a = torch.ones(2, 2)
        return torch.equal(torch.ops.mkldnn._linear_pointwise(a, a, None, "none", [], ""), 2 * a)
    except (AttributeError, RuntimeError):
        return False


def channels_last(p: Problem) -> Timed:
    """The vendor's convolution in the layout it prefers."""
    x, weight, grad = (p.tensors[n].detach().to(memory_format=torch.channels_last) for n in ("x", "weight", "grad"))
    x.requires_grad_(), weight.requires_grad_()
    return p.timed(lambda: run_layer(p.dense, x, weight, grad, p.phase), check=partial(p.check, masked=False))


def torch_csr(p: Problem) -> Timed:
    """``torch.sparse``'s CSR times dense (MKL, cuSPARSE); its weight gradient is that of a dense weight."""
    x, weight, grad = (p.tensors[name].detach() for name in ("x", "weight", "grad"))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            sparse = weight.to_sparse_csr().requires_grad_()
            x = x.clone().requires_grad_()
            run_layer(_csr_product, x, sparse, grad, p.phase)
    except RuntimeError as error:
        raise AbsentError(f"torch.sparse CSR does not take this: {str(error).splitlines()[0]}") from error

    def check(results: tuple[Tensor, ...]) -> None:
        p.check(tuple(r.to_dense() if r.layout == torch.sparse_csr else r for r in results), masked=False)

    return p.timed(lambda: run_layer(_csr_product, x, sparse, grad, p.phase), p.shape.density, check=check)


def _csr_product(x: Tensor, weight: Tensor) -> Tensor:
    return (weight @ x.t()).t()


def cusparselt_linear(p: Problem) -> Timed:
    """cuSPARSELt's product with a 2:4 weight, on the tensor cores' own sparsity; for inference."""
    if p.device != "cuda" or not torch.backends.cusparselt.is_available():
        raise AbsentError("cuSPARSELt needs a GPU and a torch that was built with it")
    x, weight, grad = (p.tensors[name].detach() for name in ("x", "weight", "grad"))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructuredTensor is in prototype stage")
            sparse = torch.sparse.to_sparse_semi_structured(weight)
            run_layer(p.dense, x, sparse, grad, p.phase)
    except RuntimeError as error:
        raise AbsentError(f"cuSPARSELt does not take this: {str(error).splitlines()[0]}") from error
    return p.timed(lambda: run_layer(p.dense, x, sparse, grad, p.phase), p.shape.density)


def sparseprop_linear(p: Problem) -> Timed:
    """SparseProp's linear layer (Nikdan et al. 2023): CSR, AVX2, the one published CPU training kernel."""
    return _sparseprop(p, lambda modules, weight: modules.SparseLinear(weight))


def sparseprop_conv(stride: int, padding: int) -> Callable[[Problem], Timed]:
    """SparseProp's convolution, vectorised over whichever of batch and width is faster here."""

    def build(p: Problem) -> Timed:
        if stride > 1 and p.shape.x_shape[0] == 1:
            raise AbsentError(
                "sparseprop 0.1.14 errs by 0.8 with a stride at a batch of one, either way it is vectorised"
            )

        def make(modules: Any, weight: Tensor) -> torch.nn.Module:
            over_width = p.shape.x_shape[0] < p.shape.x_shape[-1]
            return modules.SparseConv2d(weight, None, padding, stride, vectorizing_over_on=over_width)

        return _sparseprop(p, make)

    return build


def _sparseprop(p: Problem, make: Callable[[Any, Tensor], torch.nn.Module]) -> Timed:
    if p.device != "cpu" or p.dtype != "float32":
        raise AbsentError("sparseprop computes float32 on a CPU")
    try:
        from_package = partial(importlib.import_module, package=None)
        linear, conv = from_package("sparseprop.modules.linear"), from_package("sparseprop.modules.conv2d")
    except ImportError as error:
        raise AbsentError(f"sparseprop is not installed: {error}") from error
    modules = type("modules", (), {"SparseLinear": linear.SparseLinear, "SparseConv2d": conv.SparseConv2d})
    module = make(modules, p.tensors["weight"].detach())
    values = module.W_val

    def run() -> tuple[Tensor, ...]:
        return run_layer(lambda x, _: module(x), p.tensors["x"], values, p.tensors["grad"], p.phase)

    def check(results: tuple[Tensor, ...]) -> None:
        *others, last = results
        if p.phase == FORWARD:
            return p.check(results)
        kept = values.data
        values.data = last  # its own conversion knows the order of the packed gradient
        dense = module.to_dense().weight.detach()
        values.data = kept
        return p.check((*others, dense))

    return p.timed(run, p.shape.density, check=check)
