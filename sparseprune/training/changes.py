"""What becomes of the weights that a mask removes (Zhou et al.)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..arguments import typed
from ..masks import Masks


@typed
def removed_values(
    initial: Mapping[str, Tensor], final: Mapping[str, Tensor], masks: Masks, action: str
) -> dict[str, Tensor]:
    """Weights to go on with: survivors at their initial value, removed ones by ``action``.

        "zero"; "initial" (frozen at w0); "zero if shrinking" (0 where |w| < |w0|, else frozen at w0)

    Removed weights that are not zero have to be frozen by the caller: sparse layers never read them.

    Raises:
        ValueError: an unknown action, or a weight is missing or of another shape than its mask.

    Source: Zhou et al. 2019, arXiv:1905.01067, section 4.
    """
    actions = ("zero", "initial", "zero if shrinking")
    if action not in actions:
        raise ValueError(f"action must be one of {', '.join(actions)}, got {action!r}")
    for argument, weights in (("initial", initial), ("final", final)):
        if missing := [n for n, m in masks.items() if n not in weights or weights[n].shape != m.shape]:
            raise ValueError(f"{argument} must have a weight of its mask's shape for each mask, got none for {missing}")
    values = {}
    for name, mask in masks.items():
        before, after = initial[name].detach(), final[name].detach()
        kept = {
            "zero": torch.zeros_like(before),
            "initial": before,
            "zero if shrinking": torch.where(after.abs() < before.abs(), 0, before),
        }[action]
        values[name] = torch.where(mask.to_bool(), before, kept)
    return values
