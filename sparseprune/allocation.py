"""How much of each layer: the density of every layer, given that of the network.

An allocation is a function ``(shapes, density) -> {name: density}``, where ``shapes`` maps names to weight shapes.
The layers' densities, weighted by their sizes, average to the network's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from .arguments import typed

Shapes = Mapping[str, Sequence[int]]


@typed
def uniform(shapes: Shapes, density: float) -> dict[str, float]:
    """The network's density in every layer.

    Raises:
        ValueError: ``density`` is not in [0, 1].
    """
    _check(density)
    return dict.fromkeys(shapes, density)


@typed
def erk(shapes: Shapes, density: float) -> dict[str, float]:
    """Erdos-Renyi-Kernel: d_l = eps * sum(shape_l) / prod(shape_l), at most 1.

    eps is such that the network has the given density; layers that would exceed 1 are kept dense and what is left is
    spent on the others. Small layers come out denser than large ones.

    Raises:
        ValueError: ``density`` is not in [0, 1].

    Source: Evci et al. 2020, arXiv:1911.11134, section 3 (1); for linear layers Mocanu et al. 2018, arXiv:1707.04780.

    >>> d = erk({"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}, 0.1)
    >>> {name: round(value, 4) for name, value in d.items()}
    {'fc1': 0.0796, 'fc2': 0.2302, 'fc3': 1.0}
    """
    _check(density)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / sizes[name] if sizes[name] else 0.0 for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        budget = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
        weight = sum(raw[name] * sizes[name] for name in sizes if name not in dense)
        eps = budget / weight if weight else 0.0
        full = {name for name in sizes if name not in dense and eps * raw[name] > 1.0}
        if not full:
            return {name: 1.0 if name in dense else eps * raw[name] for name in sizes}
        dense |= full


def _check(density: float) -> None:
    if not 0 <= density <= 1:
        raise ValueError(f"density must be in [0, 1], got {density}")


def counts(
    densities: Mapping[str, float],
    sizes: Mapping[str, int],
    k: int,
    floors: Mapping[str, int],
    limits: Mapping[str, int],
) -> dict[str, int]:
    """Whole numbers of weights, ``k`` in all: each layer's ``density * size``, rounded by largest remainder.

    Args:
        densities, sizes: the allocation, and what its densities are of.
        k: the sum to reach, between those of the floors and of the limits.
        floors, limits: how few and how many each layer may keep.

    Ties go to the earlier layer, so the result is the same everywhere.
    """
    wanted = {n: min(max(densities[n] * sizes[n], floors[n]), limits[n]) for n in sizes}
    result = {n: math.floor(value) for n, value in wanted.items()}
    while left := k - sum(result.values()):  # what flooring, a floor or a limit left over
        step = 1 if left > 0 else -1
        room = {n: limits[n] - count if left > 0 else count - floors[n] for n, count in result.items()}
        movable = sorted((n for n in result if room[n]), key=lambda n: step * (result[n] - wanted[n]))
        share = max(1, abs(left) // len(movable))
        for n in movable[: abs(left)]:
            result[n] += step * min(share, room[n])
    return result
