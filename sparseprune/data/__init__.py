"""Data sets from local files, never downloaded: scikit-learn's digits, MNIST, CIFAR, folders of images."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import Any

from sparseprune.arguments import typed
from sparseprune.data.cifar import load_cifar10, load_cifar100
from sparseprune.data.dataset import Batches as Batches
from sparseprune.data.dataset import Dataset as Dataset
from sparseprune.data.digits import load_digits
from sparseprune.data.folder import load_folder
from sparseprune.data.mnist import load_mnist

LOADERS: dict[str, Callable[..., Dataset]] = {
    "digits": load_digits,
    "mnist": load_mnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "folder": load_folder,
}


@typed
def load(name: str, data_dir: str | PathLike[str] | None = None, *, size: int | None = None) -> Dataset:
    """Loads a data set by name.

    Args:
        name: ``digits``, ``mnist``, ``cifar10``, ``cifar100`` or ``folder``.
        data_dir: the folder with its files, or the folder above it; ``digits`` needs none.
        size: height and width of the images of ``folder``, 224 by default.

    Returns:
        The data set, in memory except for ``folder``.

    Raises:
        ValueError: an unknown name; a missing, truncated or damaged file, which the message names; a size for
            another data set than ``folder``.
    """
    if name not in LOADERS:
        raise ValueError(f"name must be one of {', '.join(LOADERS)}, got {name!r}")
    if size is not None and name != "folder":
        raise ValueError(f"size must be None except for folder, got {size!r} for {name}")
    options: dict[str, Any] = {} if name == "digits" else {"data_dir": data_dir}
    if size is not None:
        options["size"] = size
    return LOADERS[name](**options)
