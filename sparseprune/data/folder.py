"""Folders of images: train/CLASS/*.jpg and val/CLASS/*.jpg (or test/CLASS/*.jpg), decoded when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from sparseprune.data.dataset import Dataset
from sparseprune.data.files import folder_of

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp")
# Per channel, over the training images of ImageNet.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class ImageFolder(torch.utils.data.Dataset):
    """The images below FOLDER/CLASS, sorted by class and path; ``targets`` has their labels.

    An image is scaled until its shorter side is 8/7 ``size`` (256 for 224), cropped to its centre, normalised.
    """

    def __init__(
        self, folder: Path, classes: Sequence[str], size: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.size = size
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.std = torch.tensor(std).view(3, 1, 1)
        self.paths: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            found = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in _SUFFIXES)
            if not found:
                kinds = ", ".join(_SUFFIXES)
                raise ValueError(f"data_dir must hold images ({kinds}), got none in {folder / name}")
            self.paths += found
            labels += [label] * len(found)
        self.targets = torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = _read(self.paths[index], self.size)
        return (pixels.float().div_(255) - self.mean) / self.std, int(self.targets[index])


def load_folder(
    data_dir: str | PathLike[str] | None,
    size: int = 224,
    mean: Sequence[float] = _MEAN,
    std: Sequence[float] = _STD,
) -> Dataset:
    """Loads a folder of images; the classes are the sorted names of the folders in ``train``.

    Args:
        data_dir: a folder with ``train`` and ``val`` (or ``test``), each with one folder of images for every class.
        size: height and width of the images that come out.
        mean, std: of the red, green and blue channels of pixels in [0, 1]; ImageNet's by default.

    Raises:
        ValueError: a size that is not a positive integer, a missing folder, or a class without images. A
            damaged image raises when it is read and is named.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be a positive integer, got {size!r}")
    folder = folder_of(data_dir, "image folders")
    train = folder / "train"
    test = next((folder / name for name in ("val", "test") if (folder / name).is_dir()), None)
    if not train.is_dir() or test is None:
        raise ValueError(f"data_dir must contain the folders train and val (or test), got {str(folder)!r}")
    classes, tested = _classes(train), _classes(test)
    if not classes or classes != tested:
        raise ValueError(
            f"data_dir must hold the same classes in {train} and {test}, got {_some(classes)} and {_some(tested)}"
        )
    splits = [ImageFolder(part, classes, size, mean, std) for part in (train, test)]
    return Dataset("folder", splits[0], splits[1], classes, (3, size, size), tuple(mean), tuple(std))


def _classes(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))


def _some(names: tuple[str, ...]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def _read(path: Path, size: int) -> Tensor:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ValueError("an image folder needs Pillow (pip install Pillow), got none") from error
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"data_dir must hold intact images, got {path}: {error}") from error
    scale = size * 8 / 7 / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    content = bytearray(image.crop((left, top, left + size, top + size)).tobytes())
    return torch.frombuffer(content, dtype=torch.uint8).view(size, size, 3).permute(2, 0, 1)
