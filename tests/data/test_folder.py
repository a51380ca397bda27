"""Folders of images: classes, scaling, cropping, normalisation, damage."""

from __future__ import annotations

import sys

import pytest
import torch
from PIL import Image

from sparseprune import data


def write(path, size=(20, 14), colour=(255, 0, 51)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folder(tmp_path):
    for part, names in (("train", ("b0.png", "a1.PNG", "deep/c.bmp")), ("val", ("x.png",))):
        for label, name in enumerate(("cat", "ant", "bee")):
            for image in names:
                write(tmp_path / part / name / image, colour=(label * 50, 100, 200))
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "readme").write_text("no class")
    return tmp_path


def test_classes_are_sorted_and_images_found(folder):
    loaded = data.load("folder", folder, size=7)
    assert loaded.classes == ("ant", "bee", "cat")
    assert loaded.input_shape == (3, 7, 7)
    assert loaded.train.targets.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [path.name for path in loaded.train.paths[:3]] == ["a1.PNG", "b0.png", "c.bmp"]
    ((x, y),) = list(loaded.batches("test", 8))
    assert x.shape == (3, 3, 7, 7) and x.dtype == torch.float32 and y.tolist() == [0, 1, 2]
    red = x[:, 0] * loaded.std[0] + loaded.mean[0]
    expected = torch.tensor([50.0, 100.0, 0.0]).view(3, 1, 1).expand(3, 7, 7) / 255  # ant, bee, cat
    torch.testing.assert_close(red, expected, rtol=0, atol=1e-6)
    assert loaded.balanced(2)[1].tolist() == [0, 1, 2, 0, 1, 2]


def test_test_folder_may_be_called_test(folder):
    (folder / "val").rename(folder / "test")
    assert data.load("folder", folder).count("test") == 3
    assert data.load("folder", folder).input_shape == (3, 224, 224)


@pytest.mark.parametrize(("width", "height"), [(32, 16), (16, 32), (16, 16)])
def test_the_centre_is_cropped_after_scaling_the_shorter_side_to_8_7ths(tmp_path, width, height):
    slope = bytes(5 * x + 2 * y for y in range(height) for x in range(width))
    image = Image.frombytes("L", (width, height), slope)
    for part in ("train", "val"):
        (tmp_path / part / "only").mkdir(parents=True)
        image.save(tmp_path / part / "only" / "slope.png")
    loaded = data.load("folder", tmp_path, size=14)  # the shorter side stays 16, so no pixel is interpolated
    x, _ = loaded.train[0]
    left, top = (width - 14) // 2, (height - 14) // 2
    raw = torch.tensor(list(image.tobytes()), dtype=torch.float32).view(height, width)
    raw = raw[top : top + 14, left : left + 14]
    for channel in range(3):
        pixels = (x[channel] * loaded.std[channel] + loaded.mean[channel]) * 255
        torch.testing.assert_close(pixels, raw, rtol=0, atol=1e-4)


def test_small_images_are_enlarged(tmp_path):
    for part in ("train", "val"):
        write(tmp_path / part / "only" / "a.jpg", size=(3, 2), colour=(128, 128, 128))
    x, y = data.load("folder", tmp_path, size=32).test[0]
    assert x.shape == (3, 32, 32) and y == 0


def test_a_damaged_image_is_named_when_it_is_read(folder):
    path = folder / "train" / "bee" / "b0.png"
    path.write_bytes(path.read_bytes()[:40])
    loaded = data.load("folder", folder, size=7)
    with pytest.raises(ValueError, match=f"intact images, got {path}"):
        list(loaded.batches("train", 9))
    path.write_text("no image at all")
    with pytest.raises(ValueError, match=f"intact images, got {path}"):
        loaded.train[4]


def test_errors(folder, tmp_path_factory):
    with pytest.raises(ValueError, match="size must be a positive integer, got 0"):
        data.load("folder", folder, size=0)
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ValueError, match=f"must contain the folders train and val .or test., got '{empty}'"):
        data.load("folder", empty)
    (folder / "val" / "dog").mkdir()
    with pytest.raises(ValueError, match=r"same classes .* got 3 \(ant, bee, cat\) and 4 \(ant, "):
        data.load("folder", folder)
    (folder / "train" / "dog").mkdir()
    with pytest.raises(ValueError, match=f"must hold images .*, got none in {folder / 'train' / 'dog'}"):
        data.load("folder", folder)


def test_without_pillow(folder, monkeypatch):
    loaded = data.load("folder", folder)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ValueError, match="folder needs Pillow .pip install Pillow."):
        loaded.train[0]
