"""Dataset: batches, balanced samples, normalisation; load() by name; the digits."""

from __future__ import annotations

import sys

import pytest
import torch

from sparseprune import data
from sparseprune.data.dataset import Dataset, normalised


class Lazy(torch.utils.data.Dataset):
    """The same images as a torch Dataset."""

    def __init__(self, images, labels):
        self.images, self.targets = images, labels

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.images[index], int(self.targets[index])


@pytest.fixture(params=["tensors", "torch Dataset"])
def dataset(request):
    images = torch.arange(23.0).view(23, 1, 1, 1)
    labels = torch.tensor([0, 1, 2, 0, 1] * 4 + [2, 2, 2])
    split = (images, labels) if request.param == "tensors" else Lazy(images, labels)
    return Dataset("toy", split, split, ("a", "b", "c"), (1, 1, 1), (0.0,), (1.0,))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [10, 10, 3]), (True, [10, 10])])
def test_batches_in_order(dataset, drop_last, sizes):
    batches = dataset.batches("train", 10, drop_last=drop_last)
    seen = list(batches)
    assert [len(y) for _, y in seen] == sizes
    assert len(batches) == len(sizes)
    images = torch.cat([x for x, _ in seen])
    assert torch.equal(images.flatten(), torch.arange(float(sum(sizes))))
    assert seen[0][0].dtype == torch.float32 and seen[0][1].dtype == torch.int64
    assert seen[0][1].tolist() == [0, 1, 2, 0, 1] * 2


def test_an_even_split_has_no_empty_batch(dataset):
    assert [len(y) for _, y in dataset.batches("test", 23)] == [23]
    assert len(dataset.batches("test", 23)) == 1
    assert dataset.count("test") == 23


def test_a_generator_shuffles_images_with_their_labels_anew_each_time(dataset):
    batches = dataset.batches("train", 4, generator(1))
    first, second = ([torch.cat(part) for part in zip(*batches, strict=True)] for _ in range(2))
    again = [torch.cat(part) for part in zip(*dataset.batches("train", 4, generator(1)), strict=True)]
    order = first[0].flatten().long()
    assert sorted(order.tolist()) == list(range(23)) and order.tolist() != list(range(23))
    assert torch.equal(first[1], torch.tensor([0, 1, 2, 0, 1] * 4 + [2, 2, 2])[order])
    assert not torch.equal(first[0], second[0])
    assert torch.equal(first[0], again[0])


def test_balanced_alternates_the_classes(dataset):
    x, y = dataset.balanced(3)
    assert y.tolist() == [0, 1, 2] * 3
    assert x.flatten().tolist() == [0, 1, 2, 3, 4, 7, 5, 6, 12]
    picked, labels = dataset.balanced(3, generator(2))
    assert labels.tolist() == [0, 1, 2] * 3
    assert torch.equal(dataset.balanced(3, generator(2))[0], picked)
    assert len(set(picked.flatten().tolist())) == 9
    assert not torch.equal(picked, x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.batches("val", 4), "split must be train or test, got 'val'"),
        (lambda d: d.batches("train", 0), "batch_size must be a positive integer, got 0"),
        (lambda d: d.batches("train", 0), "batch_size must be a positive integer, got 0"),
        (lambda d: d.balanced(0), "per_class must be a positive integer, got 0"),
        (lambda d: d.balanced(8), "per_class must be at most 7, the training images of class 'c', got 8"),
    ],
)
def test_errors(dataset, call, message):
    with pytest.raises(ValueError, match=message):
        call(dataset)


def test_normalised_by_the_training_images_of_each_channel():
    pixels = torch.randint(0, 256, (40, 3, 5, 6), dtype=torch.uint8, generator=generator())
    pixels[:, 1] //= 4
    pixels[:, 2] = 9
    labels = torch.zeros(40, dtype=torch.int64)
    loaded = normalised("toy", ("a",), (pixels[:30], labels[:30]), (pixels[30:], labels[30:]))
    raw = pixels.double() / 255
    mean, std = raw[:30].mean(dim=(0, 2, 3)), raw[:30].transpose(0, 1).flatten(1).std(dim=1, correction=0)
    assert loaded.mean == pytest.approx(mean.tolist(), rel=1e-12)
    assert loaded.std[:2] == pytest.approx(std[:2].tolist(), rel=1e-12)
    assert loaded.std[2] == 1, "a constant channel becomes 0, not NaN"
    assert not loaded.train[0][:, 2].any()
    for part, images in ((raw[:30], loaded.train[0]), (raw[30:], loaded.test[0])):
        expected = (part[:, :2] - mean[:2].view(2, 1, 1)) / std[:2].view(2, 1, 1)
        torch.testing.assert_close(images[:, :2], expected.float(), rtol=1e-5, atol=1e-5)
    assert loaded.input_shape == (3, 5, 6)


def test_digits():
    digits = data.load("digits")
    (x, y), (x_test, y_test) = digits.train, digits.test
    assert x.shape == (1437, 1, 8, 8) and x_test.shape == (360, 1, 8, 8)
    assert y.dtype == torch.int64 and digits.classes == tuple("0123456789")
    assert digits.input_shape == (1, 8, 8)
    assert x.mean().abs() < 1e-6 and abs(x.std(correction=0).item() - 1) < 1e-6
    assert x_test.mean().abs() > 1e-4, "the test images are normalised by the training images"
    counts = torch.bincount(torch.cat([y, y_test])).tolist()
    assert counts == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert torch.equal(data.load("digits").test[0], x_test)


def test_digits_are_scikit_learns_images_permuted():
    from sklearn.datasets import load_digits

    digits = data.load("digits")
    images = torch.cat([digits.train[0], digits.test[0]]).double() * digits.std[0] + digits.mean[0]
    labels = torch.cat([digits.train[1], digits.test[1]])
    raw, targets = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    pixels = (images * 16).round().long().flatten(1)
    assert not torch.equal(pixels, raw.long())

    def keyed(pixels, labels):
        return sorted([*row, label] for row, label in zip(pixels.tolist(), labels.tolist(), strict=True))

    assert keyed(pixels, labels) == keyed(raw.long(), targets)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ValueError, match="digits needs scikit-learn .pip install scikit-learn."):
        data.load("digits")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "imagenet"}, "must be one of digits, mnist, cifar10, cifar100, folder, got 'imagenet'"),
        ({"name": "mnist"}, "data_dir must be the folder that holds MNIST, got None"),
        ({"name": "cifar10", "data_dir": "/no/such"}, "existing folder that holds CIFAR-10, got '/no/such"),
        ({"name": "digits", "size": 8}, "size must be None except for folder, got 8 for digits"),
    ],
)
def test_load_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.load(**arguments)
