"""The loss with each weight of a layer removed, many at a time: ``L(w with w_j = 0)`` for all j.

Removing w_oi from ``y = W x`` changes channel o alone, by ``-w_oi x_i``. So the layer runs once, and copies of its
output, each with one channel changed, go through the rest of the network as one batch (``torch.func.vmap``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap
from torch.overrides import TorchFunctionMode

from .batches import BatchLoss
from .per_sample import unfolded
from .taps import LAYERS, LayerCall

__all__ = ["ENTRIES", "removal_losses", "side_by_side", "widest_from"]

ENTRIES = 2**22  # values of the widest activation at once, over all copies: 32 MiB in float64


def removal_losses(loss: BatchLoss, batch: tuple[Tensor, Tensor], name: str, *, units: bool = False) -> Tensor:
    """``L(w with w_j = 0)`` for every j of the weight ``name``: (numel,); or with row o zero: (rows,).

    Raises:
        ValueError: rows of a transposed convolution.
    """
    inputs, target = loss.split(batch)
    weight = loss.weights[name].detach()
    copies = max(1, ENTRIES // widest_from(loss, name, inputs))
    rows = weight.flatten(1)

    def without(entry: Tensor, inputs: Tensor) -> Tensor:
        index = (entry, None) if units else (entry // rows.shape[1], entry % rows.shape[1])
        with _Removed(loss.weights[name], *index):
            return loss.value(loss.output(inputs), target)

    entries = torch.arange(len(rows) if units else weight.numel(), device=weight.device)
    return torch.cat([side_by_side(without, chunk, inputs) for chunk in entries.split(copies)])


def side_by_side(function: Callable[[Tensor, Tensor], Tensor], entries: Tensor, inputs: Tensor) -> Tensor:
    """``function(entry, inputs)`` for all entries; what of it does not depend on the entry is computed once."""
    try:
        return vmap(function, in_dims=(0, None), randomness="same")(entries, inputs)
    except RuntimeError:
        # A changed value was added in place to one that is the same for all: then each copy needs its own from the start.
        return vmap(function, randomness="same")(entries, inputs.expand(len(entries), *inputs.shape))


def widest_from(loss: BatchLoss, name: str, inputs: Tensor) -> int:
    """The entries of the largest value that the model computes from the layer of a weight on; at least 1."""
    watch = _Widest(loss.weights[name])
    with watch:
        loss.output(inputs)
    return watch.widest


class _Widest(TorchFunctionMode):
    """The largest value, in entries, that the model computes from the layer of a weight on."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self._weight, self._reached, self.widest = weight, False, 1

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self._reached |= any(value is self._weight for value in args)
        if self._reached and isinstance(result, Tensor):
            self.widest = max(self.widest, result.numel())
        return result


class _Removed(TorchFunctionMode):
    """The model without ``weight[row, column]`` (column counted over all further dimensions), or without a whole row."""

    def __init__(self, weight: Tensor, row: Tensor, column: Tensor | None) -> None:
        super().__init__()
        self._weight, self._row, self._column = weight, row, column

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not any(value is self._weight for value in (*args, *kwargs.values())):
            return func(*args, **kwargs)
        if func not in LAYERS:

            def swap(value: Any) -> Any:
                return self._without() if value is self._weight else value

            return func(*map(swap, args), **{key: swap(value) for key, value in kwargs.items()})
        given = dict(zip(("input", "weight", "bias", *LAYERS[func]), args)) | kwargs
        x, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias", None)
        if self._column is None and "output_padding" in LAYERS[func]:
            raise ValueError("units must be of linear or convolution layers, got a transposed convolution: exclude it")
        if func not in (F.linear, F.conv2d) or self._column is None:
            return func(x, self._without(), bias, **given)
        whole = func(x, weight, bias, **given)
        value = weight.flatten(1)[self._row, self._column]
        channel = torch.arange(len(weight), device=weight.device) == self._row
        if func is F.linear:
            return whole - (value * x[..., self._column])[..., None] * channel
        columns = unfolded(LayerCall("", func, x, weight, given, 0), x)  # (N, groups * columns, positions)
        groups = given.get("groups", 1)
        group = self._row // (len(weight) // groups)
        part = columns[:, group * weight[0].numel() + self._column]
        change = (value * part).reshape(len(whole), 1, *whole.shape[2:])
        return whole - change * channel.reshape(-1, 1, 1)

    def _without(self) -> Tensor:
        rows = torch.arange(len(self._weight), device=self._weight.device) == self._row
        gone = rows[:, None]
        if self._column is not None:
            columns = torch.arange(self._weight[0].numel(), device=self._weight.device) == self._column
            gone = gone & columns
        return torch.where(gone.expand(len(rows), self._weight[0].numel()).reshape(self._weight.shape), 0, self._weight)
