"""VGG-11/16/19 with batch normalisation for 32x32 images, in the form of the SynFlow paper."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Generator, Tensor, nn

from sparseprune.arguments import typed
from sparseprune.models.checks import check_image
from sparseprune.models.init import construct, initialize_

# Widths of the convolutions; the groups are separated by 2x2 max pooling.
_PLANS = {
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
    19: ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4),
}


class ConvBlock(nn.Module):
    """3x3 convolution without bias (the norm after it would cancel one), batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] to [N, out, H, W]."""
        return F.relu(self.bn(self.conv(x)))


class VGG(nn.Module):
    """Five groups of convolutions with 2x2 max pooling between, average pooling to 1x1, a linear layer."""

    def __init__(self, depth: int, num_classes: int, input_shape: Sequence[int]) -> None:
        super().__init__()
        self.input_shape = check_image(input_shape, num_classes, sides=(32,))
        channels = self.input_shape[0]
        layers: list[nn.Module] = []
        for group in _PLANS[depth]:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for width in group:
                layers.append(ConvBlock(channels, width))
                channels = width
        self.layers = nn.Sequential(*layers)
        self.pool = nn.AvgPool2d(2)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, 32, 32] to logits [N, num_classes]."""
        return self.fc(self.pool(self.layers(x)).flatten(1))


def _vgg(depth: int, num_classes: int, input_shape: Sequence[int], generator: Generator | None) -> VGG:
    return initialize_(construct(VGG, depth, num_classes, input_shape), "kaiming_normal", generator)


@typed
def vgg11_bn(
    num_classes: int = 10, *, input_shape: Sequence[int] = (3, 32, 32), generator: Generator | None = None
) -> VGG:
    """VGG-11 with batch norm for CIFAR, 9,222,848 weights at 10 classes; arguments as in vgg16_bn."""
    return _vgg(11, num_classes, input_shape, generator)


@typed
def vgg16_bn(
    num_classes: int = 10, *, input_shape: Sequence[int] = (3, 32, 32), generator: Generator | None = None
) -> VGG:
    """VGG-16 with batch norm for CIFAR: 13 convolutions, one linear layer, 14,761,664 weights at 100 classes.

    Args:
        num_classes: number of outputs.
        input_shape: (C, 32, 32).
        generator: source of the initial weights (``kaiming_normal``: fan_in, zero biases).

    Raises:
        ValueError: an image that is not 32x32.

    Source:
        Simonyan and Zisserman 2015 (1409.1556) table 1 D; CIFAR head as in Tanaka et al. 2020 (2006.05467).
    """
    return _vgg(16, num_classes, input_shape, generator)


@typed
def vgg19_bn(
    num_classes: int = 10, *, input_shape: Sequence[int] = (3, 32, 32), generator: Generator | None = None
) -> VGG:
    """VGG-19 with batch norm for CIFAR, 20,024,000 weights at 10 classes; arguments as in vgg16_bn."""
    return _vgg(19, num_classes, input_shape, generator)
