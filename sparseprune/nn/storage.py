"""How a sparse layer stores its weight, and the way from each storage to the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from ..arguments import typed
from ..ops.bitmask import BitMask, as_rows
from ..ops.packed_values import pack_values, unpack_values
from ..ops.submask import collect_values, spread_values_, zero_pruned_
from .base import STORAGES, SparseLayer, in_rows, placed_as, replace_values, whole, zero_outside
from .dense_gradients import sparse_weights

ModelT = TypeVar("ModelT", bound=nn.Module)

# The optimizers whose state follows the masks of a layer, whoever changes them: see ``sparseprune.training.attach``.
attached: WeakKeyDictionary[nn.Module, WeakSet[torch.optim.Optimizer]] = WeakKeyDictionary()


@typed
def set_storage(model: ModelT, storage: str, *, optimizer: torch.optim.Optimizer | None = None) -> ModelT:
    """Store the weights of a model's sparse layers in another way: in place, and the model is returned.

        "owned"    ``weight``, dense, exactly zero at pruned slots: the fastest, and what training is best done with
        "overlay"  ``weight``, dense, with the values under the mask as they are: for masks that are tried out, and
                   slots that come back as they were
        "packed"   ``weight_values``, the survivors alone, in the order of the flat index: with the mask's bit a slot
                   that is all; gradient and optimizer state are as small. ``layer.weight`` is a dense copy of it

    All give the same outputs and gradients. Pruned values that an overlay holds are lost on the way to another storage;
    from there they come back as zeros. Parameters stay the same objects, in the same order, so an optimizer of theirs
    stays valid; give it here to bring its state along, if it has stepped. A Parameter that became packed has another
    name and shape, so do this before a model is wrapped (DDP) or sharded (FSDP2). Give whole models where weights are
    tied.

    Raises:
        TypeError: ``optimizer`` is no torch optimizer.
        ValueError: ``storage`` is none of these; ``optimizer`` holds none of the weights; packed on the meta device,
            where a mask has no values, or of a sharded weight. Nothing is changed then.

    >>> layer = set_storage(sp.SparseLinear(4, 2, mask=torch.eye(2, 4).bool()), "packed")
    >>> [(name, tuple(parameter.shape)) for name, parameter in layer.named_parameters()]
    [('weight_values', (2,)), ('bias', (2,))]
    """
    check_storage(storage)
    groups = list(sparse_weights(model).values())
    for layers in groups:
        check_packable(layers, storage)
    check_optimizer(optimizer, [layers[0].parameter for layers in groups])
    for layers in groups:
        store(layers, storage, optimizer)
    return model


def check_optimizer(optimizer: torch.optim.Optimizer | None, weights: Iterable[nn.Parameter]) -> None:
    """ValueError if an optimizer is given and holds none of the weights."""
    weights = list(weights)
    if optimizer is None or not weights:
        return
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(weight) in held for weight in weights):
        raise ValueError("optimizer must hold the model's parameters, got one that holds none of them")


def check_storage(storage: str) -> None:
    if storage not in STORAGES:
        raise ValueError(f"storage must be one of {', '.join(STORAGES)}, got {storage!r}")


def check_packable(layers: Iterable[nn.Module], storage: str) -> None:
    """ValueError if one of these cannot be packed and is to be."""
    for layer in layers if storage == "packed" else ():
        parameter = layer.parameter if isinstance(layer, SparseLayer) else layer.weight
        if parameter.is_meta:
            raise ValueError("storage must not be packed on the meta device, where masks have no values")
        if hasattr(parameter, "placements"):
            raise ValueError("storage must become packed before fully_shard, got a weight that is sharded")


def check_resizable(layer: nn.Module) -> None:
    """ValueError if another mask would change the size of a Parameter that is sharded."""
    if isinstance(layer, SparseLayer) and layer.storage == "packed" and hasattr(layer.weight_values, "placements"):
        raise ValueError(
            "masks of packed weights must not change once they are sharded, as the number of their values would; "
            "set_storage(model, 'owned') before fully_shard"
        )


@typed
@contextmanager
def dense_weights(model: nn.Module) -> Iterator[None]:
    """Inside, packed weights are owned ones, for what looks at whole weights; then they are packed again.

    Parameters stay the same objects, what is written to slots that are kept stays, and gradients are as before.
    """
    packed = [layers for layers in sparse_weights(model).values() if layers[0].storage == "packed"]
    try:
        for layers in packed:
            store(layers, "owned", None)
        yield
    finally:
        for layers in packed:
            store(layers, "packed", None)


def as_stored(layer: nn.Module, tensor: Tensor) -> Tensor:
    """A tensor of the weight's shape in the form of the layer's Parameter: its kept values, its shard, or as it is."""
    if isinstance(layer, SparseLayer):
        return pack_values(tensor, layer.mask) if layer.storage == "packed" else placed_as(tensor, layer.weight)
    return tensor


@torch.no_grad()
def write_weight(layer: nn.Module, values: Tensor) -> None:
    """Give a layer, of any storage, the weight ``values``, of its dense shape; what is read is ``layer.weight``."""
    parameter = layer.parameter if isinstance(layer, SparseLayer) else layer.weight
    parameter.copy_(as_stored(layer, values))


@torch.no_grad()
def kept_values(layer: SparseLayer, mask: BitMask) -> Tensor:
    """The (kept,) values of a layer's survivors, whatever its storage; not to be written to. ``mask`` is its own."""
    if layer.storage == "packed":
        return layer.weight_values.detach()
    weight = whole(layer.weight)
    return collect_values(weight.reshape(as_rows(mask.shape)).contiguous(), mask)


