"""The numbers of a training run, checked once, and the learning rate they imply.

cosine:   lr / 2 * (1 + cos(pi * t / epochs))        t = epochs done, in fractions of an epoch
step:     lr * gamma ** (number of milestones <= t)
constant: lr
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "step", "constant")


@dataclass(frozen=True)
class Settings:
    """How to train; the arguments of ``train`` of the same names.

    Raises:
        ValueError: a number is out of range, or a name is not one of the choices.
    """

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    optimizer: str
    schedule: str
    milestones: tuple[int, ...]
    gamma: float
    seed: int

    def __post_init__(self) -> None:
        for name, lowest in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
                raise ValueError(f"{name} must be an integer >= {lowest}, got {value!r}")
        for name in ("lr", "gamma"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be a finite number > 0, got {value!r}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum!r}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be a finite number >= 0, got {self.weight_decay!r}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if bool(self.milestones) != (self.schedule == "step"):
            raise ValueError(
                f"milestones must be given with schedule 'step' and only there, "
                f"got {list(self.milestones)} with schedule {self.schedule!r}"
            )
        if list(self.milestones) != sorted(set(self.milestones)) or any(m < 1 for m in self.milestones):
            raise ValueError(f"milestones must be increasing epochs >= 1, got {list(self.milestones)}")

    def learning_rate(self, progress: float) -> float:
        """The learning rate after ``progress`` epochs, a number in [0, epochs)."""
        if self.schedule == "cosine":
            return self.lr / 2 * (1 + math.cos(math.pi * progress / self.epochs))
        if self.schedule == "step":
            return self.lr * self.gamma ** sum(milestone <= progress for milestone in self.milestones)
        return self.lr

    def make_optimizer(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """A fresh optimizer over ``parameters``; momentum is SGD's."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, self.lr, weight_decay=self.weight_decay)
