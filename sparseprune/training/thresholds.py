"""Masks by a threshold of each layer's own, and by whole units."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..arguments import typed
from ..masks import Masks
from ..nn.storage import write_weight
from ..ops.bitmask import BitMask

RULES = ("mean", "std", "around mean")


@typed
def threshold_masks(weights: Mapping[str, Tensor], rule: str, factor: float, masks: Masks | None = None) -> Masks:
    """Keep the weights that reach a threshold of their layer, which its live weights set.

        "mean"         |w| >= factor mean |w|
        "std"          |w| >= factor std(w)
        "around mean"  |w - mean w| >= factor std(w): weights around the layer's mean go, not the smallest

    The standard deviation divides by n.

    Args:
        weights: name -> values.
        rule: one of the above.
        factor: not negative.
        masks: the live weights; all, where it is None. Pruned ones stay pruned.

    Returns:
        Masks by name; how many are kept is up to the weights.

    Raises:
        ValueError: an unknown rule, or a factor that is negative.

    Sources: Han et al. 2015, arXiv:1506.02626, section 3 ("std").

    >>> weights = {"w": torch.tensor([1.0, 1.1, 0.9, 0.05, 2.0, -0.1])}
    >>> threshold_masks(weights, "mean", 0.5)["w"].to_bool().int().tolist()
    [1, 1, 1, 0, 1, 0]
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
    if not 0 <= factor < math.inf:
        raise ValueError(f"factor must be a finite number >= 0, got {factor!r}")
    masks = Masks.ones(weights) if masks is None else masks
    kept = {}
    for name, mask in masks.items():
        weight = weights[name].detach()
        live = weight[mask.to_bool()].double()
        if not live.numel():
            kept[name] = mask
            continue
        threshold = factor * (live.abs().mean() if rule == "mean" else live.std(correction=0))
        distance = (weight.double() - live.mean() if rule == "around mean" else weight.double()).abs()
        kept[name] = mask & BitMask.from_bool(distance >= threshold)
    return Masks(kept)


def incoming_sums(weight: Tensor, p: int = 1) -> Tensor:
    """S_i = sum_j |w_ij|^p of every unit (row, output channel) of a weight.

    Source: Hagiwara 1994, Neurocomputing 6 ("weights power").
    """
    return weight.detach().flatten(1).abs().pow(p).sum(1)


@typed
@torch.no_grad()
def remove_weak_units(
    layer: nn.Linear, following: nn.Linear, factor: float, activation: nn.Module
) -> tuple[Masks, Tensor]:
    """Prune the hidden units whose incoming sum of |w| is below ``factor`` times the layer's mean.

    A unit is removed whole: its incoming weights, its outgoing ones, and its bias, which becomes zero. What a unit
    without input gives, f(bias), is added to the bias of ``following`` through its outgoing weights, so removing a
    unit that had no live input changes no output.

    Args:
        layer, following: linear layers with only ``activation`` in between; ``following`` has a bias.
        factor: of the mean sum; not negative.
        activation: f, entry by entry.

    Returns:
        (masks named "layer" and "following", to be combined with those held by ``&``; bool [units], True = removed).

    Raises:
        ValueError: the factor is negative, the layers do not fit each other, or ``following`` has no bias.

    Source: Hagiwara 1994, Neurocomputing 6.
    """
    if not 0 <= factor < math.inf:
        raise ValueError(f"factor must be a finite number >= 0, got {factor}")
    if following.in_features != layer.out_features or following.bias is None:
        raise ValueError(
            f"following must take the {layer.out_features} units and have a bias, got {following.in_features} inputs"
            f"{'' if following.bias is None else ' and a bias'}"
        )
    weight, reading = layer.weight.clone(), following.weight.clone()
    sums = incoming_sums(weight)
    removed = sums < factor * sums.mean()
    constant = torch.zeros_like(sums) if layer.bias is None else layer.bias
    following.bias += reading @ torch.where(removed, activation(constant), 0)
    weight[removed] = 0
    reading[:, removed] = 0
    write_weight(layer, weight)
    write_weight(following, reading)
    if layer.bias is not None:
        layer.bias[removed] = 0
    masks = {
        "layer": (~removed)[:, None].expand_as(weight),
        "following": (~removed)[None].expand_as(reading),
    }
    return Masks(masks), removed
