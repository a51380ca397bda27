"""to_semi_structured(): layers whose masks are 2:4 become dense layers with torch's semi-structured weight, to run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.sparse import SparseSemiStructuredTensor

from ..arguments import typed
from ..ops.bitmask import BitMask
from .base import SparseLayer
from .convert import become_dense
from .dense_gradients import sparse_weights
from .linear import SparseLinear

ModelT = TypeVar("ModelT", bound=nn.Module)

HALVES = (torch.float16, torch.bfloat16)
MIN_CAPABILITY = (8, 0)


@typed
def to_semi_structured(model: ModelT, *, exclude: Iterable[str] = ()) -> ModelT:
    """Hand 2:4 weights over to the GPU's sparse tensor cores: in place, for inference, and the model is returned.

    Each :class:`SparseLinear` becomes ``nn.Linear`` with the weight ``torch.sparse.to_sparse_semi_structured(W . m)``:
    half of the values and two bits for each, multiplied by cuSPARSELt (or by CUTLASS, where torch was built without it
    or ``SparseSemiStructuredTensor._FORCE_CUTLASS`` says so). A mask is 2:4 if of every four consecutive inputs of an
    output it keeps at most two: ``prune(model, criterion, density=0.5, pattern=sp.NM(2, 4))``. Sparse convolutions stay.

    There is no way back, the weights have no gradient, and torch calls this tensor a prototype (it warns once): keep
    the sparse model's checkpoint. It is an explicit call since nothing here was measured: reports of others on an H100
    are from 0.4x to 1.2x the speed of dense, best at sizes from 4096 x 4096 on with large batches.

    Args:
        model: on the GPU, in half precision: ``model.half().cuda()``; a single layer, too. Any storage.
        exclude: names of weights whose layers stay as they are.

    Raises:
        ValueError: a layer's mask is not 2:4, its weight is neither float16 nor bfloat16, of a shape that torch does
            not take (cuSPARSELt: multiples of (16, 16), CUTLASS: of (32, 64)), not on a CUDA device of capability 8.0
            or newer, or the layer is of a subclass of ours; ``exclude`` names something else; no layer is left.
            Nothing is changed then.

    Source: Mishra et al. 2021, arXiv:2104.08378.
    """
    groups = {n: g for n, g in sparse_weights(model).items() if isinstance(g[0], SparseLinear)}
    exclude = set(exclude)
    if unknown := exclude - groups.keys():
        raise ValueError(f"exclude must name weights of sparse linear layers, {sorted(groups)}, got {sorted(unknown)}")
    for name in exclude:
        del groups[name]
    if not groups:
        raise ValueError("model must have a sparse linear layer that is not excluded, got none")
    refused = {name: reason for name, layers in groups.items() if (reason := _refusal(layers))}
    if refused:
        listed = "; ".join(f"{name!r} {reason}" for name, reason in refused.items())
        raise ValueError(f"model must have 2:4 weights that the GPU takes, got {listed}; exclude={sorted(refused)}")
    for layers in groups.values():
        first = layers[0]
        weight = nn.Parameter(_compressed(first.mask.apply(first.weight.detach())), requires_grad=False)
        for layer in layers:
            become_dense(layer)
            layer.weight = weight
    return model


def crowded_groups(mask: BitMask) -> Tensor:
    """(n, 2): output and first input of every four consecutive inputs of which more than two are kept."""
    kept = mask.to_bool().unflatten(1, (-1, 4)).sum(-1)
    return (kept > 2).nonzero() * torch.tensor([1, 4], device=kept.device)


def _refusal(layers: list[SparseLayer]) -> str | None:
    """Why the weight that these layers hold cannot be handed over, or None."""
    first = layers[0]
    for layer in layers:
        if type(layer) is not SparseLinear:
            return f"is held by a subclass of the sparse layers, {type(layer).__name__}"
    rows, columns = first.dense_shape
    if columns % 4:
        return f"has {columns} inputs, not a multiple of 4"
    if len(crowded := crowded_groups(first.mask)):
        row, column = crowded[0].tolist()
        where = f"{len(crowded)} of {rows * columns // 4} groups, first in row {row}, columns {column} to {column + 3}"
        return f"keeps more than two of four consecutive inputs in {where}"
    if (dtype := first.parameter.dtype) not in HALVES:
        return f"is {dtype}, not float16 or bfloat16"
    limits = _tensor_type()._DTYPE_SHAPE_CONSTRAINTS[dtype]
    if rows % limits.sparse_min_rows or columns % limits.sparse_min_cols or not rows or not columns:
        multiples = (limits.sparse_min_rows, limits.sparse_min_cols)
        return f"has shape {(rows, columns)}, not multiples of {multiples}, which {_tensor_type().BACKEND} asks for"
    return _device_refusal(first.parameter.device)


def _device_refusal(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"is on {device}, not on a CUDA device"
    if (capability := torch.cuda.get_device_capability(device)) < MIN_CAPABILITY:
        return f"is on a device of compute capability {capability[0]}.{capability[1]}, not 8.0 or newer"
    return None


def _tensor_type() -> type[SparseSemiStructuredTensor]:
    cutlass = SparseSemiStructuredTensor._FORCE_CUTLASS or not torch.backends.cusparselt.is_available()
    return (
        torch.sparse.SparseSemiStructuredTensorCUTLASS if cutlass else torch.sparse.SparseSemiStructuredTensorCUSPARSELT
    )


def _compressed(weight: Tensor) -> SparseSemiStructuredTensor:
    return _tensor_type().from_dense(weight.contiguous())
