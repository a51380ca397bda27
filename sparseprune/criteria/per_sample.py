"""Gradients of single examples, one layer at a time: sums of their powers without ever holding all of them.

``G_n = sum_t g_nt x_nt^T`` is the gradient of example n's loss, t over the positions at which a layer is applied.
With one position, ``sum_n G_n^2 = (g^2)^T (x^2)`` is one matrix product; else a few examples at a time are formed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vjp, vmap

from .base import Scores
from .batches import Batches, BatchLoss, accumulator, check_examples
from .outputs import loss_gradient
from .taps import LayerCall, Tapped

__all__ = ["PowerSums", "chunks", "per_sample_gradients", "power_means", "unfolded"]

CHUNK = 2**20  # entries of per-sample gradients held at once; 4 MiB in float32
CACHED = 2**18  # the same where they are used at once; 1 MiB, so that they are still in the cache


def power_means(loss: BatchLoss, batches: Batches, power: int) -> Scores:
    """``(1/N) sum_n |G_n|^power`` over all examples, G_n the gradient of the loss of example n alone.

    Args:
        power: 1 or 2.
    """
    sums, examples = PowerSums(loss, power), 0
    for batch in batches:
        inputs, target = loss.split(batch)
        run = Tapped(loss, inputs)
        sums.add(run, [loss_gradient(loss, run.output, target)])
        examples += len(inputs)
    check_examples(examples)
    return sums.mean(examples)


class PowerSums:
    """``sum_n |sum over the uses of W of G_n|^power`` by weight, over any number of backward passes."""

    def __init__(self, loss: BatchLoss, power: int) -> None:
        self._power = power
        self.totals = {
            name: torch.zeros_like(weight, dtype=accumulator(weight.dtype), requires_grad=False)
            for name, weight in loss.weights.items()
        }

    def add(self, run: Tapped, cotangents: Iterable[Tensor]) -> None:
        """One backward pass for each cotangent of the output, all of them summed."""
        uses = defaultdict(int)
        for call in run.calls:
            uses[call.name] += 1
        for cotangent in cotangents:
            waiting: dict[str, list[tuple[LayerCall, Tensor]]] = defaultdict(list)

            def consume(call: LayerCall, gradient: Tensor, waiting=waiting) -> None:
                if uses[call.name] == 1:
                    self._add([(call, gradient)])
                else:  # a shared weight's gradient is the sum over its uses, to be complete before it is squared
                    waiting[call.name].append((call, gradient))

            run.backward(cotangent, consume)
            for parts in waiting.values():
                self._add(parts)

    def mean(self, examples: int) -> Scores:
        return {name: total / examples for name, total in self.totals.items()}

    def _add(self, parts: list[tuple[LayerCall, Tensor]]) -> None:
        call, gradient = parts[0]
        total = self.totals[call.name]
        if len(parts) == 1 and call.function is F.linear and call.input.numel() == len(gradient) * total.shape[1]:
            g, x = (part.reshape(len(gradient), -1).to(total.dtype) for part in (gradient, call.input))
            g, x = (g.square(), x.square()) if self._power == 2 else (g.abs(), x.abs())
            total.addmm_(g.mT, x)
            return
        if len(parts) == 1 and call.function in (F.linear, F.conv2d) and gradient.dtype == total.dtype:
            samples = _reused_samples(call, gradient)
        else:
            rows = chunks(len(gradient), total.numel())
            samples = (sum(per_sample_gradients(*part, r) for part in parts).to(total.dtype) for r in rows)
        for sample in samples:
            if self._power == 2 and len(sample) == 1:
                total.addcmul_(sample[0], sample[0])
            else:
                total += (sample.square_() if self._power == 2 else sample.abs_()).sum(0)


def chunks(examples: int, entries: int) -> Iterator[slice]:
    """The examples in slices whose gradients, of so many entries each, fit the memory set aside."""
    step = max(1, CHUNK // max(entries, 1))
    for start in range(0, examples, step):
        yield slice(start, min(start + step, examples))


def _reused_samples(call: LayerCall, gradient: Tensor) -> Iterator[Tensor]:
    """All G_n, a few at a time, in one piece of memory: (n, *weight.shape).

    For 512 channels at 4x4 on one core, one example into the same 9 MiB took 2.8 ms, a fresh tensor for each 7 ms and
    one for 16 of them 20 ms: the memory's first touch costs more than the product.
    """
    x, shape, examples = call.input, call.weight.shape, len(gradient)
    if call.function is F.linear:
        columns, groups = x.reshape(examples, -1, shape[1]).mT[:, None], 1
        left = gradient.reshape(examples, 1, -1, shape[0]).mT
    else:
        groups = call.options.get("groups", 1)
        columns = _windows(call, x)  # a view: (N, C, kh, kw, rows, columns)
        left = gradient.reshape(examples, groups, shape[0] // groups, -1)
    positions = left.shape[3]
    step = max(1, CACHED // max(shape.numel(), columns[0].numel()))
    product = left.new_empty(step, groups, shape[0] // groups, shape[1:].numel())
    copied = left.new_empty(step, groups, shape[1:].numel(), positions)
    for start in range(0, examples, step):
        count = min(step, examples - start)
        right = columns[start : start + count]
        if call.function is F.conv2d:
            copied[:count].view(right.shape).copy_(right)
            right = copied[:count]
        torch.matmul(left[start : start + count], right.mT, out=product[:count])
        yield product[:count].view(count, *shape)


def per_sample_gradients(call: LayerCall, gradient: Tensor, rows: slice = slice(None)) -> Tensor:
    """G_n of one use of a weight for the examples ``rows``: (n, *weight.shape).

    Args:
        gradient: at the layer's output, of all examples.
    """
    x, g, shape = call.input[rows], gradient[rows], call.weight.shape
    if call.function is F.linear:
        return g.reshape(len(g), -1, shape[0]).mT @ x.reshape(len(x), -1, shape[1])
    if call.function is F.conv2d:
        groups = call.options.get("groups", 1)
        columns = unfolded(call, x)  # (n, C * kh * kw, positions)
        columns = columns.unflatten(1, (groups, -1))
        product = g.reshape(len(g), groups, shape[0] // groups, -1) @ columns.mT
        return product.reshape(len(g), *shape)

    def one(x: Tensor, g: Tensor) -> Tensor:
        def layer(weight: Tensor) -> Tensor:
            return call.function(x[None], weight, None, **call.options)

        return vjp(layer, call.weight)[1](g[None])[0]

    return vmap(one)(x, g)


def unfolded(call: LayerCall, x: Tensor) -> Tensor:
    """What a two-dimensional convolution multiplies its weight with: (n, C * kh * kw, positions)."""
    x, stride, padding, dilation = _geometry(call, x)
    return F.unfold(x, call.weight.shape[2:], dilation, padding, stride)


def _windows(call: LayerCall, x: Tensor) -> Tensor:
    """The same without a copy (but that of the padding): (n, C, kh, kw, rows, columns)."""
    x, stride, padding, dilation = _geometry(call, x)
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    windows = x
    for axis, kernel in ((2, call.weight.shape[2]), (3, call.weight.shape[3])):
        windows = windows.unfold(axis, dilation[axis - 2] * (kernel - 1) + 1, stride[axis - 2])
    return windows[..., :: dilation[0], :: dilation[1]].permute(0, 1, 4, 5, 2, 3)


def _geometry(call: LayerCall, x: Tensor) -> tuple[Tensor, tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """x, padded where only that says what "same" means, and stride, padding and dilation as pairs."""
    given = (call.options.get(name, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1)))
    stride, padding, dilation = given
    dilation = _pair(dilation)
    if padding == "same":
        top, left = (d * (k - 1) for d, k in zip(dilation, call.weight.shape[2:], strict=True))
        x = F.pad(x, (left // 2, left - left // 2, top // 2, top - top // 2))
    return x, _pair(stride), (0, 0) if isinstance(padding, str) else _pair(padding), dilation


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))
