"""Criteria beside the obvious PyTorch: one backward pass an example for Fisher, one forward pass a weight for saliency.

Expected on two cores: an example by itself keeps a core waiting for memory and Python; ours passes the batch through once
and forms the gradients of single examples layer by layer, so 5x and more where layers are small. On a ResNet-18 the
ordinary forward and backward of the batch, which nobody can leave out, is most of the loop's time: ours takes a tenth
more than that. For exact saliency a loop repeats the whole network for each weight, ours what comes after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparseprune as sp
from sparseprune.pruning import prunable

from .rows import OURS, PEER, Plan, Row, Timed, WrongResultError

Batch = tuple[Tensor, Tensor]


def _toy() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


FISHER: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lenet_300_100": (sp.models.lenet_300_100, (128, 1, 28, 28)),
    "lenet5": (sp.models.lenet5, (128, 1, 28, 28)),
    "resnet18-32": (lambda: sp.models.resnet18(stem="cifar"), (16, 3, 32, 32)),
}
EXACT = {
    "lenet5 fc3": (sp.models.lenet5, (16, 1, 28, 28)),
    "lenet_300_100 fc3": (sp.models.lenet_300_100, (100, 1, 28, 28)),
}
TOY = {"toy": (_toy, (4, 1, 8, 8))}


def fisher(model: nn.Module, weights: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    return sp.Fisher(F.cross_entropy, [batch])(model, weights)


def fisher_loop(model: nn.Module, weights: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    totals = {name: torch.zeros_like(w) for name, w in weights.items()}
    for x, y in zip(*batch, strict=True):
        gradients = torch.autograd.grad(F.cross_entropy(model(x[None]), y[None]), list(weights.values()))
        for total, gradient in zip(totals.values(), gradients, strict=True):
            total += gradient**2
    return {n: w.detach() ** 2 * totals[n] / (2 * len(batch[0])) for n, w in weights.items()}


def exact(model: nn.Module, weights: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    return sp.ExactSaliency(F.cross_entropy, [batch], dtype=torch.float32)(model, weights)


@torch.no_grad()
def exact_loop(model: nn.Module, weights: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    before = F.cross_entropy(model(batch[0]), batch[1])
    scores = {}
    for name, weight in weights.items():
        flat, changes = weight.view(-1), torch.empty(weight.numel())
        for j in range(weight.numel()):
            old = flat[j].item()
            flat[j] = 0
            changes[j] = F.cross_entropy(model(batch[0]), batch[1]) - before
            flat[j] = old
        scores[name] = changes.abs().reshape(weight.shape)
    return scores


@lru_cache(maxsize=1)
def _problem(make: Callable[[], nn.Module], shape: tuple[int, ...], layer: str, device: str) -> tuple:
    torch.manual_seed(0)
    model = make().eval().to(device)
    weights = {n: w for n, w in prunable(model).items() if n.startswith(layer)}
    return model, weights, (torch.randn(shape, device=device), torch.randint(0, 10, shape[:1], device=device))


def _check(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, score in expected.items():
        error = (actual[name].to(score) - score).abs().max()
        if not error <= tolerance * score.max():
            raise WrongResultError(f"{name} differs by {error:.2g} at scores of up to {score.max():.2g}")


def _build(problem: tuple, run: Callable, reference: Callable, tolerance: float) -> Timed:
    arguments = _problem(*problem)
    return Timed(partial(run, *arguments), lambda scores: _check(scores, reference(*arguments), tolerance))


def rows(plan: Plan) -> Iterator[Row]:
    # A loss of 2.3 in float32 has steps of 2e-7: exact saliencies agree no better than that.
    kinds = (
        ("Fisher", plan.pick(quick=TOY, cpu=FISHER, cuda=FISHER), fisher, fisher_loop, 1e-4),
        ("exact saliency", plan.pick(quick=TOY, cpu=EXACT, cuda=EXACT), exact, exact_loop, 1e-2),
    )
    for title, networks, ours, loop, tolerance in kinds:
        for network, (make, shape) in networks.items():
            problem = (make, shape, network.partition(" ")[2], plan.device)
            for side, kind, run in (("loop", PEER, loop), ("sparseprune", OURS, ours)):
                build = partial(_build, problem, run, loop, tolerance)
                yield Row("criteria", f"{title}, {network}, batch {shape[0]}", side, kind, build)


def test_criteria(row, measure):
    measure(row)
