"""compact(): dead channels leave a ResNet and a VGG, outputs stay, and what was sparse stays sparse."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sparseprune as sp
from sparseprune.nn import SparseConv2d, SparseLinear
from sparseprune.nn.base import STORAGES


def trained_norms(model):
    """Batch norms as after training, except that a dead channel's constant is zero."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def random_masks(model, density):
    weights = {n: p for n, p in model.named_parameters() if p.dim() > 1}
    return {n: torch.rand(p.shape) < density for n, p in weights.items()}


def sizes(model):
    return {
        name: (m.weight.shape[0], m.weight.shape[1])
        for name, m in model.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
    }


@pytest.mark.parametrize("storage", STORAGES)
def test_vgg16_without_its_dead_channels(storage):
    """In a chain every dead filter goes with the slices that read it, so the sizes are known in advance."""
    model = trained_norms(sp.models.vgg16_bn(num_classes=10))
    masks = random_masks(model, 0.3)
    names = [n for n in masks if masks[n].dim() == 4]
    filters = {n: len(masks[n]) for n in names}
    live, before = {}, 3
    for name in names:
        dead = torch.randperm(filters[name])[: filters[name] // 3]
        masks[name][dead] = False
        live[name] = (filters[name] - len(dead), before)
        before = live[name][0]
    for mask in masks.values():  # every filter that is not dead is read
        mask.view(*mask.shape[:2], -1)[mask.flatten(1).any(1), :, 0] = True
    sp.sparsify(model, masks, storage=storage)
    x = torch.randn(2, 3, 32, 32)
    small = sp.compact(model, x)
    found = sizes(small)
    assert {n: found[n.removesuffix(".weight")] for n in names} == live
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-4)
    held = sp.held_masks(small)
    assert held.count() == sum(int(m[m.flatten(1).any(1)].sum()) for m in masks.values()) - lost(masks, names)
    layers = [m for m in small.modules() if isinstance(m, SparseConv2d | SparseLinear)]
    assert len(layers) == len(masks) and {layer.storage for layer in layers} == {storage}


def lost(masks, names):
    """Kept weights of live filters that read a dead one."""
    total = 0
    for before, name in zip(names, [*names[1:], *[n for n in masks if masks[n].dim() == 2][:1]], strict=True):
        dead = ~masks[before].flatten(1).any(1)
        total += int(
            masks[name].transpose(0, 1).flatten(1)[dead.repeat_interleave(masks[name].shape[1] // len(dead))].sum()
        )
    return total


def test_resnet50_with_channels_dead_across_its_shortcuts():
    model = trained_norms(sp.models.resnet50(num_classes=10))
    masks = random_masks(model, 0.2)
    for name, mask in masks.items():
        if name.endswith(("conv1.weight", "conv2.weight")):
            mask[::2] = False  # half of every bottleneck's inner channels
    for name in masks:  # and a quarter of the first stage's stream: only all of its writers together free it
        if name.startswith("layer1") and name.endswith(("conv3.weight", "downsample.0.weight")):
            masks[name][::4] = False
    untouched = copy.deepcopy(model.state_dict())
    sp.sparsify(model, masks)
    x = torch.randn(1, 3, 64, 64)
    small = sp.compact(model, x)
    found, before = sizes(small), sizes(model)
    for name, (n_out, _) in before.items():
        if ".conv1" in name or ".conv2" in name or name == "conv1":
            assert found[name][0] <= n_out // 2, name
    assert found["layer1.2.conv3"][0] == 192 and found["layer2.0.conv1"][1] == 192
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-4)
    assert not {id(p) for p in small.parameters()} & {id(p) for p in model.parameters()}
    for name, mask in masks.items():
        assert torch.equal(model.get_parameter(name), untouched[name] * mask)
    small(x).sum().backward()  # it trains, and holds its masks
    for name, mask in sp.held_masks(small).items():
        assert not small.get_parameter(name).grad[~mask.to_bool()].any()


def test_a_dense_model_with_masks_becomes_sparse_and_no_masks_are_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="masks must be given for a model that holds none"):
        sp.compact(model, torch.ones(1, 3))
    masks = sp.Masks({"0.weight": torch.rand(4, 3) < 2, "2.weight": torch.tensor([[True, False, True, False]] * 2)})
    small = sp.compact(model, torch.ones(1, 3), masks)
    assert sizes(small) == {"0": (2, 3), "2": (2, 2)} and type(small[0]) is SparseLinear and type(model[0]) is nn.Linear
    x = torch.randn(5, 3)
    torch.testing.assert_close(small(x), masks.apply_(model)(x))
