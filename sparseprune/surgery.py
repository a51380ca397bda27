"""compensate(): prune and let the weights that stay make up for those that go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import typed
from .masks import Masks
from .prunable import Exclude, check_model
from .pruning import _unchanged
from .runs import target


@dataclass(frozen=True, eq=False)
class Compensated:
    """What :func:`compensate` found.

    Attributes:
        masks: which weights stay.
        weights: the values of all prunable weights then, by name; zero where pruned.
    """

    masks: Masks
    weights: dict[str, Tensor] = field(repr=False)

    def apply_(self, model: nn.Module) -> nn.Module:
        """Write the new values into the model's weights, and return it.

        Raises:
            ValueError: a weight is missing or of another shape; then nothing was written.
        """
        params = dict(model.named_parameters())
        for name, value in self.weights.items():
            if name not in params or params[name].shape != value.shape:
                got = tuple(params[name].shape) if name in params else "none"
                raise ValueError(f"model must have a weight {name!r} of shape {tuple(value.shape)}, got {got}")
        with torch.no_grad():
            for name, value in self.weights.items():
                params[name].copy_(value)
        return model


@typed
def compensate(
    model: nn.Module,
    criterion: Any,
    *,
    sparsity: float | None = None,
    density: float | None = None,
    keep: int | None = None,
    exclude: Exclude | Iterable[Exclude] = (),
) -> Compensated:
    """Choose which weights to keep, and what they must become; the model itself is not changed.

    Args:
        model: any module; its linear and convolution weights are prunable.
        criterion: one that has ``compensated(model, params, keep)``: :class:`OBS`.
        sparsity, density, keep, exclude: as for ``prune``.

    Returns:
        Masks and weights; ``.apply_(model)`` writes the weights.

    Raises:
        TypeError, ValueError: an argument is wrong. The model is as before, then as after success.

    >>> model = nn.Linear(4, 2)
    >>> batch = (torch.randn(8, 4), torch.randn(8, 2))
    >>> from sparseprune import OBS
    >>> result = compensate(model, OBS(torch.nn.functional.mse_loss, [batch]), density=0.5)
    >>> result.apply_(model).weight.count_nonzero().item(), result.masks.count()
    (4, 4)
    """
    if not hasattr(criterion, "compensated"):
        raise TypeError(f"criterion must be one that compensates (OBS), got {type(criterion).__name__}")
    params = check_model(model, exclude)
    total = sum(p.numel() for p in params.values())
    with _unchanged(model):
        return Compensated(*criterion.compensated(model, params, target(sparsity, density, keep, total, total)))
