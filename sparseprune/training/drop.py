"""Which weights dynamic sparse training drops: ``(topology, fraction) -> the masks of those that stay``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..masks import Masks
from ..ops.bitmask import BitMask, as_rows
from ..ops.submask import collect_values, keep_within
from ..ops.topk_mask import topk_mask


@dataclass
class Topology:
    """What the rules of an update look at.

    Attributes:
        weights: name -> values, zero at pruned slots.
        masks: which are live.
        gradients: name -> dense gradients, or their moving average; empty for methods that ask for none.
        generator: on the CPU, in the same state on every rank.
        lr: name -> the learning rate of the weight.
    """

    weights: Mapping[str, Tensor]
    masks: Masks
    gradients: dict[str, Tensor]
    generator: torch.Generator
    lr: dict[str, float] = field(default_factory=dict)


def share_of(fraction: float, count: int) -> int:
    """floor(fraction count), where 0.29 of 100 are 29 although the product is a little less."""
    return math.floor(fraction * count + 1e-9)


def smallest(topology: Topology, fraction: float) -> Masks:
    """Drop the floor(fraction n_l) smallest |w| of each layer's n_l live weights.

    Source: Evci et al. 2020, arXiv:1911.11134, section 3 (3).
    """
    kept = {}
    for name, mask in topology.masks.items():
        values = _live_values(topology, name)
        keep = len(values) - share_of(fraction, len(values))
        largest = topk_mask([values], keep, abs=True, names=[name]).masks[0]
        kept[name] = keep_within(mask, largest, backend="auto")
    return Masks(kept)


def smallest_per_sign(topology: Topology, fraction: float) -> Masks:
    """Of each layer drop that fraction of the smallest positive weights, and of the largest negative ones.

    Source: Mocanu et al. 2018, arXiv:1707.04780, algorithm 1 (SET).
    """
    kept = {}
    for name, mask in topology.masks.items():
        values = _live_values(topology, name)
        negative = BitMask.from_bool(values < 0)
        parts = []
        for part in (~negative, negative):
            live = part.count()
            keep = live - share_of(fraction, live)
            parts.append(topk_mask([values], keep, masks=[part], abs=True, names=[name]).masks[0])
        kept[name] = keep_within(mask, parts[0] | parts[1], backend="auto")
    return Masks(kept)


def _live_values(topology: Topology, name: str) -> Tensor:
    """(kept,): they alone are looked at, as they are few."""
    mask = topology.masks[name]
    return collect_values(topology.weights[name].reshape(as_rows(mask.shape)).contiguous(), mask)


@dataclass
class Threshold:
    """Drop every |w| < H, whatever the layer, and steer H so that about ``fraction`` of all live weights goes.

    Dropped more than ``fraction (1 + tolerance)``: H is halved for the next time; less than ``fraction (1 -
    tolerance)``: doubled.

    Source: Mostafa and Wang 2019, arXiv:1902.05967, algorithm 1.
    """

    value: float = 1e-3
    tolerance: float = 0.1

    def __call__(self, topology: Topology, fraction: float) -> Masks:
        kept = {
            name: mask & BitMask.from_bool(topology.weights[name].abs() >= self.value)
            for name, mask in topology.masks.items()
        }
        kept = Masks(kept)
        live = topology.masks.count()
        self.steer((live - kept.count()) / live if live else fraction, fraction)
        return kept

    def steer(self, dropped: float, fraction: float) -> None:
        """Choose the next H, after this share was dropped."""
        if dropped > fraction * (1 + self.tolerance):
            self.value /= 2
        elif dropped < fraction * (1 - self.tolerance):
            self.value *= 2
