"""Where a run stands, what it must be resumed with, and the way between both and a checkpoint."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Dataset
from ..nn import SparseLayer
from .history import History
from .method import Method
from .random_state import random_state, set_random_state


@dataclass
class Position:
    """``epoch`` epochs are done, and ``step`` batches of the next, with ``loss_sum`` so far, in ``seconds``."""

    epoch: int = 0
    step: int = 0
    loss_sum: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    seconds: float = 0.0
    history: History = field(default_factory=History)


def identity(model: nn.Module, dataset: Dataset) -> dict[str, str]:
    """The model's shapes, its masks and the data set, as strings that differ where they do."""
    shapes = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):  # not what a module adds of its own
            shapes.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
    masks, kept, total = hashlib.sha256(), 0, 0
    for name, layer in model.named_modules():
        if isinstance(layer, SparseLayer):
            masks.update(name.encode() + layer.weight_mask.cpu().numpy().tobytes())
            kept, total = kept + layer.mask.count(), total + layer.mask.numel()
    return {
        "model": f"{type(model).__name__} ({shapes.hexdigest()[:12]})",
        "masks": f"{kept:,} of {total:,} kept ({masks.hexdigest()[:12]})" if total else "none",
        "dataset": f"{dataset.name}, {dataset.count('train')} + {dataset.count('test')} samples",
    }


def check_config(saved: Mapping[str, Any], config: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Raise ValueError naming the first field in which a run differs from its checkpoint."""
    # What a run is about comes first: another data set may well imply another learning rate.
    for name in sorted(config, key=lambda name: name not in ("model", "masks", "dataset")):
        if saved.get(name) != config[name]:
            raise ValueError(f"{name} must be {saved.get(name)!r} as in the checkpoint {path}, got {config[name]!r}")


def snapshot(
    config: Mapping[str, Any],
    position: Position,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: Method | None,
) -> dict[str, Any]:
    """What ``save_checkpoint`` takes; no scheduler's state: the learning rate is a function of the position."""
    return {
        "config": dict(config),
        "epoch": position.epoch,
        "step": position.step,
        "loss_sum": position.loss_sum.cpu(),
        "seconds": position.seconds,
        "history": position.history.to_list(),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "method": None if method is None else method.state_dict(),
        "random": random_state(),
    }


def restore(
    saved: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, method: Method | None
) -> Position:
    """The inverse of ``snapshot``; the configuration has been checked, so that everything fits."""
    history = History.from_list(saved["history"])
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    if method is not None:
        method.load_state_dict(saved["method"])
    set_random_state(saved["random"])
    return Position(saved["epoch"], saved["step"], saved["loss_sum"], saved["seconds"], history)
