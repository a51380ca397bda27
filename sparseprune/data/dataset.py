"""A classification data set, normalised, with its splits: x = (pixel / 255 - mean) / std for each channel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from ..arguments import typed

Split = tuple[Tensor, Tensor] | torch.utils.data.Dataset


@dataclass(frozen=True)
class Batches:
    """The batches of one split; every iteration draws a new order from the generator, if there is one."""

    split: Split = field(repr=False)
    batch_size: int
    generator: Generator | None = None
    drop_last: bool = False

    def __len__(self) -> int:
        full, rest = divmod(_length(self.split), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = _length(self.split)
        order = torch.arange(count) if self.generator is None else _permutation(count, self.generator)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield _take(self.split, order[start : start + self.batch_size])


@dataclass(frozen=True)
class Dataset:
    """Images and labels for training and testing.

    Attributes:
        name: what it was loaded as.
        train, test: (x [N, C, H, W] float32, y [N] int64), or a torch Dataset of (x [C, H, W], y) with all
            labels in ``targets`` [N].
        classes: the name of each label.
        input_shape: (C, H, W) of one image.
        mean, std: what was subtracted from and what divided each channel of pixels in [0, 1].
    """

    name: str
    train: Split = field(repr=False)
    test: Split = field(repr=False)
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def split(self, name: str) -> Split:
        """Returns the split called ``train`` or ``test``."""
        if name not in ("train", "test"):
            raise ValueError(f"split must be train or test, got {name!r}")
        return self.train if name == "train" else self.test

    def count(self, split: str) -> int:
        """Returns the number of images in a split."""
        return _length(self.split(split))

    @typed
    def batches(
        self, split: str, batch_size: int, generator: Generator | None = None, drop_last: bool = False
    ) -> Batches:
        """Returns the batches (x [B, C, H, W] float32, y [B] int64) of a split.

        Args:
            split: ``train`` or ``test``.
            batch_size: images in a batch; the last batch has the rest.
            generator: draws a new order at each iteration; None keeps the order of the files.
            drop_last: leave out a last batch with fewer images.

        Raises:
            ValueError: an unknown split, or a batch size that is not a positive integer.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}")
        return Batches(self.split(split), batch_size, generator, drop_last)

    @typed
    def balanced(self, per_class: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Returns the same number of training images of every class: what SNIP and GraSP score with.

        The classes alternate, so that any chunk of the result is balanced too.

        Args:
            per_class: images of each class.
            generator: chooses the images; None takes the first ones.

        Returns:
            x [per_class * classes, C, H, W] float32 and y [per_class * classes] int64 = 0, 1, ..., 0, 1, ...

        Raises:
            ValueError: ``per_class`` is not a positive integer or more than the smallest class has.
        """
        if isinstance(per_class, bool) or not isinstance(per_class, int) or per_class < 1:
            raise ValueError(f"per_class must be a positive integer, got {per_class!r}")
        labels = self.train[1] if isinstance(self.train, tuple) else self.train.targets
        chosen = []
        for label, name in enumerate(self.classes):
            members = (labels == label).nonzero().flatten()
            if len(members) < per_class:
                raise ValueError(
                    f"per_class must be at most {len(members)}, the training images of class {name!r}, got {per_class}"
                )
            if generator is not None:
                members = members[_permutation(len(members), generator)]
            chosen.append(members[:per_class])
        return _take(self.train, torch.stack(chosen, dim=1).flatten())


def normalised(
    name: str,
    classes: tuple[str, ...],
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    scale: int = 255,
) -> Dataset:
    """Makes a Dataset of raw pixels, with the mean and (population) deviation of the training images.

    Args:
        name, classes: as in Dataset.
        train, test: (pixels [N, C, H, W] uint8, y [N] int64).
        scale: the pixel value that becomes 1.
    """
    levels = torch.arange(256, dtype=torch.float64) / scale
    # From counts of the 256 levels: exact, so the same bits for any number of threads.
    counts = [torch.bincount(train[0][:, c].flatten(), minlength=256) for c in range(train[0].shape[1])]
    mean = torch.stack([(count * levels).sum() / count.sum() for count in counts])
    square = [(count * (levels - m) ** 2).sum() / count.sum() for count, m in zip(counts, mean, strict=True)]
    std = torch.stack(square).sqrt()
    std = torch.where(std > 0, std, 1.0)
    x, x_test = (pixels.float().div_(scale) for pixels in (train[0], test[0]))
    for images in (x, x_test):
        images.sub_(mean.float().view(-1, 1, 1)).div_(std.float().view(-1, 1, 1))
    shape = (x.shape[1], x.shape[2], x.shape[3])
    return Dataset(name, (x, train[1]), (x_test, test[1]), classes, shape, tuple(mean.tolist()), tuple(std.tolist()))


def _permutation(count: int, generator: Generator) -> Tensor:
    return torch.randperm(count, generator=generator, device=generator.device).cpu()


def _length(split: Any) -> int:
    return len(split[1]) if isinstance(split, tuple) else len(split)


def _take(split: Any, indices: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(split, tuple):
        return split[0][indices], split[1][indices]
    images, labels = zip(*(split[index] for index in indices.tolist()), strict=True)
    return torch.stack(images), torch.tensor(labels)
