"""What callbacks of training libraries share: sparse layers before anything is loaded, a method once there is an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ..nn import held_masks, sparsify
from ..nn.dense_gradients import sparse_weights
from ..prunable import all_kept
from .hold import attach
from .method import Method

MakeMethod = Callable[[nn.Module, torch.optim.Optimizer], Method]


class MaskedTraining:
    """Masks that hold, and a method that changes them, in a loop that someone else owns.

    Args:
        masks: to hold from the start; None: those that the model holds, or everything kept.
        method: makes what changes them; None: they stay.
    """

    def __init__(self, masks: Mapping[str, Any] | None = None, method: MakeMethod | None = None) -> None:
        self.masks, self.make = masks, method
        self.method: Method | None = None
        self._attached = ExitStack()

    def prepare(self, model: nn.Module) -> None:
        """Make the layers sparse: before a checkpoint is loaded, which has masks of its own."""
        if self.masks is not None:
            sparsify(model, self.masks)
        elif not sparse_weights(model):
            sparsify(model, all_kept(model))

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any] | None) -> None:
        """Hold from here on, and go on where ``state`` was taken."""
        self.end()
        with ExitStack() as until_end:
            until_end.enter_context(attach(optimizer, model))
            if self.make is not None:
                resumed = held_masks(model)
                self.method = until_end.enter_context(self.make(model, optimizer))
                if state is not None:
                    sparsify(model, resumed, optimizer=optimizer)  # some methods start with everything kept
                    self.method.load_state_dict(state)
            self._attached = until_end.pop_all()

    def step(self) -> None:
        """After every step of the optimizer."""
        if self.method is not None:
            self.method.step()

    def end(self) -> None:
        """Of training: the masks stay, nothing acts any more."""
        self._attached.close()

    def state_dict(self) -> dict[str, Any]:
        """The method's state; empty without one."""
        return {} if self.method is None else self.method.state_dict()
