"""Lottery tickets: train, prune the smallest weights, go back, train again."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from ..arguments import typed
from ..masks import Masks
from ..nn import sparsify
from ..ops.products import Product
from ..ops.topk_mask import topk_mask
from ..prunable import Exclude, all_kept
from .method import Method, check_count, check_share
from .rewind import Snapshot, Stateful

AFTERWARDS = ("weights", "learning rate", "nothing")


class LotteryTickets(Method):
    """Iterative magnitude pruning: rounds of training, after each but the last of which a share of what is left goes.

    The first round has ``steps_per_round`` steps; the others go on from step ``rewind_to``, so have that many fewer.
    ``position`` says which step of the round comes next, for the order of the data:

        for _ in range(tickets.total_steps):
            x, y = batches[tickets.position]
            ...
            optimizer.step(); scheduler.step(); tickets.step()

    Args:
        model: any; its linear and 2-D convolution weights become sparse layers, with everything kept, at once.
        optimizer: of its parameters.
        scheduler: of the optimizer, or None.
        steps_per_round: of the first round.
        rounds: how often to train; 1 never prunes.
        rate: share of the surviving weights to prune after a round.
        rates: parameter name -> rate of that layer; only with ``scope="layer"``.
        scope: "global" compares all weights, "layer" those of one layer.
        rewind: "weights" (weights, buffers, optimizer, scheduler: Frankle et al.), "learning rate" (the schedule alone:
            Renda et al.) or "nothing" (fine-tuning with the last learning rate).
        rewind_to: the step of the first round to go back to; 0 is initialisation.
        random: rewind the global random generators, too.
        exclude: what is never pruned; see ``prunable``.

    Raises:
        TypeError, ValueError: an argument is wrong.

    Sources: Frankle and Carbin 2019, arXiv:1803.03635; Frankle et al. 2020, arXiv:1912.05671 (step k); Renda et al.
    2020, arXiv:2003.02389 (learning rate).
    """

    @typed
    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: Stateful | None = None,
        *,
        steps_per_round: int,
        rounds: int,
        rate: float = 0.2,
        rates: Mapping[str, float] | None = None,
        scope: str = "global",
        rewind: str = "weights",
        rewind_to: int = 0,
        random: bool = False,
        exclude: Exclude | Collection[Exclude] = (),
    ) -> None:
        if scope not in ("global", "layer"):
            raise ValueError(f"scope must be global or layer, got {scope!r}")
        if rewind not in AFTERWARDS:
            raise ValueError(f"rewind must be one of {', '.join(AFTERWARDS)}, got {rewind!r}")
        self.steps_per_round, self.rounds = (
            check_count("steps_per_round", steps_per_round),
            check_count("rounds", rounds),
        )
        if check_count("rewind_to", rewind_to, 0) >= steps_per_round:
            raise ValueError(f"rewind_to must be below the {steps_per_round} steps of a round, got {rewind_to}")
        self.rate, self.rates = check_share("rate", rate), dict(rates or {})
        self.scope, self.rewind, self.rewind_to, self.random = scope, rewind, rewind_to, random
        masks = all_kept(model, exclude)
        if self.rates and (scope != "layer" or set(self.rates) - set(masks)):
            raise ValueError(
                f"rates must name prunable weights ({', '.join(masks)}) and go with scope 'layer', "
                f"got {', '.join(self.rates)} with scope {scope!r}"
            )
        for name, value in self.rates.items():
            check_share(f"rates[{name!r}]", value)
        sparsify(model, masks, optimizer=optimizer)
        super().__init__(model, optimizer)
        self.scheduler = scheduler
        self.round, self.position = 0, 0
        self.snapshot = self._take_snapshot()

    @property
    def total_steps(self) -> int:
        """How many steps all rounds have together."""
        return self.steps_per_round + (self.rounds - 1) * (self.steps_per_round - self.rewind_to)

    @property
    def ends_round(self) -> bool:
        """Whether the coming ``step`` prunes and goes back: what this round has reached can be tested until then."""
        return self.position + 1 == self.steps_per_round and self.round < self.rounds - 1

    def check_steps(self, steps: int) -> None:
        """Raise ValueError unless a loop of ``steps`` steps with a learning rate of its own fits the rounds."""
        if self.steps_per_round != steps:
            raise ValueError(f"steps_per_round must be all {steps} steps of the training, got {self.steps_per_round}")
        if self.scheduler is not None:
            raise ValueError("scheduler must be None where train() sets the learning rate, got one")

    def _take_snapshot(self) -> Snapshot:
        return Snapshot(self.model, self.optimizer, self.scheduler, random=self.random)

    def _advance(self) -> bool:
        self.position += 1
        if self.round == 0 and self.position == self.rewind_to:
            self.snapshot = self._take_snapshot()
        if self.position < self.steps_per_round or self.round == self.rounds - 1:
            return False
        self._hold(self._survivors())
        if self.rewind == "weights":
            self.snapshot.rewind()
        elif self.rewind == "learning rate":
            self.snapshot.rewind_learning_rate()
        self.round, self.position = self.round + 1, self.rewind_to
        return True

    def _survivors(self) -> Masks:
        masks, weights = self.masks, self._weights()
        names = list(masks)
        groups = [names] if self.scope == "global" else [[name] for name in names]
        kept = {}
        for group in groups:
            live = sum(masks[name].count() for name in group)
            rate = self.rates.get(group[0], self.rate) if self.scope == "layer" else self.rate
            scores = [Product(weights[name], None, "|w|") for name in group]
            best = topk_mask(scores, round((1 - rate) * live), masks=[masks[name] for name in group], names=group)
            kept |= dict(zip(group, best.masks, strict=True))
        return Masks(kept)

    def state_dict(self) -> dict[str, Any]:
        own = {"round": self.round, "position": self.position, "snapshot": self.snapshot.state_dict()}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.round, self.position = state["round"], state["position"]
        self.snapshot.load_state_dict(state["snapshot"])


@typed
def scratch_epochs(epochs: int, dense_flops: float, pruned_flops: float) -> tuple[int, int]:
    """Epochs of training from scratch: (as many as the dense network: "E", as much computation: "B", at most twice).

    Raises:
        ValueError: ``epochs`` is not positive, or the FLOPs are not finite or not in this order.

    Source: Liu et al. 2019, arXiv:1810.05270, section 3.

    >>> scratch_epochs(160, 3, 2), scratch_epochs(160, 3, 1)
    ((160, 240), (160, 320))
    """
    check_count("epochs", epochs)
    if not 0 < pruned_flops <= dense_flops < math.inf:
        raise ValueError(f"pruned_flops must be in (0, dense_flops], got {pruned_flops} of {dense_flops}")
    return epochs, round(epochs * min(dense_flops / pruned_flops, 2))
