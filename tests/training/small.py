"""A small data set, a network with what a resumed run could get wrong, an optimizer that mixes entries, and hooks."""

from __future__ import annotations

import torch
from torch import nn, optim

import sparseprune as sp
from sparseprune.data import Dataset


def dataset(train: int = 50, test: int = 20) -> Dataset:
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(train + test) % 3
    images = torch.randn(train + test, 1, 4, 4, generator=generator) + labels.view(-1, 1, 1, 1)
    splits = [(images[part], labels[part]) for part in (slice(None, train), slice(train, None))]
    return Dataset("small", *splits, ("a", "b", "c"), (1, 4, 4), (0.0,), (1.0,))


def network(keep: int = 60) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(64, 3),
        )
    return sp.sparsify(model, sp.prune(model, sp.Magnitude(), keep=keep))


class Mixing(optim.Optimizer):
    """Every entry moves by the mean of all gradients, and remembers it."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            with torch.enable_grad():
                closure()
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                momentum = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                momentum.mul_(0.9).add_(p.grad.mean() + self.param_groups[0]["lr"])
                p.add_(momentum)


def hooks_on(model, optimizer):
    """Hooks of ours, of any kind that torch has, and requests for dense gradients."""
    holders = [optimizer, *model.modules()]
    kinds = [hooks for holder in holders for name, hooks in vars(holder).items() if "hooks" in name]
    kinds += [parameter._backward_hooks or {} for parameter in model.parameters()]
    ours = [hook for hooks in kinds for hook in hooks.values() if hook.__module__.startswith("sparseprune")]
    return ours + [module for module in model.modules() if "dense_gradient" in vars(module)]
