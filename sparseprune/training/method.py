"""Method: what all that changes masks in mid-training shares: a step counter, masks, a state to resume from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..arguments import typed
from ..masks import Masks
from ..nn import held_masks
from ..nn.base import checked, whole
from ..nn.dense_gradients import sparse_weights, unwatch_gradients
from ..nn.storage import check_optimizer, check_resizable, set_masks
from ..ops.bitmask import BitMask


class Values(Mapping[str, Tensor]):
    """A model's sparse weights by name, of their dense shapes; where packed or sharded, a copy that is made when asked for."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = sparse_weights(model)

    def __getitem__(self, name: str) -> Tensor:
        return whole(self._layers[name][0].weight.detach())

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


class Method(AbstractContextManager):
    """Base of the methods. Call :meth:`step` once after every ``optimizer.step()``, and :meth:`remove` at the end, or
    use it as a context manager, which does.

    To resume exactly, load three state dicts, in any order: the model's, the optimizer's and this one's.

    Args:
        model: with sparse layers, of any storage.
        optimizer: of its weights, whose state follows the masks; None for an optimizer without state.

    Attributes:
        steps: how many have been done.

    Raises:
        TypeError: ``optimizer`` is no torch optimizer.
        ValueError: the model has no sparse layer, its weights are packed and sharded, or ``optimizer`` holds none of them.
    """

    @typed
    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        if not (weights := sparse_weights(model)):
            raise ValueError(f"model must hold masks (sparsify(model, masks)), got {type(model).__name__} without any")
        for layers in weights.values():
            check_resizable(layers[0])
        check_optimizer(optimizer, [layers[0].parameter for layers in weights.values()])
        self.model, self.optimizer = model, optimizer
        self.steps = 0
        self._handles: list[RemovableHandle] = []
        self._removed = False

    def step(self) -> bool:
        """Count one optimizer step and do what is due after it; True if masks were changed.

        Raises:
            RuntimeError: after :meth:`remove`.
        """
        if self._removed:
            raise RuntimeError(f"{type(self).__name__} must not step after remove()")
        self.steps += 1
        return self._advance()

    def remove(self) -> None:
        """End it: no hook of its own stays, and no dense gradient is computed; masks, weights and its state do stay."""
        for handle in self._handles:
            handle.remove()
        unwatch_gradients(self.model)
        self._removed = True

    def __exit__(self, *_: Any) -> None:
        self.remove()

    def _advance(self) -> bool:
        raise TypeError(f"{type(self).__name__} must define _advance")

    @property
    def masks(self) -> Masks:
        """The masks that the model holds, copied."""
        return held_masks(self.model)

    def _hold(self, masks: Mapping[str, Any], survivors: Mapping[str, BitMask] | None = None) -> None:
        """Give the model these masks; what ``survivors`` do not keep starts from zero, if the masks bring it back."""
        held, through = self.masks, masks if survivors is None else survivors
        layers = sparse_weights(self.model)
        changed = {
            name: checked(mask, held[name].shape, held[name].device, f"masks[{name!r}]")
            for name, mask in masks.items()
            if mask != held[name] or through[name] != held[name]  # DeepR updates at every step, mostly of few layers
        }
        with torch.inference_mode(False):  # tensors made in it could not be trained with
            for name, mask in changed.items():
                set_masks(layers[name], mask, self.optimizer, through[name])

    def _weights(self) -> Values:
        return Values(self.model)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint."""
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.steps = state["steps"]


def check_count(name: str, value: Any, least: int = 1) -> int:
    """``value`` if it is an integer of at least ``least``; else a ValueError that says so."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
    return value


def check_share(name: str, value: Any) -> float:
    """``value`` if it is a number in [0, 1]; else a ValueError that says so."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number in [0, 1], got {value!r}")
    return value
