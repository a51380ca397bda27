"""Where dynamic sparse training grows: ``(topology, masks, counts) -> the masks with as many weights more``.

``masks`` are what the drop left, so a weight that was dropped a moment ago competes like any other pruned one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..masks import Masks
from ..ops.products import Product
from ..ops.topk_mask import topk_mask
from .drop import Topology


def at_random(topology: Topology, masks: Masks, counts: Mapping[str, int]) -> Masks:
    """Any pruned slots, uniformly, without repetition.

    Source: Mocanu et al. 2018, arXiv:1707.04780, algorithm 1.
    """
    draws = {
        # float64, so that two draws are hardly ever equal: the lower index would win
        name: torch.rand(masks[name].shape, generator=topology.generator, dtype=torch.float64).to(masks[name].device)
        for name in masks
        if counts[name]
    }
    return _grow(draws, masks, counts)


def by_gradient(topology: Topology, masks: Masks, counts: Mapping[str, int]) -> Masks:
    """The pruned slots of each layer where |dense gradient| is largest.

    Source: Evci et al. 2020, arXiv:1911.11134, section 3 (4); with a moving average instead of one gradient, Dettmers
    and Zettlemoyer 2019, arXiv:1907.04840, section 3.
    """
    return _grow(topology.gradients, masks, counts)


def _grow(scores: Mapping[str, Tensor], masks: Masks, counts: Mapping[str, int]) -> Masks:
    grown = {}
    for name, mask in masks.items():
        if not counts[name]:
            grown[name] = mask
            continue
        score = Product(scores[name], None, "|w|")
        grown[name] = mask | topk_mask([score], counts[name], masks=[~mask], names=[name]).masks[0]
    return Masks(grown)
