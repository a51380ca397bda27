"""ResNet-18 to ResNet-152 with torchvision's structure and parameter names, so that its weights load."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Generator, Tensor, nn

from sparseprune.arguments import typed
from sparseprune.models.checks import check_image
from sparseprune.models.init import construct, initialize_


class BasicBlock(nn.Module):
    """relu(bn(conv3x3(relu(bn(conv3x3(x))))) + shortcut(x)); the first convolution carries the stride."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, width, H/stride, W/stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with batch norm beside a shortcut; the 3x3 has the stride (version 1.5)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU()
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, 4 width, H/stride, W/stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet(nn.Module):
    """Stem, four stages of 64, 128, 256, 512 (times expansion) channels, average pooling, linear layer."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: Sequence[int],
        num_classes: int,
        input_shape: Sequence[int] | None,
        stem: str,
    ) -> None:
        super().__init__()
        if stem not in ("imagenet", "cifar"):
            raise ValueError(f"stem must be imagenet or cifar, got {stem!r}")
        if input_shape is None:
            input_shape = (3, 224, 224) if stem == "imagenet" else (3, 32, 32)
        self.input_shape = check_image(input_shape, num_classes)
        channels = self.input_shape[0]
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(channels, 64, 7, 2, padding=3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(3, 2, padding=1)
        else:
            self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        grow = block.expansion
        self.layer1 = _stage(block, 64, 64, blocks[0], 1)
        self.layer2 = _stage(block, 64 * grow, 128, blocks[1], 2)
        self.layer3 = _stage(block, 128 * grow, 256, blocks[2], 2)
        self.layer4 = _stage(block, 256 * grow, 512, blocks[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * grow, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to logits [N, num_classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def _stage(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, width: int, count: int, stride: int
) -> nn.Sequential:
    outputs = width * block.expansion
    downsample = None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    rest = [block(outputs, width, 1, None) for _ in range(count - 1)]
    return nn.Sequential(block(inputs, width, stride, downsample), *rest)


def _resnet(
    block: type[BasicBlock] | type[Bottleneck],
    blocks: Sequence[int],
    num_classes: int,
    input_shape: Sequence[int] | None,
    stem: str,
    generator: Generator | None,
) -> ResNet:
    model = construct(ResNet, block, blocks, num_classes, input_shape, stem)
    initialize_(model, "kaiming_normal_fan_out", generator)
    initialize_(model.fc, "pytorch", generator)
    return model


@typed
def resnet18(
    num_classes: int = 1000,
    *,
    input_shape: Sequence[int] | None = None,
    stem: str = "imagenet",
    generator: Generator | None = None,
) -> ResNet:
    """ResNet-18: 11,689,512 parameters with the ImageNet stem and 1000 classes, 11,173,962 for CIFAR-10.

    Args:
        num_classes: number of outputs.
        input_shape: (C, H, W) of one image; only C changes the network. Default (3, 224, 224), or (3, 32, 32)
            with the CIFAR stem.
        stem: ``imagenet`` (7x7 convolution, 3x3 max pooling, both of stride 2) or ``cifar`` (3x3 of stride 1).
        generator: source of the initial weights, as torchvision draws them: convolutions
            ``kaiming_normal_fan_out``, linear layer ``pytorch``.

    Raises:
        ValueError: an unknown stem, or an image shape that is not three positive integers.

    Source:
        He et al. 2016 (1512.03385) table 1.
    """
    return _resnet(BasicBlock, (2, 2, 2, 2), num_classes, input_shape, stem, generator)


@typed
def resnet34(
    num_classes: int = 1000,
    *,
    input_shape: Sequence[int] | None = None,
    stem: str = "imagenet",
    generator: Generator | None = None,
) -> ResNet:
    """ResNet-34: 21,797,672 parameters; arguments as in resnet18."""
    return _resnet(BasicBlock, (3, 4, 6, 3), num_classes, input_shape, stem, generator)


@typed
def resnet50(
    num_classes: int = 1000,
    *,
    input_shape: Sequence[int] | None = None,
    stem: str = "imagenet",
    generator: Generator | None = None,
) -> ResNet:
    """ResNet-50 (version 1.5): 25,557,032 parameters; arguments as in resnet18."""
    return _resnet(Bottleneck, (3, 4, 6, 3), num_classes, input_shape, stem, generator)


@typed
def resnet101(
    num_classes: int = 1000,
    *,
    input_shape: Sequence[int] | None = None,
    stem: str = "imagenet",
    generator: Generator | None = None,
) -> ResNet:
    """ResNet-101 (version 1.5): 44,549,160 parameters; arguments as in resnet18."""
    return _resnet(Bottleneck, (3, 4, 23, 3), num_classes, input_shape, stem, generator)


@typed
def resnet152(
    num_classes: int = 1000,
    *,
    input_shape: Sequence[int] | None = None,
    stem: str = "imagenet",
    generator: Generator | None = None,
) -> ResNet:
    """ResNet-152 (version 1.5): 60,192,808 parameters; arguments as in resnet18."""
    return _resnet(Bottleneck, (3, 8, 36, 3), num_classes, input_shape, stem, generator)
