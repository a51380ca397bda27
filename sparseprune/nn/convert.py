"""sparsify and densify: a model's dense layers become sparse ones in place, and back."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..arguments import typed
from ..ops.bitmask import BitMask
from .base import SparseLayer, checked, refusal
from .conv import SparseConv2d
from .dense_gradients import sparse_weights
from .linear import SparseLinear
from .storage import check_optimizer, check_packable, check_resizable, check_storage, set_masks, store, zero_state

SPARSE_TYPES: dict[type[nn.Module], type[SparseLayer]] = {c.dense_type: c for c in (SparseLinear, SparseConv2d)}

ModelT = TypeVar("ModelT", bound=nn.Module)


class _Change(NamedTuple):
    """One weight, its new mask, and the layers that hold it (more than one where weights are tied)."""

    name: str
    weight: nn.Parameter
    mask: BitMask
    layers: list[nn.Module]


@typed
def sparsify(
    model: ModelT,
    masks: Mapping[str, BitMask | Tensor],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    storage: str | None = None,
) -> ModelT:
    """Hold masks in a model: in place, and the model is returned.

    Each ``nn.Linear`` and ``nn.Conv2d`` with a mask becomes a :class:`SparseLinear` or :class:`SparseConv2d`;
    one that is sparse already gets its mask replaced, as by ``set_mask``. The module objects stay the same,
    so parameters, optimizers, hooks, training mode and references to a layer remain valid. Pruned slots of
    weights and of their ``.grad`` become zero. Layers without a mask in ``masks`` are left as they are. Tied
    weights share one mask.

    Pass the ``optimizer`` whenever it has stepped already: its momentum for a pruned weight would move that
    weight away from zero again. Every state tensor of a weight's shape (momentum_buffer, exp_avg, exp_avg_sq,
    ...) becomes zero at pruned slots, and a slot brought back starts with zero state. LBFGS mixes all
    entries, so its history is dropped. An optimizer whose update mixes the entries of one weight (Muon)
    leaves non-zero values in pruned slots; they are never read, and :func:`densify` and ``set_mask`` clear
    them. Of packed weights, the state of the slots that stay goes with them.

    Args:
        model: the model; a single layer, too.
        masks: parameter name, as in ``model.named_parameters()`` -> BitMask or bool tensor of the weight's
            shape, on its device; True = keep. Usually ``Masks``.
        optimizer: the optimizer of the model's parameters.
        storage: "owned", "overlay" or "packed" for the layers that get a mask, see :func:`set_storage`; None leaves
            sparse layers as they are, and dense ones become owned.

    Returns:
        ``model``.

    Raises:
        TypeError: a mask is neither a BitMask nor a bool tensor, or ``optimizer`` is no torch optimizer.
        ValueError: a name is unknown or is not the weight of a plain ``nn.Linear`` or ``nn.Conv2d``
            (subclasses may use the weight in ways of their own, so they are refused), a shape or device
            differs, masks of tied weights disagree, ``optimizer`` holds none of the weights, or ``storage`` cannot be
            had. Nothing is changed then.
    """
    changes = _plan(model, masks)
    if storage is not None:
        check_storage(storage)
        for change in changes:
            check_packable(change.layers, storage)
    check_optimizer(optimizer, [change.weight for change in changes])
    with torch.inference_mode(False):  # buffers made in it could not be trained with
        for change in changes:
            _apply(change, storage, optimizer)
    return model


def _apply(change: _Change, storage: str | None, optimizer: torch.optim.Optimizer | None) -> None:
    held = [layer for layer in change.layers if isinstance(layer, SparseLayer)]
    if held and storage == "overlay":  # before the mask takes any value away
        store(held, storage, optimizer)
    if held:
        set_masks(held, change.mask, optimizer)
    for layer in change.layers:
        if not isinstance(layer, SparseLayer):
            layer.__class__ = SPARSE_TYPES[type(layer)]
            layer.storage = held[0].storage if held else "overlay" if storage == "overlay" else "owned"
            layer._own(change.mask)
    if not held and optimizer is not None and storage != "overlay":
        zero_state(optimizer, change.weight, change.mask)
    if storage is not None:
        store(change.layers, storage, optimizer)


@typed
def densify(model: ModelT) -> ModelT:
    """Undo :func:`sparsify`: in place, and the model is returned.

    Every sparse layer becomes ``nn.Linear`` or ``nn.Conv2d`` again: the same module and Parameter objects,
    zeros written into the pruned slots, no mask left.

    Raises:
        ValueError: a layer is of a subclass of ours, which has no dense twin. Nothing is changed then.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, SparseLayer)}
    for name, layer in layers.items():
        if type(layer) not in SPARSE_TYPES.values():
            raise ValueError(f"model must hold no subclass of the sparse layers, got {_title(layer)} at {name!r}")
    for group in sparse_weights(model).values():
        store(group, "owned", None)
        for layer in group:
            layer._zero_outside(layer.mask)
            become_dense(layer)
    return model


