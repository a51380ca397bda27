from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from criteria.networks import images, mlp, residual_net, weights
from torch import nn
from torch.func import functional_call

from sparseprune.criteria import GraSP


@pytest.fixture(autouse=True)
def doubles():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_quadratic_toy_sign_and_value():
    """L = w'Aw/2 + b'w at w = (1, -2): g = [-1, -6.5], Hg = [-8.5, -27], score w Hg = [-8.5, 54]."""
    a, b = torch.tensor([[2.0, 1.0], [1.0, 4.0]]), torch.tensor([-1.0, 0.5])
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0]]))

    def loss(w, _):
        return w[:, 0] @ a @ w[:, 0] / 2 + b @ w[:, 0]

    scores = GraSP(loss, [(torch.eye(2), torch.zeros(2))], temperature=1.0)(model, {"weight": model.weight})
    assert scores["weight"].tolist() == [[-8.5, 54.0]]


def flat_loss(model, batch, temperature):
    """The loss as a function of one vector of all weights."""
    shapes = {name: w.shape for name, w in weights(model).items()}

    def loss(vector):
        parts = vector.split([shape.numel() for shape in shapes.values()])
        state = {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return F.cross_entropy(functional_call(model, state, (batch[0],)) / temperature, batch[1])

    return loss, torch.cat([w.detach().flatten() for w in weights(model).values()])


@pytest.mark.parametrize("temperature", [1.0, 200.0])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_equals_the_explicit_hessian(activation, temperature):
    model = mlp(4, 6, 5, 3, bias=True, activation=activation)
    inputs, target = torch.randn(13, 4), torch.randint(0, 3, (13,))
    loss, vector = flat_loss(model, (inputs, target), temperature)
    hessian = torch.autograd.functional.hessian(loss, vector)
    gradient = torch.autograd.functional.jacobian(loss, vector)
    expected = vector * (hessian @ gradient)
    parts = [(inputs[:2], target[:2]), (inputs[2:9], target[2:9]), (inputs[9:], target[9:])]
    for batches in ([(inputs, target)], parts):
        scores = GraSP(F.cross_entropy, batches, temperature=temperature)(model, weights(model))
        actual = torch.cat([s.flatten() for s in scores.values()])
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12 * float(expected.abs().max()))


def test_removing_the_lowest_half_strengthens_the_gradient():
    model = mlp(5, 8, 6, 3, activation=nn.Tanh)
    inputs, target = torch.randn(40, 5), torch.randint(0, 3, (40,))
    loss, vector = flat_loss(model, (inputs, target), 1.0)
    scores = GraSP(F.cross_entropy, [(inputs, target)], temperature=1.0)(model, weights(model))
    order = torch.cat([s.flatten() for s in scores.values()]).argsort()

    def flow(removed):
        kept = vector.clone()
        kept[removed] = 0
        return torch.autograd.functional.jacobian(loss, kept).square().sum()

    half, before = len(order) // 2, flow(order[:0])
    assert flow(order[:half]) > 1.5 * before
    assert flow(order[half:]) < 0.5 * before


def test_first_order_change_of_the_gradient_norm_for_each_weight():
    model = mlp(3, 4, 2, activation=nn.Tanh)
    inputs, target = torch.randn(9, 3), torch.randint(0, 2, (9,))
    loss, vector = flat_loss(model, (inputs, target), 1.0)
    scores = GraSP(F.cross_entropy, [(inputs, target)], temperature=1.0)(model, weights(model))
    predicted = -2 * torch.cat([s.flatten() for s in scores.values()])
    step = 1e-5

    def norm(v):
        return torch.autograd.functional.jacobian(loss, v).square().sum()

    for j in range(len(vector)):
        shrunk = vector.clone()
        shrunk[j] *= 1 - step
        torch.testing.assert_close((norm(shrunk) - norm(vector)) / step, predicted[j], rtol=1e-2, atol=1e-6)


def test_chunks_of_a_convolutional_network_score_as_one_batch():
    model = residual_net()
    inputs, target = images(10)
    one = GraSP(F.cross_entropy, [(inputs, target)])(model, weights(model))
    parts = ((inputs[a:b], target[a:b]) for a, b in ((0, 3), (3, 10)))  # a generator, read once
    several = GraSP(F.cross_entropy, parts)(model, weights(model))
    for name in one:
        torch.testing.assert_close(several[name], one[name], rtol=1e-9, atol=1e-12 * float(one[name].abs().max()))


def test_linear_loss_has_no_curvature():
    model = nn.Linear(3, 2, bias=False)
    scores = GraSP(lambda output, _: output.mean(), [(torch.randn(4, 3), None)])(model, weights(model))
    assert torch.equal(scores["weight"], torch.zeros(2, 3))


def test_differentiates_twice_through_attention():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(24, 3))
    batches = [(torch.randn(4, 3, 8), torch.randint(0, 3, (4,)))]
    scores = GraSP(F.cross_entropy, batches, temperature=1.0)(model, weights(model))
    assert all(score.count_nonzero() for score in scores.values())


@pytest.mark.parametrize("temperature", [0, -1.0, float("inf"), float("nan")])
def test_bad_temperature(temperature):
    with pytest.raises(ValueError, match="temperature must be positive and finite"):
        GraSP(F.cross_entropy, [], temperature=temperature)
