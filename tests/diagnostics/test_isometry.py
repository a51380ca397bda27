"""The repair against closed-form minima and the published descent; gains against plain sums over a grid."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from criteria.networks import mlp, weights
from torch import nn

import sparseprune as sp
from sparseprune.diagnostics import (
    approximate_isometry_,
    isometry_residuals,
    jacobian_spectrum,
    layer_spectra,
    mean_field_chi,
    mean_field_gain,
)


def masks_of(model, density):
    return sp.Masks({name: torch.rand(w.shape) < density for name, w in weights(model).items()})


def one(weight, mask=None):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer, None if mask is None else sp.Masks({"weight": torch.tensor(mask, dtype=torch.bool)})


def test_residual_takes_the_smaller_gram_matrix():
    weight = torch.tensor([[1.0, 2, 0], [0, 1, 3]])
    expected = math.sqrt((5 - 4) ** 2 + (10 - 4) ** 2 + 2 * 2**2)
    for w in (weight, weight.T):
        layer, _ = one(w)
        assert isometry_residuals(layer, gain=2)["weight"] == pytest.approx(expected)
    layer, masks = one(weight, [[1, 0, 0], [0, 1, 1]])
    assert isometry_residuals(layer, masks)["weight"] == pytest.approx(9)


@pytest.mark.parametrize(
    ("mask", "minimum"),
    [
        ([[0, 1, 0], [1, 0, 0]], 0),  # one entry a row, in different columns: +-gain
        ([[1, 1, 1], [0, 0, 0]], 1),  # a dead row leaves its 1 of the identity
        ([[0, 1, 0], [0, 1, 0]], 1),  # (a^2 + b^2)^2 - 2 (a^2 + b^2) + 2 is least, 1, where a^2 + b^2 = 1
    ],
)
def test_repair_reaches_the_closed_form_minimum(mask, minimum):
    layer, masks = one(torch.randn(2, 3), mask)
    [repair] = approximate_isometry_(layer, masks, gain=1.5, tolerance=1e-7).values()
    assert repair.after == pytest.approx(1.5**2 * minimum, abs=1e-6) and repair.before > repair.after
    assert (layer.weight[~masks["weight"].to_bool()] == 0).all()
    assert isometry_residuals(layer, masks, gain=1.5)["weight"] == pytest.approx(repair.after, abs=1e-9)


def test_unpruned_weights_become_orthogonal():
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(6, 3, 1), nn.Flatten(), nn.Linear(3, 5)).double()
    bias = model[0].bias.detach().clone()
    approximate_isometry_(model, gain=0.7, tolerance=1e-10)
    for weight in (*model[0].weight.flatten(1).chunk(2), model[1].weight.flatten(1), model[3].weight):
        assert torch.linalg.svdvals(weight).allclose(torch.tensor(0.7, dtype=torch.float64), atol=1e-8)
    assert torch.equal(model[0].bias, bias)


@pytest.mark.parametrize("density", [0.5, 0.1])
def test_repair_is_at_least_as_good_as_the_published_descent(density):
    """W -= 0.1 d||G - I||_F / dW, 1,500 times."""
    weight, mask = torch.randn(20, 30, dtype=torch.float64) / 30**0.5, torch.rand(20, 30) < density
    w = weight.clone().requires_grad_()
    for _ in range(1500):
        kept = torch.where(mask, w, 0)
        loss = ((kept @ kept.T - torch.eye(20)).square().sum() + 1e-12).sqrt()
        with torch.no_grad():
            w -= 0.1 * torch.autograd.grad(loss, w)[0]
    layer, masks = one(weight, mask.tolist())
    assert approximate_isometry_(layer, masks)["weight"].after < loss.item() + 1e-6


def test_repair_restores_the_signal_of_a_pruned_network():
    """Published for 784-(100)x6-10: a mean singular value of 0.0815 at 50 % comes back to 1.01."""
    model = mlp(200, *[40] * 6, 10, activation=nn.Identity)
    sp.models.initialize_(model, "orthogonal", torch.Generator().manual_seed(0))
    masks = masks_of(model, 0.5)
    x = torch.randn(1, 200)
    before = jacobian_spectrum(model, x, masks=masks)
    report = approximate_isometry_(model, masks, steps=100)
    after = jacobian_spectrum(model, x)
    assert before.mean < 0.15 and after.mean == pytest.approx(1, abs=0.05) and after.std < 0.1
    assert all(r.after < 0.2 * r.before for r in report.values())
    for name, p in masks.weights_of(model).items():
        assert (p[~masks[name].to_bool()] == 0).all()


def test_sparse_layers_are_repaired_in_place():
    model = mlp(6, 5, 4)
    masks = masks_of(model, 0.5)
    twin = mlp(6, 5, 4)
    twin.load_state_dict(model.state_dict())
    sp.sparsify(model, masks)
    assert approximate_isometry_(model, masks) == approximate_isometry_(twin, masks)
    assert all(torch.equal(p, dict(model.named_parameters())[name]) for name, p in twin.named_parameters())


def test_nothing_changes_when_the_repair_is_refused():
    model = mlp(3, 3, 2)
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    first = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match=r"weights must be finite, got '2.weight'"):
        approximate_isometry_(model)
    assert torch.equal(model[0].weight, first)
    for options, message in (({"gain": 0.0}, "gain must"), ({"steps": 0}, "steps must"), ({"tolerance": -1}, "toler")):
        with pytest.raises(ValueError, match=message):
            approximate_isometry_(mlp(2, 2), **options)


@pytest.mark.parametrize(("scheme", "kernel"), [("orthogonal", 1), ("delta_orthogonal", 3)])
def test_orthogonal_initialisation_gives_singular_values_of_exactly_the_gain(scheme, kernel):
    model = nn.Sequential(nn.Conv2d(3, 5, kernel, padding=kernel // 2), nn.Conv2d(5, 5, kernel, padding=kernel // 2))
    model = nn.Sequential(model, nn.Flatten(), nn.Linear(80, 80)).double()
    gain = mean_field_gain("relu")
    sp.models.initialize_(model, scheme, torch.Generator().manual_seed(1), gain=gain)
    spectra = layer_spectra(model, torch.randn(2, 3, 4, 4))
    assert len(spectra) == 3
    for spectrum in spectra.values():
        torch.testing.assert_close(spectrum.values, torch.full_like(spectrum.values, gain), rtol=1e-9, atol=0)


def expectation(function):
    """Of a standard normal, by the trapezoidal rule: for smooth functions exact to rounding."""
    z = np.linspace(-12, 12, 4001)
    return float((function(z) * np.exp(-(z**2) / 2)).sum() * (z[1] - z[0]) / math.sqrt(2 * math.pi))


@pytest.mark.parametrize(("gain", "variance"), [(1.0, 0.5), (1.7, 2.0)])
def test_chi_of_tanh_is_the_integral(gain, variance):
    slope = expectation(lambda z: (1 - np.tanh(math.sqrt(variance) * z) ** 2) ** 2)
    assert mean_field_chi("tanh", gain, variance) == pytest.approx(gain**2 * slope, rel=1e-8)


@pytest.mark.parametrize("bias_std", [0.05, 0.3, 1.0])
def test_critical_gain_of_tanh_with_biases(bias_std):
    """Iterate the variance map to its fixed point: there chi is 1."""
    gain = mean_field_gain("tanh", bias_std=bias_std)
    variance = 1.0
    for _ in range(400):
        variance = gain**2 * expectation(lambda z, q=variance: np.tanh(math.sqrt(q) * z) ** 2) + bias_std**2
    slope = expectation(lambda z: (1 - np.tanh(math.sqrt(variance) * z) ** 2) ** 2)
    assert gain**2 * slope == pytest.approx(1, abs=1e-5) and gain > 1


def test_gains_in_closed_form():
    assert mean_field_gain("linear") == mean_field_gain("tanh") == pytest.approx(1)
    assert mean_field_gain("relu") == pytest.approx(math.sqrt(2))
    assert mean_field_gain("leaky_relu") == pytest.approx(math.sqrt(2 / (1 + 0.01**2)))
    assert mean_field_gain(lambda h: 3 * torch.sin(h)) == pytest.approx(1 / 3)
    assert mean_field_chi("relu", 1.0, 5.0) == pytest.approx(0.5)
    # cos with q: E[sin^2] = (1 - exp(-2q)) / 2
    assert mean_field_chi(torch.cos, 1.0, 0.8) == pytest.approx((1 - math.exp(-1.6)) / 2)


def test_chi_is_the_mean_squared_singular_value_of_a_wide_layer():
    model = nn.Sequential(nn.Linear(2000, 2000, bias=False), nn.Tanh())
    sp.models.initialize_(model, "lecun_normal", torch.Generator().manual_seed(0), gain=1.3)
    x = torch.randn(1, 2000)
    measured = (((1 - model(x) ** 2)[0, :, None] * model[0].weight) ** 2).sum() / 2000
    variance = 1.3**2 * x.square().mean().item()
    assert measured.item() == pytest.approx(mean_field_chi("tanh", 1.3, variance), rel=0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_field_gain("gelu"), "activation must be a function or one of linear, tanh, relu, leaky_relu"),
        (lambda: mean_field_gain("relu", bias_std=0.1), "bias_std must leave a critical gain"),
        (lambda: mean_field_gain("tanh", bias_std=-1), "bias_std must be finite and not negative"),
        (lambda: mean_field_gain(lambda h: h * 0), "activation must have a slope"),
        (lambda: mean_field_chi("tanh", -1, 1), "gain must be finite and not negative"),
        (lambda: mean_field_chi("tanh", 1, math.inf), "variance must be finite and not negative"),
        (lambda: isometry_residuals(nn.Linear(2, 2), gain=-1), "gain must be positive"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
