"""attach(): masks hold under any optimizer, and its state follows them whenever they change."""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import typed
from ..nn import SparseLayer
from ..nn.base import whole, zero_outside
from ..nn.dense_gradients import sparse_weights
from ..nn.storage import attached, check_optimizer, zero_state
from ..ops.bitmask import BitMask


@typed
def attach(optimizer: torch.optim.Optimizer, model: nn.Module) -> Hold:
    """From here on every ``optimizer.step()`` leaves pruned weights and their state at exactly zero.

    Entry-wise optimizers (SGD, Adam, ...) do so by themselves as long as ``sparsify(model, masks,
    optimizer=optimizer)`` changes the masks. Attached, any optimizer does (also those whose update mixes the entries
    of a weight, as Muon's), and masks may be changed in any way, by ``set_mask`` too: before the next step the state
    of every weight that was pruned or brought back is set to zero. That costs a pass over weights and state after
    each step. Gradient clipping, accumulation and AMP need nothing more, since pruned gradients are zero. LBFGS loses
    its history when masks change. Values under an overlay stay. Packed weights have no pruned slots; while attached, the
    optimizer's state takes the size of their new masks by itself.

    A loaded optimizer state is taken to belong to the masks that the model has at the next step, so a checkpoint's
    two halves can be loaded in either order.

    Args:
        optimizer: of the model's parameters.
        model: may be wrapped (DDP) or sharded (FSDP2), and be made sparse later.

    Returns:
        A handle, whose ``remove()`` ends it; as a context manager it ends with the block.

    Raises:
        TypeError: ``optimizer`` is no torch optimizer, or ``model`` no module.
        ValueError: ``optimizer`` holds none of the model's parameters.

    >>> layer = nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    >>> hold = attach(optimizer, layer)
    """
    check_optimizer(optimizer, model.parameters())
    return Hold(optimizer, model)


class Hold(AbstractContextManager):
    """What :func:`attach` returns."""

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        # The words' tensor and its version say, without waiting for a GPU, that a mask is as it was.
        self._seen: dict[SparseLayer, tuple[Tensor, int]] = {}
        self._optimizer = weakref.ref(optimizer)
        self._loaded = True  # what the optimizer holds by now needs to fit the masks
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
            optimizer.register_load_state_dict_post_hook(self._after_loading),
        ]
        self._layers()

    def remove(self) -> None:
        """End it; masks and weights stay as they are."""
        for handle in self._handles:
            handle.remove()
        optimizer, model = self._optimizer(), self._model()
        if optimizer is not None and model is not None:
            for layer in chain.from_iterable(sparse_weights(model).values()):
                attached.get(layer, set()).discard(optimizer)

    def __exit__(self, *_: Any) -> None:
        self.remove()

    def _layers(self) -> list[SparseLayer]:
        """One layer of each weight with pruned slots; from here on ``set_mask`` of any layer knows the optimizer."""
        model = self._model()
        weights = {} if model is None else sparse_weights(model)
        for layer in chain.from_iterable(weights.values()):
            attached.setdefault(layer, weakref.WeakSet()).add(self._optimizer())
        return [layers[0] for layers in weights.values() if layers[0].storage != "packed"]

    def _before(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for layer in self._layers():
            words, version = self._seen.get(layer, (None, 0))
            if words is layer.weight_mask and version == words._version and not self._loaded:
                continue
            held = layer.mask
            if not self._loaded:  # what was pruned since, and brought back perhaps, is exactly zero
                held = held & BitMask.from_bool(whole(layer.weight.detach()) != 0)
            zero_state(optimizer, layer.weight, held)
            self._seen[layer] = (layer.weight_mask, layer.weight_mask._version)
        self._loaded = False

    def _after(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for layer in self._layers():
            if layer.storage == "owned":
                zero_outside(layer.mask, layer.weight)
            if not isinstance(optimizer, torch.optim.LBFGS):  # whose history has no entries
                zero_state(optimizer, layer.weight, layer.mask)

    def _after_loading(self, *_: Any) -> None:
        self._loaded = True
