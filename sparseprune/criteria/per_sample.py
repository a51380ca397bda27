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

CHUNK = 2**22  # entries of per-sample gradients held at once; 16 MiB in float32


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
        for rows in chunks(len(gradient), total.numel()):
            sample = sum(per_sample_gradients(call, gradient, rows) for call, gradient in parts).to(total.dtype)
            total += sample.square_().sum(0) if self._power == 2 else sample.abs_().sum(0)


def chunks(examples: int, entries: int) -> Iterator[slice]:
    """The examples in slices whose gradients, of so many entries each, fit the memory set aside."""
    step = max(1, CHUNK // max(entries, 1))
    for start in range(0, examples, step):
        yield slice(start, min(start + step, examples))


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
    kernel = call.weight.shape[2:]
    stride, padding, dilation = (call.options.get(name, default) for name, default in
                                 (("stride", 1), ("padding", 0), ("dilation", 1)))  # fmt: skip
    if padding == "same":
        reach = [d * (k - 1) for d, k in zip(_pair(dilation), kernel, strict=True)]
        x = F.pad(x, (reach[1] // 2, reach[1] - reach[1] // 2, reach[0] // 2, reach[0] - reach[0] // 2))
    return F.unfold(x, kernel, dilation, 0 if isinstance(padding, str) else padding, stride)


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))
