"""SparseLinear: y = x (W . m)^T + b, a drop-in for ``nn.Linear``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..arguments import typed
from ..ops.backends import Call
from ..ops.bitmask import BitMask
from ..ops.masked_linear import masked_linear, products
from ..ops.packed_linear import packed_linear
from .base import SparseLayer, checked
from .dense_gradients import watched_weight


class SparseLinear(SparseLayer, nn.Linear):
    """y = x (W . m)^T + b, where pruned entries of W are zero and never read.

    Args:
        in_features, out_features, bias, device, dtype: as for ``nn.Linear``.
        mask: BitMask or bool tensor (out_features, in_features), on the weight's device, True = keep; None
        keeps all.

    Raises:
        TypeError: ``mask`` is of another type.
        ValueError: its shape or device is not the weight's.

    >>> layer = SparseLinear(4, 2, mask=torch.eye(2, 4).bool())
    >>> layer.density, layer.weight.count_nonzero().item()
    (0.25, 2)
    """

    dense_type = nn.Linear

    @typed
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        mask: BitMask | Tensor | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        shape, device = self.weight.shape, self.weight.device
        self._own(BitMask.ones(shape, device) if mask is None else checked(mask, shape, device))

    @property
    def dense_shape(self) -> torch.Size:
        return torch.Size((self.out_features, self.in_features))

    def forward(self, input: Tensor) -> Tensor:
        """x (..., in_features) -> y (..., out_features)."""
        watch = self.dense_gradient
        if watch is not None:
            return masked_linear(input, watched_weight(self), self.weight_mask, self.bias, watch=watch)
        if self.storage == "packed":
            mask = BitMask._trusted(self.weight_mask, self.dense_shape)
            return packed_linear(input, self.weight_values, mask, self.bias)
        return masked_linear(input, self.weight, self.weight_mask, self.bias)

    def _products(self, input: Tensor) -> list[Call]:
        return products(input.reshape(-1, self.in_features), self.weight, self.weight_mask, self.bias)
