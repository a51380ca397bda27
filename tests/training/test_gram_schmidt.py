"""Gram-Schmidt: which columns, frozen to the bit, and removal that changes no output where it can."""

from __future__ import annotations

import pytest
import torch
from torch import nn, optim

import sparseprune as sp
from sparseprune.training.gram_schmidt import GramSchmidtTraining, independent_columns


def example():
    """x1, x2, x3, 2 x1 + x2, 1e-9 x3: three are independent."""
    x = torch.randn(20, 3, dtype=torch.float64)
    return torch.stack([x[:, 0], x[:, 1], x[:, 2], 2 * x[:, 0] + x[:, 1], 1e-9 * x[:, 2]], 1)


@pytest.mark.parametrize("seed", range(5))
def test_as_many_columns_as_the_rank_and_no_duplicates(seed):
    torch.manual_seed(seed)
    z = example()
    chosen = independent_columns(z, 0.05)
    assert len(chosen) == 3 and not {2, 4} <= set(chosen) and not {0, 1, 3} <= set(chosen)
    assert torch.linalg.matrix_rank(z[:, chosen] / z[:, chosen].norm(dim=0)) == 3


def test_the_remainder_decides():
    """Columns at angles of 30 and 90 degrees to the first: remainders 0.5 and 1."""
    z = torch.tensor([[1.0, 3**0.5 / 2, 0, 0], [0, 0.5, 0, 0], [0, 0, 7, 0]])
    assert independent_columns(z, 0.49) == [0, 1, 2]
    assert len(independent_columns(z, 0.51)) == 2
    assert 3 not in independent_columns(z, 1e-9), "zeros are never chosen"


def layer_of(z, **options):
    layer = nn.Linear(5, 4).double()
    optimizer = optim.SGD(layer.parameters(), 0.1, momentum=0.9, weight_decay=1e-2)
    return layer, optimizer, GramSchmidtTraining(layer, optimizer, z, **options)


def step(layer, optimizer, method, x):
    optimizer.zero_grad()
    layer(x).square().sum().backward()
    optimizer.step()
    return method.step()


def test_what_is_not_chosen_keeps_its_bits():
    z = example()
    layer, optimizer, method = layer_of(z, every=3)
    frozen = torch.ones(5, dtype=torch.bool)
    frozen[independent_columns(z, 0.05)] = False
    before = layer.weight.detach().clone()
    for _ in range(7):
        assert not step(layer, optimizer, method, z)
    assert torch.equal(layer.weight[:, frozen], before[:, frozen])
    assert (layer.weight[:, ~frozen] != before[:, ~frozen]).all()
    momentum = optimizer.state[layer.weight]["momentum_buffer"]
    assert not momentum[:, frozen].any() and momentum[:, ~frozen].all()


def test_what_was_trained_before_goes_on_from_its_momentum():
    """A column that freezes keeps momentum, too, and moves by it once it is chosen again."""
    z = example()
    layer, optimizer, method = layer_of(z, every=100)
    step(layer, optimizer, method, z)
    momentum = optimizer.state[layer.weight]["momentum_buffer"]
    chosen = (~method.frozen["weight"]).nonzero().flatten()
    method.frozen["weight"][chosen[0]] = True
    before = momentum.clone(), layer.weight.detach().clone()
    step(layer, optimizer, method, z)
    assert torch.equal(momentum[:, chosen[0]], before[0][:, chosen[0]]) and before[0][:, chosen[0]].all()
    assert torch.equal(layer.weight[:, chosen[0]], before[1][:, chosen[0]])
    assert (layer.weight[:, chosen[1]] != before[1][:, chosen[1]]).all()


def test_removing_a_dependent_input_changes_no_output():
    z = example()
    layer, optimizer, method = layer_of(z, every=1, prune_after=3)
    optimizer.param_groups[0]["lr"] = 0.0
    before = layer(z).detach()
    assert [step(layer, optimizer, method, z) for _ in range(3)] == [False, True, False]
    assert method.masks.count() == 3 * 4
    assert (layer(z) - before).abs().max() < 1e-10
    assert not layer.weight[:, method.frozen["weight"]].any()


def test_hidden_units_of_a_network():
    """A hidden unit that copies another is found at the next layer, in eval mode, and modes come back."""
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = model[0].weight[1], model[0].bias[1]
    optimizer = optim.SGD(model.parameters(), 0.1)
    x = torch.randn(50, 6)
    method = GramSchmidtTraining(model, optimizer, x, every=5, exclude="0")
    assert list(method.frozen) == ["3.weight"] and method.frozen["3.weight"].sum() == 1
    assert int(method.frozen["3.weight"].nonzero()) in (1, 3) and model.training
    assert type(model[0]) is nn.Linear and sp.held_masks(model).density == 1


def test_wrong_arguments():
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    optimizer = optim.SGD(model.parameters(), 0.1)
    for options, words in (
        ({"every": 0}, "every must be an integer >= 1"),
        ({"every": 1, "tolerance": 0.0}, r"tolerance must be in \(0, 1\]"),
        ({"every": 1, "prune_after": 0}, "prune_after must be an integer >= 1"),
    ):
        with pytest.raises(ValueError, match=words):
            GramSchmidtTraining(model, optimizer, x, **options)
    with pytest.raises(ValueError, match="batch must have 1 to 4096 inputs, got 0"):
        GramSchmidtTraining(model, optimizer, x[:0], every=1)
