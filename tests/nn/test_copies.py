"""Copies and moves of sparse layers: deepcopy, pickle, torch.save, dtype, moving averages."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sparseprune.nn import SparseConv2d, SparseLinear, sparsify


def sparse_net():
    mask = torch.rand(4, 3, 3, 3) < 0.5
    return nn.Sequential(SparseConv2d(3, 4, 3, mask=mask), nn.Flatten(), sparsify_linear(nn.Linear(64, 5)))


def sparsify_linear(layer):
    return sparsify(layer, {"weight": torch.rand(layer.weight.shape) < 0.5})


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def by_save(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle, by_save])
def test_duplicates_are_whole_and_independent(duplicate):
    model = sparse_net()
    x = torch.randn(2, 3, 6, 6)
    expected, mask = model(x), model[2].mask
    twin = duplicate(model)
    assert type(twin[0]) is SparseConv2d and type(twin[2]) is SparseLinear
    assert twin[2].mask == mask and torch.equal(twin(x), expected)
    twin[2].set_mask(torch.zeros(5, 64, dtype=torch.bool))
    assert model[2].mask == mask and torch.equal(model(x), expected)


@pytest.mark.parametrize(
    ("move", "dtype"),
    [
        (lambda m: m.half(), torch.float16),
        (lambda m: m.to(torch.bfloat16), torch.bfloat16),
        (lambda m: m.double(), torch.float64),
        (lambda m: m.to("cpu", torch.float64), torch.float64),
    ],
)
def test_words_stay_int32(move, dtype):
    model = sparse_net()
    masks = [model[0].mask, model[2].mask]
    move(model)
    assert model[0].weight.dtype == dtype and model[0].weight_mask.dtype == torch.int32
    assert [model[0].mask, model[2].mask] == masks
    assert model(torch.randn(2, 3, 6, 6, dtype=dtype)).isfinite().all()


@pytest.mark.parametrize("ema", [True, False], ids=["ema", "swa"])
def test_averaged_model_follows_the_masks(ema):
    model = sparse_net()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9) if ema else None)
    averaged.update_parameters(model)
    first = model[2].weight.detach().clone()
    sparsify(model, {"2.weight": torch.rand(5, 64) < 0.5})
    averaged.update_parameters(model)
    layer = averaged.module[2]
    assert layer.mask == model[2].mask
    share = 0.9 if ema else 0.5
    expected = (share * first + (1 - share) * model[2].weight) * layer.mask.to_bool()
    x = torch.randn(3, 64)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, expected, layer.bias))


def test_meta_device():
    model = nn.Sequential(SparseLinear(64, 5, device="meta"), nn.Conv2d(3, 4, 3, device="meta"))
    sparsify(model, {"1.weight": torch.ones(4, 3, 3, 3, dtype=torch.bool, device="meta")})
    assert type(model[1]) is SparseConv2d and "SparseLinear" in repr(model)
    model.to_empty(device="cpu")
    source = nn.Sequential(sparsify_linear(nn.Linear(64, 5)), SparseConv2d(3, 4, 3))
    model.load_state_dict(source.state_dict())
    assert model[0].mask == source[0].mask and torch.equal(model[0].weight, source[0].weight)
