"""prune() beside the published loop, end to end: SynFlow on the networks of the paper and on ResNet-50.

Expected: the published loop spends two thirds of its time in `cat`, `kthvalue` and masks, at every density; ours in
products of the weights that are left, a third of whose positions need computing on a ResNet-50. So some 10x over a
hundred steps to 1 %, and less over twenty, which hold as much planning. What came of a hundred, step by step, is in
reproduce/synflow_steps.json: 5.1x to 5.9x.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

import sparseprune as sp

from .published import published_synflow
from .rows import OURS, PEER, Plan, Row, Timed, WrongResultError

STEPS = 20  # of the paper's hundred; fewer would time the reading of the model's graph, which ours does once a run


def _small_gammas(model: nn.Module) -> nn.Module:
    # The published loop overflows float32 on a ResNet-50 (R = 4e72) and then keeps nothing at all. Smaller batch-norm
    # scales let it finish, so that its time can be taken; ours needs no such help.
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.mul_(0.1)
    return model


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "vgg16_bn-32": (lambda: sp.models.vgg16_bn(num_classes=100), (3, 32, 32)),
    "resnet18-32": (lambda: sp.models.resnet18(num_classes=100, stem="cifar"), (3, 32, 32)),
    "resnet50-224": (lambda: _small_gammas(sp.models.resnet50()), (3, 224, 224)),
}


def _toy() -> nn.Module:
    layers = [nn.Linear(64, 48, bias=False), nn.ReLU(), nn.Linear(48, 10, bias=False)]
    return nn.Sequential(nn.Flatten(), *layers)


TOY: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {"mlp-64": (_toy, (1, 8, 8))}


def ours(model: nn.Module, ones: Tensor, steps: int = STEPS, density: float = 0.01) -> sp.Masks:
    return sp.prune(model, sp.SynFlow(ones), density=density, steps=steps)


def published(model: nn.Module, ones: Tensor, steps: int = STEPS, density: float = 0.01) -> dict[str, Tensor]:
    return published_synflow(model, ones, density, steps)


def check(model: nn.Module, ones: Tensor) -> None:
    """One step in float64 gives the published masks bit for bit, ties apart (there are none among these scores)."""
    double = model.double()
    expected = published(double, ones.double(), steps=1, density=0.1)
    actual = ours(double, ones.double(), steps=1, density=0.1)
    model.float()
    for name, mask in expected.items():
        if not torch.equal(actual[name].to_bool(), mask.bool()):
            raise WrongResultError(f"{name} differs from the published masks")


@lru_cache(maxsize=1)
def _checked(network: str, device: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = {**NETWORKS, **TOY}[network]
    model, ones = make().eval().to(device), torch.ones(1, *shape, device=device)
    check(model, ones)
    return model, ones


def _build(network: str, device: str, side: Callable[..., object]) -> Timed:
    return Timed(partial(side, *_checked(network, device)), lambda _: None)


def rows(plan: Plan) -> Iterator[Row]:
    for network in plan.pick(quick=TOY, cpu=NETWORKS, cuda=NETWORKS):
        group = f"prune, SynFlow, {STEPS} steps, {network}"
        for side, kind, run in (("published", PEER, published), ("sparseprune", OURS, ours)):
            yield Row("prune", group, side, kind, partial(_build, network, plan.device, run))


def test_prune(row, measure):
    measure(row)
