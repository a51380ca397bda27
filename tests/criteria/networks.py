"""Small networks that between them have what criteria stumble over, and masks of the best scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparseprune.ops.topk_mask import topk_mask


class Residual(nn.Module):
    """Convolutions with batch norm, in-place ReLU, a shortcut with and one without weights."""

    def __init__(self, width: int, stride: int = 1) -> None:
        super().__init__()
        inner = width * stride
        self.body = nn.Sequential(
            nn.Conv2d(width, inner, 3, stride, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, 1, 1, bias=False),
            nn.BatchNorm2d(inner),
        )
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(width, inner, 1, stride, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        out += self.shortcut(x)
        return self.relu(out)


def residual_net(blocks: int = 2, classes: int = 4) -> nn.Sequential:
    """For 3-channel images of 8x8 or more."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        *(Residual(4) for _ in range(blocks)),
        Residual(4, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(8, classes),
    )


def conv_chain(bias: bool = False) -> nn.Sequential:
    """For 3-channel images of 8x8."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=bias),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 5, 3, bias=bias),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 3, bias=bias),
    )


def mlp(*sizes: int, bias: bool = False, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip(sizes, sizes[1:]):
        layers += [nn.Linear(fan_in, fan_out, bias=bias), activation()]
    return nn.Sequential(*layers[:-1])


def weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The prunable ones: of linear and convolution layers."""
    return {name: p for name, p in model.named_parameters() if p.dim() >= 2}


def images(count: int, classes: int = 4, size: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3, size, size), torch.randint(0, classes, (count,))


def best(scores: dict[str, Tensor], density: float) -> list[Tensor]:
    """Exactly this share of all weights, as bool tensors."""
    total = sum(score.numel() for score in scores.values())
    return [mask.to_bool() for mask in topk_mask(list(scores.values()), round(density * total))]
