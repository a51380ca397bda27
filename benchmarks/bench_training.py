"""Training with masks that change: a tenth of an MNIST epoch, beside dense training and the same by eager masks.

Each call is 60 optimizer steps of LeNet-300-100 with batches of 100; masks change after every 10 of them. "fixed" is the
same without changes: what a method takes beyond it is the cost of its updates and of the gradients that they look at.
"eager" multiplies weights by float masks and rewires with `topk` on whole tensors, as the papers' repositories do.

What there is to do at the least, on two threads of an AVX-512 (Zen 5) machine. A dense step takes 840 us: 620 for its
eight products, 90 for the optimizer, 65 for the rest of the network and 65 for calls. With masks

    each step         products of 310, 240 and 180 us at density 0.1, 0.05 and 0.02 and the rest as it is, so 0.63, 0.55 and
                      0.47 of dense; but a sparse layer's calls take three times as long as a dense one's, so 0.94 to 0.75
    SparseMomentum    the dense weight gradient, and four passes over it (summed, looked at, averaged, masked), 110 us
    each update       |w| of the survivors, as many random numbers as weights grow or one pass over the dense gradient,
                      and one over weight, gradient and momentum, which become zero where weights were dropped
    DeepR             an update and a normal number for every survivor in each step

Measured so, times beside dense at densities from 0.1 to 0.02: fixed 0.94 to 0.73, SET and RigL 1.3 to 1.0, SparseMomentum
1.7 to 1.2, DSR 1.2 to 0.9, DeepR 3.0 to 1.5; eager masks 1.2 to 1.1 where they are fixed and 2.0 to 1.4 where they change.
At this size every layer fits a cache, so calls and small tensors count as much as products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparseprune as sp
from sparseprune import training as tr

from .rows import DENSE, OURS, PEER, Plan, Row, Timed, WrongResultError

STEPS, EVERY, FOREVER = 60, 10, 10**6
METHODS: dict[str, Callable[[nn.Module, torch.optim.Optimizer], tr.Method | None]] = {
    "fixed": lambda model, optimizer: None,
    "SET": lambda model, optimizer: tr.SET(model, optimizer, every=EVERY, until=FOREVER),
    "RigL": lambda model, optimizer: tr.RigL(model, optimizer, every=EVERY, until=FOREVER),
    "SparseMomentum": lambda model, optimizer: tr.SparseMomentum(model, optimizer, every=EVERY, until=FOREVER),
    "DSR": lambda model, optimizer: tr.DSR(model, optimizer, every=EVERY, until=FOREVER),
    "DeepR": lambda model, optimizer: tr.DeepR(model, optimizer, until=FOREVER),
}
DENSITIES = (0.1, 0.05, 0.02)


@dataclass
class Problem:
    """A network, its optimizer and batches; ``density`` None is dense."""

    density: float | None
    device: str
    sizes: tuple[int, ...]
    model: nn.Sequential = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    batches: list[tuple[Tensor, Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for inputs, outputs in zip(self.sizes, self.sizes[1:], strict=False):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.model = nn.Sequential(*layers[:-1]).to(self.device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01, momentum=0.9)
        x, y = torch.rand(10, 100, self.sizes[0]), torch.randint(0, self.sizes[-1], (10, 100))
        self.batches = list(zip(x.to(self.device), y.to(self.device), strict=True))

    def masks(self) -> sp.Masks:
        random = sp.Random(torch.Generator(self.device).manual_seed(0))
        return sp.prune(self.model, random, density=self.density, pattern=sp.LayerWise(sp.erk))

    def train(self, forward: Callable[[Tensor], Tensor], after: Callable[[int], None]) -> Tensor:
        for step in range(1, STEPS + 1):
            x, y = self.batches[step % len(self.batches)]
            self.optimizer.zero_grad()
            loss = F.cross_entropy(forward(x), y)
            loss.backward()
            self.optimizer.step()
            after(step)
        return loss.detach()


@dataclass
class Eager:
    """Float masks multiplied into the weights, and rewiring by `topk`: the peers' way."""

    problem: Problem
    method: str
    masks: list[Tensor] = field(init=False)
    layers: list[nn.Linear] = field(init=False)
    effective: list[Tensor] = field(init=False)
    average: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.layers = list(self.problem.model[::2])
        self.masks = [mask.to_bool().float() for mask in self.problem.masks().values()]
        self.average = [torch.zeros_like(mask) for mask in self.masks]
        self.effective = []
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Weights and momenta that the masks prune are zero, as after every step."""
        for layer, mask in zip(self.layers, self.masks, strict=True):
            layer.weight *= mask
            if "momentum_buffer" in self.problem.optimizer.state[layer.weight]:
                self.problem.optimizer.state[layer.weight]["momentum_buffer"] *= mask

    def forward(self, x: Tensor) -> Tensor:
        self.effective = []
        for layer, mask in zip(self.layers, self.masks, strict=True):
            weight = layer.weight * mask
            weight.retain_grad()
            self.effective.append(weight)
            x = F.linear(x, weight, layer.bias)
            x = x if layer is self.layers[-1] else F.relu(x)
        return x

    @torch.no_grad()
    def after(self, step: int) -> None:
        self.apply()
        gradients = [weight.grad for weight in self.effective]
        if self.method == "SparseMomentum":
            for average, gradient in zip(self.average, gradients, strict=True):
                average.mul_(0.9).add_(gradient, alpha=0.1)
            gradients = self.average
        if step % EVERY == 0 and self.method != "fixed":
            for layer, mask, gradient in zip(self.layers, self.masks, gradients, strict=True):
                self.rewire(layer.weight.view(-1), mask.view(-1), gradient.reshape(-1))
            self.apply()

    def rewire(self, weight: Tensor, mask: Tensor, gradient: Tensor) -> None:
        live = int(mask.sum())
        keep = live - int(0.3 * live)
        kept = torch.where(mask.bool(), weight.abs(), -1).topk(keep).indices
        mask.zero_()
        mask[kept] = 1
        score = torch.rand_like(weight) if self.method == "SET" else gradient.abs()
        mask[torch.where(mask.bool(), -1, score).topk(live - keep).indices] = 1


def _dense(device: str, sizes: tuple[int, ...]) -> Timed:
    problem = Problem(None, device, sizes)

    def check(loss: Tensor) -> None:
        if not bool(loss.isfinite()):
            raise WrongResultError(f"the loss must be finite, got {loss}")

    return Timed(partial(problem.train, problem.model, lambda step: None), check)


def _ours(device: str, sizes: tuple[int, ...], name: str, density: float) -> Timed:
    problem = Problem(density, device, sizes)
    sp.sparsify(problem.model, problem.masks(), optimizer=problem.optimizer)
    method = METHODS[name](problem.model, problem.optimizer)
    budget = sp.held_masks(problem.model).count()

    def check(loss: Tensor) -> None:
        if sp.held_masks(problem.model).count() != budget or not bool(loss.isfinite()):
            raise WrongResultError(f"{name} must keep {budget} weights and a finite loss, got {loss}")

    return Timed(partial(problem.train, problem.model, lambda step: method and method.step()), check)


def _eager(device: str, sizes: tuple[int, ...], name: str, density: float) -> Timed:
    eager = Eager(Problem(density, device, sizes), name)
    budget = int(sum(mask.sum() for mask in eager.masks))

    def check(loss: Tensor) -> None:
        if int(sum(mask.sum() for mask in eager.masks)) != budget or not bool(loss.isfinite()):
            raise WrongResultError(f"{name} must keep {budget} weights and a finite loss, got {loss}")

    return Timed(partial(eager.problem.train, eager.forward, eager.after), check)


def rows(plan: Plan) -> Iterator[Row]:
    sizes = plan.pick(quick=(20, 30, 10), cpu=(784, 300, 100, 10), cuda=(784, 300, 100, 10))
    for density in DENSITIES:
        group = f"training, {STEPS} steps of {'-'.join(map(str, sizes))}, density {density:g}"
        yield Row("training", group, "dense", DENSE, partial(_dense, plan.device, sizes), density)
        for name in METHODS:
            if name in ("fixed", "SET", "RigL", "SparseMomentum"):
                yield Row(
                    "training",
                    group,
                    f"eager {name}",
                    PEER,
                    partial(_eager, plan.device, sizes, name, density),
                    density,
                )
            yield Row(
                "training", group, f"ours {name}", OURS, partial(_ours, plan.device, sizes, name, density), density
            )


def test_training(row, measure):
    measure(row)
