"""Network sculpting: start bulky, remove units until a budget is met, return the smaller network."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..arguments import typed
from ..criteria.base import Scores
from ..masks import Masks
from ..nn import densify, held_masks, sparsify
from ..nn.dense_gradients import sparse_weights
from ..pruning import Exclude, prunable, prune
from ..summary import summarize
from .ablations import as_tensors
from .channels import Removed, UnitGroup, left, sliced, smaller, unit_groups, weight_name, without_units
from .costs import costs
from .trace import traced

__all__ = ["Sculpture", "compact", "sculpt", "shrink"]


@dataclass(frozen=True, eq=False)
class Sculpture:
    """A smaller network.

    Attributes:
        model: it; an independent copy without sparse layers.
        masks: of the network it was made from: with them, that computes the same.
        units: layer name -> the units of it that are left, for each layer that has lost some.
        parameters, flops: of ``model``, for one example.
    """

    model: nn.Module
    masks: Masks
    units: dict[str, Tensor]
    parameters: int
    flops: int


@typed
def shrink(model: nn.Module, masks: Masks, example_input: Tensor) -> Sculpture:
    """Make masks physical as far as whole units are dead: same outputs, smaller layers, the other zeros written in.

    A unit goes if no kept weight reads it, or if it has no kept incoming weight and its constant output is zero; what
    only led to it or from it follows. One with a constant that is not zero stays, and so does the last one of a layer.

    Args:
        model: of linear and convolution layers with batch norm, in sequence or with shortcuts; not changed.
        masks: parameter name -> BitMask.
        example_input: (N, ...) floating; its shape counts.

    Raises:
        TypeError, ValueError: a mask does not fit; a model that cannot be traced, or that has sizes written into its
            code so that it fails when smaller.
    """
    return _sculpture(model, masks, _dead(model, masks, example_input), example_input)


@typed
def compact(model: nn.Module, example_input: Tensor, masks: Masks | None = None) -> nn.Module:
    """The same network without its dead units: same outputs, smaller layers, sparse layers that stay sparse.

    What is dead is described at :func:`shrink`. Layers keep their storage; masks lose the rows and columns that go.

    Args:
        model: with sparse layers, or dense where ``masks`` are given; of linear and convolution layers with batch norm,
            in sequence or with shortcuts. Not changed.
        example_input: (N, ...) floating; its shape counts.
        masks: to hold in place of those that the model holds.

    Returns:
        A new model with parameters of its own.

    Raises:
        ValueError: there are no masks; otherwise TypeError and ValueError as :func:`shrink`.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> masks = Masks({"2.weight": torch.tensor([[True, False, True, False]] * 2)})
    >>> [tuple(p.shape) for p in compact(model, torch.ones(1, 3), masks).parameters()]
    [(2, 3), (2,), (2, 2), (2,)]
    """
    storages = {name: layers[0].storage for name, layers in sparse_weights(model).items()}
    masks = held_masks(model) if masks is None else masks
    if not masks:
        raise ValueError("masks must be given for a model that holds none, got none")
    dense = densify(copy.deepcopy(model))
    removed = _dead(dense, masks, example_input)
    result = smaller(dense, masks, removed, example_input)
    for name, mask in sliced(masks, removed).items():
        sparsify(result, {name: mask}, storage=storages.get(name))
    return result


def _dead(model: nn.Module, masks: Masks, example_input: Tensor) -> dict[UnitGroup, list[int]]:
    """What can go: each removal may leave others without a reader or a writer."""
    removed: dict[UnitGroup, list[int]] = {}
    while True:
        current = without_units(model, masks, removed)
        with traced(model, example_input, current) as trace:
            groups = unit_groups(model, trace)
            inputs = {call.name: call.input.detach().movedim(call.unit_dim, 0).flatten(1) for call in trace.layers}
        found = {group: units for group in groups if (units := _dead_units(group, current, inputs))}
        if found == removed:
            return removed
        removed = found


def _dead_units(group: UnitGroup, masks: Masks, inputs: Mapping[str, Tensor]) -> list[int]:
    """Units that nothing reads, or that are zero whatever the input; not the first one if that is all."""
    fed = torch.zeros(group.size, dtype=torch.bool)
    for name in group.writers:
        fed |= masks[weight_name(name)].to_bool().flatten(1).any(1).cpu()
    read, zero = torch.zeros_like(fed), torch.ones_like(fed)
    for name, width in group.readers:
        columns = masks[weight_name(name)].to_bool().transpose(0, 1).flatten(1).any(1)
        read |= columns.reshape(group.size, width).any(1).cpu()
        zero &= (inputs[name] == 0).all(1).reshape(group.size, width).all(1).cpu()
    dead = ~read | (~fed & zero)
    dead[0] &= not dead.all()
    return dead.nonzero().flatten().tolist()


@typed
def sculpt(
    model: nn.Module,
    criterion: Callable[[nn.Module, dict[str, nn.Parameter]], Mapping[str, Tensor]],
    example_input: Tensor,
    *,
    parameters: int | None = None,
    flops: int | None = None,
    min_units: int = 1,
    exclude: Exclude | Collection[Exclude] = (),
) -> Sculpture:
    """Remove the units that matter least until the network is within a budget.

    A unit is worth the sum of the criterion's scores over its incoming weights; units joined by a shortcut are worth
    their sum and leave together. Units go in the order of their worth, over the whole network, and no more of them than
    the budget needs.

    Args:
        model: of linear and convolution layers with batch norm, in sequence or with shortcuts; not changed. What
            cannot be taken apart (grouped convolutions, concatenations, attention) keeps its size.
        criterion: as for :func:`sparseprune.prune`.
        example_input: (N, ...) floating, for FLOPs and for the check that the smaller network computes the same.
        parameters: at most so many, biases and norms included.
        flops: at most so many for one example, 2 * multiply-adds of linear and convolution layers.
        min_units: of each layer keep at least so many.
        exclude: layers that keep their units; as for ``prune``.

    Raises:
        ValueError: no budget, or one that cannot be met; as :func:`shrink` and ``prune``.

    Source: Ye et al. 2018, arXiv:1802.00124, and the units' order of Molchanov et al. 2017, arXiv:1611.06440; the
        budget as stopping rule is Gordon et al. 2018, arXiv:1711.06798.
    """
    budget = {n: v for n, v in {"parameters": parameters, "flops": flops}.items() if v is not None}
    if not budget:
        raise ValueError("parameters or flops must be given, got neither")
    for name, value in {**budget, "min_units": min_units}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    scores: Scores = {}

    def recorded(model: nn.Module, params: dict[str, nn.Parameter]) -> Mapping[str, Tensor]:
        scores.update(as_tensors(criterion(model, params)))
        return scores

    whole = prune(model, recorded, density=1.0, exclude=exclude)
    with traced(model, example_input) as trace:
        groups = [g for g in unit_groups(model, trace) if all(weight_name(name) in whole for name in g.writers)]
    order = _order(groups, scores, min_units)
    price = _Price(model, example_input)

    def affordable(count: int) -> bool:
        cost = price(_chosen(groups, order[:count]))
        return all(cost[name] <= value for name, value in budget.items())

    # Each removal makes the network cheaper, so the first affordable count is found by bisection.
    count = bisect_left(range(len(order) + 1), True, key=affordable)
    if count > len(order):
        least = price(_chosen(groups, order))
        got = ", ".join(f"{name}={value:,}" for name, value in budget.items())
        needs = ", ".join(f"{least[name]:,} {name}" for name in budget)
        raise ValueError(f"the budget must leave every layer {min_units} units, got {got}; the smallest has {needs}")
    chosen = _chosen(groups, order[:count])
    return _sculpture(model, without_units(model, Masks({}), chosen), chosen, example_input)


def _order(groups: Sequence[UnitGroup], scores: Scores, min_units: int) -> list[tuple[int, int]]:
    """(group, unit), what goes first in front; of equals the later one goes first, as the earlier is kept elsewhere."""
    ranked = []
    for number, group in enumerate(groups):
        worth = sum(scores[weight_name(name)].double().flatten(1).sum(1).cpu() for name in group.writers)
        best = torch.argsort(worth, descending=True, stable=True)
        ranked += [(worth[unit].item(), -number, -unit) for unit in best[min_units:].tolist()]
    return [(-number, -unit) for _, number, unit in sorted(ranked)]


def _chosen(groups: Sequence[UnitGroup], order: Sequence[tuple[int, int]]) -> dict[UnitGroup, list[int]]:
    units: dict[UnitGroup, list[int]] = {}
    for number, unit in order:
        units.setdefault(groups[number], []).append(unit)
    return units


class _Price:
    """Parameters and FLOPs of the network without some units, by counting."""

    def __init__(self, model: nn.Module, example_input: Tensor) -> None:
        self._model = model
        self._parameters = sum(p.numel() for p in model.parameters())
        rows = summarize(model, Masks.ones(prunable(model)), example_input).rows
        self._flops = {row.name: (row.dense_flops or 0) // max(row.total, 1) for row in rows}  # of one weight

    def __call__(self, removed: Removed) -> dict[str, int]:
        rows, columns = Counter(), Counter()
        parameters = self._parameters
        for group, units in removed.items():
            rows.update({name: len(units) for name in group.writers})
            columns.update({name: len(units) * width for name, width in group.readers})
            for name, width in group.norms:
                affine = len(list(self._model.get_submodule(name).parameters(recurse=False)))
                parameters -= affine * len(units) * width
        flops = 0
        for name, weight in prunable(self._model).items():
            layer = name.removesuffix("weight").removesuffix(".")
            whole, kernel = weight.numel(), weight[0, 0].numel()
            kept = (weight.shape[0] - rows[layer]) * (weight.shape[1] - columns[layer]) * kernel
            parameters -= whole - kept
            if self._model.get_submodule(layer).bias is not None:
                parameters -= rows[layer]
            flops += kept * self._flops[name]
        return {"parameters": parameters, "flops": flops}


def _sculpture(model: nn.Module, masks: Masks, removed: Removed, example_input: Tensor) -> Sculpture:
    result = smaller(model, masks, removed, example_input)
    cost = costs(result, Masks({}), example_input)
    units = {name: left(group, gone) for group, gone in removed.items() for name in group.writers}
    return Sculpture(result, masks, units, cost.dense_parameters, cost.dense_flops)
