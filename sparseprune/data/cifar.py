"""CIFAR-10 and CIFAR-100 from their python pickles."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from sparseprune.data.dataset import Dataset, normalised
from sparseprune.data.files import find, folder_of
from sparseprune.data.safe_pickle import read_pickled_dict


def load_cifar10(data_dir: str | PathLike[str] | None) -> Dataset:
    """Loads CIFAR-10: 50,000 training and 10,000 test images of 3x32x32 in 10 classes.

    Args:
        data_dir: the folder with data_batch_1 to data_batch_5, test_batch and batches.meta, or the one above
            it, where ``cifar-10-batches-py`` or ``cifar10`` is.

    Raises:
        ValueError: a missing or damaged file, or one that would run code.

    Source:
        Krizhevsky 2009, Learning multiple layers of features from tiny images.
    """
    folder = folder_of(data_dir, "CIFAR-10")
    places = ("cifar-10-batches-py", "cifar10")
    classes = _classes(find(folder, places, ("batches.meta",)), "label_names")
    paths = [find(folder, places, (f"data_batch_{number}",)) for number in range(1, 6)]
    test_path = find(folder, places, ("test_batch",))
    parts = [_batch(path, "labels", len(classes)) for path in paths]
    train = torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])
    return normalised("cifar10", classes, train, _batch(test_path, "labels", len(classes)))


def load_cifar100(data_dir: str | PathLike[str] | None) -> Dataset:
    """Loads CIFAR-100 with its 100 fine labels: 50,000 training and 10,000 test images of 3x32x32.

    Args:
        data_dir: the folder with train, test and meta, or the folder above it, where ``cifar-100-python`` or
            ``cifar100`` is.

    Raises:
        ValueError: a missing or damaged file, or one that would run code.

    Source:
        Krizhevsky 2009, Learning multiple layers of features from tiny images.
    """
    folder = folder_of(data_dir, "CIFAR-100")
    places = ("cifar-100-python", "cifar100")
    meta, train, test = (find(folder, places, (name,)) for name in ("meta", "train", "test"))
    classes = _classes(meta, "fine_label_names")
    splits = (_batch(path, "fine_labels", len(classes)) for path in (train, test))
    return normalised("cifar100", classes, *splits)


def _classes(path: Path, key: str) -> tuple[str, ...]:
    names = read_pickled_dict(path).get(key)
    if not isinstance(names, list) or not names or not all(isinstance(name, bytes | str) for name in names):
        raise ValueError(f"data_dir must hold the class names {key!r}, got {path} without them")
    return tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names)


def _batch(path: Path, key: str, classes: int) -> tuple[Tensor, Tensor]:
    content = read_pickled_dict(path)
    images, labels = content.get("data"), content.get(key)
    if not isinstance(images, Tensor) or images.dim() != 2 or images.shape[1] != 3 * 32 * 32:
        found = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"data_dir must hold 'data' of shape (images, 3072), got {path} with {found}")
    if not isinstance(labels, list) or len(labels) != len(images) or not all(type(y) is int for y in labels):
        found = f"{len(labels)}" if isinstance(labels, list) else "no list"
        raise ValueError(f"data_dir must hold {len(images)} integers {key!r}, got {path} with {found}")
    low, high = min(labels), max(labels)
    if low < 0 or high >= classes:
        raise ValueError(f"data_dir must hold labels 0 to {classes - 1}, got {path} with {low} to {high}")
    return images.reshape(-1, 3, 32, 32), torch.tensor(labels)
