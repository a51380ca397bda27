"""Rewinding restores every bit: it that silently did nothing is the field's most repeated bug."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn, optim

import sparseprune as sp
from sparseprune.training import Snapshot

MAKERS = {
    "sgd": lambda ps: optim.SGD(ps, 0.1, momentum=0.9),
    "adam": lambda ps: optim.Adam(ps, 0.01, amsgrad=True),
}


def net():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    model.register_buffer("count", torch.zeros((), dtype=torch.int64), persistent=False)
    return model


def step(model, optimizer, scheduler):
    optimizer.zero_grad()
    model(torch.randn(4, 1, 6, 6)).square().sum().backward()
    optimizer.step()
    scheduler.step()
    model.count += 1


def everything(model, optimizer, scheduler):
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return copy.deepcopy((tensors, optimizer.state_dict(), scheduler.state_dict()))


def assert_equal(a, b):
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_every_bit_comes_back_and_training_repeats(make, k):
    model = net()
    optimizer = make(model.parameters())
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    for _ in range(k):
        step(model, optimizer, scheduler)
    snapshot = Snapshot(model, optimizer, scheduler, random=True)
    before = everything(model, optimizer, scheduler)
    for _ in range(5):
        step(model, optimizer, scheduler)
    after, draws = everything(model, optimizer, scheduler), (random.random(), np.random.rand(), torch.rand(()))
    for _ in range(2):  # the second time shows that the first did not wear the snapshot out
        snapshot.rewind()
        assert_equal(everything(model, optimizer, scheduler), before)
        assert all(p.grad is None for p in model.parameters())
        for _ in range(5):
            step(model, optimizer, scheduler)
        assert_equal(everything(model, optimizer, scheduler), after)
        assert draws == (random.random(), np.random.rand(), torch.rand(()))


def test_masks_of_the_day_are_respected():
    model = net()
    optimizer = optim.Adam(model.parameters(), 0.01)
    scheduler = optim.lr_scheduler.StepLR(optimizer, 2)
    step(model, optimizer, scheduler)
    snapshot = Snapshot(model, optimizer, scheduler)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    moments = optimizer.state[model[0].weight]["exp_avg"].clone()
    step(model, optimizer, scheduler)
    masks = sp.prune(model, sp.Magnitude(), sparsity=0.5)
    sp.sparsify(model, masks, optimizer=optimizer)
    step(model, optimizer, scheduler)
    snapshot.rewind()
    for name, mask in masks.items():
        assert torch.equal(model.get_parameter(name), mask.apply(weights[name])), name
    assert torch.equal(model[0].bias, weights["0.bias"])
    assert torch.equal(optimizer.state[model[0].weight]["exp_avg"], masks["0.weight"].apply(moments))


def test_the_learning_rate_alone():
    model = net()
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    scheduler = optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    step(model, optimizer, scheduler)
    snapshot = Snapshot(model, optimizer, scheduler)
    for _ in range(3):
        step(model, optimizer, scheduler)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    snapshot.rewind_learning_rate()
    assert optimizer.param_groups[0]["lr"] == 0.05 and scheduler.last_epoch == 1
    assert_equal((model.state_dict(), optimizer.state_dict()["state"]), before)


def test_a_saved_snapshot_is_the_snapshot():
    model = net()
    optimizer = optim.SGD(model.parameters(), 0.1)
    scheduler = optim.lr_scheduler.StepLR(optimizer, 1)
    state = Snapshot(model, optimizer, scheduler).state_dict()
    before = everything(model, optimizer, scheduler)
    step(model, optimizer, scheduler)
    later = Snapshot(model, optimizer, scheduler)
    later.load_state_dict(state)
    later.rewind()
    assert_equal(everything(model, optimizer, scheduler), before)


def test_another_model_is_refused_before_anything_changes():
    model = net()
    snapshot = Snapshot(model)
    with torch.no_grad():
        model[0].weight.zero_()
    model.register_buffer("extra", torch.zeros(1))
    with pytest.raises(ValueError, match="only one side has \\['extra'\\]"):
        snapshot.rewind()
    assert not model[0].weight.any()


def test_a_rewind_that_did_not_take_is_an_error():
    model = nn.Linear(2, 2)
    snapshot = Snapshot(model)
    with torch.no_grad():
        model.weight.zero_()
    model.register_buffer("alias", model.weight.detach()[:1])  # the same memory, of which the snapshot has two values
    snapshot._state["model"]["alias"] = torch.ones(1, 2)
    with pytest.raises(RuntimeError, match="weight must hold its value"):
        snapshot.rewind()
