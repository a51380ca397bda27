"""Whole networks: a training step of 8 images and the inference of one, pruned layer by layer at random.

Dense rows hold the same weights, zeros included, as nn.Conv2d and nn.Linear; ours are the same model after ``sparsify``. The
peak column is what a call allocates beyond what it is called with; what a model and its Adam keep is counted exactly
in tests/nn/test_storage.py: 12 bytes a survivor and a bit a weight, packed.

Expected on a CPU: a ResNet-50's convolutions are bound by arithmetic, so that at density 0.1 its step approaches what the
layers gain by themselves (bench_masked_conv2d), less batch norm, ReLU and the optimizer, which are a tenth of the dense
step and do not shrink. VGG-16 on 32 x 32 has half of its weights on maps of 2 x 2, where a step mostly moves weights: there
packed should win most, by moving less.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparseprune as sp

from .precision import check_close
from .rows import DENSE, OURS, Plan, Row, Timed

BATCH = 8
DENSITIES = (0.1, 0.02)
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
    "Adam": partial(torch.optim.Adam, lr=1e-4),
}
PHASES = (*(f"training step, {name}" for name in OPTIMIZERS), "inference")
SIDES = {
    "dense": (DENSE, None, torch.contiguous_format),
    "dense, channels_last": (DENSE, None, torch.channels_last),
    "owned": (OURS, "owned", torch.contiguous_format),
    "owned, channels_last": (OURS, "owned", torch.channels_last),
    "packed": (OURS, "packed", torch.contiguous_format),
}


def _toy() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )  # fmt: skip


NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet50-224": (partial(sp.models.resnet50, num_classes=10), 224),
    "vgg16_bn-32": (partial(sp.models.vgg16_bn, num_classes=10), 32),
}
TOY = {"toy-8": (_toy, 8)}


@lru_cache(maxsize=1)
def _pruned(network: str, density: float, device: str) -> tuple[nn.Module, sp.Masks, Tensor, Tensor]:
    """The dense network with zeros written in, its masks, and a batch."""
    torch.manual_seed(0)
    make, size = {**NETWORKS, **TOY}[network]
    model = make().to(device)
    masks = sp.prune(
        model, sp.Random(torch.Generator().manual_seed(0)), density=density, pattern=sp.LayerWise(sp.uniform)
    )
    images, labels = torch.randn(BATCH, 3, size, size, device=device), torch.randint(10, (BATCH,), device=device)
    return masks.apply_(model), masks, images, labels


def _build(network: str, density: float, device: str, phase: str, side: str) -> Timed:
    zeros, masks, images, labels = _pruned(network, density, device)
    _, storage, layout = SIDES[side]
    model = copy.deepcopy(zeros).to(memory_format=layout)
    if storage is not None:
        sp.sparsify(model, masks, storage=storage)
    images = images.contiguous(memory_format=layout)
    if phase == "inference":
        model.eval()
        return Timed(
            torch.no_grad()(lambda: model(images[:1])), partial(_check, copy.deepcopy(zeros).eval(), images[:1])
        )
    optimizer = OPTIMIZERS[phase.rpartition(" ")[2]](model.parameters())

    def step() -> Tensor:
        optimizer.zero_grad()
        logits = model(images)
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
        return logits.detach()

    return Timed(step, partial(_check, copy.deepcopy(zeros).train(), images))


@torch.no_grad()
def _check(reference: nn.Module, images: Tensor, logits: Tensor) -> None:
    """The outputs of the first call are those of the network with zeros, in float64."""
    # Batch norm over eight images in channels_last brings the dense network itself to twelve times a layer's error.
    check_close("the output", logits, reference.double()(images.double()), "float32", times=20)


def rows(plan: Plan) -> Iterator[Row]:
    for network in plan.pick(quick=TOY, cpu=NETWORKS, cuda=NETWORKS):
        for density in DENSITIES:
            for phase in PHASES:
                group = f"{network}, {phase}, density {density:g}"
                for side, (kind, _, _) in SIDES.items():
                    build = partial(_build, network, density, plan.device, phase, side)
                    yield Row("models", group, side, kind, build, density)


def test_models(row, measure):
    measure(row)