@torch.no_grad()
def write_kept(layer: SparseLayer, mask: BitMask, values: Tensor) -> None:
    """Give a layer's survivors these values, in the order of ``kept_values``."""
    if layer.storage == "packed":
        layer.weight_values.copy_(values)
        return
    weight = layer.weight
    if in_rows(weight):
        spread_values_(weight.view(as_rows(mask.shape)), mask, values)
    else:
        write_weight(layer, whole(weight).masked_scatter(mask.to_bool(), values))


def store(layers: list[SparseLayer], storage: str, optimizer: torch.optim.Optimizer | None) -> None:
    """Change the storage of one weight and of all layers that hold it."""
    first = layers[0]
    mask, before, parameter = first.mask, first.storage, first.parameter
    if before == storage:
        return
    if before == "packed":
        move_values(parameter, lambda t: unpack_values(t, mask), optimizer)
    elif storage == "packed":
        move_values(parameter, lambda t: pack_values(t, mask), optimizer)
    for layer in layers:
        layer._rename("weight_values" if storage == "packed" else "weight")
        layer.storage = storage
    if storage == "owned":
        zero_outside(mask, parameter, parameter.grad)
        if optimizer is not None:
            zero_state(optimizer, parameter, mask)


def set_masks(
    layers: list[SparseLayer],
    mask: BitMask,
    optimizer: torch.optim.Optimizer | None,
    survivors: BitMask | None = None,
) -> None:
    """Replace the mask of one weight in all layers that hold it, and let gradient and optimizer state follow.

    What both masks keep stays as it is, if ``survivors`` keep it, too; all other slots become zero.
    """
    first = layers[0]
    old, parameter = first.mask, first.parameter
    optimizers = {optimizer, *attached.get(first, ())} - {None}
    held = old & (mask if survivors is None else mask & survivors)
    if first.storage == "packed":
        move_values(parameter, lambda t: _repacked(t, old, held, mask), *optimizers)
    else:
        zero_outside(held, parameter if first.storage == "owned" else None, parameter.grad)
        for each in optimizers:
            zero_state(each, parameter, held)
    for layer in layers:
        with torch.no_grad():
            layer.weight_mask.copy_(mask.words)


def _repacked(values: Tensor, old: BitMask, held: BitMask, mask: BitMask) -> Tensor:
    """The values of ``mask``'s slots, those of ``old`` where ``held`` keeps them and else zero."""
    weight = values.new_zeros(as_rows(old.shape))
    spread_values_(weight, old, values.contiguous())
    zero_pruned_(weight, held)
    return collect_values(weight, mask)


@torch.no_grad()
def move_values(
    parameter: nn.Parameter, move: Callable[[Tensor], Tensor], *optimizers: torch.optim.Optimizer | None
) -> None:
    """Replace the values of a Parameter, its gradient and its state by ``move`` of them: the same object, other shapes."""
    shape, grad = parameter.shape, parameter.grad
    replace_values(parameter, move(parameter.detach()))
    if grad is not None:
        parameter.grad = move(grad)
    for optimizer in optimizers:
        if optimizer is not None:
            move_state(optimizer, parameter, shape, move)


def move_state(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter, shape: torch.Size, move: Callable[[Tensor], Tensor]
) -> None:
    """Replace every state tensor of ``shape`` by ``move`` of it."""
    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer.state.clear()
        return
    state = optimizer.state.get(parameter, {})
    state.update({k: move(s) for k, s in state.items() if isinstance(s, Tensor) and s.shape == shape})


def zero_state(optimizer: torch.optim.Optimizer, weight: nn.Parameter, mask: BitMask) -> None:
    """Write zero into the optimizer's state of ``weight`` where ``mask`` prunes."""
    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer.state.clear()
        return
    state = optimizer.state.get(weight, {})
    zero_outside(mask, *(s for s in state.values() if isinstance(s, Tensor) and s.shape == weight.shape))
