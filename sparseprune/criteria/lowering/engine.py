"""Runs a lowered program: R and the scores of the weights that are left."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ...ops import backends, native
from ...ops.position_maps import map_positions, max_positions, max_positions_grad
from ...ops.products import Product
from ...ops.sparse_rows import MOST_COLUMNS, SparseRows
from ...ops.submask import within
from ...ops.survivor_scores import SurvivorScores
from ..cuts import cut_nodes
from ..isolation import full_precision
from .dense import DENSE_ABOVE, DenseLayer
from .positions import Layout, Map, Table, every_position, layouts, map_between, windows_of
from .program import Kind, Node, NotLoweredError
from .trace import trace

if TYPE_CHECKING:
    from ...masks import BitMask

__all__ = ["LoweredNetwork"]


@dataclass(eq=False)
class _Step:
    """How one node is computed, and what of its last forward pass its backward pass needs.

    Attributes:
        maps: for each input, how this node's columns come from what is stored of it; None where they are that.
        sources: the widths that the inputs are stored in.
        weighted: for each input, whether it depends on weights.
        rescale: whether the value is multiplied by a power of two.
    """

    node: Node
    layout: Layout
    maps: list[Map | None]
    sources: list[int]
    weighted: list[bool]
    scale: Tensor | None
    windows: Tensor | None
    rescale: bool = False
    factor: float = 1.0
    columns: Tensor | None = None
    winners: Tensor | None = None


class LoweredNetwork:
    """A model's linear form as a program over the weights that are left.

    Args:
        model: the absolute values of its weights are copied; it is never modified.
        example_input: (N, ...); its shape but for N is used.
        dtype: of all arithmetic.
        scale: multiply by powers of two where every path passes.
        structural: which paths exist instead of how much flows: every weight is one, and every value and gradient is
            replaced by 1 where it is positive.
        backend: of the ops; "auto" insists on the native ones.

    Attributes:
        weights: name -> ``|w|`` of the layers' weights.
        flow: R of the last run as ``(value, exponent)``: ``value * 2^exponent``.
        peak: the largest ``dR/d|w|`` of that run's scores, divided by the same power of two.

    Raises:
        NotLoweredError: the model has something that programs have no node for; the message says what.
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: Tensor,
        dtype: torch.dtype,
        scale: bool,
        structural: bool = False,
        backend: str = backends.DEFAULT,
    ) -> None:
        parameters = dict(model.named_parameters())
        devices = {p.device.type for p in parameters.values()}
        if reason := native.refusal(devices, {dtype}) if backend == "auto" else None:
            raise NotLoweredError(reason)
        if devices != {"cpu"}:
            raise NotLoweredError(f"programs run on a CPU, and the model is on {', '.join(sorted(devices))}")
        self.dtype, self._structural = dtype, structural
        self._backend = "native" if backend == "auto" else backend
        nodes = trace(model, tuple(example_input.shape[1:]), dtype)
        if structural:
            for node in nodes:
                node.count_paths()
        stored, weighted = layouts(nodes), _weighted(nodes)
        self._steps = [self._step(node, stored, weighted) for node in nodes]
        if scale:
            self._mark_cuts(nodes)
        self._groups = _groups(nodes)
        kept = {name: parameters[name].detach() for name in self._groups}
        self.weights = {
            name: torch.ones(weight.shape, dtype=dtype) if structural else weight.to(dtype).abs().contiguous()
            for name, weight in kept.items()
        }
        for name, weight in self.weights.items():
            if weight[:1].numel() > MOST_COLUMNS:
                raise NotLoweredError(f"{name} has more than {MOST_COLUMNS:,} values a row")
        self._masks: dict[str, BitMask] = {}
        self._layers: dict[str, SparseRows | DenseLayer] = {}
        self.flow, self.peak = (math.nan, 0), 0.0

    def scores(self, masks: Mapping[str, BitMask]) -> dict[str, Product | SurvivorScores]:
        """``|w| dR/d|w|`` of the weights that ``masks`` keep, all divided by one power of two.

        They hold until this is called again, which writes over them.

        Args:
            masks: of every layer's weight.
        """
        with torch.no_grad(), full_precision(torch.device("cpu")):
            found = self._scores(masks)
        return {n: s if isinstance(s, Product) else SurvivorScores._trusted(s, masks[n]) for n, s in found.items()}

    def positions(self) -> dict[str, int]:
        """Name -> how often each weight is multiplied for one example, over all of its uses."""
        found: dict[str, int] = {}
        for step in self._steps:
            if step.node.kind is Kind.LAYER:
                found[step.node.weight] = found.get(step.node.weight, 0) + step.node.positions
        return found

    def operations(self) -> int:
        """What the kept weights of the last run needed, a fused multiply-add being two: no more positions than differ,
        a product, the gradient of its input where weights come before it, and the scores."""
        passes = [(step, 3 if step.weighted[0] else 2) for step in self._steps if step.node.kind is Kind.LAYER]
        return sum(2 * n * step.layout.count * self._masks[step.node.weight].count() for step, n in passes)

    def _scores(self, masks: Mapping[str, BitMask]) -> dict[str, Tensor | Product]:
        values: dict[Node, Tensor] = {}
        exponent = 0
        for step in self._steps:
            if step.node.kind is Kind.LAYER:  # right before its product, which finds what is changed in the cache
                self._keep(step.node.weight, masks[step.node.weight])
            value = self._saturated(self._forward(step, [values[source] for source in step.node.inputs]))
            if step.rescale:
                step.factor, e = _power_of_two(float(value.amax()))
                value, exponent = value * step.factor, exponent + e
            values[step.node] = value
        gradient = self._multiplicity(value)
        self.flow = (float((value * gradient).sum(dtype=torch.float64)), exponent)
        return self._backward(gradient)

    def _keep(self, name: str, mask: BitMask) -> None:
        before, self._masks[name] = self._masks.get(name), mask
        if before is mask:
            return
        layer, weight = self._layers.get(name), self.weights[name]
        if isinstance(layer, SparseRows):
            kept, count, others = within(before, mask, len(layer.values), backend=self._backend)
            if others == 0:
                self._layers[name] = layer.narrow(kept, count)
                return
        dense = mask.count() >= DENSE_ABOVE * weight.numel() and self._groups[name] == 1
        if dense and isinstance(layer, DenseLayer) and mask & before == mask:
            layer.narrow(before, mask)
        elif dense:
            self._layers[name] = DenseLayer(weight, mask, self._backend)
        else:
            self._layers[name] = SparseRows.pack(weight, mask, self._groups[name], self._backend)

    def _forward(self, step: _Step, values: list[Tensor]) -> Tensor:
        node, width = step.node, step.layout.width
        if node.kind is Kind.INPUT:
            return torch.ones(node.channels, width, dtype=self.dtype)
        if node.kind is Kind.MAX:
            value, step.winners = max_positions(values[0], step.windows, width, backend=self._backend)
            return value
        parts = [self._mapped(value, by and by.forward) for value, by in zip(values, step.maps, strict=True)]
        if node.kind is Kind.LAYER:
            step.columns = parts[0].reshape(-1, width)
            return self._layers[node.weight].product(step.columns, step.scale)
        if node.kind is Kind.SCALE:
            return parts[0] * step.scale[:, None]
        if node.kind is Kind.FLATTEN:
            return parts[0].reshape(-1, 1)
        return torch.cat(parts) if node.kind is Kind.CAT else sum(parts[1:], parts[0])

    def _backward(self, gradient: Tensor) -> dict[str, Tensor | Product]:
        gradients = {self._steps[-1].node: gradient}
        scores: dict[str, Tensor | Product] = {}
        self.peak = 0.0
        for step in reversed(self._steps):
            node, gradient = step.node, gradients.pop(step.node, None)
            if gradient is None:
                continue
            gradient = self._saturated(gradient * step.factor if step.rescale else gradient)
            for source, part in zip(node.inputs, self._parts(step, gradient, scores), strict=True):
                if part is not None:
                    gradients[source] = gradients[source] + part if source in gradients else part
        return scores

    def _parts(self, step: _Step, gradient: Tensor, scores: dict[str, Tensor | Product]) -> list[Tensor | None]:
        """The gradient of each input, None where no weight depends on it; adds to the scores."""
        node = step.node
        if node.kind is Kind.MAX:
            return [max_positions_grad(gradient, step.winners, step.sources[0], backend=self._backend)]
        if node.kind is Kind.LAYER:
            layer = self._layers[node.weight]
            earlier = _own(scores[node.weight]) if node.weight in scores else None
            inner, found, peak = layer.gradients(gradient, step.columns, step.scale, step.weighted[0])
            scores[node.weight] = found if earlier is None else _sum(earlier, found)
            self.peak = max(self.peak, float(peak))
            parts = [inner.reshape(node.inputs[0].channels, -1)] if step.weighted[0] else [inner]
        elif node.kind is Kind.SCALE:
            parts = [gradient * step.scale[:, None]]
        elif node.kind is Kind.FLATTEN:
            parts = [gradient.reshape(node.inputs[0].channels, -1)]
        elif node.kind is Kind.CAT:
            parts = list(gradient.split([source.channels for source in node.inputs]))
        else:
            parts = [gradient] * len(node.inputs)
        return [
            self._mapped(part, by and by.backward) if weighted else None
            for part, by, weighted in zip(parts, step.maps, step.weighted, strict=True)
        ]

    def _mapped(self, x: Tensor, by: Table | None) -> Tensor:
        return x if by is None else map_positions(x, *by, backend=self._backend)

    def _saturated(self, value: Tensor) -> Tensor:
        return value.sign() if self._structural else value

    def _multiplicity(self, value: Tensor) -> Tensor:
        """The gradient of the sum over all positions: how many each column stands for."""
        layout = self._steps[-1].layout
        counts = np.ones(layout.count) if layout.sums else np.bincount(layout.of)
        gradient = torch.zeros_like(value)
        gradient[:, : layout.count] = torch.from_numpy(counts).to(self.dtype)
        return gradient

    def _step(self, node: Node, stored: dict[Node, Layout], weighted: dict[Node, bool]) -> _Step:
        layout, sources = stored[node], [stored[source] for source in node.inputs]
        wanted = every_position(node.inputs[0].positions) if node.kind is Kind.FLATTEN else layout
        maps, windows = [None] * len(sources), None
        if node.kind is Kind.MAX:
            windows = windows_of(sources[0], layout, node.taps)
        else:
            apart = node.kind is Kind.LAYER
            maps = [map_between(source, wanted, node.taps, node.factors, apart, self.dtype) for source in sources]
        scale = None if node.scale is None else node.scale.to(self.dtype)
        widths = [source.width for source in sources]
        return _Step(node, layout, maps, widths, [weighted[source] for source in node.inputs], scale, windows)

    def _mark_cuts(self, nodes: list[Node]) -> None:
        """Of the nodes that all paths cross, the last before each layer: once a layer or block is enough."""
        cuts, pending = cut_nodes([nodes[-1]]), None
        for step in self._steps:
            if step.node.kind is Kind.LAYER and pending is not None:
                pending.rescale, pending = True, None
            if step.node in cuts and step.node.kind is not Kind.INPUT:
                pending = step


