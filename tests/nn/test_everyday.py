"""What PyTorch users do with layers, done with sparse ones in every storage, beside the dense model with zeros."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.utils.checkpoint import checkpoint

import sparseprune as sp
from sparseprune.nn.base import STORAGES

storages = pytest.mark.parametrize("storage", STORAGES)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.point = nn.Conv2d(6, 4, 1, bias=False)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = self.point(torch.tanh(self.conv(x)))
        return self.fc(x.movedim(1, -1))  # a linear layer on (N, H, W, C)


def pair(storage):
    """The dense model with zeros, and the sparse one."""
    dense = Net().double()
    masks = {n: torch.rand(p.shape) < 0.5 for n, p in dense.named_parameters() if p.dim() > 1}
    sparse = sp.sparsify(copy.deepcopy(dense), masks, storage=storage)
    with torch.no_grad():
        for name, mask in masks.items():
            dense.get_parameter(name).mul_(mask)
    return dense, sparse, masks


def images(n=2):
    return torch.randn(n, 3, 5, 4, dtype=torch.float64)


def by_slot(sparse, masks, gradients):
    """Gradients of sparse parameters by the dense names, pruned slots zero."""
    found = {}
    for name, gradient in gradients.items():
        dense = name.removesuffix("_values")
        if name != dense:
            gradient = torch.zeros(masks[dense].shape, dtype=gradient.dtype).masked_scatter(masks[dense], gradient)
        found[dense] = gradient
    return found


@storages
def test_gradient_checkpointing(storage):
    _, sparse, _ = pair(storage)
    x = images().requires_grad_()
    sparse(x).square().sum().backward()
    expected = [p.grad.clone() for p in sparse.parameters()] + [x.grad.clone()]
    for reentrant in (False, True):
        sparse.zero_grad()
        x.grad = None
        checkpoint(sparse, x, use_reentrant=reentrant).square().sum().backward()
        torch.testing.assert_close([p.grad for p in sparse.parameters()] + [x.grad], expected)


@storages
def test_export_and_back(storage):
    dense, sparse, _ = pair(storage)
    batch = torch.export.Dim("batch", min=2, max=64)
    with torch.no_grad():
        program = torch.export.export(sparse, (images(),), dynamic_shapes=({0: batch},))
        for n in (2, 7):
            x = images(n)
            torch.testing.assert_close(program.module()(x), dense(x))
    ops = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    kind = "packed" if storage == "packed" else "masked"
    assert {f"sparseprune.{kind}_conv2d.default", f"sparseprune.{kind}_linear.default"} <= ops


@storages
def test_per_sample_gradients_and_hessians(storage):
    dense, sparse, masks = pair(storage)
    x = images(3)

    def loss(model, parameters, sample):
        return functional_call(model, parameters, (sample[None],)).pow(3).sum()

    own, theirs = (dict(m.named_parameters()) for m in (sparse, dense))
    rest = dict(sparse.named_buffers())
    actual = vmap(grad(lambda p, s: loss(sparse, {**p, **rest}, s)), (None, 0))(own, x)
    expected = vmap(grad(lambda p, s: loss(dense, p, s)), (None, 0))(theirs, x)
    for i in range(3):
        found = by_slot(sparse, masks, {n: g[i] for n, g in actual.items()})
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name][i] * masks.get(name, 1))
    sample = x[0, :, :2, :2].contiguous()
    matrices = [jacrev(jacrev(lambda s, m=m: m(s[None]).pow(3).sum()))(sample) for m in (sparse, dense)]
    torch.testing.assert_close(*matrices)


@storages
def test_hessian_vector_products_of_weights(storage):
    dense, sparse, masks = pair(storage)
    x = images()
    directions = {n: torch.randn(p.shape, dtype=p.dtype) * masks.get(n, 1) for n, p in dense.named_parameters()}

    def product(model, names, directions):
        parameters = [dict(model.named_parameters())[n] for n in names]
        gradients = torch.autograd.grad(model(x).pow(3).sum(), parameters, create_graph=True)
        inner = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
        return dict(zip(names, torch.autograd.grad(inner, parameters), strict=True))

    names = [n for n, _ in sparse.named_parameters()]
    own = [
        directions[n.removesuffix("_values")][masks[n.removesuffix("_values")]]
        if n.endswith("_values")
        else directions[n]
        for n in names
    ]
    actual = by_slot(sparse, masks, product(sparse, names, own))
    expected = product(dense, list(directions), list(directions.values()))
    for name in directions:
        torch.testing.assert_close(actual[name], expected[name] * masks.get(name, 1))


@storages
@pytest.mark.parametrize("shape", [(7,), (0, 7), (3, 7), (2, 0, 7), (2, 3, 4, 7)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_inputs_of_any_shape(storage, shape, bias):
    layer = nn.Linear(7, 4, bias=bias).double()
    mask, x = torch.rand(4, 7) < 0.5, torch.randn(shape, dtype=torch.float64)
    expected = nn.functional.linear(x, layer.weight.detach() * mask, layer.bias)
    sp.sparsify(layer, {"weight": mask}, storage=storage)
    y = layer(x)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    gradient = x.reshape(-1, 7).sum(0).expand(4, 7) * mask
    torch.testing.assert_close(layer.parameter.grad, gradient[mask] if storage == "packed" else gradient)


@storages
def test_empty_and_single_images(storage):
    dense, sparse, _ = pair(storage)
    for x in (images(0), images(1)):
        torch.testing.assert_close(sparse(x), dense(x))
    single = images(1)[0]
    torch.testing.assert_close(sparse.conv(single), dense.conv(single))


@storages
def test_channels_last_in_and_out(storage):
    dense, sparse, _ = pair(storage)
    x = images().contiguous(memory_format=torch.channels_last)
    sparse.to(memory_format=torch.channels_last)
    y = sparse.conv(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(sparse(x), dense(x))


@storages
def test_hooks_see_parameters_and_gradients(storage):
    _, sparse, masks = pair(storage)
    seen = []
    parameter = sparse.fc.parameter
    handles = [
        sparse.fc.register_forward_hook(lambda m, args, y: seen.append(("forward", tuple(y.shape)))),
        sparse.fc.register_full_backward_hook(lambda m, gi, go: seen.append(("backward", tuple(go[0].shape)))),
        parameter.register_post_accumulate_grad_hook(lambda p: seen.append(("gradient", tuple(p.grad.shape)))),
    ]
    sparse(images()).sum().backward()
    size = (int(masks["fc.weight"].sum()),) if storage == "packed" else (5, 4)
    assert seen[0][0] == "forward"
    assert sorted(seen) == [("backward", (2, 5, 4, 5)), ("forward", (2, 5, 4, 5)), ("gradient", size)]
    for handle in handles:
        handle.remove()
