from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from criteria.networks import images, mlp, residual_net, weights
from torch import nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from sparseprune.criteria import SNIP, Magnitude


@pytest.fixture
def doubles():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_equals_the_derivative_by_an_explicit_mask(doubles, bn):
    model = residual_net()
    model[8] = nn.Dropout(0.0)
    inputs, target = images(6)
    scores = SNIP(F.cross_entropy, [(inputs, target)], bn=bn)(model, weights(model))
    gates = {name: torch.ones_like(w, requires_grad=True) for name, w in weights(model).items()}
    model.train(bn == "train")
    gated = {name: gate * weights(model)[name].detach() for name, gate in gates.items()}
    F.cross_entropy(functional_call(model, gated, (inputs,)), target).backward()
    for name, gate in gates.items():
        torch.testing.assert_close(scores[name], gate.grad.abs(), rtol=1e-10, atol=1e-14)


def test_several_batches_score_as_one(doubles):
    model = residual_net()
    inputs, target = images(11)
    one = SNIP(F.cross_entropy, [(inputs, target)])(model, weights(model))
    parts = [(inputs[a:b], target[a:b]) for a, b in ((0, 1), (1, 8), (8, 11))]
    several = SNIP(F.cross_entropy, parts)(model, weights(model))
    for name in one:
        torch.testing.assert_close(several[name], one[name], rtol=1e-10, atol=1e-14)


def test_gradients_are_summed_before_the_absolute_value():
    """Gradients (1, -2) and (-1, -2) at w = (3, 1): [0, 4], where a sum of absolute values would give [6, 4]."""
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 1.0]]))
    batches = [(torch.tensor([[1.0, -2.0]]), None), (torch.tensor([[-1.0, -2.0]]), None)]
    scores = SNIP(lambda output, _: 2 * output.mean(), batches)(model, {"weight": model.weight})
    assert (scores["weight"] / 2).tolist() == [[0.0, 2.0]]


def test_quadratic_toy():
    """L = w'Aw/2 + b'w at w = (1, -2): |w g| = [1, 13]."""
    a, b = torch.tensor([[2.0, 1.0], [1.0, 4.0]]), torch.tensor([-1.0, 0.5])
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0]]))

    def loss(w, _):
        return w[:, 0] @ a @ w[:, 0] / 2 + b @ w[:, 0]

    scores = SNIP(loss, [(torch.eye(2), torch.zeros(2))])(model, {"weight": model.weight})
    assert scores["weight"].tolist() == [[1.0, 13.0]]


def test_relu_rescaling_changes_magnitudes_but_no_score(doubles):
    model = mlp(12, 9, 4)
    batches = [(torch.randn(20, 12), torch.randint(0, 4, (20,)))]
    snip, magnitude = SNIP(F.cross_entropy, batches), Magnitude()
    before, sizes = snip(model, weights(model)), magnitude(model, weights(model))
    with torch.no_grad():
        model[0].weight.mul_(10)
        model[2].weight.div_(10)
    for name, score in snip(model, weights(model)).items():
        torch.testing.assert_close(score, before[name], rtol=1e-12, atol=1e-16)
    assert not torch.allclose(magnitude(model, weights(model))["0.weight"], sizes["0.weight"])


def test_dead_layer_scores_zero_not_nan():
    model = mlp(5, 6, 3, bias=True)
    with torch.no_grad():
        model[0].bias.fill_(-100)
    scores = SNIP(F.cross_entropy, [(torch.randn(8, 5), torch.randint(0, 3, (8,)))])(model, weights(model))
    assert all(torch.equal(score, torch.zeros_like(score)) for score in scores.values())


def test_batch_norm_modes_differ_and_a_data_loader_serves_every_call():
    model = residual_net()
    loader = DataLoader(TensorDataset(*images(12)), batch_size=5, shuffle=True)
    state = torch.get_rng_state()
    criteria = [SNIP(F.cross_entropy, loader, bn) for bn in ("eval", "eval", "train")]
    evaluated, again, trained = (criterion(model, weights(model)) for criterion in criteria)
    assert torch.equal(torch.get_rng_state(), state)
    name = "0.weight"
    assert torch.equal(evaluated[name], again[name])
    assert not torch.allclose(evaluated[name], trained[name], rtol=0.05)


def test_one_shot_iterator_serves_one_call():
    model = residual_net()
    criterion = SNIP(F.cross_entropy, iter([images(4)]))
    criterion(model, weights(model))
    with pytest.raises(ValueError, match="batches must yield at least one .* an iterator can be read only once"):
        criterion(model, weights(model))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, []), TypeError, "loss must be callable"),
        ((F.cross_entropy, 3), TypeError, "batches must be an iterable of .* got int"),
        ((F.cross_entropy, torch.ones(3)), TypeError, "batches must be an iterable of .* got Tensor"),
        ((F.cross_entropy, [], "batch"), ValueError, "bn must be one of 'eval', 'train', got 'batch'"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        SNIP(*arguments)


def test_bad_data_and_loss():
    model = residual_net()
    inputs, target = images(4)
    with pytest.raises(TypeError, match=r"batches must yield \(input, target\) pairs, got Tensor"):
        SNIP(F.cross_entropy, [inputs])(model, weights(model))

    def summed(output, target):
        return F.cross_entropy(output, target, reduction="none")

    with pytest.raises(ValueError, match=r"loss must return one number, .* got shape \(4,\)"):
        SNIP(summed, [(inputs, target)])(model, weights(model))
