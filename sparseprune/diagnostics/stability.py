"""Do masks of several seeds agree, weight by weight or only in how much of each layer they keep?"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ..allocation import Shapes
from ..arguments import typed
from ..criteria import Random
from ..masks import Masks
from ..patterns import LayerWise
from ..pruning import Exclude, prune

__all__ = ["Stability", "jaccard", "layer_shares", "masks_from_shares", "stability"]


@typed
def jaccard(a: Masks, b: Masks) -> dict[str, float]:
    """``|a and b| / |a or b|`` of every layer; 1 where both keep nothing.

    Raises:
        ValueError: the masks have other names or shapes.

    >>> one, other = (Masks({"w": torch.tensor([[True, x, not x]])}) for x in (True, False))
    >>> jaccard(one, other)
    {'w': 0.3333333333333333}
    """
    both, either = (a & b).counts(), (a | b).counts()
    return {name: _ratio(both[name], either[name]) for name in both}


@typed
def layer_shares(masks: Masks) -> dict[str, float]:
    """Of all kept weights, the part that each layer has; the shares sum to 1."""
    total = masks.count()
    return {name: count / total if total else 0.0 for name, count in masks.counts().items()}


@dataclass(frozen=True, eq=False)
class Stability:
    """Agreement of n masks.

    Attributes:
        matrix: [n, n] Jaccard index of each two, over all weights.
        layers: name -> mean Jaccard index over the pairs.
        chance: what the mean would be if masks with the same layer densities were drawn at random.
        shares: name -> [n] layer shares.
    """

    matrix: Tensor
    layers: dict[str, float]
    chance: float
    shares: dict[str, Tensor]

    @property
    def mean(self) -> float:
        """Over the pairs."""
        return _pairs(self.matrix).mean().item()

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings and lists only."""
        shares = {
            name: {"mean": s.mean().item(), "std": s.std(correction=0).item(), "values": s.tolist()}
            for name, s in self.shares.items()
        }
        return {
            "mean": self.mean,
            "chance": self.chance,
            "matrix": self.matrix.tolist(),
            "layers": self.layers,
            "shares": shares,
        }


@typed
def stability(masks: Sequence[Masks]) -> Stability:
    """Compare masks of one network, made with several seeds, batches or criteria.

    Shares that agree while the index is near ``chance`` say that a method finds how much of each layer to keep, not
    which weights: then :func:`masks_from_shares` does as well.

    Args:
        masks: at least two, with the same names and shapes.

    Raises:
        ValueError: fewer than two, or masks that differ in names or shapes.
    """
    masks = list(masks)
    if len(masks) < 2:
        raise ValueError(f"masks must be at least two, got {len(masks)}")
    n, names = len(masks), list(masks[0])
    matrix = torch.ones(n, n, dtype=torch.float64)
    chances = torch.ones(n, n, dtype=torch.float64)
    layers = {name: torch.ones(n, n, dtype=torch.float64) for name in names}
    for i in range(n):
        for j in range(i):
            both, either = masks[i] & masks[j], masks[i] | masks[j]
            matrix[i, j] = matrix[j, i] = _ratio(both.count(), either.count())
            chances[i, j] = chances[j, i] = _chance(masks[i], masks[j])
            for name in names:
                layers[name][i, j] = layers[name][j, i] = _ratio(both[name].count(), either[name].count())
    shares = [layer_shares(m) for m in masks]
    return Stability(
        matrix,
        {name: _pairs(of_layer).mean().item() for name, of_layer in layers.items()},
        _pairs(chances).mean().item(),
        {name: torch.tensor([s[name] for s in shares], dtype=torch.float64) for name in names},
    )


@typed
def masks_from_shares(
    model: nn.Module,
    shares: Mapping[str, float],
    *,
    generator: Generator | None = None,
    exclude: Exclude | Collection[Exclude] = (),
    **target: Any,
) -> Masks:
    """A rule of thumb made a mask: random weights, as many of each layer as its share says.

    A layer that is smaller than its share is kept whole and the rest goes to the others; the total is exact.

    Args:
        model: any module.
        shares: name -> part of the kept weights, not negative; only the ratios matter.
        generator: as for ``Random``.
        exclude, target: ``sparsity``, ``density`` or ``keep`` as for :func:`sparseprune.prune`.

    Raises:
        ValueError: shares that are not those of the prunable weights, are negative, not finite or all zero; what
            ``prune`` raises.

    >>> masks_from_shares(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), {"0.weight": 3, "1.weight": 1}, keep=8).counts()
    {'0.weight': 6, '1.weight': 2}
    """
    values = torch.tensor([float(share) for share in shares.values()], dtype=torch.float64)
    if not values.isfinite().all() or (values < 0).any() or not values.sum() > 0:
        raise ValueError(f"shares must be finite, not negative and not all zero, got {dict(shares)}")
    total = values.sum().item()

    def allocation(shapes: Shapes, density: float) -> dict[str, float]:
        sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
        if set(shares) != set(sizes):
            raise ValueError(f"shares must be those of the prunable weights {list(sizes)}, got {list(shares)}")
        kept = density * sum(sizes.values())
        return {name: shares[name] / total * kept / size if size else 0.0 for name, size in sizes.items()}

    return prune(model, Random(generator), pattern=LayerWise(allocation), exclude=exclude, **target)


def _pairs(matrix: Tensor) -> Tensor:
    rows, columns = torch.tril_indices(*matrix.shape, offset=-1)
    return matrix[rows, columns]


def _ratio(both: int, either: int) -> float:
    return both / either if either else 1.0


def _chance(a: Masks, b: Masks) -> float:
    """Expected ``|a and b|`` over expected ``|a or b|``, by layer: k_a k_b / n weights are in both."""
    both = sum(a[n].count() * b[n].count() / max(a[n].numel(), 1) for n in a)
    return _ratio(both, a.count() + b.count() - both)
