"""Snapshot: a moment of a training run to go back to, all of it or the learning rate alone."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.base import zero_outside
from ..nn.dense_gradients import sparse_weights
from ..nn.storage import zero_state
from .random_state import random_state, set_random_state


class Snapshot:
    """Weights, buffers, optimizer, scheduler and, where asked for, the random state, copied at this moment.

    :meth:`rewind` brings them back bit for bit under the masks that the model has by then.

    Args:
        model: any module; its masks are not part of the snapshot.
        optimizer, scheduler: of the run, or None.
        random: also copy the state of python's, numpy's and torch's global generators.

    >>> layer = nn.Linear(2, 1)
    >>> start, before = Snapshot(layer), layer.weight.detach().clone()
    >>> _ = nn.init.zeros_(layer.weight)
    >>> start.rewind()
    >>> torch.equal(layer.weight, before)
    True
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: Any = None,
        *,
        random: bool = False,
    ) -> None:
        self._model, self._optimizer, self._scheduler = model, optimizer, scheduler
        self._state: dict[str, Any] = {
            "model": {name: tensor.detach().clone() for name, tensor in _tensors(model).items()},
            "optimizer": None if optimizer is None else deepcopy(optimizer.state_dict()),
            "scheduler": None if scheduler is None else deepcopy(scheduler.state_dict()),
            "random": random_state() if random else None,
        }

    def rewind(self) -> None:
        """Everything as it was, except that weights pruned by now, and their optimizer state, are zero.

        Gradients become None. An optimizer that had not stepped yet has an empty state again.

        Raises:
            ValueError: the model has other parameters or buffers than then; nothing is changed.
            RuntimeError: a tensor does not hold its value after it was written (its memory is shared with another).
        """
        tensors = self._check()
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(self._state["model"][name])
                tensor.grad = None
        for layers in sparse_weights(self._model).values():
            layers[0]._zero_outside(layers[0].mask)
        if self._optimizer is not None:
            self._optimizer.load_state_dict(deepcopy(self._state["optimizer"]))
            for layers in sparse_weights(self._model).values():
                zero_state(self._optimizer, layers[0].weight, layers[0].mask)
        self._rewind_scheduler()
        if self._state["random"] is not None:
            set_random_state(self._state["random"])
        self._verify(tensors)

    def rewind_learning_rate(self) -> None:
        """The optimizer's hyperparameters and the scheduler as they were; weights and momentum go on.

        Source: Renda et al. 2020, arXiv:2003.02389, section 2 (learning rate rewinding).
        """
        if self._optimizer is not None:
            saved = self._state["optimizer"]["param_groups"]
            for group, old in zip(self._optimizer.param_groups, deepcopy(saved), strict=True):
                group.update({key: value for key, value in old.items() if key != "params"})
        self._rewind_scheduler()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint."""
        return deepcopy(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the snapshot that ``state_dict`` was taken of."""
        self._state = deepcopy(dict(state))

    def _rewind_scheduler(self) -> None:
        if self._scheduler is not None:
            self._scheduler.load_state_dict(deepcopy(self._state["scheduler"]))

    def _check(self) -> dict[str, Tensor]:
        tensors, saved = _tensors(self._model), self._state["model"]
        if set(tensors) != set(saved):
            raise ValueError(
                f"model must have the parameters and buffers of the snapshot, only one side has "
                f"{sorted(set(tensors) ^ set(saved))}"
            )
        for name, tensor in tensors.items():
            if tensor.shape != saved[name].shape:
                raise ValueError(
                    f"{name} must have shape {tuple(saved[name].shape)} as in the snapshot, got {tuple(tensor.shape)}"
                )
        return tensors

    def _verify(self, tensors: dict[str, Tensor]) -> None:
        weights = sparse_weights(self._model)
        masks = {name: layers[0].mask for name, layers in weights.items() if layers[0].storage == "owned"}
        for name, tensor in tensors.items():
            expected = self._state["model"][name].to(tensor.device, copy=True)
            if name in masks:
                zero_outside(masks[name], expected)
            same = (expected == tensor) | (expected != expected) & (tensor != tensor)
            if not bool(same.all()):
                raise RuntimeError(f"{name} must hold its value of the snapshot after rewinding, got another one")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those that a state dict leaves out too, without the masks of sparse layers."""
    masks = {id(layer.weight_mask) for layers in sparse_weights(model).values() for layer in layers}
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor for name, tensor in named.items() if id(tensor) not in masks}
