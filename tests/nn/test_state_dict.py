"""Checkpoints: dense into sparse, sparse into sparse, sparse into dense, and what is refused."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from sparseprune import BitMask
from sparseprune.nn import SparseConv2d, SparseLinear, dense_state_dict, sparsify


def net(device=None):
    return nn.Sequential(nn.Conv2d(3, 4, 3, device=device), nn.Flatten(), nn.Linear(64, 5, device=device))


def sparse_net():
    return sparsify(net(), {"0.weight": torch.rand(4, 3, 3, 3) < 0.5, "2.weight": torch.rand(5, 64) < 0.5})


def assert_same_entries(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_keys():
    assert list(sparse_net().state_dict()) == [
        "0.weight", "0.bias", "0.weight_mask", "2.weight", "2.bias", "2.weight_mask",
    ]  # fmt: skip


@pytest.mark.parametrize("assign", [False, True])
def test_dense_into_sparse_keeps_the_mask(assign):
    dense, sparse = net(), sparse_net()
    sparse(torch.randn(2, 3, 6, 6)).sum().backward()
    mask, source = sparse[2].mask, {k: v.clone() for k, v in dense.state_dict().items()}
    result = sparse.load_state_dict(dense.state_dict(), strict=True, assign=assign)
    assert not result.missing_keys and not result.unexpected_keys
    assert sparse[2].mask == mask and isinstance(sparse[2].weight, nn.Parameter)
    assert torch.equal(sparse[2].weight, dense[2].weight * mask.to_bool())
    assert torch.equal(sparse[2].bias, dense[2].bias)
    assert_same_entries(dense.state_dict(), source)


@pytest.mark.parametrize("assign", [False, True])
def test_sparse_into_sparse_takes_weight_and_mask(assign):
    source, target = sparse_net(), sparse_net()
    target(torch.randn(2, 3, 6, 6)).sum().backward()
    target.load_state_dict(source.state_dict(), strict=True, assign=assign)
    assert_same_entries(target.state_dict(), source.state_dict())
    assert target[0].mask == source[0].mask
    if not assign:
        assert not target[0].weight.grad[~source[0].mask.to_bool()].any()


def test_poison_in_a_checkpoint_is_zeroed():
    source, target = sparse_net(), sparse_net()
    state = source.state_dict()
    state["2.weight"].masked_fill_(~source[2].mask.to_bool(), float("nan"))
    target.load_state_dict(state)
    assert torch.equal(target[2].weight != 0, source[2].mask.to_bool()) and target[2].weight.isfinite().all()


@pytest.mark.parametrize("from_dictionary", [False, True])
def test_sparse_into_dense(from_dictionary):
    sparse, dense = sparse_net(), net()
    pruned = ~sparse[2].mask.to_bool()
    with torch.no_grad():
        sparse[2].weight[pruned] = float("nan")
    state = dense_state_dict(sparse.state_dict() if from_dictionary else sparse)
    dense.load_state_dict(state, strict=True)
    assert not dense[2].weight[pruned].any() and sparse[2].weight[pruned].isnan().all()
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(dense(x), sparse(x))
    assert state._metadata == sparse.state_dict()._metadata


def test_dense_state_dict_of_one_layer():
    layer = SparseLinear(40, 4, mask=torch.rand(4, 40) < 0.5)
    assert list(dense_state_dict(layer)) == ["weight", "bias"]


def test_dense_state_dict_leaves_what_is_not_ours():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    prune.random_unstructured(model[0], "weight", 0.5)
    state = {**model.state_dict(), "step": 3}
    assert dense_state_dict(state) == state and dense_state_dict(state) is not state
    own = {"weight": torch.zeros(3, 3), "weight_mask": torch.ones(3, 3)}
    assert dense_state_dict(own) == own
    with pytest.raises(TypeError, match="source must be a model or a state dict, got list"):
        dense_state_dict([])
    with pytest.raises(ValueError, match=r"source\['weight_mask'\] must be the packed mask of its weight: words must"):
        dense_state_dict({"weight": torch.zeros(4, 40), "weight_mask": torch.zeros(4, 1, dtype=torch.int32)})


def test_stock_layers_report_the_mask_key():
    with pytest.raises(RuntimeError, match="Unexpected key.*2.weight_mask"):
        net().load_state_dict(sparse_net().state_dict())


def test_through_a_file():
    source, target = sparse_net(), sparse_net()
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    target.load_state_dict(torch.load(buffer, weights_only=True))
    assert_same_entries(target.state_dict(), source.state_dict())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            torch.zeros(5, 4, dtype=torch.int32),
            r"2.weight_mask must be the packed mask of 2.weight: words must have sha",
        ),
        (torch.zeros(5, 2, dtype=torch.int64), r"words must be an int32 tensor, got torch.int64"),
        (torch.ones(5, 64), r"words must be an int32 tensor, got torch.float32"),
        ("words", r"words must be an int32 tensor, got str"),
    ],
)
def test_bad_words_are_reported(words, message):
    target = sparse_net()
    layer = {k: v.clone() for k, v in target[2].state_dict().items()}
    with pytest.raises(RuntimeError, match=message):
        target.load_state_dict({**sparse_net().state_dict(), "2.weight_mask": words})
    assert_same_entries(target[2].state_dict(), layer)


def test_stray_bits_are_reported():
    layer = SparseConv2d(3, 4, 3)
    words = layer.weight_mask.clone()
    words[1, 1] = -1
    with pytest.raises(
        RuntimeError, match="weight_mask must be the packed mask of weight: words must have no bits set"
    ):
        layer.load_state_dict({**layer.state_dict(), "weight_mask": words})
    assert layer.density == 1


def test_a_weight_of_another_shape_is_reported():
    target = sparse_net()
    mask = target[2].mask
    with pytest.raises(RuntimeError, match="size mismatch for 2.weight"):
        target.load_state_dict({**net().state_dict(), "2.weight": torch.zeros(5, 63)})
    assert target[2].mask == mask


def test_missing_weight_is_reported_and_a_mask_alone_prunes():
    target, mask = sparse_net(), BitMask.from_bool(torch.rand(5, 64) < 0.5)
    kept = (target[2].mask & mask).to_bool()
    state = target.state_dict()
    del state["2.weight"]
    with pytest.raises(RuntimeError, match='Missing key.*"2.weight"'):
        target.load_state_dict(state)
    target.load_state_dict({"2.weight_mask": mask.words}, strict=False)
    assert target[2].mask == mask and torch.equal(target[2].weight != 0, kept)


def test_meta_model_takes_a_sparse_checkpoint_only():
    source = sparse_net()
    target = net("meta")
    sparsify(target, {f"{i}.weight": torch.ones_like(target[i].weight, dtype=torch.bool) for i in (0, 2)})
    with pytest.raises(RuntimeError, match="Missing key.*0.weight_mask"):
        target.load_state_dict(net().state_dict(), assign=True)
    target.load_state_dict(source.state_dict(), assign=True)
    assert_same_entries(target.state_dict(), source.state_dict())
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(target(x), source(x))
