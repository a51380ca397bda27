"""A layer's mask: how it is given, read and replaced, and what it does to the stored weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseprune import BitMask
from sparseprune.nn import SparseConv2d, SparseLinear


def random_mask(*shape, density=0.5):
    return torch.rand(shape) < density


def test_all_kept_by_default():
    layer = SparseLinear(70, 3)
    assert layer.mask == BitMask.ones((3, 70))
    assert layer.density == 1 and layer.weight.count_nonzero() == 210


@pytest.mark.parametrize("as_mask", [lambda m: m, BitMask.from_bool], ids=["bool", "BitMask"])
def test_constructor_takes_a_mask(as_mask):
    mask = random_mask(4, 3, 5, 5)
    layer = SparseConv2d(3, 4, 5, mask=as_mask(mask))
    assert torch.equal(layer.mask.to_bool(), mask)
    assert torch.equal(layer.weight != 0, mask)
    assert layer.weight_mask.dtype == torch.int32
    assert "weight_mask" in dict(layer.named_buffers())


def test_mask_is_a_copy():
    mask = BitMask.from_bool(random_mask(4, 40))
    words = mask.words.clone()
    layer = SparseLinear(40, 4, mask=mask)
    before = layer.mask
    layer.set_mask(torch.zeros(4, 40, dtype=torch.bool))
    assert before == mask and torch.equal(mask.words, words)


def test_extra_repr_shows_density():
    assert "in_features=4, out_features=2, bias=True, density=0.25" in repr(
        SparseLinear(4, 2, mask=torch.eye(2, 4) > 0)
    )


def test_same_numbers_as_the_dense_constructor():
    torch.manual_seed(1)
    dense = nn.Conv2d(3, 4, 3, 2, 1, 1, 1, False, "circular", "cpu", torch.float64)
    torch.manual_seed(1)
    sparse = SparseConv2d(3, 4, 3, 2, 1, 1, 1, False, "circular", "cpu", torch.float64)
    assert torch.equal(dense.weight, sparse.weight) and sparse.bias is None
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(sparse(x), dense(x))


def test_set_mask_prunes_weight_and_gradient_in_place():
    layer = SparseLinear(40, 4)
    layer(torch.randn(3, 40)).sum().backward()
    words, weight, grad = layer.weight_mask, layer.weight, layer.weight.grad
    mask = random_mask(4, 40)
    layer.set_mask(mask)
    assert layer.weight_mask is words and layer.weight is weight and layer.weight.grad is grad
    assert torch.equal(layer.mask.to_bool(), mask)
    assert torch.equal(weight != 0, mask) and torch.equal(grad != 0, mask)


def test_grown_slots_start_from_zero():
    first, second = random_mask(4, 40), random_mask(4, 40)
    layer = SparseLinear(40, 4, mask=first)
    with torch.no_grad():
        layer.weight.masked_fill_(~first, float("nan"))
    layer.set_mask(second)
    assert torch.equal(layer.weight != 0, first & second)
    assert (second & ~first).any() and not layer.weight.isnan().any()


def test_set_mask_between_forward_and_backward_is_noticed():
    layer = SparseLinear(40, 4)
    loss = layer(torch.randn(3, 40)).sum()
    layer.set_mask(random_mask(4, 40))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_reset_parameters_keeps_the_mask():
    mask = random_mask(4, 40)
    layer = SparseLinear(40, 4, mask=mask)
    before = layer.weight.detach().clone()
    layer.reset_parameters()
    assert torch.equal(layer.weight != 0, mask) and not torch.equal(layer.weight, before)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (
            torch.ones(4, 39, dtype=torch.bool),
            ValueError,
            r"mask must have its weight's shape \(4, 40\), got \(4, 39\)",
        ),
        (torch.ones(160, dtype=torch.bool), ValueError, "mask must have its weight's shape"),
        (BitMask.ones((40, 4)), ValueError, "mask must have its weight's shape"),
        (torch.ones(4, 40), TypeError, "mask must be a BitMask or a bool tensor, got a torch.float32 tensor"),
        (torch.ones(4, 2, dtype=torch.int32), TypeError, "mask must be a BitMask or a bool tensor"),
        ([[True]], TypeError, "mask must be (a )?BitMask or a (bool )?tensor, got list"),
        (
            torch.ones(4, 40, dtype=torch.bool, device="meta"),
            ValueError,
            "mask must be on its weight's device cpu",
        ),
    ],
)
def test_bad_masks_change_nothing(mask, error, message):
    kept = random_mask(4, 40)
    layer = SparseLinear(40, 4, mask=kept)
    weight = layer.weight.detach().clone()
    with pytest.raises(error, match=message):
        layer.set_mask(mask)
    assert torch.equal(layer.mask.to_bool(), kept) and torch.equal(layer.weight, weight)
    with pytest.raises(error, match=message):
        SparseLinear(40, 4, mask=mask)
    dense = nn.Linear(40, 4)
    with pytest.raises(error, match=message):
        SparseLinear.from_dense(dense, mask)
    assert dense.weight.all()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cpu_mask_on_cuda_weight():
    layer = SparseLinear(40, 4, device="cuda")
    with pytest.raises(ValueError, match="mask must be on its weight's device cuda:0, got cpu"):
        layer.set_mask(random_mask(4, 40))
    layer.set_mask(random_mask(4, 40).cuda())


def test_from_dense_shares_parameters():
    dense = nn.Conv2d(3, 4, 3, stride=2, padding="valid", padding_mode="zeros").eval()
    calls = []
    dense.register_forward_hook(lambda *_: calls.append(1))
    mask = random_mask(4, 3, 3, 3)
    sparse = SparseConv2d.from_dense(dense, mask)
    assert type(sparse) is SparseConv2d and type(dense) is nn.Conv2d
    assert sparse.weight is dense.weight and sparse.bias is dense.bias
    assert not sparse.training and sparse.stride == (2, 2)
    assert torch.equal(dense.weight != 0, mask)
    assert "weight_mask" not in dense.state_dict()
    x = torch.randn(2, 3, 7, 7)
    torch.testing.assert_close(sparse(x), dense(x))
    assert len(calls) == 2
    sparse.train()
    assert not dense.training


def test_from_dense_refuses_what_is_not_plain():
    with pytest.raises(TypeError, match="layer must be exactly a Linear, got Conv2d"):
        SparseLinear.from_dense(nn.Conv2d(3, 4, 3), random_mask(4, 3, 3, 3))
    with pytest.raises(ValueError, match="whose weight is torch.complex64"):
        SparseLinear.from_dense(nn.Linear(3, 4, dtype=torch.complex64), random_mask(4, 3))
