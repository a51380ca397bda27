"""How many weights each layer gets back: ``(topology, masks after the drop) -> counts``, in all as many as were dropped.

Shares are rounded by largest remainder; what a layer has no free slot for goes to the others.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..allocation import counts
from ..masks import Masks
from ..ops.bitmask import as_rows
from ..ops.submask import collect_values
from .drop import Topology


def in_place(topology: Topology, masks: Masks) -> dict[str, int]:
    """Every layer as many as it lost."""
    before, after = topology.masks.counts(), masks.counts()
    return {name: before[name] - after[name] for name in before}


def by_survivors(topology: Topology, masks: Masks) -> dict[str, int]:
    """In proportion to the weights that survived in the layer.

    Source: Mostafa and Wang 2019, arXiv:1902.05967, section 3.
    """
    return _shared(topology, masks, masks.counts())


def by_momentum(topology: Topology, masks: Masks) -> dict[str, int]:
    """In proportion to the mean |momentum| of the layer's surviving weights.

    Source: Dettmers and Zettlemoyer 2019, arXiv:1907.04840, section 3.
    """
    shares = {}
    for name, mask in masks.items():
        values = collect_values(topology.gradients[name].view(as_rows(mask.shape)), mask)
        total = values.double().abs().sum()
        shares[name] = float(total / max(mask.count(), 1))
    return _shared(topology, masks, shares)


def _shared(topology: Topology, masks: Masks, shares: Mapping[str, float]) -> dict[str, int]:
    total = topology.masks.count() - masks.count()
    whole = sum(shares.values())
    parts = {name: share / whole if whole else 1 / len(shares) for name, share in shares.items()}
    free = {name: mask.numel() - mask.count() for name, mask in masks.items()}
    return counts(parts, dict.fromkeys(parts, total), total, dict.fromkeys(parts, 0), free)
