"""Inverses of Hessians for OBS, built a few examples at a time and shrunk by one weight at a time; float64."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .batches import BatchLoss
from .outputs import output_factors
from .per_sample import per_sample_gradients, unfolded
from .taps import LayerCall, Tapped

__all__ = ["InverseHessian", "network_inverses", "row_inverses"]

ROWS = 256  # of the factor that enter an inverse at once


class InverseHessian:
    """``(alpha I + (1/P) sum X X')^-1`` over some weights, their values, and which of them are there.

    Args:
        weights: by name; their values, flattened one after the other.
        alpha: the inverse starts as I / alpha.
        examples: P.
    """

    def __init__(self, weights: dict[str, Tensor], alpha: float, examples: int) -> None:
        self._shapes = {name: weight.shape for name, weight in weights.items()}
        self.values = torch.cat([weight.detach().double().flatten() for weight in weights.values()])
        self.there = torch.ones_like(self.values, dtype=torch.bool)
        self.inverse = torch.eye(len(self.values), dtype=torch.float64, device=self.values.device) / alpha
        self._examples = examples

    def add(self, factor: Tensor) -> None:
        """Another X' (m, n): ``H^-1 -= H^-1 X (P + X' H^-1 X)^-1 X' H^-1``."""
        for part in factor.double().split(ROWS):
            product = part @ self.inverse
            middle = product @ part.T
            middle.diagonal().add_(self._examples)
            self.inverse -= product.T @ torch.linalg.solve(middle, product)
        self.inverse = (self.inverse + self.inverse.T) / 2  # round-off is not symmetric, and would grow

    def costs(self) -> Tensor:
        """``w^2 / (2 [H^-1]_qq)``, infinite where a weight is gone."""
        costs = self.values.square() / (2 * self.inverse.diagonal())
        return torch.where(self.there, costs, torch.inf)

    def least_cost(self) -> float:
        return float(self.costs().amin())

    def remove_cheapest(self) -> None:
        """Take out the weight of least cost, let the others make up for it, and shrink H by its row and column."""
        q = int(self.costs().argmin())
        column = self.inverse[:, q] / self.inverse[q, q]
        self.values -= self.values[q] * column
        self.inverse -= torch.outer(column, self.inverse[q])
        self.there[q] = False
        self.values[~self.there] = 0
        self.inverse[q], self.inverse[:, q] = 0, 0

    def unflattened(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([shape.numel() for shape in self._shapes.values()])
        return {name: part.reshape(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}


def network_inverses(
    loss: BatchLoss, batches: list[tuple[Tensor, Tensor]], groups: list[list[str]], alpha: float, limit: int
) -> list[InverseHessian]:
    """One inverse for each group of weights, H the Gauss-Newton matrix of the mean loss over all batches."""
    for group in groups:
        size = sum(loss.weights[name].numel() for name in group)
        if size > limit:
            raise ValueError(
                f"OBS must have at most {limit:,} weights in one Hessian, got {size:,} in {', '.join(group)}: take smaller"
                " blocks ('layer', 'row'), exclude layers, or raise limit"
            )
    pairs = [loss.split(batch) for batch in batches]
    examples = sum(len(inputs) for inputs, _ in pairs)
    blocks = [InverseHessian({name: loss.weights[name] for name in group}, alpha, examples) for group in groups]
    for inputs, target in pairs:
        run = Tapped(loss, inputs)
        for factor in output_factors(loss, run.output, target):
            found = {name: 0.0 for name in loss.weights}

            def consume(call: LayerCall, gradient: Tensor, found: dict[str, Tensor | float] = found) -> None:
                found[call.name] = found[call.name] + per_sample_gradients(call, gradient).flatten(1)

            run.backward(factor, consume)
            zeros = {
                n: w.new_zeros(len(inputs), w.numel()) for n, w in loss.weights.items() if isinstance(found[n], float)
            }
            for block, group in zip(blocks, groups, strict=True):
                block.add(torch.cat([zeros.get(name, found[name]) for name in group], 1))
    return blocks


def row_inverses(loss: BatchLoss, batches: list[tuple[Tensor, Tensor]], alpha: float, limit: int) -> dict[str, Tensor]:
    """``(alpha I + (1/P) sum x x')^-1`` over all P inputs x of a layer, by weight: (groups, columns, columns)."""
    moments: dict[str, Tensor] = {}
    for name, weight in loss.weights.items():
        if weight[0].numel() > limit:
            raise ValueError(
                f"OBS must have at most {limit:,} inputs to a row, got {weight[0].numel():,} in {name}: exclude it, or raise"
                " limit"
            )
    counts: dict[str, int] = {}
    for batch in batches:
        inputs, _ = loss.split(batch)
        with torch.no_grad():
            calls = Tapped(loss, inputs).calls
        for call in calls:
            for columns in _inputs(call):  # (groups, columns, positions)
                found = columns @ columns.mT
                moments[call.name] = moments[call.name] + found if call.name in moments else found
                counts[call.name] = counts.get(call.name, 0) + columns.shape[2]
    inverses = {}
    for name, weight in loss.weights.items():
        size = weight[0].numel()
        moment = moments[name] / counts[name] if name in moments else weight.new_zeros(1, size, size).double()
        moment.diagonal(dim1=1, dim2=2).add_(alpha)
        inverses[name] = torch.linalg.inv(moment)
    return inverses


def _inputs(call: LayerCall) -> Iterator[Tensor]:
    """The columns that a layer multiplies its rows with, (groups, columns, positions), a few examples at a time."""
    if call.function is F.linear:
        yield call.input.reshape(-1, call.input.shape[-1]).T[None].double()
        return
    if call.weight.dim() != 4 or "output_padding" in call.options or call.function is not F.conv2d:
        raise ValueError(
            f"weight {call.name!r} must be of a linear layer or a two-dimensional convolution for OBS by rows: exclude it"
        )
    for part in call.input.split(32):
        columns = unfolded(call, part).double()
        yield columns.unflatten(1, (call.options.get("groups", 1), -1)).permute(1, 2, 0, 3).flatten(2)
