"""IDX files: what they hold, plain and compressed, and every kind of damage."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import pytest
import torch

from sparseprune import data
from sparseprune.data.mnist import read_idx


def idx(values):
    """The bytes of an IDX file, by the format's description."""
    header = struct.pack(f">HBB{values.dim()}I", 0, 8, values.dim(), *values.shape)
    return header + bytes(values.flatten().tolist())


@pytest.fixture
def contents():
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (30, 4, 5), generator=draw)
    return {
        "train-images-idx3-ubyte": idx(images[:20]),
        "train-labels-idx1-ubyte": idx(torch.arange(20) % 10),
        "t10k-images-idx3-ubyte": idx(images[20:]),
        "t10k-labels-idx1-ubyte": idx(torch.arange(10)),
    }


def write(folder, contents, compress=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("place", [".", "mnist", "MNIST/raw"])
def test_loads(tmp_path, contents, compress, place):
    write(tmp_path / place, contents, compress)
    mnist = data.load("mnist", tmp_path)
    (x, y), (x_test, y_test) = mnist.train, mnist.test
    assert x.shape == (20, 1, 4, 5) and x_test.shape == (10, 1, 4, 5)
    assert y.tolist() == list(range(10)) * 2 and y_test.tolist() == list(range(10))
    raw = read_idx(tmp_path / place / f"train-images-idx3-ubyte{'.gz' * compress}", 3)
    restored = (x.double() * mnist.std[0] + mnist.mean[0]) * 255
    assert torch.equal(restored.round().squeeze(1), raw.double())
    assert mnist.input_shape == (1, 4, 5) and len(mnist.classes) == 10


def test_values_and_order(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 255]))
    assert read_idx(path, 2).tolist() == [[1, 2, 3], [4, 5, 255]]


def test_a_plain_file_named_gz_is_read(tmp_path, contents):
    write(tmp_path, contents)
    for name in contents:
        (tmp_path / name).rename(tmp_path / f"{name}.gz")
    assert data.load("mnist", tmp_path).count("train") == 20


@pytest.mark.parametrize("missing", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_missing_file_is_named(tmp_path, contents, missing):
    del contents[missing]
    write(tmp_path, contents)
    with pytest.raises(ValueError, match=rf"data_dir must contain {missing} or {missing}.gz .*{tmp_path}"):
        data.load("mnist", tmp_path)


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
ZERO_IMAGES = struct.pack(">HBB3I", 0, 8, 3, 0, 4, 5)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (IMAGES, lambda b: b[:-1], "with 415 bytes instead of 416"),
        (IMAGES, lambda b: b + b"\0", "with 417 bytes instead of 416"),
        (IMAGES, lambda b: b[:9], "complete files, got .* with 9 bytes"),
        (IMAGES, lambda b: b"", "magic number 00000803, got .* with $"),
        (IMAGES, lambda b: b"\0\0\x0d" + b[3:], "magic number 00000803, got .* with 00000d03"),
        (IMAGES, lambda b: b"\0\0\x08\x01" + b[4:], "magic number 00000803, got .* with 00000801"),
        (IMAGES, lambda b: b"\0\0\x08\x03" + b"\xff" * 12 + b[16:], "bytes instead of"),
        (LABELS, lambda b: b[:-1] + b"\x0a", "labels from 0 to 9, got 10"),
        (LABELS, lambda b: idx(torch.arange(19) % 10), "a label for each image, got 20 images and 19"),
        (IMAGES, lambda b: ZERO_IMAGES, "at least one image, got none"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, contents, name, damage, message):
    contents[name] = damage(contents[name])
    write(tmp_path, contents)
    with pytest.raises(ValueError, match=message) as caught:
        data.load("mnist", tmp_path)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-9],
        lambda b: b[:12],
        lambda b: b[:10] + b"\xff" * 20 + b[30:],  # no such kind of block
        lambda b: b[:-8] + b"\0\0\0\0" + b[-4:],  # another checksum
    ],
)
def test_damaged_compression_is_named(tmp_path, contents, damage):
    write(tmp_path, contents, compress=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"intact gzip file, got {path}"):
        data.load("mnist", tmp_path)


def test_images_of_two_sizes(tmp_path, contents):
    contents["t10k-images-idx3-ubyte"] = idx(torch.zeros(10, 5, 5, dtype=torch.long))
    write(tmp_path, contents)
    with pytest.raises(ValueError, match=r"images of one size, got \(4, 5\) for training and \(5, 5\)"):
        data.load("mnist", tmp_path)


@pytest.mark.skipif("SPARSEPRUNE_DATA" not in os.environ, reason="SPARSEPRUNE_DATA names no folder")
def test_the_real_mnist():
    mnist = data.load("mnist", Path(os.environ["SPARSEPRUNE_DATA"]) / "mnist")
    assert mnist.count("train") == 60_000 and mnist.count("test") == 10_000
    assert mnist.input_shape == (1, 28, 28)
    assert mnist.mean == pytest.approx([0.1307], abs=5e-5) and mnist.std == pytest.approx([0.3081], abs=5e-5)
    assert mnist.train[1].bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
