"""Which units can leave a network for good, and the smaller network without them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..criteria.isolation import isolated
from ..masks import Masks
from ..nn import densify
from ..pruning import prunable
from .trace import Stream, Trace, masked_state, on_model

TOLERANCE = 1e-8


@dataclass(frozen=True)
class UnitGroup:
    """Units that leave together: the outputs of some layers, the inputs of others, the channels of norms between.

    Attributes:
        size: how many units.
        writers: layer names; unit u is row u of their weights.
        readers, norms: (layer name, entries a unit): unit u is columns (entries) u * n to u * n + n - 1.
    """

    size: int
    writers: tuple[str, ...]
    readers: tuple[tuple[str, int], ...]
    norms: tuple[tuple[str, int], ...]


Removed = Mapping[UnitGroup, Sequence[int]]


def unit_groups(model: nn.Module, trace: Trace) -> list[UnitGroup]:
    """The groups whose units can be removed.

    Not among them are the network's own inputs and outputs and units that meet a grouped or transposed convolution, a
    layer that is called several times or tied, a parameter of another kind, or units of another number.
    """
    calls = Counter(id(call.module) for call in (*trace.layers, *trace.norms))
    holders = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))

    def alone(module: nn.Module) -> bool:
        return calls[id(module)] == 1 and all(holders[id(p)] == 1 for p in module.parameters(recurse=False))

    return [group for stream in trace.streams() if (group := _group(stream, alone)) is not None]


def _group(stream: Stream, alone: Callable[[nn.Module], bool]) -> UnitGroup | None:
    ends = (*stream.writers, *stream.readers)
    if stream.others or any(isinstance(end, str) or not _plain(end.module) for end in ends):
        return None
    if not all(alone(call.module) for call in (*ends, *stream.norms)):
        return None
    size, *others = {writer.module.weight.shape[0] for writer in stream.writers}
    if others or not size:
        return None
    # A linear layer and its norm may read several entries of each unit: those of a flattened image.
    readers = [(call.name, call.module.weight.shape[1], isinstance(call.module, nn.Linear)) for call in stream.readers]
    norms = [(call.name, call.module.num_features, True) for call in stream.norms]
    if any(n % size or (n != size and not flat) for _, n, flat in (*readers, *norms)):
        return None
    widths = [tuple((name, n // size) for name, n, _ in part) for part in (readers, norms)]
    return UnitGroup(size, tuple(call.name for call in stream.writers), *widths)


def _plain(module: nn.Module) -> bool:
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    return not transposed and getattr(module, "groups", 1) == 1


def left(group: UnitGroup, units: Sequence[int]) -> Tensor:
    """The units that stay when ``units`` go."""
    keep = torch.ones(group.size, dtype=torch.bool)
    keep[list(units)] = False
    return keep.nonzero().flatten()


def without_units(model: nn.Module, masks: Masks, removed: Removed) -> Masks:
    """``masks`` with the rows and columns of the removed units pruned; for all prunable weights."""
    kept = {name: mask.to_bool() for name, mask in {**Masks.ones(prunable(model)), **masks}.items()}
    for group, units in removed.items():
        for name in group.writers:
            kept[weight_name(name)][list(units)] = False
        for name, width in group.readers:
            kept[weight_name(name)][:, _entries(torch.tensor(units), width)] = False
    return Masks(kept)


def sliced(masks: Masks, removed: Removed) -> Masks:
    """``masks`` without the rows and columns of the removed units."""
    found = {name: mask.to_bool() for name, mask in masks.items()}
    for group, units in removed.items():
        kept = left(group, units)
        ends = [(weight_name(name), kept, 0) for name in group.writers]
        ends += [(weight_name(name), _entries(kept, width), 1) for name, width in group.readers]
        for name, entries, dim in ends:
            if name in found:
                found[name] = found[name].index_select(dim, entries.to(found[name].device))
    return Masks(found)


def smaller(model: nn.Module, masks: Masks, removed: Removed, example_input: Tensor) -> nn.Module:
    """A copy of the model with ``masks`` written in as zeros and the removed units gone, checked against the original.

    Raises:
        ValueError: the smaller copy does not run, or computes something else than the masked model.
    """
    result = densify(copy.deepcopy(model))
    masks.apply_(result)
    for group, units in removed.items():
        kept = left(group, units)
        for name in group.writers:
            _keep(result.get_submodule(name), kept, 0)
        for name, width in group.readers:
            _keep(result.get_submodule(name), _entries(kept, width), 1)
        for name, width in group.norms:
            _keep_norm(result.get_submodule(name), _entries(kept, width))
    _check_equal(model, masks, result, example_input)
    return result


def weight_name(layer: str) -> str:
    """The name of a layer's weight."""
    return f"{layer}.weight" if layer else "weight"


def _entries(units: Tensor, width: int) -> Tensor:
    """The columns of these units, where each has ``width``."""
    return (units[:, None] * width + torch.arange(width)).flatten()


def _keep(layer: nn.Module, kept: Tensor, dim: int) -> None:
    layer.weight = _sliced(layer.weight, kept, dim)
    if dim == 0 and layer.bias is not None:
        layer.bias = _sliced(layer.bias, kept, 0)
    kind = "features" if isinstance(layer, nn.Linear) else "channels"
    setattr(layer, f"{('out', 'in')[dim]}_{kind}", len(kept))


def _keep_norm(norm: nn.Module, kept: Tensor) -> None:
    norm.num_features = len(kept)
    for name in ("weight", "bias"):
        if getattr(norm, name) is not None:
            setattr(norm, name, _sliced(getattr(norm, name), kept, 0))
    for name in ("running_mean", "running_var"):
        if getattr(norm, name) is not None:
            setattr(norm, name, getattr(norm, name)[kept.to(getattr(norm, name).device)].clone())


def _sliced(parameter: nn.Parameter, kept: Tensor, dim: int) -> nn.Parameter:
    value = parameter.detach().index_select(dim, kept.to(parameter.device))
    return nn.Parameter(value, requires_grad=parameter.requires_grad)


def _check_equal(model: nn.Module, masks: Masks, result: nn.Module, example_input: Tensor) -> None:
    noise = torch.randn(example_input.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = on_model(noise, model, torch.float64)
    with isolated(model), isolated(result), torch.no_grad():
        expected = functional_call(model, masked_state(model, masks, torch.float64), (x,))
        try:
            found = functional_call(result, masked_state(result, None, torch.float64), (x,))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"model must take its sizes from its layers, got one that fails with fewer: {reason}"
            ) from error
    scale = expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    if found.shape != expected.shape or not (found - expected).abs().max() <= TOLERANCE * scale:
        raise ValueError(
            "model must pass its units on in order from layer to layer, got one that computes something else"
        )
