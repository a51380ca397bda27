from __future__ import annotations

import pytest
import torch
from criteria.networks import Shared, images, mixed_net, mlp, residual_net, weights
from torch import nn

import sparseprune as sp
from sparseprune.criteria import VarianceNullity, per_sample

pytestmark = pytest.mark.usefixtures("doubles")
CRITICAL = {5: 0.2971, 50: 28.9406, 100: 69.2299, 150: 111.8022, 500: 428.4612}  # of chi-square at .01, by examples


def linear(rows):
    """o = w x, so S = x whatever w is."""
    model = nn.Linear(rows.shape[1], 1, bias=False)
    return model, [(rows, torch.zeros(len(rows)))]


def test_statistic_by_hand():
    """Variance 1.675e-4 over 5 examples: Y = .67, not null at .01 (.2971), null at .05 (.7107)."""
    influence = torch.tensor([0.02, -0.01, 0.015, -0.005, 0.0]) + 0.02
    model, batches = linear(influence[:, None])
    for alpha, critical in ((0.01, 0.2971), (0.05, 0.7107)):
        score = VarianceNullity(batches, alpha=alpha, mean_tolerance=1.0)(model, weights(model))["weight"].item()
        assert score == pytest.approx(0.67 / critical, rel=1e-3)


@pytest.mark.parametrize("examples", [50, 100, 150, 500])
def test_quantiles(examples):
    rows = torch.rand(examples, 1) + 1
    model, batches = linear(rows)
    criterion = VarianceNullity(batches, mean_tolerance=1e9)
    expected = float(rows.var() * (examples - 1)) / 1e-3 / CRITICAL[examples]
    # the tables' degrees of freedom: P - 1 for P = 100, P for the others
    actual = criterion(model, weights(model))["weight"].item()
    assert actual == pytest.approx(expected, rel=0.03 if examples != 100 else 1e-4)


def test_constant_influence_is_no_reason_to_prune_but_none_is():
    """Inputs: one that is always 0 (null), one that is always 1 like a bias (variance 0, yet it must stay), a varying one."""
    rows = torch.stack([torch.zeros(100), torch.ones(100), torch.randn(100)], 1)
    model, batches = linear(rows)
    score = VarianceNullity(batches)(model, weights(model))["weight"][0]
    assert score[0] == 0 and score[1] > 1 and score[2] > 1
    assert VarianceNullity(batches, mean_tolerance=2.0)(model, weights(model))["weight"][0, 1] < 1


def test_units_that_nothing_reads_go_first():
    model, rows = mlp(4, 6, 3, bias=True), torch.randn(50, 4)
    with torch.no_grad():
        model[2].weight[:, 2] = 0
    score = VarianceNullity([(rows, rows)], per="unit")(model, weights(model))
    assert (score["0.weight"][2] == 0).all() and (score["0.weight"][[0, 1, 3, 4, 5]] > 0).all()
    masks = sp.prune(model, VarianceNullity([(rows, rows)], per="unit"), keep=20 + 18, exclude=())
    assert masks["0.weight"].to_bool()[2].sum() == 0


@pytest.mark.parametrize("norm", ["sum", "euclidean", "max"])
@pytest.mark.parametrize("make", [residual_net, mixed_net, Shared])
def test_equals_the_jacobian_of_each_example(make, norm, monkeypatch):
    model = make().eval()
    inputs = torch.randn(6, 5) if make is Shared else images(6)[0]
    params = weights(model)
    norms = {name: [] for name in params}
    for x in inputs:
        rows = [torch.autograd.grad(o, list(params.values()), retain_graph=True) for o in model(x[None])[0]]
        for name, parts in zip(params, zip(*rows, strict=True), strict=True):
            stacked = torch.stack(parts)
            order = {"sum": 1, "euclidean": 2, "max": float("inf")}[norm]
            norms[name].append(torch.linalg.vector_norm(stacked, order, dim=0))
    monkeypatch.setattr(per_sample, "CHUNK", 500)  # several parts of moments
    halves = [(inputs[:4], None), (inputs[4:], None)]
    scores = VarianceNullity(halves, norm=norm, mean_tolerance=1e9)(model, params)
    means = VarianceNullity(halves, norm=norm, sigma0_squared=1e9, mean_tolerance=1.0)(model, params)
    critical = 0.5543  # chi-square at .01 with 5 degrees of freedom
    for name in params:
        stacked = torch.stack(norms[name])
        expected = stacked.var(0) * 5 / 1e-3 / critical
        torch.testing.assert_close(scores[name], expected, rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(means[name], stacked.mean(0), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 0.0}, r"alpha must be in \(0, 1\), got 0.0"),
        ({"sigma0_squared": 0.0}, "sigma0_squared must be positive and finite, got 0.0"),
        ({"mean_tolerance": -1.0}, "mean_tolerance must be positive and finite, got -1.0"),
        ({"norm": "l2"}, "norm must be one of 'sum', 'euclidean', 'max', got 'l2'"),
        ({"per": "map"}, "per must be one of"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        VarianceNullity([], **arguments)


def test_one_example_has_no_variance():
    model, batches = linear(torch.ones(1, 2))
    with pytest.raises(ValueError, match="at least two examples for a variance, got 1"):
        VarianceNullity(batches)(model, weights(model))
