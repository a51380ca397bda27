"""Neuron growth: bridging gradients against a network that has the bridge, and the fall of the loss they promise."""

from __future__ import annotations

import pytest
import torch
from torch import nn, optim

import sparseprune as sp
from sparseprune.training import bridging_gradients, grow_neurons


def network():
    """Three of six hidden units have connections; inputs are not negative."""
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    live = torch.zeros(6, dtype=torch.bool)
    live[[0, 2, 5]] = True
    masks = {"0.weight": live[:, None].expand(6, 5).contiguous(), "2.weight": live[None].expand(4, 6).contiguous()}
    return sp.sparsify(model, masks)


def data(n=16):
    x = torch.rand(n, 5, dtype=torch.float64)
    return x, torch.stack([x.sum(1).sin(), x[:, 0] * x[:, 1]], 1)


def mean_square(output, y):
    return (output - y).square().sum(1).mean()


def bridged_loss(model, bridge, x, y):
    hidden = model[1](model[0](x))
    return mean_square(model[4](torch.tanh(model[2](hidden) + x @ bridge.T)), y)


def test_it_is_the_gradient_of_a_bridge():
    model, (x, y) = network(), data()
    bridge = torch.zeros(4, 5, dtype=torch.float64, requires_grad=True)
    bridged_loss(model, bridge, x, y).backward()
    model.zero_grad()
    batches = [(x[:10], y[:10]), (x[10:], y[10:])]
    got = bridging_gradients(model, model[0], model[2], mean_square, batches)
    torch.testing.assert_close(got, bridge.grad)
    assert all(p.grad is None for p in model.parameters()) and not model[0]._forward_pre_hooks
    assert not model[2]._forward_hooks
    with pytest.raises(ValueError, match="batches must have at least one batch"):
        bridging_gradients(model, model[0], model[2], mean_square, [])


def test_the_loss_falls_by_the_rate_times_the_squared_gradients():
    model, (x, y) = network(), data()
    gradients = bridging_gradients(model, model[0], model[2], mean_square, [(x, y)])
    before, rate = mean_square(model(x), y).item(), 1e-6
    births = grow_neurons(model[0], model[2], gradients, count=2, rate=rate)
    promised = rate * sum(birth.gradient**2 for birth in births)
    assert before - mean_square(model(x), y).item() == pytest.approx(promised, rel=1e-3)


def test_the_largest_pairs_take_the_first_free_units():
    model = network()
    optimizer = optim.SGD(model.parameters(), 0.0, momentum=0.9)
    x, y = data()
    mean_square(model(x), y).backward()
    optimizer.step()
    gradients = torch.zeros(4, 5, dtype=torch.float64)
    gradients[3, 1], gradients[0, 4], gradients[2, 2] = -9.0, 4.0, 1.0
    momentum = {i: optimizer.state[model[i].weight]["momentum_buffer"] for i in (0, 2)}
    for buffer in momentum.values():
        buffer += 1  # also where nothing is live: what grows must not start from that
    before = [model[i].weight.detach().clone() for i in (0, 2)]
    births = grow_neurons(model[0], model[2], gradients, count=2, rate=0.01, optimizer=optimizer)
    assert [(b.unit, b.input, b.output, b.gradient) for b in births] == [(1, 1, 3, -9.0), (3, 4, 0, 4.0)]
    expected = [w.clone() for w in before]
    expected[0][1, 1], expected[1][3, 1] = 0.3, 0.3
    expected[0][3, 4], expected[1][0, 3] = 0.2, -0.2
    for i, weight in zip((0, 2), expected, strict=True):
        torch.testing.assert_close(model[i].weight.detach(), weight)
        assert torch.equal(model[i].mask.to_bool(), weight != 0)
        grown = (weight != 0) & (before[i // 2] == 0)
        assert not momentum[i][grown].any() and momentum[i][(weight != 0) & ~grown].all()
    assert model[0].bias[[1, 3]].tolist() == [0.0, 0.0] and model[0].bias[[0, 2, 4]].all()


def test_wrong_arguments_are_named_and_change_nothing():
    model, good = network(), torch.ones(4, 5, dtype=torch.float64)
    before = sp.held_masks(model).digest()
    for call, words in (
        (lambda: grow_neurons(model[2], model[0], good, count=1, rate=0.1), "following must take 4 units, got 5"),
        (lambda: grow_neurons(model[0], model[2], good.T, count=1, rate=0.1), r"gradients must have shape \(4, 5\)"),
        (lambda: grow_neurons(model[0], model[2], good, count=4, rate=0.1), "count must be at most 3"),
        (lambda: grow_neurons(model[0], model[2], good, count=0, rate=0.1), "count must be an integer >= 1"),
        (lambda: grow_neurons(model[0], model[2], good, count=1, rate=0.0), "rate must be above 0"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError, match="following must be SparseLinear, got Linear"):
        grow_neurons(model[0], model[4], good, count=1, rate=0.1)
    assert sp.held_masks(model).digest() == before
