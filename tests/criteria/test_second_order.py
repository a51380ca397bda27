"""OBD, quadratic SNIP and the Hessian's diagonal behind both."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from criteria.networks import Shared, conv_chain, images, mlp, residual_net, weights
from criteria.oracles import assert_close, flat, hessian_diagonal, removal_changes
from torch import nn

from sparseprune.criteria import OBD, SNIP, ExactSaliency, QuadraticSNIP

pytestmark = pytest.mark.usefixtures("doubles")


def one_hot_error(output, target):
    return F.mse_loss(output, F.one_hot(target, output.shape[1]).to(output))


def curvature(model, batches, loss, diagonal, samples=100, params=None):
    """h from OBD's score h w^2 / 2."""
    params = params or weights(model)
    scores = OBD(loss, batches, diagonal=diagonal, samples=samples)(model, params)
    return {name: 2 * score / params[name].detach() ** 2 for name, score in scores.items()}


def tanh_conv():
    return nn.Sequential(nn.Conv2d(3, 2, 8), nn.Flatten(), nn.Sigmoid(), nn.Linear(2, 3)), images(5, classes=3)


def vectors(count, inputs, classes):
    return torch.randn(count, inputs), torch.randint(0, classes, (count,))


PIECEWISE_LINEAR = {
    "residual": lambda: (residual_net(1), images(4)),
    "chain": lambda: (conv_chain(bias=True), images(4, classes=3)),
    "mlp": lambda: (mlp(5, 8, 7, 4, bias=True), vectors(9, 5, 4)),
}
ONE_HIDDEN_LAYER = {
    "tanh": lambda: (mlp(3, 4, 2, activation=nn.Tanh, bias=True), vectors(9, 3, 2)),
    "sigmoid convolution": tanh_conv,
    "gelu, scaled": lambda: (nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.BatchNorm1d(4), nn.Linear(4, 2)), vectors(9, 3, 2)),
    "leaky, pooled": lambda: (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.1, inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
        images(3, classes=2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PIECEWISE_LINEAR)
def test_ggn_is_the_hessian_of_piecewise_linear_networks(name):
    model, (inputs, target) = PIECEWISE_LINEAR[name]()
    params = {n: w for n, w in weights(model).items() if w.numel() < 150}  # the whole matrix takes a while
    expected = hessian_diagonal(model, params, (inputs, target), F.cross_entropy)
    parts = [(inputs[:1], target[:1]), (inputs[1:], target[1:])]
    assert_close(curvature(model, parts, F.cross_entropy, "ggn", params=params), expected)


@pytest.mark.parametrize("make", [Shared, lambda: mlp(5, 6, 3, activation=nn.Tanh)])
def test_exact_is_the_hessian_of_any_network(make):
    model, (inputs, target) = make(), vectors(7, 5, 3)
    expected = hessian_diagonal(model, weights(model), (inputs, target), F.cross_entropy)
    parts = [(inputs[:2], target[:2]), (inputs[2:], target[2:])]
    assert_close(curvature(model, parts, F.cross_entropy, "exact"), expected)


@pytest.mark.parametrize("name", ONE_HIDDEN_LAYER)
def test_recursion_is_exact_for_one_hidden_layer_and_a_separable_loss(name):
    model, batch = ONE_HIDDEN_LAYER[name]()
    expected = hessian_diagonal(model, weights(model), batch, one_hot_error)
    found = curvature(model, [batch], one_hot_error, "recursion")
    if "pooled" in name:  # LeCun's sum over positions leaves out the products of two of them
        name = "4.weight"
        found, expected = {name: found[name]}, {name: expected[name]}
    assert_close(found, expected)


def test_recursion_without_the_activations_curvature_is_never_negative():
    model, batch = mlp(3, 6, 2, activation=nn.Tanh), vectors(9, 3, 2)
    full, gauss_newton = (curvature(model, [batch], one_hot_error, way) for way in ("recursion", "recursion_gn"))
    assert flat(full).min() < 0 <= flat(gauss_newton).min()
    assert_close({"2": full["2.weight"]}, {"2": gauss_newton["2.weight"]})


def test_recursion_by_the_published_formulas():
    """Three layers by hand: q = f'^2 (W^2)' q + f'' W' g, h = q z^2; pooling and shortcuts as they are."""
    model, (inputs, target) = mlp(4, 5, 6, 3, activation=nn.Tanh), vectors(8, 4, 3)
    w1, w2, w3 = (w.detach() for w in weights(model).values())
    z1 = torch.tanh(inputs @ w1.T)
    z2 = torch.tanh(z1 @ w2.T)
    p = (z2 @ w3.T).softmax(1)
    g, q = p - F.one_hot(target, 3), p * (1 - p)
    expected = {"4.weight": q.T @ z2**2 / 8}
    for name, weight, z, below in (("2.weight", w3, z2, z1), ("0.weight", w2, z1, inputs)):
        slope = 1 - z**2
        q = slope**2 * (q @ weight**2) - 2 * z * slope * (g @ weight)
        g = slope * (g @ weight)
        expected[name] = q.T @ below**2 / 8
    found = curvature(model, [(inputs, target)], F.cross_entropy, "recursion")
    assert_close(found, {name: expected[name] for name in found})


def test_recursion_through_pooling_and_shortcuts():
    """Linear in each weight up to the output, so h = q z^2 with q passed through squared coefficients."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(1, 1, 1, bias=False), nn.Linear(4, 1, bias=False)

        def forward(self, x):
            x = self.first(x)
            x = F.avg_pool2d(3 * x + x, 2) - 1.0
            return self.last(x.flatten(1))

    model, x = Net(), torch.randn(2, 1, 4, 4)
    found = curvature(model, [(x, torch.zeros(2, 1))], F.mse_loss, "recursion")["first.weight"]
    q = 2 * model.last.weight.detach().reshape(2, 2) ** 2 / 16
    by_value = q.repeat_interleave(2, 0).repeat_interleave(2, 1) * (9 + 1)  # the two branches apart
    torch.testing.assert_close(found.reshape(()), (by_value * x**2).sum((1, 2, 3)).mean())


def test_hutchinson_is_unbiased():
    model, batch = mlp(3, 4, 2, activation=nn.Tanh), vectors(9, 3, 2)
    expected = flat(hessian_diagonal(model, weights(model), batch, F.cross_entropy))
    errors = []
    for samples in (10, 1000):
        found = flat(curvature(model, [batch], F.cross_entropy, "hutchinson", samples))
        errors.append(float((found - expected).norm() / expected.norm()))
    assert errors[1] < 0.15 and errors[1] < errors[0] / 4


def test_auto_is_the_recursion_where_there_are_rules_and_ggn_elsewhere():
    model, batch = mlp(5, 8, 4), vectors(9, 5, 4)
    for net, way in ((model, "recursion"), (nn.Sequential(*model, nn.LayerNorm(4)), "ggn")):
        found = curvature(net, [batch], F.cross_entropy, "auto")
        named = curvature(net, [batch], F.cross_entropy, way)
        assert_close({n: found[n] for n in weights(model)}, {n: named[n] for n in weights(model)})
    with pytest.raises(ValueError, match="got layer_norm: take another diagonal"):
        OBD(F.cross_entropy, [batch], diagonal="recursion")(net, weights(model))


class Quadratic(nn.Module):
    """L = w'Aw/2 + b'w at w = (1, -2), A = [[2, 1], [1, 4]], b = (-1, .5)."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[1.0, -2.0]]))

    def forward(self, x):
        return self.layer(x).T  # one example: (1, 2)


def quadratic_loss(w, _):
    a, b = torch.tensor([[2.0, 1.0], [1.0, 4.0]]), torch.tensor([-1.0, 0.5])
    return w[0] @ a @ w[0] / 2 + b @ w[0]


def test_quadratic_loss_by_hand():
    """The exact saliency is [2, 5]; first order says [1, 13], the other sign [0, 21], a lost factor w [2, 2.5]."""
    model, batch = Quadratic(), [(torch.eye(2), torch.zeros(1))]
    params = {"layer.weight": model.layer.weight}
    exact = {"diagonal": "exact"}
    assert QuadraticSNIP(quadratic_loss, batch, **exact)(model, params)["layer.weight"].tolist() == [[2.0, 5.0]]
    signed = QuadraticSNIP(quadratic_loss, batch, signed=True, **exact)(model, params)["layer.weight"]
    assert signed.tolist() == [[2.0, -5.0]]
    assert SNIP(quadratic_loss, batch)(model, params)["layer.weight"].tolist() == [[1.0, 13.0]]
    assert ExactSaliency(quadratic_loss, batch)(model, params)["layer.weight"].tolist() == [[2.0, 5.0]]
    assert OBD(quadratic_loss, batch, **exact)(model, params)["layer.weight"].tolist() == [[1.0, 8.0]]


def test_exact_for_the_last_layer_under_a_squared_error():
    model, (inputs, _) = mlp(6, 5, 3), vectors(11, 6, 3)
    batch = (inputs, torch.randn(11, 3))
    expected = removal_changes(model, weights(model), batch, F.mse_loss)["2.weight"]
    signed = QuadraticSNIP(F.mse_loss, [batch], signed=True)(model, weights(model))["2.weight"]
    torch.testing.assert_close(signed, expected, rtol=1e-10, atol=1e-14)


def test_nearer_to_the_exact_saliency_than_first_order():
    model, batch = mlp(5, 8, 6, 3, activation=nn.Tanh), vectors(40, 5, 3)
    params = weights(model)
    exact = flat(removal_changes(model, params, batch, F.cross_entropy)).abs()
    errors = {}
    for name, criterion in {
        "first": SNIP(F.cross_entropy, [batch]),
        "second": QuadraticSNIP(F.cross_entropy, [batch], diagonal="exact"),
    }.items():
        errors[name] = float((flat(criterion(model, params)) - exact).norm() / exact.norm())
    assert errors["second"] < 0.1 and errors["second"] < errors["first"] / 2


@pytest.mark.parametrize("kind", [OBD, QuadraticSNIP])
def test_bad_arguments(kind):
    with pytest.raises(ValueError, match="diagonal must be one of .*'hutchinson'.* got 'fisher'"):
        kind(F.cross_entropy, [], diagonal="fisher")
    with pytest.raises(ValueError, match="samples must be an integer of at least 1, got 0"):
        kind(F.cross_entropy, [], samples=0)
    with pytest.raises(ValueError, match="seed must be an integer of at least 0, got -1"):
        kind(F.cross_entropy, [], seed=-1)
    with pytest.raises(TypeError, match="seed must be an integer, got float"):
        kind(F.cross_entropy, [], seed=1.5)
    for diagonal in ("ggn", "exact", "recursion"):
        with pytest.raises(ValueError, match="batches must yield at least one"):
            kind(F.cross_entropy, [], diagonal=diagonal)(nn.Linear(2, 2), weights(nn.Linear(2, 2)))
