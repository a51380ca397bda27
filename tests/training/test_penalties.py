"""Penalties against published numbers and autograd; removed weights against a worked example."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparseprune as sp
from sparseprune.training import L1, L2, TwoScale, WeightElimination, removed_values

ALL = [L1(0.3), L2(0.3), WeightElimination(0.3, scale=0.7), TwoScale(0.1, 1e-5, 10)]


@pytest.mark.parametrize("penalty", ALL, ids=lambda p: type(p).__name__)
def test_the_gradient_is_that_of_the_value(penalty):
    weight = torch.randn(50, dtype=torch.float64).requires_grad_()
    penalty.value(weight).backward()
    torch.testing.assert_close(penalty.gradient(weight.detach()), weight.grad, rtol=1e-12, atol=0)
    assert penalty.gradient(torch.zeros(3)).tolist() == [0] * 3 and penalty.value(torch.zeros(3)) == 0


def test_published_numbers():
    weigend = WeightElimination(2.0)
    values = torch.tensor([0.1, 1, 3, 10], dtype=torch.float64)
    torch.testing.assert_close(
        torch.stack([weigend.value(w) for w in values]),
        torch.tensor([0.0099, 0.5, 0.9, 0.9901]).double(),
        rtol=0,
        atol=5e-5,
    )
    torch.testing.assert_close(
        weigend.gradient(values), torch.tensor([0.19606, 0.5, 0.06, 0.00196]).double(), rtol=0, atol=5e-6
    )
    grid = torch.linspace(0, 3, 30001, dtype=torch.float64)
    slopes = weigend.gradient(grid)
    assert grid[slopes.argmax()].item() == pytest.approx(3**-0.5, abs=1e-4)
    assert slopes.max().item() == pytest.approx(0.64952, abs=1e-5)
    assert weigend.value(torch.tensor([0.0] * 90 + [20.0, -20] * 5)).item() == pytest.approx(9.975, abs=1e-3)
    setiono, w = TwoScale(0.1, 1e-5, 10), torch.tensor(0.3, dtype=torch.float64)
    assert setiono.value(w).item() == pytest.approx(0.0473693, abs=1e-7)
    assert setiono.gradient(w).item() == pytest.approx(0.1662110, abs=1e-7)


@pytest.mark.parametrize("penalty", ALL, ids=lambda p: type(p).__name__)
def test_in_a_loss_or_as_gradients_and_pruned_weights_are_spared(penalty):
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    sp.sparsify(model, {"0.weight": torch.rand(6, 4) < 0.5})
    x, found = torch.randn(3, 4), []
    for in_the_loss in (True, False):
        model.zero_grad()
        loss = model(x).square().mean()
        (loss + penalty(model, exclude="2") if in_the_loss else loss).backward()
        if not in_the_loss:
            penalty.add_gradients_(model, exclude="2")
        found.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    assert not found[0][0][~model[0].mask.to_bool()].any()
    assert penalty(model).item() == pytest.approx(
        penalty.value(model[0].weight).item() + penalty.value(model[2].weight).item(), rel=1e-6
    )


def test_penalties_check_their_numbers():
    for make, words in (
        (lambda: L1(-1.0), "strength must be a finite number >= 0"),
        (lambda: WeightElimination(1.0, scale=0.0), "scale must be above 0"),
        (lambda: TwoScale(beta=float("nan")), "beta must be a finite number >= 0"),
    ):
        with pytest.raises(ValueError, match=words):
            make()


BEFORE, AFTER = {"w": torch.tensor([1, -1, 0.5, -0.2, 0.1])}, {"w": torch.tensor([0.2, -2, -0.6, -0.1, 0.9])}


def test_what_becomes_of_removed_weights():
    masks = sp.Masks({"w": torch.tensor([False, True, False, False, True])})
    assert removed_values(BEFORE, AFTER, masks, "zero")["w"].tolist() == pytest.approx([0, -1, 0, 0, 0.1])
    assert torch.equal(removed_values(BEFORE, AFTER, masks, "initial")["w"], BEFORE["w"])
    assert removed_values(BEFORE, AFTER, masks, "zero if shrinking")["w"].tolist() == pytest.approx(
        [0, -1, 0.5, 0, 0.1]
    )
    with pytest.raises(ValueError, match="action must be one of zero, initial, zero if shrinking"):
        removed_values(BEFORE, AFTER, masks, "keep")
