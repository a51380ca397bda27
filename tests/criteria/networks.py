"""Small networks that between them have what criteria stumble over, and masks of the best scores."""

from __future__ import annotations

import copy

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
        out.add_(self.shortcut(x))
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
    return [mask.to_bool() for mask in topk_mask(list(scores.values()), round(density * total)).masks]


def clear_cut(scores: list[Tensor], density: float, width: int = 500) -> int:
    """The k within 500 of this density with the widest gap between the k-th and the next score.

    Rounding moves SynFlow's float32 scores by some 3e-7 of themselves. Of tens of millions some lie closer than
    that to any given threshold (4 of a ResNet-50's 25.5 M at density 0.5), and which survives says nothing.
    """
    k = round(density * sum(score.numel() for score in scores))
    inner, outer = topk_mask(scores, k - width).masks, topk_mask(scores, k + width).masks
    near = torch.cat([s[(o & ~i).to_bool()] for s, i, o in zip(scores, inner, outer, strict=True)])
    near = near.sort(descending=True).values
    gaps = near[:-1] / near[1:]
    assert gaps.max() > 1 + 1e-6
    return k - width + int(gaps.argmax()) + 1


def published_synflow(
    model: nn.Module, example: Tensor, masks: dict[str, Tensor] | None = None
) -> tuple[float, dict[str, Tensor]]:
    """R and the scores by the published algorithm in float64: absolute values of the whole state, ones, backward.

    In place, on a copy. Equal to the criterion where shifts are zero and no bias comes before a weight.
    """
    model = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.abs_()
            if masks and name in masks:
                value.mul_(masks[name])
            if name.endswith("bias"):
                value.zero_()
    flow = model(torch.ones_like(example[:1], dtype=torch.float64)).sum()
    flow.backward()
    return flow.item(), {name: w.grad * w.detach() for name, w in weights(model).items() if w.grad is not None}


class Shared(nn.Module):
    """One weight in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


def mixed_net() -> nn.Sequential:
    """For 3-channel images of 8x8: groups, dilation, strides, a transposed and a one-dimensional convolution, sequences."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding="same", groups=3, dilation=2),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(6, 4, 3, stride=2),
        nn.Flatten(2),
        nn.Conv1d(4, 3, 4, stride=3),
        nn.Tanh(),
        nn.Linear(96, 5),  # of three dimensions
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(15, 4),
    )
