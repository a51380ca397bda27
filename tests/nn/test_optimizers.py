"""Pruned weights and their optimizer state stay exactly zero, whatever torch optimizer steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn, optim

from sparseprune.nn import SparseLayer, sparsify

CHOICES = {
    "SGD": (optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
    "SGD nesterov": (optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "Adam": (optim.Adam, {"lr": 0.01, "weight_decay": 0.01, "amsgrad": True}),
    "AdamW": (optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    "RMSprop": (optim.RMSprop, {"lr": 0.001, "momentum": 0.9, "centered": True, "weight_decay": 0.01}),
}
LOOPS = {"for loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
CASES = [
    pytest.param(make, {**options, **loop}, id=f"{name}, {how}")
    for name, (make, options) in CHOICES.items()
    for how, loop in LOOPS.items()
    if not (how == "fused" and make is optim.RMSprop)  # torch has no fused RMSprop
]
OTHERS = [optim.Adagrad, optim.Adadelta, optim.Adamax, optim.NAdam, optim.RAdam, optim.Rprop, optim.ASGD]
STEPS = 50


@pytest.fixture(autouse=True)
def one_thread():
    """The tensors are tiny: waking threads costs more than their work, ten times more on a busy machine."""
    torch.set_num_threads(1)


def net():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 25, 6)
    )


def random_masks(model, density=0.5):
    return {n: torch.rand(p.shape) < density for n, p in model.named_parameters() if p.dim() > 1}


def step(model, optimizer, accumulate=1):
    optimizer.zero_grad()
    for _ in range(accumulate):
        x, target = torch.randn(4, 2, 5, 5), torch.randint(6, (4,))
        nn.functional.cross_entropy(model(x), target).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()


def states(optimizer, weight):
    return {k: s for k, s in optimizer.state[weight].items() if torch.is_tensor(s) and s.shape == weight.shape}


def assert_zero_outside(model, optimizer, masks):
    """Where a mask prunes: weight, gradient and every state tensor of the weight's shape."""
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        assert not weight[~mask].any(), name
        assert weight.grad is None or not weight.grad[~mask].any(), name
        for key, state in states(optimizer, weight).items():
            assert not state[~mask].any(), f"{key} of {name}"


@pytest.mark.parametrize(("make", "options"), CASES)
def test_fifty_steps(make, options):
    model = net()
    optimizer = make(model.parameters(), **options)  # made for the dense model, and still valid
    masks = random_masks(model)
    sparsify(model, masks)
    start = {n: model.get_parameter(n).detach().clone() for n in masks}
    for _ in range(STEPS):
        step(model, optimizer, accumulate=2)
        assert_zero_outside(model, optimizer, masks)
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        assert (weight != start[name])[mask].all(), "kept weights must train"
        assert len(states(optimizer, weight)) == {optim.SGD: 1, optim.AdamW: 2}.get(make, 3)


@pytest.mark.parametrize(("make", "options"), CASES)
def test_masks_change_while_training(make, options):
    model = net()
    optimizer = make(model.parameters(), **options)
    for _ in range(5):
        step(model, optimizer)  # dense: every momentum is non-zero when the first mask comes
    held = {n: torch.ones(m.shape, dtype=torch.bool) for n, m in random_masks(model).items()}
    for _ in range(5):
        masks = random_masks(model)
        sparsify(model, masks, optimizer=optimizer)
        held = {n: held[n] & m for n, m in masks.items()}
        assert_zero_outside(model, optimizer, held)  # grown slots start from zero, state too
        assert all((model.get_parameter(n) != 0)[m].all() for n, m in held.items())
        for _ in range(STEPS // 5):
            step(model, optimizer)
            assert_zero_outside(model, optimizer, masks)
        assert all((model.get_parameter(n) != 0)[m].all() for n, m in masks.items()), "grown weights must train"
        held = masks


def test_without_the_optimizer_momentum_moves_pruned_weights():
    model = net()
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    step(model, optimizer)
    masks = random_masks(model)
    sparsify(model, masks)
    step(model, optimizer)
    assert model[4].weight[~masks["4.weight"]].all(), "this is what optimizer= is for"


def test_grown_slots_forget_stale_state():
    model = net()
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    step(model, optimizer)
    first, second = random_masks(model), random_masks(model)
    sparsify(model, first)  # leaves the state as it was, also where the second mask grows
    sparsify(model, second, optimizer=optimizer)
    assert_zero_outside(model, optimizer, {n: first[n] & second[n] for n in first})
    assert states(optimizer, model[4].weight)["exp_avg"].any()


def test_state_of_other_parameters_is_left():
    model = net()
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    step(model, optimizer)
    bias = optimizer.state[model[4].bias]["exp_avg"].clone()
    steps = optimizer.state[model[4].weight]["step"].clone()
    sparsify(model, random_masks(model), optimizer=optimizer)
    assert torch.equal(optimizer.state[model[4].bias]["exp_avg"], bias) and bias.all()
    assert torch.equal(optimizer.state[model[4].weight]["step"], steps)


@pytest.mark.parametrize("make", OTHERS)
def test_other_optimizers_keep_the_weights_zero(make):
    model = net()
    optimizer = make(model.parameters(), weight_decay=0.01) if make is not optim.Rprop else make(model.parameters())
    masks = random_masks(model)
    sparsify(model, masks)
    start = model[4].weight.detach().clone()
    for _ in range(10):
        step(model, optimizer)
        for name, mask in masks.items():
            assert not model.get_parameter(name)[~mask].any()
    assert not torch.equal(model[4].weight, start)


def test_lbfgs_history_is_dropped():
    model = net()
    x, target = torch.randn(8, 2, 5, 5), torch.randint(6, (8,))
    optimizer = optim.LBFGS(model.parameters(), lr=0.1, max_iter=5)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        return loss

    optimizer.step(closure)
    for _ in range(2):
        masks = random_masks(model)
        sparsify(model, masks, optimizer=optimizer)
        for _ in range(3):
            optimizer.step(closure)
            for name, mask in masks.items():
                assert not model.get_parameter(name)[~mask].any()


def test_densely_written_slots_train_like_zeros():
    model = net()
    optimizer = optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    masks = random_masks(model)
    sparsify(model, masks)
    with torch.no_grad():
        model[4].weight[~masks["4.weight"]] = float("inf")
    for _ in range(3):
        step(model, optimizer)
    layers = [m for m in model if isinstance(m, SparseLayer)]
    for layer in layers:
        assert layer.weight[layer.mask.to_bool()].isfinite().all()
    assert not states(optimizer, model[4].weight)["exp_avg"][~masks["4.weight"]].any()
