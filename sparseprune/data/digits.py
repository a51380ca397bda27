"""scikit-learn's handwritten digits, which come with that package: 1,797 images of 8x8 in ten classes."""

from __future__ import annotations

import torch

from sparseprune.data.dataset import Dataset, normalised

_TRAIN = 1437


def load_digits() -> Dataset:
    """Loads the digits: permuted with seed 0, the first 1,437 for training and the other 360 for testing.

    Pixels 0 to 16 are divided by 16, then normalised with one mean and deviation of the training images.

    Raises:
        ValueError: scikit-learn is not installed.

    Source:
        Alpaydin and Kaynak 1998, Optical recognition of handwritten digits (UCI), its test part.
    """
    try:
        from sklearn import datasets
    except ModuleNotFoundError as error:
        raise ValueError("digits needs scikit-learn (pip install scikit-learn), got none") from error
    import numpy

    images, labels = datasets.load_digits(return_X_y=True)
    # RandomState's stream is frozen by numpy's policy, so the split stays the same in every version.
    order = torch.from_numpy(numpy.random.RandomState(0).permutation(len(labels)))
    x = torch.from_numpy(images).to(torch.uint8).view(-1, 1, 8, 8)[order]
    y = torch.from_numpy(labels).long()[order]
    classes = tuple(str(digit) for digit in range(10))
    return normalised("digits", classes, (x[:_TRAIN], y[:_TRAIN]), (x[_TRAIN:], y[_TRAIN:]), 16)
