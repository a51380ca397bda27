"""NeST: a small seed network grows where gradients are large, then is pruned where weights are small."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import typed
from ..nn.dense_gradients import unwatch_gradients, watch_gradients
from .drop import Topology, share_of, smallest
from .dynamic import averaged_over_ranks
from .grow import by_gradient
from .method import Method, check_count, check_share


class NeST(Method):
    """Connection growth until step ``grow_until``, magnitude pruning after it until ``prune_until``.

    Every ``every`` steps of the first phase each layer activates its floor(growth n) pruned slots (n slots in all, as
    far as there are so many) where the gradient, averaged over the ``every`` steps before its absolute value is
    taken, is largest; they start at 0. Every ``every`` steps of the second the floor(rate k) smallest of each layer's
    k weights go. Neurons are grown by :func:`grow_neurons`, before or between.

    Args:
        model, optimizer: see :class:`Method`; start with a sparse seed.
        grow_until, prune_until: optimizer steps.
        every: steps between events.
        growth, rate: shares.

    Raises:
        TypeError, ValueError: an argument is wrong.

    Source: Dai et al. 2019, arXiv:1711.02017, algorithms 1 and 3.
    """

    @typed
    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        *,
        grow_until: int,
        prune_until: int,
        every: int = 100,
        growth: float = 0.1,
        rate: float = 0.01,
    ) -> None:
        super().__init__(model, optimizer)
        self.every, self.grow_until = check_count("every", every), check_count("grow_until", grow_until, 0)
        self.prune_until = check_count("prune_until", prune_until, grow_until)
        self.growth, self.rate = check_share("growth", growth), check_share("rate", rate)
        self.sums = watch_gradients(model) if grow_until else {}

    def _advance(self) -> bool:
        if self.steps > self.prune_until or self.steps % self.every:
            changed = False
        elif self.steps <= self.grow_until:
            changed = self._grow()
        else:
            self._hold(smallest(self._topology({}), self.rate))
            changed = True
        if self.sums and self.steps >= self.grow_until:
            unwatch_gradients(self.model)
            self.sums = {}
        return changed

    def _topology(self, gradients: dict[str, Tensor]) -> Topology:
        return Topology(self._weights(), self.masks, gradients, torch.Generator())

    def _grow(self) -> bool:
        topology = self._topology({name: averaged_over_ranks(total) for name, total in self.sums.items()})
        # Not after a GradScaler's overflow: the next event has gradients of its own.
        finite = all(bool(mean.isfinite().all()) for mean in topology.gradients.values())
        if finite:
            sizes = {name: (mask.numel(), mask.count()) for name, mask in topology.masks.items()}
            counts = {name: min(share_of(self.growth, n), n - k) for name, (n, k) in sizes.items()}
            self._hold(by_gradient(topology, topology.masks, counts))
        for total in self.sums.values():
            total.zero_()
        return finite

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "sums": {name: total.clone() for name, total in self.sums.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        unwatch_gradients(self.model)
        self.sums = watch_gradients(self.model) if state["sums"] else {}
        for name, total in self.sums.items():
            total.copy_(state["sums"][name])
