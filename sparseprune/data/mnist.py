"""MNIST, and data sets in its IDX format, plain or compressed with gzip."""

from __future__ import annotations

import gzip
import math
import zlib
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from sparseprune.data.dataset import Dataset, normalised
from sparseprune.data.files import find, folder_of

_GZIP = b"\x1f\x8b"


def read_idx(path: str | PathLike[str], dims: int) -> Tensor:
    """Reads an IDX file of bytes: 0, 0, 8, dims, then each size as a big-endian int32, then the values.

    Args:
        path: a plain or gzip-compressed file, told apart by its first bytes, not by its name.
        dims: how many dimensions the file must have.

    Returns:
        uint8 tensor of the sizes that the file states.

    Raises:
        ValueError: damaged compression, another magic number, or more or fewer bytes than the sizes ask for.
    """
    path = Path(path)
    content = path.read_bytes()
    if content[:2] == _GZIP:
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"data_dir must hold an intact gzip file, got {path}: {error}") from error
    magic = bytes((0, 0, 8, dims))
    if content[:4] != magic:
        found = content[:4].hex()
        raise ValueError(f"data_dir must hold IDX with magic number {magic.hex()}, got {path} with {found}")
    header = 4 + 4 * dims
    sizes = [int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4)]
    expected = header + math.prod(sizes)
    if len(content) != max(expected, header):
        raise ValueError(
            f"data_dir must hold complete files, got {path} with {len(content)} bytes instead of {expected}"
        )
    if expected == header:
        return torch.zeros(sizes, dtype=torch.uint8)
    return torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8).view(sizes)


def load_mnist(data_dir: str | PathLike[str] | None) -> Dataset:
    """Loads MNIST, or any data set with the same four file names (Fashion-MNIST, KMNIST).

    Args:
        data_dir: the folder with train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
            t10k-labels-idx1-ubyte, each plain or .gz; or the one above it, where ``mnist`` or ``MNIST/raw`` is.

    Raises:
        ValueError: a missing or damaged file, or images and labels that do not belong together.

    Source:
        LeCun, Cortes and Burges, The MNIST database of handwritten digits.
    """
    folder = folder_of(data_dir, "MNIST")
    train = _split(folder, "train")
    test = _split(folder, "t10k")
    if train[0].shape[1:] != test[0].shape[1:]:
        raise ValueError(
            f"data_dir must hold images of one size, got {tuple(train[0].shape[2:])} for training and "
            f"{tuple(test[0].shape[2:])} for testing in {folder}"
        )
    return normalised("mnist", tuple(str(digit) for digit in range(10)), train, test)


def _split(folder: Path, prefix: str) -> tuple[Tensor, Tensor]:
    images_path, labels_path = (
        find(folder, ("mnist", "MNIST/raw"), (f"{prefix}-{kind}-ubyte", f"{prefix}-{kind}-ubyte.gz"))
        for kind in ("images-idx3", "labels-idx1")
    )
    images = read_idx(images_path, 3)
    labels = read_idx(labels_path, 1).long()
    if images.numel() == 0:
        raise ValueError(f"data_dir must hold at least one image, got none in {images_path}")
    if len(images) != len(labels):
        raise ValueError(
            f"data_dir must hold a label for each image, got {len(images)} images and {len(labels)} labels "
            f"in {labels_path}"
        )
    if labels.max() > 9:
        raise ValueError(f"data_dir must hold labels from 0 to 9, got {int(labels.max())} in {labels_path}")
    return images.unsqueeze(1), labels
