from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from criteria.networks import Residual, mlp, residual_net, weights
from torch import nn

from sparseprune.criteria import FourierAmplitude, fourier
from sparseprune.criteria.fourier import efast

pytestmark = pytest.mark.usefixtures("doubles")
SHARES = torch.tensor([9.0, 4.0, 1.0], dtype=torch.float64) / 14


def linear(q):
    return 3 * q[:, 0] + 2 * q[:, 1] + q[:, 2]


def test_linear_function():
    """Variances 9 : 4 : 1. A sine puts all of a factor's power at its frequency, a triangle wave 96 / pi^4 of it."""
    ends = -torch.ones(3), torch.ones(3)
    for index in efast(linear, *ends, curve="sin", harmonics=3):
        torch.testing.assert_close(index, SHARES, rtol=1e-9, atol=1e-12)
    first, _ = efast(linear, *ends, harmonics=1, points=2001)
    torch.testing.assert_close(first, SHARES * 96 / math.pi**4, rtol=2e-3, atol=0)
    first, _ = efast(linear, *ends, harmonics=4, points=2001)
    torch.testing.assert_close(first, torch.tensor([0.64139, 0.28508, 0.07125]), rtol=3e-3, atol=0)


def test_ishigami():
    """Analytic first-order shares .3139, .4424, 0 and total ones .5576, .4424, .2437."""

    def ishigami(q):
        return q[:, 0].sin() + 7 * q[:, 1].sin() ** 2 + 0.1 * q[:, 2] ** 4 * q[:, 0].sin()

    ends = torch.full((3,), -math.pi), torch.full((3,), math.pi)
    first, total = efast(ishigami, *ends, points=2001)
    torch.testing.assert_close(first, torch.tensor([0.3139, 0.4424, 0.0]), rtol=0, atol=0.03)
    torch.testing.assert_close(total, torch.tensor([0.5576, 0.4424, 0.2437]), rtol=0, atol=0.03)


def test_ranges_of_the_factors_count():
    first, _ = efast(lambda q: q.sum(1), torch.tensor([0.0, 1.0]), torch.tensor([6.0, 3.0]), curve="sin")
    torch.testing.assert_close(first, torch.tensor([0.9, 0.1]), rtol=1e-9, atol=1e-12)
    first, total = efast(lambda q: 0 * q[:, 0], -torch.ones(2), torch.ones(2))
    assert first.tolist() == total.tolist() == [0.0, 0.0]


def test_hidden_units_by_their_contribution():
    """One hidden layer and a linear output: shares of (v_h * range of z_h)^2, a unit that nothing reads has none."""
    model, inputs = mlp(3, 5, 2, bias=True, activation=nn.Tanh), torch.randn(40, 3)
    with torch.no_grad():
        model[2].weight[:, 1] = 0
    z = torch.tanh(model[0](inputs)).detach()
    width = z.amax(0) - z.amin(0)
    expected = (model[2].weight.detach() ** 2).sum(0) * width**2
    halves = [(inputs[:10], None), (inputs[10:], None)]
    for index in ("first", "total"):
        scores = FourierAmplitude(halves, index=index, curve="sin")(model, weights(model))["0.weight"]
        torch.testing.assert_close(scores[:, 0], expected / expected.sum(), rtol=1e-6, atol=1e-9)
        assert scores[1].abs().max() < 1e-12


def test_the_value_behind_the_activation_is_what_varies():
    """With ReLU a unit's range starts at zero where it is closed; one that is always closed varies not at all."""
    model, inputs = mlp(2, 3, 1, bias=True), torch.randn(30, 2)
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([0.0, 0.0, -100.0]))
        model[2].weight.fill_(1.0)
    scores = FourierAmplitude([(inputs, None)], curve="sin")(model, weights(model))["0.weight"][:, 0]
    width = model(inputs).new_tensor([float(F.relu(inputs @ w).max()) for w in model[0].weight.detach()])
    width[2] = 0
    torch.testing.assert_close(scores, width**2 / (width**2).sum(), rtol=1e-6, atol=1e-9)


def test_maps_beside_a_shortcut_and_few_at_a_time(monkeypatch):
    model, batch = residual_net(1), (torch.randn(6, 3, 8, 8), None)
    expected = FourierAmplitude([batch], points=129)(model, weights(model))
    assert all(0 < score.max() <= 1 and score.min() >= 0 for score in expected.values())
    monkeypatch.setattr(fourier, "ENTRIES", 20_000)
    few = {"4.shortcut.weight": model[4].shortcut.weight}
    for name, score in FourierAmplitude([batch], points=129)(model, few).items():
        torch.testing.assert_close(score, expected[name])
    assert isinstance(model[4], Residual)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index": "second"}, "index must be one of 'first', 'total', got 'second'"),
        ({"curve": "cos"}, "curve must be one of 'sin', 'arcsin', got 'cos'"),
        ({"points": 100}, "points must be an integer of at least 129, got 100"),
        ({"harmonics": 0}, "harmonics must be a positive integer, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        FourierAmplitude([], **arguments)
