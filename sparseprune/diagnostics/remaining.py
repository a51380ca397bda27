"""What remains: tables of layers, heat maps of kernels and inputs, distributions of values and of links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import typed
from ..masks import BitMask, Masks

__all__ = [
    "Distribution",
    "RemainingRow",
    "connections",
    "input_pixels",
    "kernel_positions",
    "links",
    "remaining_table",
    "weight_distributions",
]


@dataclass(frozen=True)
class RemainingRow:
    """One layer: kept of total, the share of it that is pruned, and its share of all that remains."""

    name: str
    kept: int
    total: int
    pruned: float
    share: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@typed
def remaining_table(masks: Masks) -> list[RemainingRow]:
    """One row for each layer.

    >>> remaining_table(Masks({"a": torch.eye(2).bool(), "b": torch.ones(3, 2).bool()}))[0]
    RemainingRow(name='a', kept=2, total=4, pruned=0.5, share=0.25)
    """
    total = masks.count()
    return [
        RemainingRow(name, k := mask.count(), mask.numel(), 1 - mask.density, k / total if total else 0.0)
        for name, mask in masks.items()
    ]


@typed
def kernel_positions(mask: BitMask) -> Tensor:
    """The share of weights kept at each position of a kernel: (out, in, *kernel) -> kernel, float64.

    Raises:
        ValueError: the mask is not of a convolution.
    """
    if len(mask.shape) < 3:
        raise ValueError(f"mask must be of a convolution, (out, in, *kernel), got shape {tuple(mask.shape)}")
    return mask.to_bool().double().mean((0, 1))


@typed
def connections(mask: BitMask) -> Tensor:
    """The share of weights kept of each kernel, or each weight of a linear layer: (out, in, ...) -> [out, in], float64.

    Raises:
        ValueError: the mask has fewer than two dimensions.
    """
    if len(mask.shape) < 2:
        raise ValueError(f"mask must have at least two dimensions, (out, in, ...), got shape {tuple(mask.shape)}")
    return mask.to_bool().double().flatten(2).mean(2) if len(mask.shape) > 2 else mask.to_bool().double()


@typed
def input_pixels(mask: BitMask, image: Sequence[int]) -> Tensor:
    """The share of units that read each pixel of a flattened image: (out, prod(image)) -> image, float64.

    Args:
        mask: of the linear layer that reads the image.
        image: its shape, (C, H, W).

    Raises:
        ValueError: the layer has not as many inputs as the image has pixels.
    """
    size = torch.Size(image).numel()
    if len(mask.shape) != 2 or mask.shape[1] != size:
        raise ValueError(f"mask must have shape (out, {size}) to read {tuple(image)}, got {tuple(mask.shape)}")
    return mask.to_bool().double().mean(0).reshape(*image)


@typed
def links(mask: BitMask, groups: int = 1) -> tuple[Tensor, Tensor]:
    """How many weights each unit reads with, and how many read each input: int64 [out] and [in * groups].

    Raises:
        ValueError: the mask has fewer than two dimensions, or its rows do not split into ``groups``.
    """
    if len(mask.shape) < 2 or groups < 1 or mask.shape[0] % groups:
        raise ValueError(f"mask must be (out, in, ...) with out divisible by groups={groups}, got {tuple(mask.shape)}")
    kept = mask.to_bool().reshape(groups, mask.shape[0] // groups, mask.shape[1], -1).long()
    return kept.sum((2, 3)).flatten(), kept.sum((1, 3)).flatten()


@dataclass(frozen=True, eq=False)
class Distribution:
    """Values of one layer's weights.

    Attributes:
        edges: [bins + 1] from the smallest to the largest of all its weights.
        everything, kept: [bins] counts, of all its weights and of the kept ones.
        mean, std: of the kept ones; 0 where there are none.
        negative: the share of the kept ones that are below 0.
        quantiles: of the kept ones' magnitudes at 0, 1/4, 1/2, 3/4 and 1; empty where there are none.
    """

    edges: Tensor
    everything: Tensor
    kept: Tensor
    mean: float
    std: float
    negative: float
    quantiles: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Numbers and lists only."""
        return {
            "edges": self.edges.tolist(),
            "everything": self.everything.tolist(),
            "kept": self.kept.tolist(),
            "mean": self.mean,
            "std": self.std,
            "negative": self.negative,
            "quantiles": list(self.quantiles),
        }


@typed
def weight_distributions(model: nn.Module, masks: Masks, bins: int = 50) -> dict[str, Distribution]:
    """Histograms of every masked weight, all of it and what is kept.

    Args:
        model: with the weights to look at: before ``apply_`` to see what was pruned, after training to see what
            became of the rest.
        masks: parameter name -> BitMask.
        bins: how many.

    Raises:
        ValueError: a mask does not fit the model; ``bins`` is not positive; a kept weight is not finite.
    """
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise ValueError(f"bins must be a positive integer, got {bins!r}")
    return {
        name: _distribution(name, weight.detach().double().cpu().flatten(), masks[name].to_bool().cpu().flatten(), bins)
        for name, weight in masks.weights_of(model).items()
    }


def _distribution(name: str, values: Tensor, mask: Tensor, bins: int) -> Distribution:
    kept = values[mask]
    if not kept.isfinite().all():
        raise ValueError(f"kept weights must be finite, got {name!r} with one that is not")
    values = values[values.isfinite()]
    low, high = (values.min().item(), values.max().item()) if len(values) else (0.0, 0.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts = [torch.histc(part, bins, low, high).long() for part in (values, kept)]
    size = max(len(kept), 1)
    magnitudes = kept.abs().sort().values
    at = [round(q * (len(kept) - 1)) for q in (0, 0.25, 0.5, 0.75, 1)] if len(kept) else []
    return Distribution(
        torch.linspace(low, high, bins + 1, dtype=torch.float64),
        *counts,
        mean=kept.sum().item() / size,
        std=kept.std(correction=0).item() if len(kept) else 0.0,
        negative=(kept < 0).sum().item() / size,
        quantiles=tuple(magnitudes[at].tolist()),
    )
