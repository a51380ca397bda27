"""What a training run measured, epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Epoch:
    """One epoch.

    Attributes:
        epoch: its number, from 1.
        train_loss: mean loss over the epoch's training samples, each at the weights it met.
        test_loss: mean loss over the test set after the epoch.
        test_error: share of the test set classified wrongly, in [0, 1].
        lr: the learning rate of the epoch's last step.
        seconds: wall-clock time of training and evaluation, over all processes that worked on the epoch.
    """

    epoch: int
    train_loss: float
    test_loss: float
    test_error: float
    lr: float
    seconds: float


@dataclass
class History:
    """The epochs of a run, in order."""

    epochs: list[Epoch] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.epochs)

    def __iter__(self) -> Iterator[Epoch]:
        return iter(self.epochs)

    def __getitem__(self, index: int) -> Epoch:
        return self.epochs[index]

    @property
    def best(self) -> Epoch:
        """The first epoch with the lowest test error.

        Raises:
            ValueError: no epoch has been trained.
        """
        if not self.epochs:
            raise ValueError("best must be asked of a history with at least one epoch, got none")
        return min(self.epochs, key=lambda epoch: epoch.test_error)

    def to_list(self) -> list[dict[str, Any]]:
        """The epochs as dictionaries, for JSON and checkpoints."""
        return [asdict(epoch) for epoch in self.epochs]

    @classmethod
    def from_list(cls, rows: Sequence[Mapping[str, Any]]) -> History:
        """The inverse of ``to_list``.

        Raises:
            ValueError: a row lacks a field, has an unknown one, or holds something else than numbers.
        """
        names = [f.name for f in fields(Epoch)]
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, Mapping) or set(row) != set(names):
                got = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
                raise ValueError(f"epoch {number} must have the fields {', '.join(names)}, got {got}")
            if wrong := [name for name in names if not isinstance(row[name], int | float)]:
                raise ValueError(f"epoch {number} must hold numbers, got {row[wrong[0]]!r} as {wrong[0]}")
        return cls([Epoch(**row) for row in rows])
