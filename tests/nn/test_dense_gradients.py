"""The gradient at pruned slots, beside that of the dense model with the same values."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sparseprune as sp
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


def test_all_else_is_as_it_is_without():
    model, x = net().double(), torch.randn(3, 4, 6, 6, dtype=torch.float64, requires_grad=True)

    def second_order():
        loss = model(x).square().sum()
        first = torch.autograd.grad(loss, [x, *model.parameters()], create_graph=True)
        return [loss, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), [x, *model.parameters()])]

    expected = second_order()
    with dense_gradients(model):
        torch.testing.assert_close(second_order(), expected)


def test_a_copy_adds_to_tensors_of_its_own():
    model, x = net(), torch.randn(3, 4, 6, 6)
    with dense_gradients(model, of="mask") as gradients:
        twin = copy.deepcopy(model)
        twin(x).square().sum().backward()
        assert not any(gradient.any() for gradient in gradients.values())
        model(x).square().sum().backward()
    for name, gradient in gradients.items():
        total = twin.get_submodule(name[0]).dense_gradient.total
        torch.testing.assert_close(total, gradient)


def test_they_are_there_in_compiled_models_too():
    model, x = net(), torch.randn(3, 4, 6, 6)
    with dense_gradients(model) as expected:
        model(x).square().sum().backward()
    with dense_gradients(model) as gradients:
        torch.compile(model, backend="aot_eager", fullgraph=True)(x).square().sum().backward()
    torch.testing.assert_close(gradients, expected)


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


def gates(model, masks, x):
    """dL/dm of the dense model whose weights are multiplied by real masks m."""
    weights = {name: model.get_parameter(name).detach() for name in masks}
    masks = {name: mask.to(weights[name].dtype).requires_grad_() for name, mask in masks.items()}
    products = {name: weights[name] * masks[name] for name in masks}
    torch.func.functional_call(model, products, (x,)).square().sum().backward()
    return {name: mask.grad for name, mask in masks.items()}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("storage", ["owned", "overlay", "packed"])
def test_gradients_of_masks_are_those_of_gates(storage, frozen):
    model = densify(net()).double()
    masks = {n: torch.rand(p.shape) < 0.4 for n, p in model.named_parameters() if p.dim() > 1}
    x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    expected = gates(model, masks, x)
    sparsify(model, masks, storage=storage).requires_grad_(not frozen)
    with dense_gradients(model, of="mask") as gradients:
        model(x).square().sum().backward()
    for name, gradient in expected.items():
        seen = torch.ones_like(masks[name]) if storage == "overlay" else masks[name]
        torch.testing.assert_close(gradients[name], gradient * seen)
        parameter = model.get_submodule(name[0]).parameter
        assert (parameter.grad is None) is frozen


def test_edge_popup_learns_by_the_mask_gradient_of_an_overlay():
    model = densify(net())
    popup = sp.training.EdgePopup(copy.deepcopy(model), density=0.4, absolute=False)
    x = torch.randn(3, 4, 6, 6)
    popup(x).square().sum().backward()
    sparsify(model, popup.masks(), storage="overlay")
    with dense_gradients(model, of="mask") as gradients:
        model(x).square().sum().backward()
    torch.testing.assert_close(list(gradients.values()), [score.grad for score in popup.scores])


def test_of_must_be_known():
    with pytest.raises(ValueError, match="of must be weight or mask, got 'gate'"), dense_gradients(net(), of="gate"):
        pass
