"""attach(): pruned weights and their state are zero after every step, whoever steps and however masks change."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn, optim
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from training.small import Mixing

from sparseprune.nn import held_masks, sparsify
from sparseprune.training import attach


def net():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    return sparsify(model, masks_for(model))


def masks_for(model, density=0.5):
    return {n: torch.rand(p.shape) < density for n, p in model.named_parameters() if p.dim() > 1}


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(5, 6)).square().sum().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def state_of(optimizer, weight):
    return [s for s in optimizer.state[weight].values() if torch.is_tensor(s) and s.shape == weight.shape]


def assert_clean(model, optimizer):
    for name, mask in held_masks(model).items():
        weight, pruned = model.get_parameter(name), ~mask.to_bool()
        assert pruned.any() and not weight[pruned].any()
        assert all(not state[pruned].any() for state in state_of(optimizer, weight))


MAKERS = {
    "mixing": Mixing,
    "sgd": lambda ps: optim.SGD(ps, 0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda ps: optim.AdamW(ps, 0.01),
    "muon": lambda ps: optim.Muon([p for p in ps if p.dim() == 2], 0.01),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_masks_changed_by_set_mask_at_any_step(make):
    model = net()
    optimizer = make(list(model.parameters()))
    attach(optimizer, model)
    for _ in range(4):
        step(model, optimizer)
        assert_clean(model, optimizer)
        before = held_masks(model)
        for name, mask in masks_for(model).items():
            model.get_submodule(name.removesuffix(".weight")).set_mask(mask)
        grown = {n: (m & ~before[n]).to_bool() for n, m in held_masks(model).items()}
        assert all(not model.get_parameter(n)[g].any() for n, g in grown.items())
        stale = copy.deepcopy(optimizer.state_dict())
        optimizer.zero_grad()
        optimizer.step()  # without gradients: only what is attached acts
        for name, slots in grown.items():
            assert slots.any() and all(not s[slots].any() for s in state_of(optimizer, model.get_parameter(name)))
        assert_clean(model, optimizer)
        assert stale["state"].keys() == optimizer.state_dict()["state"].keys()


def test_what_left_and_came_back_between_two_steps_starts_from_zero():
    model = net()
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    attach(optimizer, model)
    step(model, optimizer)
    mask = model[0].mask.to_bool()
    before = optimizer.state[model[0].weight]["momentum_buffer"].clone()
    left = mask & (torch.rand(mask.shape) < 0.5)
    model[0].set_mask(mask & ~left)
    model[0].set_mask(mask)
    optimizer.zero_grad()
    optimizer.step()
    after = optimizer.state[model[0].weight]["momentum_buffer"]
    assert before[left].all() and not after[left].any() and not model[0].weight[left].any()
    assert torch.equal(after[~left], before[~left])


def test_a_state_from_before_is_cleaned():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    step(model, optimizer)
    sparsify(model, masks_for(model))  # leaves the momentum of the dense model
    live = model[0].mask.to_bool()
    with torch.no_grad():
        model[0].weight.zero_()  # by chance at zero, which is no reason to lose the momentum of live weights
    momentum = optimizer.state[model[0].weight]["momentum_buffer"]
    before = momentum.clone()
    attach(optimizer, model)
    optimizer.zero_grad()
    optimizer.step()
    assert before[live].all() and torch.equal(momentum[live], before[live])
    assert_clean(model, optimizer)


def test_lbfgs_keeps_its_history_while_masks_stay():
    model = net()
    optimizer = optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    attach(optimizer, model)
    x = torch.randn(5, 6)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
        assert optimizer.state and all(not w[p].any() for w, p in pruned_weights(model))
    sparsify(model, masks_for(model))
    optimizer.step(closure)
    assert all(not w[p].any() for w, p in pruned_weights(model))


def pruned_weights(model):
    return [(model.get_parameter(n), ~m.to_bool()) for n, m in held_masks(model).items()]


def test_without_it_a_mixing_optimizer_leaves_values():
    model = net()
    optimizer = Mixing(model.parameters())
    hold = attach(optimizer, model)
    hold.remove()
    step(model, optimizer)
    assert model[0].weight.all(), "this is what attach is for"


@pytest.mark.parametrize("model_first", [True, False])
def test_a_checkpoint_with_other_masks_goes_on_exactly(model_first):
    model = net()
    optimizer = optim.Adam(model.parameters(), 0.01)
    step(model, optimizer)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    step(model, optimizer)
    other = net()
    other_optimizer = optim.Adam(other.parameters(), 0.01)
    attach(other_optimizer, other)
    step(other, other_optimizer)
    loads = [lambda: other.load_state_dict(saved[0]), lambda: other_optimizer.load_state_dict(saved[1])]
    for load in loads if model_first else reversed(loads):
        load()
    torch.set_rng_state(saved[2])
    step(other, other_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_amp_accumulation_and_a_moving_average():
    model = net()
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    attach(optimizer, model)
    scaler = torch.amp.GradScaler("cpu")
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    for _ in range(3):
        optimizer.zero_grad()
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(torch.randn(5, 6)).square().mean()
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        average.update_parameters(model)
        assert_clean(model, optimizer)
        model[0].set_mask(torch.rand(8, 6) < 0.5)
    average.update_parameters(model)
    assert held_masks(average.module).digest() == held_masks(model).digest()
    x = torch.randn(3, 6)
    with torch.no_grad():
        expected = average(x)
        average.module[0].weight[~model[0].mask.to_bool()] = float("nan")
        assert torch.equal(average(x), expected), "the average reads only what the mask keeps"


def test_the_optimizer_must_be_one():
    with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer, got list"):
        attach([], net())
