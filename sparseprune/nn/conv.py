"""SparseConv2d: y = conv2d(x, W . m) + b, a drop-in for ``nn.Conv2d``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import typed
from ..ops.backends import Call
from ..ops.bitmask import BitMask
from ..ops.masked_conv2d import masked_conv2d, products
from ..ops.packed_conv2d import packed_conv2d
from .base import SparseLayer, checked
from .dense_gradients import watched_weight


class SparseConv2d(SparseLayer, nn.Conv2d):
    """y = conv2d(x, W . m) + b, where pruned entries of W are zero and never read.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype: as for ``nn.Conv2d``, with every padding mode, "same" and "valid".
        mask: BitMask or bool tensor (out_channels, in_channels / groups, kh, kw), on the weight's device,
            True = keep; None keeps all.

    Raises:
        TypeError: ``mask`` is of another type.
        ValueError: its shape or device is not the weight's.

    >>> SparseConv2d(1, 1, 2, mask=torch.eye(2).bool()[None, None])
    SparseConv2d(1, 1, kernel_size=(2, 2), stride=(1, 1), density=0.5)
    """

    dense_type = nn.Conv2d

    @typed
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        mask: BitMask | Tensor | None = None,
    ) -> None:
        geometry = (kernel_size, stride, padding, dilation, groups)
        super().__init__(in_channels, out_channels, *geometry, bias, padding_mode, device, dtype)
        shape, device = self.weight.shape, self.weight.device
        self._own(BitMask.ones(shape, device) if mask is None else checked(mask, shape, device))

    @property
    def dense_shape(self) -> torch.Size:
        return torch.Size((self.out_channels, self.in_channels // self.groups, *self.kernel_size))

    def forward(self, input: Tensor) -> Tensor:
        """x ([N,] in_channels, H, W) -> y ([N,] out_channels, H', W')."""
        input, padding = self._padded(input)
        options = (self.stride, padding, self.dilation, self.groups)
        watch = self.dense_gradient
        if watch is not None:
            return masked_conv2d(input, watched_weight(self), self.weight_mask, self.bias, *options, watch=watch)
        if self.storage == "packed":
            mask = BitMask._trusted(self.weight_mask, self.dense_shape)
            return packed_conv2d(input, self.weight_values, mask, self.bias, *options)
        return masked_conv2d(input, self.weight, self.weight_mask, self.bias, *options)

    def _padded(self, input: Tensor) -> tuple[Tensor, Any]:
        """The input with what zeros do not pad, and the padding that is left."""
        if self.padding_mode == "zeros":
            return input, self.padding
        return F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0

    def _products(self, input: Tensor) -> list[Call]:
        input, padding = self._padded(input.unsqueeze(0) if input.dim() == 3 else input)
        options = (self.stride, padding, self.dilation, self.groups)
        return products(input, self.weight, self.weight_mask, self.bias, *options)
