"""What a sparse layer computes: the dense layer with zeros written in, whatever its pruned slots hold."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_as_accurate
from torch import nn

from sparseprune import BitMask
from sparseprune.nn import SparseConv2d, SparseLinear

LINEARS = {
    "plain": ((4, 37), {}),
    "no bias": ((4, 37), {"bias": False}),
    "sequence": ((2, 3, 37), {}),
    "one sample": ((37,), {}),
    "empty batch": ((0, 37), {}),
}
CONVS = {
    "plain": ((2, 6, 7, 8), {}),
    "no bias": ((2, 6, 7, 8), {"bias": False}),
    "stride, padding, dilation": ((2, 6, 9, 8), {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}),
    "groups": ((2, 6, 7, 8), {"groups": 2}),
    "depthwise": ((2, 6, 7, 8), {"groups": 6, "padding": 1}),
    "valid": ((2, 6, 7, 8), {"padding": "valid"}),
    "same": ((2, 6, 7, 8), {"padding": "same", "dilation": 2}),
    "same, even kernel": ((2, 6, 7, 8), {"kernel_size": (2, 4), "padding": "same"}),
    "reflect": ((2, 6, 7, 8), {"padding": (1, 2), "padding_mode": "reflect", "stride": 2}),
    "replicate": ((2, 6, 7, 8), {"padding": 2, "padding_mode": "replicate"}),
    "circular, same, even kernel": (
        (2, 6, 7, 8),
        {"kernel_size": 4, "padding": "same", "padding_mode": "circular"},
    ),
    "one image": ((6, 7, 8), {"padding": 1}),
    "empty batch": ((0, 6, 7, 8), {}),
}


def twins(kind, options, dtype=torch.float32):
    """A dense layer, and its sparse twin at density 0.4 with NaN and infinity in its pruned slots."""
    if kind == "linear":
        options = {"in_features": 37, "out_features": 5, **options}
        dense, sparse = nn.Linear(**options, dtype=dtype), SparseLinear(**options, dtype=dtype)
    else:
        options = {"in_channels": 6, "out_channels": 12, "kernel_size": 3, **options}
        dense, sparse = nn.Conv2d(**options, dtype=dtype), SparseConv2d(**options, dtype=dtype)
    mask = torch.rand(dense.weight.shape) < 0.4
    sparse.load_state_dict(dense.state_dict())
    sparse.set_mask(mask)
    with torch.no_grad():
        dense.weight[~mask] = 0
        poison = torch.tensor([float("nan"), float("inf"), -float("inf")], dtype=dtype)
        sparse.weight[~mask] = poison.repeat(mask.numel())[: int((~mask).sum())]
    return dense, sparse, mask


def value_and_gradients(layer, x, grad, weight, bias):
    """The output of ``layer`` with these parameters, and the gradients of x, weight and bias."""
    leaves = {"weight": weight, "bias": bias} if bias is not None else {"weight": weight}
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    x = x.detach().requires_grad_()
    y = torch.func.functional_call(layer, leaves, (x,))
    return [y.detach(), *torch.autograd.grad(y, [x, *leaves.values()], grad)]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")  # the dense layer's
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("kind", "case"), [("linear", c) for c in LINEARS.values()] + [("conv", c) for c in CONVS.values()],
    ids=[f"linear {c}" for c in LINEARS] + [f"conv {c}" for c in CONVS],
)  # fmt: skip
def test_equals_dense_with_zeros(kind, case, dtype):
    shape, options = case
    dense, sparse, mask = twins(kind, options, dtype)
    x = torch.randn(shape, dtype=dtype)
    grad = torch.randn_like(dense(x))
    actual = value_and_gradients(sparse, x, grad, sparse.weight, sparse.bias)
    assert not actual[2][~mask].any()

    def expected(i, *inputs):
        result = value_and_gradients(dense, *inputs)[i]
        return torch.where(mask, result, 0) if i == 2 else result

    for i, result in enumerate(actual):
        assert_as_accurate(result, lambda *inputs, i=i: expected(i, *inputs), (x, grad, dense.weight, dense.bias))


@pytest.mark.parametrize(("kind", "shape"), [("linear", (3, 37)), ("conv", (2, 6, 5, 5))])
def test_differentiates_twice(kind, shape):
    dense, sparse, mask = twins(kind, {}, torch.float64)
    x = torch.randn(shape, dtype=torch.float64)
    direction = torch.randn_like(dense.weight)

    def hessian_vector_product(layer):
        loss = layer(x).pow(3).sum()
        (gradient,) = torch.autograd.grad(loss, layer.weight, create_graph=True)
        return torch.autograd.grad((gradient * direction * mask).sum(), layer.weight)[0]

    torch.testing.assert_close(hessian_vector_product(sparse), hessian_vector_product(dense) * mask)


@pytest.mark.parametrize(("kind", "shape"), [("linear", (3, 37)), ("conv", (2, 6, 5, 5))])
def test_autocast(kind, shape):
    dense, sparse, mask = twins(kind, {})
    x = torch.randn(shape)
    with torch.autocast("cpu", torch.bfloat16):
        actual = sparse(x)
    assert actual.dtype == torch.bfloat16
    parameters = [p.bfloat16() for p in (dense.weight, dense.bias)]
    with torch.no_grad():
        assert_as_accurate(
            actual, lambda x, w, b: torch.func.functional_call(dense, {"weight": w, "bias": b}, (x,)),
            (x.bfloat16(), *parameters),
        )  # fmt: skip
    actual.sum().backward()
    assert sparse.weight.grad.dtype == torch.float32
    assert sparse.weight.grad[mask].isfinite().all() and sparse.weight.grad[mask].any()
    assert not sparse.weight.grad[~mask].any()


def test_channels_last():
    dense, sparse, mask = twins("conv", {"padding": 1})
    x = torch.randn(2, 6, 5, 5)
    expected = sparse(x)
    sparse.to(memory_format=torch.channels_last)
    assert sparse.weight.is_contiguous(memory_format=torch.channels_last) and not sparse.weight.is_contiguous()
    actual = sparse(x.to(memory_format=torch.channels_last))
    assert actual.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(actual, expected)
    actual.sum().backward()
    assert torch.equal(sparse.weight.grad != 0, mask)
    smaller = mask & (torch.rand(mask.shape) < 0.5)
    sparse.set_mask(smaller)
    assert torch.equal(sparse.weight != 0, smaller)


def test_functional_call():
    dense, sparse, mask = twins("linear", {})
    x, weight = torch.randn(3, 37), torch.randn(5, 37)
    actual = torch.func.functional_call(sparse, {"weight": weight}, (x,))
    torch.testing.assert_close(actual, nn.functional.linear(x, weight * mask, dense.bias))
    other = torch.rand(5, 37) < 0.5
    words = BitMask.from_bool(other).words
    actual = torch.func.functional_call(sparse, {"weight": weight, "weight_mask": words}, (x,))
    torch.testing.assert_close(actual, nn.functional.linear(x, weight * other, dense.bias))
    grads = torch.func.grad(lambda w: torch.func.functional_call(sparse, {"weight": w}, (x,)).sum())(weight)
    torch.testing.assert_close(grads, mask * x.sum(0))


def test_per_sample_gradients():
    _, sparse, mask = twins("linear", {})
    x = torch.randn(4, 37)

    def loss(weight, sample):
        return torch.func.functional_call(sparse, {"weight": weight}, (sample,)).square().sum()

    weight = sparse.weight.detach()
    actual = torch.func.vmap(torch.func.grad(loss), (None, 0))(weight, x)
    for i, sample in enumerate(x):
        torch.testing.assert_close(actual[i], torch.func.grad(loss)(weight, sample))
    assert not actual[:, ~mask].any()
