"""Wide ResNets for 32x32 images: pre-activation basic blocks, 16, 32 and 64 channels times the width."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Generator, Tensor, nn

from sparseprune.arguments import typed
from sparseprune.models.checks import check_image
from sparseprune.models.init import construct, initialize_


class WideBlock(nn.Module):
    """conv(relu(bn(dropout(conv(a))))) + shortcut with a = relu(bn(x)); the shortcut is x or conv1x1(a)."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H/stride, W/stride]."""
        active = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        active = F.relu(self.bn2(self.dropout(self.conv1(active))))
        return self.conv2(active) + shortcut


class WideResNet(nn.Module):
    """3x3 stem, three stages of n blocks (depth 6n + 4), batch norm, ReLU, average pooling, linear layer."""

    def __init__(self, depth: int, width: int, num_classes: int, input_shape: Sequence[int], dropout: float) -> None:
        super().__init__()
        if not isinstance(depth, int) or depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be 6n + 4 with n >= 1 (10, 16, 22, 28, ...), got {depth!r}")
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise ValueError(f"width must be a positive integer, got {width!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout!r}")
        self.input_shape = check_image(input_shape, num_classes)
        count = (depth - 4) // 6
        self.conv1 = nn.Conv2d(self.input_shape[0], 16, 3, padding=1, bias=False)
        self.layer1 = _stage(16, 16 * width, 1, count, dropout)
        self.layer2 = _stage(16 * width, 32 * width, 2, count, dropout)
        self.layer3 = _stage(32 * width, 64 * width, 2, count, dropout)
        self.bn = nn.BatchNorm2d(64 * width)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to logits [N, num_classes]."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(self.avgpool(F.relu(self.bn(x))).flatten(1))


def _stage(inputs: int, outputs: int, stride: int, count: int, dropout: float) -> nn.Sequential:
    rest = [WideBlock(outputs, outputs, 1, dropout) for _ in range(count - 1)]
    return nn.Sequential(WideBlock(inputs, outputs, stride, dropout), *rest)


@typed
def wide_resnet(
    depth: int = 28,
    width: int = 10,
    num_classes: int = 10,
    *,
    input_shape: Sequence[int] = (3, 32, 32),
    dropout: float = 0.0,
    generator: Generator | None = None,
) -> WideResNet:
    """WRN-depth-width; with 10 classes WRN-28-10 has 36,479,194 parameters, 22-8 17,158,106, 16-8 10,961,370.

    Args:
        depth: 6n + 4, with n blocks in each of the three stages.
        width: multiplies the channels 16, 32, 64 of the stages.
        num_classes: number of outputs.
        input_shape: (C, H, W) of one image; only C changes the network.
        dropout: probability of dropping an activation between the two convolutions of a block.
        generator: source of the initial weights (``kaiming_normal_fan_out``, zero biases).

    Raises:
        ValueError: a depth that is not 6n + 4, a width or an image shape that is not made of positive
            integers, a dropout outside [0, 1).

    Source:
        Zagoruyko and Komodakis 2016 (1605.07146) table 1.
    """
    model = construct(WideResNet, depth, width, num_classes, input_shape, dropout)
    return initialize_(model, "kaiming_normal_fan_out", generator)


@typed
def wrn_16_8(
    num_classes: int = 10, *, input_shape: Sequence[int] = (3, 32, 32), generator: Generator | None = None
) -> WideResNet:
    """WRN-16-8, as in the SNIP paper; arguments as in wide_resnet."""
    return wide_resnet(16, 8, num_classes, input_shape=input_shape, generator=generator)


@typed
def wrn_22_8(
    num_classes: int = 10, *, input_shape: Sequence[int] = (3, 32, 32), generator: Generator | None = None
) -> WideResNet:
    """WRN-22-8, as in the SNIP paper; arguments as in wide_resnet."""
    return wide_resnet(22, 8, num_classes, input_shape=input_shape, generator=generator)


@typed
def wrn_28_10(
    num_classes: int = 10, *, input_shape: Sequence[int] = (3, 32, 32), generator: Generator | None = None
) -> WideResNet:
    """WRN-28-10; arguments as in wide_resnet."""
    return wide_resnet(28, 10, num_classes, input_shape=input_shape, generator=generator)
