"""The LeNets of the pruning papers: LeNet-300-100, the classic LeNet-5 and LeNet-5-Caffe."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Generator, Tensor, nn

from sparseprune.arguments import typed
from sparseprune.models.checks import check_image
from sparseprune.models.init import construct, initialize_


class LeNet300100(nn.Module):
    """Three linear layers, 300 and 100 hidden units with ReLU; images are flattened."""

    def __init__(self, num_classes: int, input_shape: Sequence[int]) -> None:
        super().__init__()
        self.input_shape = check_image(input_shape, num_classes)
        self.fc1 = nn.Linear(math.prod(self.input_shape), 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] or [N, C*H*W] to logits [N, num_classes]."""
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))


class LeNet5(nn.Module):
    """Two 5x5 convolutions (6, 16 channels) and three linear layers (120, 84, classes), ReLU, max pooling."""

    def __init__(self, num_classes: int, input_shape: Sequence[int]) -> None:
        super().__init__()
        self.input_shape = check_image(input_shape, num_classes, sides=(28, 32))
        padding = 2 if self.input_shape[1] == 28 else 0
        self.conv1 = nn.Conv2d(self.input_shape[0], 6, 5, padding=padding)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to logits [N, num_classes]."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))


class LeNet5Caffe(nn.Module):
    """Two 5x5 convolutions (20 and 50 channels), each max-pooled without ReLU, then 500 units with ReLU."""

    def __init__(self, num_classes: int, input_shape: Sequence[int]) -> None:
        super().__init__()
        self.input_shape = check_image(input_shape, num_classes, smallest=16)
        channels, height, width = self.input_shape
        self.conv1 = nn.Conv2d(channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * _pooled_twice(height) * _pooled_twice(width), 500)
        self.fc2 = nn.Linear(500, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to logits [N, num_classes]."""
        x = F.max_pool2d(self.conv1(x), 2)
        x = F.max_pool2d(self.conv2(x), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def _pooled_twice(side: int) -> int:
    return ((side - 4) // 2 - 4) // 2


@typed
def lenet_300_100(
    num_classes: int = 10, *, input_shape: Sequence[int] = (1, 28, 28), generator: Generator | None = None
) -> LeNet300100:
    """LeNet-300-100: 266,200 weights and 410 biases on MNIST, 50,200 weights on 8x8 digits.

    Args:
        num_classes: number of outputs.
        input_shape: (C, H, W) of one image, any size.
        generator: source of the initial weights (torch's default scheme, ``pytorch``).

    Source:
        LeCun et al. 1998, Gradient-based learning applied to document recognition, section III.C.
    """
    return initialize_(construct(LeNet300100, num_classes, input_shape), "pytorch", generator)


@typed
def lenet5(
    num_classes: int = 10, *, input_shape: Sequence[int] = (1, 28, 28), generator: Generator | None = None
) -> LeNet5:
    """Classic LeNet-5 with full connections, ReLU and max pooling: 61,470 weights and 236 biases.

    Args:
        num_classes: number of outputs.
        input_shape: (C, 28, 28), padded by 2 as the original padded MNIST, or (C, 32, 32).
        generator: source of the initial weights (torch's default scheme, ``pytorch``).

    Source:
        LeCun et al. 1998, section II.B, with every map of the second convolution connected to all six inputs.
    """
    return initialize_(construct(LeNet5, num_classes, input_shape), "pytorch", generator)


@typed
def lenet5_caffe(
    num_classes: int = 10, *, input_shape: Sequence[int] = (1, 28, 28), generator: Generator | None = None
) -> LeNet5Caffe:
    """LeNet-5 as shipped with Caffe: 430,500 weights and 580 biases on MNIST.

    Args:
        num_classes: number of outputs.
        input_shape: (C, H, W) of one image, sides of at least 16.
        generator: source of the initial weights (torch's default scheme, ``pytorch``).

    Source:
        Jia et al. 2014 (1408.5093), the ``lenet`` example; Lee et al. 2019 (1810.02340) table 1.
    """
    return initialize_(construct(LeNet5Caffe, num_classes, input_shape), "pytorch", generator)
