"""Gradual pruning, thresholds, weak units and NeST against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn, optim

import sparseprune as sp
from sparseprune.training import GradualPruning, NeST, remove_weak_units, threshold_masks
from sparseprune.training.thresholds import incoming_sums


def net():
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))


def run(model, method, optimizer, steps, after=lambda step: None):
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        model(torch.randn(8, 20)).square().mean().backward()
        optimizer.step()
        method.step()
        after(step)


@pytest.mark.parametrize("start", [1.0, 0.6])
def test_agp_is_zhu_and_guptas_equation(start):
    model = net()
    n = 900
    if start < 1:
        sp.sparsify(model, sp.prune(model, sp.Random(), density=start))
    optimizer = optim.SGD(model.parameters(), 0.05, momentum=0.9)
    method = GradualPruning(model, optimizer, density=0.1, begin=4, end=24, every=5)
    counts = {}
    run(model, method, optimizer, 30, lambda step: counts.update({step: method.masks.count()}))
    for step in range(1, 31):
        event = min(max(4 + (step - 4) // 5 * 5, 4), 24) if step >= 4 else None
        sparsity = 0.9 + (1 - start - 0.9) * (1 - (event - 4) / 20) ** 3 if event else 1 - start
        assert counts[step] == round((1 - sparsity) * n), step
    assert counts[30] == 90


def test_the_last_event_takes_place_between_the_others():
    model = net()
    optimizer = optim.SGD(model.parameters(), 0.05)
    method = GradualPruning(model, optimizer, density=0.2, begin=1, end=6, every=4, pattern=sp.LayerWise())
    run(model, method, optimizer, 6)
    assert method.masks.counts() == {"0.weight": 120, "2.weight": 60}


def test_one_shot_and_what_is_excluded():
    model = net()
    optimizer = optim.SGD(model.parameters(), 0.05, momentum=0.9)
    method = GradualPruning(model, optimizer, density=0.5, begin=3, end=3, exclude="2")
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append(model[0].weight.detach().clone()))
    densities = []
    run(model, method, optimizer, 5, lambda step: densities.append(method.masks.density))
    assert densities == [1, 1, 0.5, 0.5, 0.5] and type(model[2]) is nn.Linear
    largest = set(seen[2].abs().flatten().argsort(descending=True)[:300].tolist())
    assert set(model[0].mask.to_bool().flatten().nonzero().flatten().tolist()) == largest


def test_thresholds_are_the_worked_example():
    weights = {"w": torch.tensor([1, 1.1, 0.9, 0.05, 2, -0.1])}
    gone = {
        (rule, factor): (~threshold_masks(weights, rule, factor)["w"].to_bool()).nonzero().flatten().tolist()
        for rule, factor in (("mean", 0.5), ("std", 0.5), ("around mean", 0.5))
    }
    # mean .825, mean of |w| .8583, std (by n) .701
    assert gone == {("mean", 0.5): [3, 5], ("std", 0.5): [3, 5], ("around mean", 0.5): [0, 1, 2]}


def test_thresholds_are_set_by_live_weights_alone():
    weights = {"w": torch.tensor([1.0, 3.0, 100.0, math.nan])}
    live = sp.Masks({"w": torch.tensor([True, True, False, False])})
    assert threshold_masks(weights, "mean", 0.6, live)["w"].to_bool().tolist() == [False, True, False, False]
    with pytest.raises(ValueError, match="rule must be one of mean, std, around mean"):
        threshold_masks(weights, "median", 1.0)
    with pytest.raises(ValueError, match="factor must be a finite number >= 0"):
        threshold_masks(weights, "mean", -1.0)


def test_weak_units_are_the_worked_example():
    weight = torch.tensor([[0.1, -0.2, 0.05], [1, -2, 0.5], [0.3, 0.3, -0.4]])
    torch.testing.assert_close(incoming_sums(weight), torch.tensor([0.35, 3.5, 1.0]))
    layer, following = nn.Linear(3, 3), nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(weight)
    masks, removed = remove_weak_units(layer, following, 0.5, nn.ReLU())
    assert removed.tolist() == [True, False, False]
    assert masks["layer"].to_bool().int().tolist() == [[0] * 3, [1] * 3, [1] * 3]
    assert masks["following"].to_bool().int().tolist() == [[0, 1, 1]] * 2


def test_a_unit_without_input_leaves_the_output_as_it_was():
    layer, following = nn.Linear(4, 3).double(), nn.Linear(3, 2).double()
    with torch.no_grad():
        layer.weight[1], layer.bias[1] = 0, 0.7
    model = nn.Sequential(layer, nn.ReLU(), following)
    x = torch.randn(5, 4, dtype=torch.float64)
    before, outgoing = model(x).detach(), following.weight[:, 1].detach().clone()
    remove_weak_units(layer, following, 0.01, nn.ReLU())
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-12)
    assert not following.weight[:, 1].any() and (0.7 * outgoing).abs().min() > 1e-3
    with pytest.raises(ValueError, match="following must take the 3 units and have a bias"):
        remove_weak_units(layer, nn.Linear(3, 2, bias=False), 0.5, nn.ReLU())


def test_nest_grows_by_the_mean_gradient_then_prunes_by_magnitude():
    """The signed gradient is averaged before its absolute value: 2 of 6 grow at (0, 0) and (1, 2)."""
    layer = nn.Linear(3, 2, bias=False)
    sp.sparsify(layer, {"weight": torch.zeros(2, 3, dtype=torch.bool)})
    method = NeST(layer, None, grow_until=2, prune_until=9, every=2, growth=0.34, rate=0.5)
    du, x = torch.tensor([[0.5, -0.1], [0.5, 0.3]]), torch.tensor([[1.0, 0, 2], [1, 1, -2]])
    for sample in range(2):
        layer(x[sample : sample + 1]).backward(du[sample : sample + 1])
        method.step()
    assert layer.mask.to_bool().int().tolist() == [[1, 0, 0], [0, 0, 1]] and not layer.weight.any()
    assert layer.dense_gradient is None
    with torch.no_grad():
        layer.weight.add_(torch.tensor([[-0.1, 0, 0], [0, 0, 0.3]]))
    method.step(), method.step()
    assert layer.mask.to_bool().int().tolist() == [[0, 0, 0], [0, 0, 1]]


def test_nest_forgets_gradients_after_each_growth():
    layer = nn.Linear(4, 1, bias=False)
    sp.sparsify(layer, {"weight": torch.zeros(1, 4, dtype=torch.bool)})
    method = NeST(layer, None, grow_until=2, prune_until=2, every=1, growth=0.25)
    for x, live in (([9.0, 8, 0, 0], [1, 0, 0, 0]), ([0.0, 0, 0, 2], [1, 0, 0, 1])):
        layer(torch.tensor([x])).sum().backward()
        method.step()
        assert layer.mask.to_bool().int().tolist() == [live]
