"""Scores of how weights changed in training, and what becomes of those that are removed (Zhou et al.)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..masks import Masks

RULES = ("large final", "small final", "large initial", "small initial", "magnitude increase", "movement")


def change_scores(
    initial: Mapping[str, Tensor], final: Mapping[str, Tensor], rule: str, *, same_sign: bool = False
) -> dict[str, Tensor]:
    """Scores for ``prune``, higher = keep, from the weights before and after training, w0 and w.

        "large final" |w|    "small final" -|w|    "large initial" |w0|    "small initial" -|w0|
        "magnitude increase" |w| - |w0|            "movement" |w - w0|

    With ``same_sign`` a weight whose sign changed ranks below all whose sign did not, the largest |w| first.

    Returns:
        Name -> scores; ``prune(model, lambda model, params: scores, ...)`` takes them.

    Raises:
        ValueError: an unknown rule, or names differ.

    Source: Zhou et al. 2019, arXiv:1905.01067, section 2 and figure 3.

    >>> w0, w = {"w": torch.tensor([1.0, -1.0, 0.5])}, {"w": torch.tensor([0.25, -2.0, -0.5])}
    >>> change_scores(w0, w, "magnitude increase")["w"]
    tensor([-0.7500,  1.0000,  0.0000])
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
    if set(initial) != set(final):
        raise ValueError(
            f"initial and final must have one set of names, only one has {sorted(set(initial) ^ set(final))}"
        )
    scores = {}
    for name in final:
        before, after = initial[name].detach(), final[name].detach()
        score = {
            "large final": after.abs(),
            "small final": -after.abs(),
            "large initial": before.abs(),
            "small initial": -before.abs(),
            "magnitude increase": after.abs() - before.abs(),
            "movement": (after - before).abs(),
        }[rule]
        if same_sign:
            # Below the least of the others: the lowest score here less how far |w| is from the largest one.
            below = score.min() - 1 - (after.abs().max() - after.abs())
            score = torch.where(after.sign() == before.sign(), score, below)
        scores[name] = score
    return scores


def removed_values(
    initial: Mapping[str, Tensor], final: Mapping[str, Tensor], masks: Masks, action: str
) -> dict[str, Tensor]:
    """Weights to go on with: survivors at their initial value, removed ones by ``action``.

        "zero"; "initial" (frozen at w0); "zero if shrinking" (0 where |w| < |w0|, else frozen at w0)

    Removed weights that are not zero have to be frozen by the caller: sparse layers never read them.

    Raises:
        ValueError: an unknown action.

    Source: Zhou et al. 2019, arXiv:1905.01067, section 4.
    """
    actions = ("zero", "initial", "zero if shrinking")
    if action not in actions:
        raise ValueError(f"action must be one of {', '.join(actions)}, got {action!r}")
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
