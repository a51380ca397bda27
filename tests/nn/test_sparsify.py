"""sparsify and densify: what changes, what must not, and what is refused before anything changed."""

from __future__ import annotations

import types

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from sparseprune import BitMask, Masks
from sparseprune.nn import SparseConv2d, SparseLinear, densify, sparsify


def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 16, 10), nn.ReLU(), nn.Linear(10, 10),
    )  # fmt: skip


def random_masks(model, density=0.5):
    return Masks({n: torch.rand(p.shape) < density for n, p in model.named_parameters() if p.dim() > 1})


def snapshot(model):
    return {k: v.clone() for k, v in model.state_dict().items()}, [type(m) for m in model.modules()]


def assert_unchanged(model, before):
    after = snapshot(model)
    assert before[1] == after[1] and before[0].keys() == after[0].keys()
    assert all(torch.equal(before[0][k], after[0][k]) for k in before[0])


def test_same_objects_new_classes():
    model = net().eval().double()
    modules, parameters = list(model.modules()), list(model.parameters())
    model(torch.randn(2, 3, 4, 4, dtype=torch.float64)).sum().backward()
    masks = random_masks(model)
    expected = masks.apply_(model)(torch.ones(2, 3, 4, 4, dtype=torch.float64)).detach()
    assert sparsify(model, masks) is model
    assert [type(model[i]) for i in (0, 1, 4, 6)] == [
        SparseConv2d,
        nn.BatchNorm2d,
        SparseLinear,
        SparseLinear,
    ]
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert not any(m.training for m in model.modules())
    for name, mask in masks.items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        assert layer.mask == mask and layer.weight.dtype == torch.float64
        assert torch.equal(layer.weight != 0, mask.to_bool())
        assert not layer.weight.grad[~mask.to_bool()].any()
    torch.testing.assert_close(model(torch.ones(2, 3, 4, 4, dtype=torch.float64)), expected)


def test_masks_are_not_shared_with_the_model():
    model = net()
    masks = random_masks(model)
    words = masks["4.weight"].words.clone()
    sparsify(model, masks)
    model[4].set_mask(BitMask.zeros((10, 128)))
    assert torch.equal(masks["4.weight"].words, words)


def test_layers_without_a_mask_are_left():
    model = sparsify(net(), {"4.weight": torch.rand(10, 128) < 0.5})
    assert type(model[0]) is nn.Conv2d and type(model[4]) is SparseLinear
    mask = model[4].mask
    sparsify(model, {"6.weight": torch.rand(10, 10) < 0.5})
    assert model[4].mask == mask and type(model[6]) is SparseLinear
    assert sparsify(model, {}) is model


def test_the_model_may_be_one_layer():
    layer = nn.Linear(4, 3)
    assert sparsify(layer, {"weight": torch.ones(3, 4) > 0}) is layer
    assert type(layer) is SparseLinear
    assert type(densify(layer)) is nn.Linear


def test_hooks_stay_and_can_be_removed():
    model, calls = net(), []
    handles = [
        model[4].register_forward_pre_hook(lambda *_: calls.append("before")),
        model[4].register_forward_hook(lambda *_: calls.append("after")),
        model[4].register_full_backward_hook(lambda *_: calls.append("backward")),
    ]
    sparsify(model, random_masks(model))
    model(torch.randn(2, 3, 4, 4)).sum().backward()
    assert calls == ["before", "after", "backward"]
    for handle in handles:
        handle.remove()
    model(torch.randn(2, 3, 4, 4)).sum().backward()
    assert len(calls) == 3


def test_replaces_masks_of_a_sparse_model():
    model = net()
    first, second = random_masks(model), random_masks(model)
    sparsify(model, first)
    words = model[4].weight_mask
    sparsify(model, second)
    assert model[4].mask == second["4.weight"] and model[4].weight_mask is words
    assert torch.equal(model[4].weight != 0, (first["4.weight"] & second["4.weight"]).to_bool())


def test_densify():
    model = net()
    keys, parameters = list(model.state_dict()), list(model.parameters())
    masks = random_masks(model)
    sparsify(model, masks)
    model[4].register_forward_hook(lambda *_: None)
    with torch.no_grad():
        model[4].weight[~masks["4.weight"].to_bool()] = float("nan")
    x = torch.randn(2, 3, 4, 4)
    expected = model.eval()(x)
    assert densify(model) is model
    assert [type(m) for m in model] == [type(m) for m in net()]
    assert list(model.state_dict()) == keys and not model[4].training and len(model[4]._forward_hooks) == 1
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert torch.equal(model[4].weight != 0, masks["4.weight"].to_bool())
    torch.testing.assert_close(model(x), expected)


def test_densify_refuses_subclasses():
    class Own(SparseLinear):
        pass

    model = nn.Sequential(SparseLinear(3, 3), Own(3, 3))
    with pytest.raises(ValueError, match="no subclass of the sparse layers, got an Own at '1'"):
        densify(model)
    assert type(model[0]) is SparseLinear


def test_shared_modules_stay_shared():
    layer = nn.Linear(5, 5)
    model = nn.ModuleDict({"a": layer, "b": nn.Sequential(layer)})
    mask = torch.rand(5, 5) < 0.5
    sparsify(model, {"b.0.weight": mask})
    assert model["a"] is model["b"][0] is layer and type(layer) is SparseLinear
    assert torch.equal(layer.mask.to_bool(), mask)


def tied():
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    model[2].weight = model[0].weight
    return model


