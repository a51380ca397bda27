"""ResNet-20/32/56 of He et al. for 32x32 images: three stages of 16, 32 and 64 channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Generator, Tensor, nn

from sparseprune.arguments import typed
from sparseprune.models.checks import check_image
from sparseprune.models.init import construct, initialize_
from sparseprune.models.resnet import BasicBlock


class PadShortcut(nn.Module):
    """Every second pixel, and zeros for the channels that the input lacks: a shortcut without weights."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.missing = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, ceil(H/2), ceil(W/2)]."""
        before = self.missing // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.missing - before))


class CifarResNet(nn.Module):
    """3x3 stem, three stages of n basic blocks (depth 6n + 2), global average pooling, linear layer."""

    def __init__(self, depth: int, num_classes: int, input_shape: Sequence[int], width: int, shortcut: str) -> None:
        super().__init__()
        if shortcut not in ("pad", "conv"):
            raise ValueError(f"shortcut must be pad or conv, got {shortcut!r}")
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise ValueError(f"width must be a positive integer, got {width!r}")
        self.input_shape = check_image(input_shape, num_classes)
        count = (depth - 2) // 6
        small, middle, large = 16 * width, 32 * width, 64 * width
        self.conv1 = nn.Conv2d(self.input_shape[0], small, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(small)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(*(BasicBlock(small, small, 1, None) for _ in range(count)))
        self.layer2 = _stage(small, middle, count, shortcut)
        self.layer3 = _stage(middle, large, count, shortcut)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(large, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to logits [N, num_classes]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


def _stage(inputs: int, outputs: int, count: int, shortcut: str) -> nn.Sequential:
    downsample: nn.Module = PadShortcut(inputs, outputs)
    if shortcut == "conv":
        downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))
    rest = [BasicBlock(outputs, outputs, 1, None) for _ in range(count - 1)]
    return nn.Sequential(BasicBlock(inputs, outputs, 2, downsample), *rest)


def _cifar_resnet(
    depth: int,
    num_classes: int,
    input_shape: Sequence[int],
    width: int,
    shortcut: str,
    generator: Generator | None,
) -> CifarResNet:
    model = construct(CifarResNet, depth, num_classes, input_shape, width, shortcut)
    return initialize_(model, "kaiming_normal", generator)


@typed
def resnet20(
    num_classes: int = 10,
    *,
    input_shape: Sequence[int] = (3, 32, 32),
    width: int = 1,
    shortcut: str = "pad",
    generator: Generator | None = None,
) -> CifarResNet:
    """ResNet-20 for CIFAR: 269,722 parameters with 10 classes.

    Args:
        num_classes: number of outputs.
        input_shape: (C, H, W) of one image; only C changes the network.
        width: multiplies the channels 16, 32, 64; 2 gives the networks of the GraSP paper.
        shortcut: where the shape changes: ``pad`` (zeros, the paper's A) or ``conv`` (1x1 with norm, its B).
        generator: source of the initial weights (``kaiming_normal``: fan_in, zero biases).

    Raises:
        ValueError: an unknown shortcut, a width or an image shape that is not made of positive integers.

    Source:
        He et al. 2016 (1512.03385) section 4.2; the doubled width: Wang et al. 2020 (2002.07376).
    """
    return _cifar_resnet(20, num_classes, input_shape, width, shortcut, generator)


@typed
def resnet32(
    num_classes: int = 10,
    *,
    input_shape: Sequence[int] = (3, 32, 32),
    width: int = 1,
    shortcut: str = "pad",
    generator: Generator | None = None,
) -> CifarResNet:
    """ResNet-32 for CIFAR: 464,154 parameters with 10 classes; arguments as in resnet20."""
    return _cifar_resnet(32, num_classes, input_shape, width, shortcut, generator)


@typed
def resnet56(
    num_classes: int = 10,
    *,
    input_shape: Sequence[int] = (3, 32, 32),
    width: int = 1,
    shortcut: str = "pad",
    generator: Generator | None = None,
) -> CifarResNet:
    """ResNet-56 for CIFAR: 853,018 parameters with 10 classes; arguments as in resnet20."""
    return _cifar_resnet(56, num_classes, input_shape, width, shortcut, generator)
