"""Snapshot: a moment of a training run to go back to, all of it or the learning rate alone."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..arguments import typed
from ..nn import SparseLayer
from ..nn.dense_gradients import sparse_weights
from ..nn.storage import move_state, zero_state
from ..ops.bitmask import BitMask
from ..ops.packed_values import pack_values, unpack_values
from .random_state import random_state, set_random_state


@runtime_checkable
class Stateful(Protocol):
    """What can be saved and loaded: a learning rate scheduler."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Any) -> Any: ...


class Snapshot:
    """Weights, buffers, optimizer, scheduler and, where asked for, the random state, copied at this moment.

    :meth:`rewind` brings them back bit for bit under the masks that the model has by then. Of packed weights it holds
    the values that were kept, and where they belong.

    Args:
        model: any module; its masks are not brought back, and its storages must be those of now.
        optimizer, scheduler: of the run, or None.
        random: also copy the state of python's, numpy's and torch's global generators.

    >>> layer = nn.Linear(2, 1)
    >>> start, before = Snapshot(layer), layer.weight.detach().clone()
    >>> _ = nn.init.zeros_(layer.weight)
    >>> start.rewind()
    >>> torch.equal(layer.weight, before)
    True
    """

    @typed
    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: Stateful | None = None,
        *,
        random: bool = False,
    ) -> None:
        self._model, self._optimizer, self._scheduler = model, optimizer, scheduler
        self._state: dict[str, Any] = {
            "model": {name: tensor.detach().clone() for name, tensor in _tensors(model).items()},
            "packed": {name: layer.weight_mask.clone() for name, layer in _packed(model).items()},
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
        saved, packed = dict(self._state["model"]), _packed(self._model)
        for name, layer in packed.items():
            saved[f"{name}_values"] = self._repack(name, layer, saved[f"{name}_values"])
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(saved[name])
                tensor.grad = None
        _verify(tensors, saved)
        if self._optimizer is not None:
            self._optimizer.load_state_dict(deepcopy(self._state["optimizer"]))
        for name, layers in sparse_weights(self._model).items():
            layer, optimizer = layers[0], self._optimizer
            layer._zero_outside(layer.mask)
            if optimizer is not None and name in packed:
                shape = self._state["model"][f"{name}_values"].shape
                move_state(optimizer, layer.parameter, shape, partial(self._repack, name, layer))
            elif optimizer is not None:
                zero_state(optimizer, layer.weight, layer.mask)
        self._rewind_scheduler()
        if self._state["random"] is not None:
            set_random_state(self._state["random"])

    def _repack(self, name: str, layer: SparseLayer, values: Tensor) -> Tensor:
        """Values of the slots that a packed weight kept then, as those of the slots that it keeps by now."""
        mask = layer.mask
        before = BitMask(self._state["packed"][name].to(mask.device), mask.shape)
        return pack_values(unpack_values(values.to(mask.device), before), mask)

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
        shapes = {name: (tensor.shape, saved[name].shape) for name, tensor in tensors.items()}
        for name, layer in _packed(self._model).items():  # whose values are as many as the masks say
            shapes[f"{name}_values"] = (layer.weight_mask.shape, self._state["packed"][name].shape)
        for name, (shape, before) in shapes.items():
            if shape != before:
                raise ValueError(f"{name} must have shape {tuple(before)} as in the snapshot, got {tuple(shape)}")
        return tensors


def _verify(tensors: dict[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        expected = saved[name].to(tensor.device)
        same = (expected == tensor) | (expected != expected) & (tensor != tensor)
        if not bool(same.all()):
            raise RuntimeError(f"{name} must hold its value of the snapshot after rewinding, got another one")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those that a state dict leaves out too, without the masks of sparse layers."""
    masks = {id(layer.weight_mask) for layers in sparse_weights(model).values() for layer in layers}
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor for name, tensor in named.items() if id(tensor) not in masks}


def _packed(model: nn.Module) -> dict[str, SparseLayer]:
    return {name: layers[0] for name, layers in sparse_weights(model).items() if layers[0].storage == "packed"}