def test_tied_weights_share_one_mask():
    mask, other = torch.rand(5, 5) < 0.5, torch.rand(5, 5) < 0.5
    model = sparsify(tied(), {"0.weight": mask})
    assert type(model[0]) is type(model[2]) is SparseLinear and model[2].weight is model[0].weight
    assert model[0].mask == model[2].mask == BitMask.from_bool(mask)
    sparsify(model, {"0.weight": other, "2.weight": other.clone()})
    assert model[0].mask == model[2].mask == BitMask.from_bool(other)
    assert torch.equal(model[0].weight != 0, mask & other)
    model(torch.randn(3, 5)).sum().backward()
    assert not model[0].weight.grad[~other].any()


def test_tied_weights_with_different_masks():
    model = tied()
    with pytest.raises(ValueError, match="masks of tied weights must be equal, got different .* '0.weight' and '2"):
        sparsify(model, {"0.weight": torch.ones(5, 5) > 0, "2.weight": torch.eye(5) > 0})
    assert type(model[0]) is nn.Linear and model[0].weight.all()


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def with_embedding():
    model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 7))
    model[1].weight = model[0].weight
    return model


def with_forward_replaced():
    model = nn.Sequential(nn.Linear(5, 5))
    model[0].forward = types.MethodType(lambda self, x: x, model[0])
    return model


def with_buffer_in_the_way():
    model = nn.Sequential(nn.Linear(5, 5))
    model[0].register_buffer("weight_mask", torch.ones(5, 5))
    return model


def parametrized(wrap):
    model = nn.Sequential(nn.Linear(5, 5))
    wrap(model[0])
    return model


def pruned_by_torch():
    return parametrized(lambda layer: prune.random_unstructured(layer, "weight", 0.5))


@pytest.mark.parametrize(
    ("model", "name", "message"),
    [
        (net(), "4.weigth", "must name parameters of the model, got '4.weigth'; did you mean '4.weight'"),
        (net(), "nothing", "must name parameters of the model, got 'nothing'$"),
        (net(), "4.bias", "held by a Linear at '4', whose bias is not its weight"),
        (net(), "1.weight", "held by a BatchNorm2d at '1', a layer of another kind"),
        (nn.Sequential(Doubled(5, 5)), "0.weight", "held by a Doubled at '0', a subclass .*leave it out"),
        (nn.MultiheadAttention(8, 2), "out_proj.weight", "ableLinear at 'out_proj', a subclass"),
        (nn.MultiheadAttention(8, 2), "in_proj_weight", "MultiheadAttention as the model itself, a lay"),
        (with_embedding(), "1.weight", r"an Embedding at '0' \(tied to it\), a layer of another kind"),
        (with_forward_replaced(), "0.weight", "whose forward was replaced"),
        (with_buffer_in_the_way(), "0.weight", "which has an attribute weight_mask already"),
        (parametrized(parametrizations.weight_norm), "0.weight", "Linear whose weight is computed"),
        (pruned_by_torch(), "0.weight", "computed .*prune"),
        (pruned_by_torch(), "0.weight_orig", "whose weight_orig is not"),
        (nn.Linear(3, 3, dtype=torch.complex64), "weight", "whose weight is torch.complex64"),
        (nn.Conv1d(3, 3, 3), "weight", "a Conv1d as the model itself, a layer of another kind"),
    ],
)  # fmt: skip
def test_refusals_name_the_layer(model, name, message):
    parameter = dict(model.named_parameters()).get(name)
    mask = torch.zeros(parameter.shape if parameter is not None else (5, 5), dtype=torch.bool)
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        sparsify(model, {name: mask})
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ({"nothing": torch.ones(1) > 0}, ValueError, "must name parameters of the model"),
        (
            {"6.weight": torch.ones(10, 9) > 0},
            ValueError,
            r"masks\['6.weight'\] must have its weight's shape",
        ),
        (
            {"6.weight": torch.ones(10, 10)},
            TypeError,
            r"masks\['6.weight'\] must be a BitMask or a bool tensor",
        ),
        (
            {"6.weight": BitMask.ones((10, 10), "meta")},
            ValueError,
            r"device cpu, got meta; move it with .to\('cpu'\)",
        ),
        ({"1.weight": torch.ones(8) > 0}, ValueError, "a layer of another kind"),
    ],
)
@pytest.mark.parametrize("sparse", [False, True])
def test_nothing_changes_on_error(sparse, bad, error, message):
    model = net()
    model(torch.randn(2, 3, 4, 4)).sum().backward()
    if sparse:
        sparsify(model, random_masks(model))
    before, grad = snapshot(model), model[0].weight.grad.clone()
    with pytest.raises(error, match=message):
        sparsify(model, {**random_masks(model), **bad})
    assert_unchanged(model, before)
    assert torch.equal(model[0].weight.grad, grad)


def test_wrong_optimizers():
    model, other = net(), net()
    before = snapshot(model)
    with pytest.raises(ValueError, match="optimizer must hold the model's parameters"):
        sparsify(model, random_masks(model), optimizer=torch.optim.SGD(other.parameters(), lr=0.1))
    with pytest.raises(TypeError, match="optimizer must be a torch.optim.Optimizer, got float"):
        sparsify(model, random_masks(model), optimizer=0.1)
    assert_unchanged(model, before)


def test_transformer_layer_agrees_with_its_fast_path():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    masks = {
        n: torch.rand(p.shape) < 0.5 for n, p in layer.named_parameters() if n.startswith("linear") and p.dim() > 1
    }
    sparsify(layer, masks)
    x = torch.randn(2, 3, 8)
    slow = layer(x)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), slow.detach())
