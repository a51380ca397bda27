"""Where dynamic sparse training grows: ``(topology, masks, counts) -> the masks with as many weights more``.

``masks`` are what the drop left, so a weight that was dropped a moment ago competes like any other pruned one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..masks import Masks
from ..ops.bitmask import BitMask
from ..ops.products import Product
from ..ops.submask import keep_within
from ..ops.topk_mask import topk_mask
from .drop import Topology


def at_random(topology: Topology, masks: Masks, counts: Mapping[str, int]) -> Masks:
    """Any pruned slots, uniformly, without repetition.

    Source: Mocanu et al. 2018, arXiv:1707.04780, algorithm 1.
    """
    grown = {}
    for name, mask in masks.items():
        grown[name] = mask
        if counts[name]:
            free = (~mask).to("cpu")
            chosen = keep_within(free, _subset(counts[name], free.count(), topology.generator, name), backend="auto")
            grown[name] = mask | chosen.to(mask.device)
    return Masks(grown)


def _subset(count: int, size: int, generator: torch.Generator, name: str) -> BitMask:
    """``count`` of ``size`` places, each set of them as likely as any other.

    As many places as are missing are drawn, until none is, so what is drawn is the first ``count`` different ones of a
    sequence. Of the smaller side, so that half of a draw's places are new at least.
    """
    if count > size:
        raise ValueError(f"counts[{name!r}] must be at most the {size} slots that are free, got {count}")
    drawn, subset = torch.zeros(size, dtype=torch.bool), BitMask.zeros((size,))
    missing = fewer = min(count, size - count)
    while missing:
        # float64, as an integer's remainder would not be uniform
        places = torch.rand(missing, generator=generator, dtype=torch.float64).mul_(size).long()
        drawn[places] = True
        subset = BitMask.from_bool(drawn)
        missing = fewer - subset.count()
    return subset if fewer == count else ~subset


def by_gradient(topology: Topology, masks: Masks, counts: Mapping[str, int]) -> Masks:
    """The pruned slots of each layer where |dense gradient| is largest.

    Source: Evci et al. 2020, arXiv:1911.11134, section 3 (4); with a moving average instead of one gradient, Dettmers
    and Zettlemoyer 2019, arXiv:1907.04840, section 3.
    """
    grown = {}
    for name, mask in masks.items():
        if not counts[name]:
            grown[name] = mask
            continue
        score = Product(topology.gradients[name], None, "|w|")
        grown[name] = mask | topk_mask([score], counts[name], masks=[~mask], names=[name]).masks[0]
    return Masks(grown)
