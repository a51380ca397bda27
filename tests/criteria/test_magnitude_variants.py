"""LAMP, relative magnitude, movement, kept signs, shares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from criteria.networks import images, mlp, residual_net, weights
from torch import nn

import sparseprune as sp
from sparseprune.criteria import LAMP, SNIP, Magnitude, Movement, RelativeMagnitude, Shares, SignPreserved

ONE_LAYER = torch.tensor([[1.0, 1.1, 0.9], [0.05, 2.0, -0.1]])


def layer(values):
    model = nn.Linear(values.shape[1], values.shape[0], bias=False)
    with torch.no_grad():
        model.weight.copy_(values)
    return model, {"weight": model.weight}


def test_lamp_by_its_definition():
    values = torch.randn(7, 5)
    values[0, :3] = 0.5
    values[1, 1] = -0.5  # equal magnitudes: the first counts as the largest
    flat = values.flatten().double().numpy()
    order = np.argsort(-np.abs(flat), kind="stable")
    expected = np.zeros_like(flat)
    for place, j in enumerate(order):
        expected[j] = flat[j] ** 2 / sum(flat[i] ** 2 for i in order[: place + 1])
    np.testing.assert_allclose(LAMP()(*layer(values))["weight"].flatten().numpy(), expected, rtol=1e-12)


def test_lamp_keeps_the_largest_of_every_layer_whatever_its_scale():
    model = mlp(20, 30, 10, 4)
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
    params = weights(model)
    assert sp.prune(model, Magnitude(), keep=3)["0.weight"].count() == 0
    assert sp.prune(model, LAMP(), keep=3).counts() == {"0.weight": 1, "2.weight": 1, "4.weight": 1}
    before = LAMP()(model, params)
    with torch.no_grad():
        model[0].weight.mul_(64)
    assert all(torch.equal(score, before[name]) for name, score in LAMP()(model, params).items())
    with torch.no_grad():
        model[0].weight.zero_()
    assert LAMP()(model, params)["0.weight"].count_nonzero() == 0


def test_one_threshold_for_all_layers_by_hand():
    """Mean .858 of magnitudes: below half of it are .05 and -.1. Deviation .768: below .13 of it is .05 (and -.1 is not)."""
    scores = RelativeMagnitude()(*layer(ONE_LAYER))["weight"]
    torch.testing.assert_close(scores, ONE_LAYER.abs() / (5.15 / 6))
    assert (scores < 0.5).flatten().nonzero().flatten().tolist() == [3, 5]
    deviation = RelativeMagnitude("std")(*layer(ONE_LAYER))["weight"]
    torch.testing.assert_close(deviation, ONE_LAYER.abs() / float(np.std(ONE_LAYER.numpy())))
    assert (deviation < 0.13).flatten().nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("scale", ["mean", "std"])
def test_pruned_weights_do_not_lower_the_usual_size(scale):
    values = ONE_LAYER.clone()
    before = RelativeMagnitude(scale)(*layer(values))["weight"]
    padded = RelativeMagnitude(scale)(*layer(torch.cat([values, torch.zeros(4, 3)])))["weight"]
    assert torch.equal(padded[:2], before) and padded[2:].count_nonzero() == 0
    assert RelativeMagnitude(scale)(*layer(torch.zeros(2, 2)))["weight"].count_nonzero() == 0
    assert RelativeMagnitude(scale)(*layer(torch.full((2, 2), 3.0)))["weight"].isfinite().all()


def test_movement_and_signs_by_hand():
    start = torch.tensor([[0.5, -1.0, 0.2, -0.2]])
    model, params = layer(torch.tensor([[-0.6, -1.5, 0.1, 0.0]]))
    state = {"weight": start, "other": torch.zeros(3)}
    torch.testing.assert_close(Movement(state)(model, params)["weight"], torch.tensor([[1.1, 0.5, 0.1, 0.2]]))
    increase = Movement(state, form="increase")(model, params)["weight"]
    torch.testing.assert_close(increase, torch.tensor([[0.1, 0.5, -0.1, -0.2]]))
    kept = SignPreserved(state)(model, params)["weight"]
    torch.testing.assert_close(kept, torch.tensor([[-0.6, 1.5, 0.1, -0.0]]))
    assert sp.prune(model, SignPreserved(state), keep=2)["weight"].to_bool().tolist() == [[False, True, True, False]]


def test_shares_add_up_to_one_and_keep_the_order():
    model, batches = residual_net(), [images(5)]
    plain, shares = (
        c(model, weights(model)) for c in (SNIP(F.cross_entropy, batches), Shares(SNIP(F.cross_entropy, batches)))
    )
    total = sum(float(score.double().sum()) for score in plain.values())
    assert sum(float(score.double().sum()) for score in shares.values()) == pytest.approx(1.0)
    for name, score in plain.items():
        torch.testing.assert_close(shares[name], score / total)
    zeros = Shares(Magnitude())(*layer(torch.zeros(2, 2)))["weight"]
    assert torch.equal(zeros, torch.zeros(2, 2))
    signed = Shares(lambda model, params: {"weight": torch.tensor([1.0, -3.0])})(None, {})
    assert signed["weight"].tolist() == [0.25, -0.75]


@pytest.mark.parametrize("kind", [Movement, SignPreserved])
def test_initial_weights_must_fit(kind):
    model, params = layer(ONE_LAYER)
    with pytest.raises(TypeError, match="initial must be a mapping from parameter name to tensor, got list"):
        kind([])
    with pytest.raises(ValueError, match=r"initial must hold 'weight' of shape \(2, 3\), got none"):
        kind({})(model, params)
    with pytest.raises(ValueError, match=r"initial must hold 'weight' of shape \(2, 3\), got shape \(3, 2\)"):
        kind({"weight": torch.zeros(3, 2)})(model, params)


def test_bad_arguments():
    with pytest.raises(ValueError, match="scale must be one of 'mean', 'std', got 'max'"):
        RelativeMagnitude("max")
    with pytest.raises(ValueError, match="form must be one of 'distance', 'increase', got 'far'"):
        Movement({}, form="far")
    with pytest.raises(TypeError, match="criterion must be callable with .*got int"):
        Shares(3)
