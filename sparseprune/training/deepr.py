"""DeepR: a random walk over networks of a fixed number of connections, each with a sign for life."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..arguments import typed
from ..masks import Masks
from ..nn.dense_gradients import sparse_weights
from ..nn.storage import kept_values, write_kept
from ..ops.bitmask import BitMask
from ..ops.submask import keep_within, within
from .drop import Topology
from .dynamic import DynamicSparseTraining
from .grow import at_random
from .method import check_count


class DeepR(DynamicSparseTraining):
    """After every step of plain SGD: L1, noise, and connections that crossed zero change place with dormant ones.

        theta <- theta - lr alpha + sqrt(2 lr T) v,   v ~ N(0, 1),   w = sign theta where theta > 0

    The sign of every connection, dormant ones too, is drawn once; that of a live weight is the one it has. A live
    weight with the other sign (theta < 0) becomes dormant, and as many random dormant ones start from 0. The theory
    is of SGD without momentum and weight decay; the number of live weights is exact after every step.

    Args:
        model, optimizer: see :class:`Method`; the learning rate is read from the optimizer at every step.
        until: no rewiring, L1 or noise at this step or later.
        l1: alpha.
        temperature: T.
        seed: of signs, noise and rewiring.

    Raises:
        TypeError, ValueError: an argument is wrong.

    Source: Bellec et al. 2018, arXiv:1711.05136, algorithm 1.
    """

    @typed
    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        until: int,
        l1: float = 1e-5,
        temperature: float = 1e-10,
        seed: int = 0,
    ) -> None:
        for name, value in {"l1": l1, "temperature": temperature}.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")
        check_count("seed", seed, 0)
        self.l1, self.temperature = l1, temperature
        super().__init__(model, optimizer, drop=self._walk, grow=at_random, every=1, until=until, seed=seed)
        self.negative: dict[str, BitMask] = {}  # where a weight may only be negative
        for name, weight in self._weights().items():
            coins = torch.rand(weight.shape, generator=self.generator).to(weight.device) < 0.5
            self.negative[name] = BitMask.from_bool(torch.where(weight != 0, weight < 0, coins))

    @torch.no_grad()
    def _walk(self, topology: Topology, fraction: float) -> Masks:
        """Move the live weights, and keep those that did not cross zero."""
        kept = {}
        for name, layers in sparse_weights(self.model).items():
            mask, lr = topology.masks[name], topology.lr[name]
            values = kept_values(layers[0], mask)
            negative = within(mask, self.negative[name], len(values), backend="auto")[0]
            sign = 1 - 2 * negative.to_bool().to(values.dtype)
            noise = torch.randn(sign.shape, generator=self.generator).to(sign)
            values = values + (math.sqrt(2 * lr * self.temperature) * noise - lr * self.l1 * sign)
            write_kept(layers[0], mask, values)
            kept[name] = keep_within(mask, BitMask.from_bool(~(sign * values < 0)), backend="auto")
        return Masks(kept)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "negative": {n: m.words.clone() for n, m in self.negative.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.negative = {
            name: BitMask(state["negative"][name].to(mask.device, copy=True), mask.shape)
            for name, mask in self.negative.items()
        }
