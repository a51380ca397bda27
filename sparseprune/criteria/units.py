"""Units of a layer (neurons, feature maps): their gates, what removing them saves, and scores of their shape.

The gate of a unit multiplies its value z behind batch norm and activation; ``dL_n / d gate = sum_m z_m dL_n / dz_m`` over
the positions m of example n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .base import Scores, Weights
from .batches import Batches, BatchLoss, check_examples
from .taps import LAYERS, LayerCall, Tapped

__all__ = ["PER", "broadcast", "by_unit", "check_per", "gate_gradients", "savings"]

PER = ("weight", "unit")


def check_per(per: str) -> None:
    """Raise ValueError unless ``per`` says what is scored."""
    if per not in PER:
        raise ValueError(f"per must be one of {', '.join(map(repr, PER))}, got {per!r}")


def broadcast(scores: Scores, params: Weights) -> Scores:
    """The score of each unit, (K,) by weight, for all the weights that come into it: row k of the weight."""
    return {n: scores[n].reshape(-1, *[1] * (w.dim() - 1)).expand(w.shape).contiguous() for n, w in params.items()}


def by_unit(call: LayerCall, value: Tensor) -> Tensor:
    """A layer's output, or a gradient there, as (N, K units, M positions).

    Raises:
        ValueError: a transposed convolution, whose weight has no row for a unit.
    """
    if "output_padding" in LAYERS[call.function]:
        raise ValueError(
            f"weight {call.name!r} must be of a linear or convolution layer for scores of units, got a transposed"
            " convolution: exclude it"
        )
    if call.function is F.linear:
        return value.reshape(len(value), -1, value.shape[-1]).mT
    return value.flatten(2)


def gate_gradients(
    loss: BatchLoss, batches: Batches, cotangents: Callable[[Tensor, Tensor], Iterable[Tensor]]
) -> Iterable[tuple[int, list[dict[str, Tensor]], dict[str, int]]]:
    """For each batch: its number of examples, ``d <cotangent, output>_n / d gate`` (N, K) for each cotangent, and M.

    Args:
        cotangents: (output, target) -> what to pass back from the output, one pass each.
    """
    seen = 0
    for batch in batches:
        inputs, target = loss.split(batch)
        run = Tapped(loss, inputs, units=True)
        found = []
        positions: dict[str, int] = {}
        for call in run.calls:
            positions[call.name] = positions.get(call.name, 0) + by_unit(call, call.output).shape[2]
        for cotangent in cotangents(run.output, target):
            gates = {n: w.new_zeros(len(inputs), len(w)) for n, w in loss.weights.items()}

            def consume(call: LayerCall, gradient: Tensor, gates: dict[str, Tensor] = gates) -> None:
                gates[call.name] += (by_unit(call, call.output) * by_unit(call, gradient)).sum(2)

            run.backward(cotangent, consume)
            found.append(gates)
        seen += len(inputs)
        yield len(inputs), found, positions
    check_examples(seen)


def savings(loss: BatchLoss, batch: tuple[Tensor, Tensor]) -> tuple[dict[str, float], dict[str, float]]:
    """Multiply-adds of one example that go with one weight, and with one unit, by the weight's name.

    With a unit go its own row and its share of what the layers that read it compute: all they compute, divided
    evenly among the units that they read.
    """
    inputs, _ = loss.split(batch)
    count = _Count(loss.weights, len(inputs))
    with count, torch.no_grad():
        loss.output(inputs)
    per_unit = {
        name: count.positions.get(name, 0.0) * weight[0].numel() + count.readers.get(name, 0.0)
        for name, weight in loss.weights.items()
    }
    return {name: count.positions.get(name, 0.0) for name in loss.weights}, per_unit


class _Count(TorchFunctionMode):
    """Follows which layers' units every value is made of, and how often every weight is applied."""

    def __init__(self, weights: Weights, examples: int) -> None:
        super().__init__()
        self._names = {id(weight): name for name, weight in weights.items()}
        self._examples = examples
        self._sources: dict[int, dict[str, int]] = {}
        self._alive: list[Tensor] = []
        self.positions: dict[str, float] = {}
        self.readers: dict[str, float] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        sources: dict[str, int] = {}
        for value in _tensors((args, kwargs)):
            sources |= self._sources.get(id(value), {})
        if func in LAYERS:
            given = dict(zip(("input", "weight"), args)) | kwargs
            sources = self._layer(func, given["input"], given["weight"], result, sources)
        self._sources[id(result)] = sources
        self._alive.append(result)  # an id must not be used again
        return result

    def _layer(
        self, function: Any, x: Tensor, weight: Tensor, result: Tensor, sources: dict[str, int]
    ) -> dict[str, int]:
        transposed = "output_padding" in LAYERS[function]
        grid = result.shape[1:-1] if function is F.linear else (x if transposed else result).shape[2:]
        positions = float(grid.numel())
        for name, units in sources.items():
            self.readers[name] = self.readers.get(name, 0.0) + positions * weight.numel() / units
        name = self._names.get(id(weight))
        if name is None:
            return {}
        self.positions[name] = self.positions.get(name, 0.0) + positions
        return {name: len(weight)}


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
