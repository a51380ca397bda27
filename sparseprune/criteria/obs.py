"""Optimal Brain Surgeon: ``score = w_q^2 / (2 [H^-1]_qq)``, and what the other weights must become when w_q goes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..arguments import typed
from ..masks import Masks
from ..ops.topk_mask import topk_mask
from .base import Scores, Weights
from .batches import Batches, BatchLoss, Loss, batch_losses, check_data, check_examples
from .inverse_hessian import InverseHessian, network_inverses, row_inverses

__all__ = ["OBS"]

BLOCKS = ("network", "layer", "row")


@typed
@dataclass(frozen=True, eq=False)
class OBS:
    """``L_q = w_q^2 / (2 [H^-1]_qq)``: the least rise of the loss when w_q goes and all others make up for it,

        dw = -(w_q / [H^-1]_qq) H^-1 e_q

    H is the Gauss-Newton matrix of the mean loss plus ``alpha`` on its diagonal; its inverse is built recursively, a few
    examples at a time. As a criterion for ``prune`` it scores and changes nothing. ``sparseprune.compensate`` removes one
    weight after the other, as published, and returns the new values of those that stay.

        blocks="network"   one H over all weights
        blocks="layer"     one H for each layer, without what couples them
        blocks="row"       H of the layer's own output error, the second moment of its inputs, the same for each row: for
                           networks of any size. All weights are chosen at once, the survivors of each row compensated
                           for all of its losses together.

    Args:
        loss: ``loss(output, target)`` -> the mean over the batch, one number; convex in the output. "row" does not use it.
        batches: any number of (input, target), examples in the first dimension; held in memory.
        alpha: added to the diagonal; the inverse starts as 1/alpha.
        blocks: "network", "layer" or "row".
        limit: most weights in one H for "network" and "layer" (inputs of a row for "row"); it has limit^2 float64 entries.

    Raises:
        TypeError: ``loss`` not callable, ``batches`` not an iterable of pairs.
        ValueError: ``alpha`` or ``blocks`` wrong, more weights than ``limit``, no batch, a weight used by something else
            than linear and convolution layers.

    Source: Hassibi, Stork 1993, Second order derivatives for network pruning, eq. 4 to 10; by layers and rows: Dong,
    Chen, Pan 2017, arXiv:1705.07565.
    """

    loss: Loss
    batches: Batches
    alpha: float = 1e-6
    blocks: str = "network"
    limit: int = 5000

    def __post_init__(self) -> None:
        check_data(self.loss, self.batches)
        if self.blocks not in BLOCKS:
            raise ValueError(f"blocks must be one of {', '.join(map(repr, BLOCKS))}, got {self.blocks!r}")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha must be positive and finite, got {self.alpha}")

    def __call__(self, model: nn.Module, params: Weights) -> Scores:
        with batch_losses(model, params, self.loss) as loss:
            if self.blocks == "row":
                return _row_scores(params, row_inverses(loss, self._data(), self.alpha, self.limit))
            scores: Scores = {}
            for block in self._blocks(loss):
                scores |= block.unflattened(block.costs())
        return {name: scores[name] for name in params}

    def compensated(self, model: nn.Module, params: Weights, keep: int) -> tuple[Masks, dict[str, Tensor]]:
        """Which ``keep`` weights stay, and the values that all weights then have (zero where pruned)."""
        with batch_losses(model, params, self.loss) as loss:
            if self.blocks == "row":
                return _remove_by_rows(params, row_inverses(loss, self._data(), self.alpha, self.limit), keep)
            blocks = self._blocks(loss)
        for _ in range(sum(weight.numel() for weight in params.values()) - keep):
            min(blocks, key=InverseHessian.least_cost).remove_cheapest()
        masks: dict[str, Tensor] = {}
        weights: dict[str, Tensor] = {}
        for block in blocks:
            masks |= block.unflattened(block.there)
            weights |= block.unflattened(block.values)
        return Masks({n: masks[n] for n in params}), {n: weights[n].to(p.dtype) for n, p in params.items()}

    def _blocks(self, loss: BatchLoss) -> list[InverseHessian]:
        groups = [list(loss.weights)] if self.blocks == "network" else [[name] for name in loss.weights]
        return network_inverses(loss, self._data(), groups, self.alpha, self.limit)

    def _data(self) -> list[tuple[Tensor, Tensor]]:
        batches = list(self.batches)
        check_examples(len(batches))
        return batches


def _row_scores(params: Weights, inverses: dict[str, Tensor]) -> Scores:
    scores = {}
    for name, weight in params.items():
        diagonals = inverses[name].diagonal(dim1=1, dim2=2)  # (groups, columns)
        rows = weight.detach().double().reshape(len(diagonals), -1, diagonals.shape[1])
        scores[name] = (rows.square() / (2 * diagonals[:, None])).reshape(weight.shape)
    return scores


def _remove_by_rows(params: Weights, inverses: dict[str, Tensor], keep: int) -> tuple[Masks, dict[str, Tensor]]:
    scores = _row_scores(params, inverses)
    masks = Masks(dict(zip(scores, topk_mask(list(scores.values()), keep).masks, strict=True)))
    weights = {}
    for name, weight in params.items():
        inverse, there = inverses[name], masks[name].to_bool()
        rows = weight.detach().double().reshape(len(inverse), -1, inverse.shape[1]).clone()
        for group, values, left in zip(inverse, rows, there.reshape(rows.shape), strict=True):
            for row, stays in zip(values, left, strict=True):
                gone = ~stays
                # All losses at once: w -= H^-1_:P (H^-1_PP)^-1 w_P sets exactly the pruned P to zero.
                row -= group[:, gone] @ torch.linalg.solve(group[gone][:, gone], row[gone])
                row[gone] = 0
        weights[name] = rows.reshape(weight.shape).to(weight.dtype)
    return masks, weights
