"""Which part of a global tensor a rank holds."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """A rank's part of a global tensor: the box of ``local``'s shape at ``offsets`` in a tensor of ``shape``.

    Attributes:
        local: the scores of this rank, detached.
        shape, offsets: None where only the order of the ranks is known, which hold consecutive pieces then.
        counted: False where another rank holds the same part and counts it.
    """

    local: Tensor
    shape: tuple[int, ...] | None = None
    offsets: tuple[int, ...] | None = None
    counted: bool = True

    def consecutive(self) -> bool:
        """Whether the box is one range of the tensor's flat logical order."""
        if self.shape is None or self.local.numel() <= 1:
            return True
        first = next(i for i, n in enumerate(self.local.shape) if n > 1)
        return tuple(self.local.shape[first + 1 :]) == self.shape[first + 1 :]

    def start(self) -> int:
        """The flat global index of the first element."""
        return sum(o * s for o, s in zip(self.offsets, _strides(self.shape), strict=True))

    def global_index(self, flat: Tensor) -> Tensor:
        """The flat global indices of elements given by their flat local ones. It preserves order."""
        index = torch.full_like(flat, self.start())
        for size, inner, stride in zip(self.local.shape, _strides(self.local.shape), _strides(self.shape), strict=True):
            index += flat // inner % size * stride
        return index


def _strides(shape: tuple[int, ...]) -> list[int]:
    return list(accumulate(reversed(shape[1:]), lambda a, b: a * b, initial=1))[::-1] if shape else []


def shard_of(tensor: Tensor, name: str) -> Shard:
    """The shard that a DTensor describes, or a plain tensor: a piece along dimension 0, in rank order.

    Raises:
        ValueError: a DTensor is placed by something other than ``Shard`` and ``Replicate``, or is not cut as
            ``torch.chunk`` cuts; or a plain tensor has no dimension to be cut along.
    """
    if not is_dtensor(tensor):
        if tensor.dim() == 0:
            raise ValueError(f"{name} must have a dimension that ranks hold pieces of, got a tensor without any")
        return Shard(tensor.detach())
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor import Shard as Sharded

    mesh, local = tensor.device_mesh, tensor.detach().to_local()
    at = mesh.get_coordinate()
    if at is None:
        return Shard(local, tuple(tensor.shape), (0,) * tensor.dim(), counted=False)
    shape, offsets, counted = list(tensor.shape), [0] * tensor.dim(), True
    for ranks, coordinate, placement in zip(mesh.shape, at, tensor.placements, strict=True):
        if type(placement) is Sharded:
            size = shape[placement.dim]
            piece = math.ceil(size / ranks)
            begin = min(coordinate * piece, size)
            shape[placement.dim] = min(piece, size - begin)
            offsets[placement.dim] += begin
        elif isinstance(placement, Replicate):
            counted = counted and coordinate == 0
        else:
            raise ValueError(f"{name} must be placed by Shard and Replicate, got {placement}")
    if tuple(local.shape) != tuple(shape):
        raise ValueError(
            f"{name} must hold the part of {tuple(shape)} that torch.chunk gives this rank, got {tuple(local.shape)}"
        )
    return Shard(local, tuple(tensor.shape), tuple(offsets), counted)


def is_dtensor(value: Any) -> bool:
    """Whether it is a DTensor. Importing the type takes a second, and without it there is none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)
