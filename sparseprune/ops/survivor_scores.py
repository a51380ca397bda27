"""SurvivorScores: the scores of the weights that are left of a layer, and of no other slot."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .bitmask import BitMask


@dataclass(frozen=True, eq=False)
class SurvivorScores:
    """Scores of the slots that a mask keeps.

    ``topk_mask`` takes it where it takes a tensor. Given the same masks it reads ``values`` alone, so that selection
    costs less the fewer weights are left; ties go to the lowest flat index as ever.

    Args:
        values: [kept], floating, in the order of the weight's flat indices.
        mask: which slots they are of.

    Raises:
        ValueError: there are not as many values as the mask keeps.

    >>> scores = SurvivorScores(torch.tensor([5.0, 7.0]), BitMask.from_bool(torch.tensor([[True, False, True]])))
    >>> scores.tensor()
    tensor([[5., 0., 7.]])
    """

    values: Tensor
    mask: BitMask

    def __post_init__(self) -> None:
        if self.values.shape != (self.mask.count(),):
            raise ValueError(
                f"values must have shape ({self.mask.count()},), one for each slot kept, got {tuple(self.values.shape)}"
            )

    @classmethod
    def _trusted(cls, values: Tensor, mask: BitMask) -> SurvivorScores:
        """Values that are known to be as many as the mask keeps: nothing is counted."""
        scores = object.__new__(cls)
        object.__setattr__(scores, "values", values)
        object.__setattr__(scores, "mask", mask)
        return scores

    @property
    def shape(self) -> torch.Size:
        return self.mask.shape

    @property
    def device(self) -> torch.device:
        return self.values.device

    def tensor(self) -> Tensor:
        """The scores of all slots, zero where nothing is left."""
        kept = self.mask.to_bool()
        return self.values.new_zeros(self.shape).masked_scatter_(kept, self.values)
