"""How good a model is on a split: mean cross entropy and share of wrong answers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import typed
from ..data import Dataset
from .batches import read_batches


@typed
def evaluate(
    model: nn.Module,
    dataset: Dataset,
    split: str = "test",
    *,
    batch_size: int = 512,
    stop: Callable[[], bool] | None = None,
) -> tuple[float, float] | None:
    """Evaluate in eval mode; the model's mode is put back.

    Args:
        model: takes x (N, C, H, W) in its own dtype and returns logits (N, classes).
        dataset: whose split to use.
        split: "test" or "train".
        batch_size: samples at a time; changes only speed and memory.
        stop: asked after every batch; True ends the evaluation.

    Returns:
        (mean cross entropy, error in [0, 1]), or None if stopped.

    Raises:
        ValueError: an unknown split, or one without samples.
    """
    count = dataset.count(split)
    if count == 0:
        raise ValueError(f"split must have samples, got {split!r} of {dataset.name} without any")
    parameter = next(model.parameters())
    loss = torch.zeros((), dtype=torch.float64, device=parameter.device)
    wrong = torch.zeros((), dtype=torch.int64, device=parameter.device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for x, y in read_batches(dataset.split(split), list(torch.arange(count).split(batch_size))):
                x, y = to_model(x, y, parameter)
                logits = model(x)
                loss += F.cross_entropy(logits, y, reduction="sum").double()
                wrong += (logits.argmax(1) != y).sum()
                if stop is not None and stop():
                    return None
    finally:
        model.train(was_training)
    return loss.item() / count, wrong.item() / count


def to_model(x: Tensor, y: Tensor, parameter: nn.Parameter) -> tuple[Tensor, Tensor]:
    """A batch on the parameter's device, images in its dtype."""
    return x.to(parameter.device, parameter.dtype, non_blocking=True), y.to(parameter.device, non_blocking=True)
