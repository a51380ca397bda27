"""The gradient at pruned slots, beside that of the dense model with the same values."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparseprune.nn import SparseLayer, dense_gradients, densify, sparsify


def net():
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, padding="same", groups=2), nn.ReLU(),
        nn.Conv2d(6, 3, 3, stride=2, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(27, 5),
    )  # fmt: skip
    return sparsify(model, {n: torch.rand(p.shape) < 0.4 for n, p in model.named_parameters() if p.dim() > 1})


def test_they_are_those_of_the_dense_model():
    model = net()
    dense = densify(copy.deepcopy(model))
    batches = [torch.randn(3, 4, 6, 6) for _ in range(2)]
    with dense_gradients(model) as gradients:
        for x in batches:
            model(x).square().sum().backward()
    for x in batches:
        dense(x).square().sum().backward()
    assert list(gradients) == ["0.weight", "2.weight", "4.weight"]
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, dense.get_parameter(name).grad)
        pruned = ~dict(model.named_modules())[name[0]].mask.to_bool()
        assert gradient[pruned].any() and not model.get_parameter(name).grad[pruned].any()
        torch.testing.assert_close(model.get_parameter(name).grad[~pruned], gradient[~pruned])


def test_outside_of_the_block_nothing_is_watched():
    model = net()
    with pytest.raises(KeyError), dense_gradients(model):
        raise KeyError
    assert all(
        m.dense_gradient is None and "dense_gradient" not in vars(m) for m in model if isinstance(m, SparseLayer)
    )


def test_tied_layers_add_up():
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    model = sparsify(nn.Sequential(first, second), {"0.weight": torch.eye(3).bool()})
    x = torch.randn(4, 3)
    with dense_gradients(model) as gradients:
        model(x).sum().backward()
    w1, w2 = (first.weight.detach().clone().requires_grad_() for _ in range(2))
    (x @ w1.t() @ w2.t()).sum().backward()
    torch.testing.assert_close(gradients["0.weight"], w1.grad + w2.grad)


def test_pruned_slots_are_not_read():
    layer = sparsify(nn.Linear(3, 2), {"weight": torch.tensor([[True, False, True]] * 2)})
    with torch.no_grad():
        layer.weight[:, 1] = float("nan")
    with dense_gradients(layer) as gradients:
        layer(torch.ones(1, 3)).sum().backward()
    assert gradients["weight"].tolist() == [[1, 1, 1]] * 2
