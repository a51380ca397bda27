"""Cut points against removal by brute force, and paths against their enumeration."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from criteria.networks import Residual, mlp, residual_net, weights
from torch import nn

import sparseprune as sp
from sparseprune.criteria.cuts import _parents, cut_nodes
from sparseprune.criteria.flow import LinearNetwork, path_flow
from sparseprune.criteria.linear_run import power_of_two

IMAGE = torch.ones(1, 3, 8, 8)


@pytest.mark.parametrize("seed", range(20))
def test_cuts_are_the_nodes_without_which_nothing_reaches_the_output(seed):
    generator = random.Random(seed)
    values = [torch.ones(1, requires_grad=True)]
    for _ in range(12):
        recent = values[-3:]
        picked = generator.sample(recent, k=min(len(recent), generator.choice([1, 1, 2])))
        values.append(sum(picked[1:], picked[0]) * 2)
    outputs = [values[-1].grad_fn, *([values[-2].grad_fn] if seed % 3 == 0 else [])]

    nodes, stack = set(), list(outputs)
    while stack:
        node = stack.pop()
        if node not in nodes:
            nodes.add(node)
            stack += _parents(node)
    [leaf] = [node for node in nodes if not _parents(node)]

    def connected(removed):
        seen, stack = set(), [node for node in outputs if node is not removed]
        while stack:
            node = stack.pop()
            if node is leaf:
                return True
            if node not in seen:
                seen.add(node)
                stack += [parent for parent in _parents(node) if parent is not removed]
        return False

    expected = {node for node in nodes if node is leaf or not connected(node)}
    assert cut_nodes(outputs) == expected


def test_one_factor_before_every_block_and_none_inside():
    model = residual_net(blocks=3)
    network = LinearNetwork(model, IMAGE)
    # before the first block, before each of the other three, before the classifier
    assert len(network._cuts) == 5
    sp.sparsify(model, sp.Masks.ones(weights(model)))
    assert len(LinearNetwork(model, IMAGE)._cuts) == 5
    chain = LinearNetwork(mlp(4, 5, 6, 7, 3), torch.ones(1, 4))
    assert len(chain._cuts) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_power_of_two(dtype):
    tiny = torch.finfo(dtype).tiny
    for value, exponent in ((1.0, 0), (1.999, 0), (2.0, 1), (0.75, -1), (3e30, 101), (1e-30, -100), (0.0, 0)):
        factor, e = power_of_two(torch.tensor(value, dtype=dtype))
        assert (e.item(), factor.item()) == (exponent, 2.0**-exponent)
    largest, _ = power_of_two(torch.tensor(torch.finfo(dtype).max, dtype=dtype))
    assert largest == tiny
    assert power_of_two(torch.tensor(tiny / 4, dtype=dtype))[0].isfinite()


def test_paths_are_those_an_enumeration_finds():
    torch.manual_seed(3)
    model = mlp(4, 5, 4, 3)
    names = list(weights(model))
    for density in (0.1, 0.25, 0.4):
        masks = {name: torch.rand(w.shape) < density for name, w in weights(model).items()}
        expected = {name: torch.zeros_like(mask) for name, mask in masks.items()}
        for units in itertools.product(range(4), range(5), range(4), range(3)):
            edges = [(name, b, a) for name, a, b in zip(names, units, units[1:], strict=False)]
            if all(masks[name][b, a] for name, b, a in edges):
                for name, b, a in edges:
                    expected[name][b, a] = True
        paths = path_flow(model, masks, torch.ones(1, 4))
        assert paths.connected == any(map(torch.any, expected.values()))
        assert all(torch.equal(paths.weights[name], expected[name]) for name in names)


def test_paths_do_not_vanish_however_many_there_are():
    """Beside a block with millions of paths, the shortcut's single one; thirty times over."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), *(Residual(4) for _ in range(30)), nn.Flatten(), nn.Linear(4, 2))
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights(model).items()}
    first = torch.zeros(4, 3, 1, 1, dtype=torch.bool)
    first[0] = True
    masks["0.weight"] = first
    for name in masks:
        if "body" in name:
            masks[name][0] = False  # nothing but the shortcut writes channel 0
            masks[name][:, 0] = False  # and nothing else reads it
    masks["32.weight"][:, 1:] = False
    paths = path_flow(model, masks, torch.ones(1, 3, 1, 1))
    assert paths.connected
    assert torch.equal(paths.weights["0.weight"], first)
    assert torch.equal(paths.weights["32.weight"], masks["32.weight"])
    assert not any(paths.weights[name].any() for name in masks if "body" in name)


def test_paths_are_seen_beside_numbers_of_paths_that_overflow():
    """Thirty blocks have some 1e80 paths; the first layer leaves zeros, which such a number would turn into NaN."""
    blocks = [Residual(4) for _ in range(30)]
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *blocks, nn.Flatten(), nn.Linear(16, 2))
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights(model).items()}
    masks["0.weight"] = torch.zeros_like(masks["0.weight"])
    masks["0.weight"][:, :, 0, 0] = True
    paths = path_flow(model, masks, torch.ones(1, 3, 2, 2))
    assert paths.connected
    for name, mask in masks.items():
        if not name.startswith("1."):  # in the first block some taps only read zeros
            assert torch.equal(paths.weights[name], mask), name


def test_max_pooling_hides_no_path():
    """All four entries of a window are largest at once; the flow of each must be seen."""
    model = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 1))
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights(model).items()}
    paths = path_flow(model, masks, torch.ones(1, 3, 2, 2))
    assert all(torch.equal(paths.weights[name], masks[name]) for name in masks)


def test_paths_leave_values_and_zero_weights_out_of_account():
    model = mlp(3, 4, 2)
    with torch.no_grad():
        model[0].weight.zero_()
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights(model).items()}
    paths = path_flow(model, masks, torch.zeros(1, 3))
    assert paths.connected and all(mask.all() for mask in paths.weights.values())