def _weighted(nodes: list[Node]) -> dict[Node, bool]:
    found: dict[Node, bool] = {}
    for node in nodes:
        found[node] = node.kind is Kind.LAYER or any(found[source] for source in node.inputs)
    return found


def _groups(nodes: list[Node]) -> dict[str, int]:
    """Name -> groups of every layer's weight."""
    found: dict[str, int] = {}
    for node in nodes:
        if node.kind is Kind.LAYER and found.setdefault(node.weight, node.groups) != node.groups:
            raise NotLoweredError(f"{node.weight} is used in different groups")
    return found


def _own(scores: Tensor | Product) -> Tensor | Product:
    """In memory that the layer's next use does not write to."""
    return Product(scores.weight.clone(), None, "w") if isinstance(scores, Product) else scores


def _sum(a: Tensor | Product, b: Tensor | Product) -> Tensor | Product:
    """The scores of a weight over two of its uses."""
    return Product(a.weight + b.weight, None, "w") if isinstance(a, Product) else a + b


def _power_of_two(largest: float) -> tuple[float, int]:
    """2^-e with e = floor(log2 largest), and e, as far as float32 has them; 1 and 0 for zero and for infinity."""
    if not 0 < largest < math.inf:
        return 1.0, 0
    exponent = min(max(math.frexp(largest)[1] - 1, -126), 126)
    return 2.0**-exponent, exponent