def become_dense(layer: SparseLayer) -> None:
    """Its dense class and no mask; ``weight`` is where it was."""
    if layer.storage == "packed":
        layer._rename("weight")
    del layer.weight_mask
    vars(layer).pop("storage", None)
    layer.__class__ = layer.dense_type


def _plan(model: nn.Module, masks: Mapping[str, BitMask | Tensor]) -> list[_Change]:
    """Check everything, change nothing."""
    for name in masks:
        if not isinstance(name, str):
            raise TypeError(f"masks must be keyed by parameter name, got a key of type {type(name).__name__}")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in list(parameters.items()):  # of packed layers
        parameters.setdefault(name.removesuffix("_values"), parameter)
    holders: dict[nn.Parameter, list[tuple[str, nn.Module, str]]] = {}
    for path, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                holders.setdefault(parameter, []).append((path, module, key))
    changes: dict[nn.Parameter, _Change] = {}
    for name, mask in masks.items():
        if name not in parameters:
            raise ValueError(_unknown(model, name, list(parameters)))
        weight = parameters[name]
        for path, module, key in holders[weight]:
            if reason := _refusal(module, key):
                at = f"at {path!r}" if path else "as the model itself"
                tied = "" if name == (f"{path}.{key}" if path else key) else " (tied to it)"
                raise ValueError(
                    f"masks must name weights of nn.Linear or nn.Conv2d layers, got {name!r}, held by "
                    f"{_title(module)} {at}{tied}, {reason}; leave it out: prune(..., exclude=[{name!r}])"
                )
        layers = [module for _, module, _ in holders[weight]]
        check_resizable(layers[0])
        shape = layers[0].dense_shape if isinstance(layers[0], SparseLayer) else weight.shape
        mask = checked(mask, shape, weight.device, f"masks[{name!r}]")
        first = changes.setdefault(weight, _Change(name, weight, mask, layers))
        if first.name != name and first.mask != mask:
            raise ValueError(f"masks of tied weights must be equal, got different ones for {first.name!r} and {name!r}")
    return list(changes.values())


def _refusal(module: nn.Module, key: str) -> str | None:
    if isinstance(module, SparseLayer) or type(module) in SPARSE_TYPES:
        return f"whose {key} is not its weight" if key not in ("weight", "weight_values") else refusal(module)
    if isinstance(module, tuple(SPARSE_TYPES)):
        return "a subclass that may use its weight outside of our forward"
    return "a layer of another kind"


def _unknown(model: nn.Module, name: str, known: list[str]) -> str:
    path, _, key = name.rpartition(".")
    module = dict(model.named_modules()).get(path)
    message = f"masks must name parameters of the model, got {name!r}"
    if key == "weight" and type(getattr(module, "weight", None)) is Tensor:
        return f"{message}, {_title(module)} {refusal(module)}; make it permanent first, or exclude {name!r}"
    close = get_close_matches(name, known, n=3)
    return message + (f"; did you mean {' or '.join(map(repr, close))}?" if close else "")


def _title(module: nn.Module) -> str:
    name = type(module).__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
