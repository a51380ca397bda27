"""Ablations keep every layer's count exactly, and change what they say."""

from __future__ import annotations

import pytest
import torch
from criteria.networks import mlp, residual_net, weights
from torch import nn

import sparseprune as sp
from sparseprune.diagnostics import inverted, inverted_masks, random_masks, reinitialize_, shuffled

IMAGE = torch.ones(1, 3, 8, 8)


@pytest.fixture
def model():
    return residual_net()


@pytest.fixture
def masks(model):
    return sp.prune(model, sp.Magnitude(), density=0.1)


def test_layer_counts_are_kept_exactly(model, masks):
    for other in (shuffled(masks), random_masks(model, masks), inverted_masks(model, sp.Magnitude(), masks)):
        assert other.counts() == masks.counts()
        assert all(other[n].shape == masks[n].shape for n in masks)
        same = (other & masks).count()
        assert same < 0.5 * masks.count()


def test_masks_of_some_layers_only(model, masks):
    some = sp.Masks({name: mask for name, mask in masks.items() if "body" in name})
    for other in (random_masks(model, some), inverted_masks(model, sp.Magnitude(), some), shuffled(some)):
        assert other.counts() == some.counts()
    nothing = some & ~some
    assert random_masks(model, nothing).count() == shuffled(nothing).count() == 0


def test_shuffling_follows_its_generator_and_every_order_is_as_likely():
    masks = sp.Masks({"w": torch.tensor([[True, False], [False, False]])})
    a, b = (shuffled(masks, torch.Generator().manual_seed(4))["w"] for _ in range(2))
    assert a == b
    generator = torch.Generator().manual_seed(0)
    total = sum(shuffled(masks, generator)["w"].to_bool().long() for _ in range(2000))
    assert ((total - 500).abs() < 90).all()  # five standard deviations


def test_inverted_keeps_the_worst(model):
    with torch.no_grad():
        for index, p in enumerate(weights(model).values()):
            p.copy_(torch.randperm(p.numel()).reshape(p.shape) + 1 + index / 100)
    masks = sp.prune(model, inverted(sp.Magnitude()), keep=50)
    everything = torch.cat([p.flatten() for p in weights(model).values()])
    kept = torch.cat([p[masks[n].to_bool()] for n, p in weights(model).items()])
    assert torch.equal(kept.sort().values, everything.sort().values[:50])
    layerwise = inverted_masks(model, sp.Magnitude(), masks)
    for name, p in weights(model).items():
        assert (p[layerwise[name].to_bool()] <= masks[name].count() + 1).all()


def test_inverted_plans_are_planned(model):
    """SynFlow's plan scores under the masks; inverted it drops what carries most, step by step."""
    criterion = sp.SynFlow(IMAGE)
    masks = sp.prune(model, inverted(criterion), density=0.5)
    scores = criterion(model, weights(model))
    kept = torch.cat([scores[n][masks[n].to_bool()] for n in masks])
    gone = torch.cat([scores[n][~masks[n].to_bool()] for n in masks])
    assert kept.max() <= gone.min() and masks.summary.connected is not None
    assert sp.prune(model, inverted(criterion), density=0.5, steps=3).density == pytest.approx(0.5, abs=1e-3)
    assert hasattr(inverted(criterion), "plan") and not hasattr(inverted(sp.Magnitude()), "plan")
    with pytest.raises(TypeError, match="criterion must be callable"):
        inverted(3)


def test_inverted_formulas(model):
    def formula(model, params):
        return {name: sp.Product(p.detach(), None, "|w|") for name, p in params.items()}

    expected = sp.prune(model, inverted(sp.Magnitude()), keep=50)
    assert dict(sp.prune(model, inverted(formula), keep=50)) == dict(expected)


@pytest.mark.parametrize("sparse", [False, True])
def test_reinitialised_weights_are_others_under_the_same_mask(model, masks, sparse):
    model[1].running_mean.fill_(3)
    if sparse:
        sp.sparsify(model, masks)
    else:
        masks.apply_(model)
    before = {name: p.detach().clone() for name, p in weights(model).items()}
    assert reinitialize_(model, masks, generator=torch.Generator().manual_seed(0)) is model
    for name, p in weights(model).items():
        keep = masks[name].to_bool()
        assert (p[~keep] == 0).all() and (p[keep] != before[name][keep]).all()
    assert model[1].running_mean.abs().max() == 0
    if sparse:
        assert all(model.get_submodule(n.removesuffix(".weight")).mask == masks[n] for n in masks)


def test_sparse_fan_restores_the_variance_of_dense_units():
    model = mlp(4000, 200)
    masks = sp.Masks({"0.weight": torch.rand(200, 4000) < torch.linspace(0.02, 1, 200)[:, None]})
    x = torch.randn(64, 4000)
    for sparse_fan in (False, True):
        reinitialize_(model, masks, "lecun_normal", torch.Generator().manual_seed(0), sparse_fan=sparse_fan)
        sparsest, densest = (model(x)[:, rows].var().item() for rows in (slice(0, 20), slice(180, 200)))
        assert densest == pytest.approx(1, abs=0.15)
        assert sparsest == pytest.approx(1, abs=0.15) if sparse_fan else sparsest < 0.15
    empty = masks & ~masks
    assert reinitialize_(model, empty, sparse_fan=True)(x).abs().max() == 0


def test_a_refused_reinitialisation_leaves_the_model_as_it_was(model, masks):
    sp.sparsify(model, masks)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(ValueError, match="scheme must be one of"):
        reinitialize_(model, masks, "nothing")
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert isinstance(model[0], sp.SparseConv2d)


def test_masks_that_do_not_fit():
    norm = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match="linear and convolution weights, got 1.weight"):
        random_masks(norm, sp.Masks({"1.weight": torch.ones(2).bool()}))
    with pytest.raises(ValueError, match="masks must name parameters"):
        reinitialize_(norm, sp.Masks({"x.weight": torch.ones(2).bool()}))
