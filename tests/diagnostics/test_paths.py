"""Dead paths, shortest paths and critical compression against enumeration."""

from __future__ import annotations

import itertools

import pytest
import torch
from criteria.networks import mlp, residual_net, weights
from torch import nn

import sparseprune as sp
from sparseprune.diagnostics import (
    collapse,
    costs,
    critical_compression,
    effective_masks,
    maximal_compression,
)

SIZES = (3, 4, 3, 2)


class Skip(nn.Module):
    """Six weights; an addition leads around two of the three layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(i, o, bias=False) for i, o in ((1, 1), (1, 2), (2, 1)))

    def forward(self, x):
        x = self.a(x).relu()
        return x + self.c(self.b(x).relu())


def masks_of(model, density):
    return sp.Masks({name: torch.rand(w.shape) < density for name, w in weights(model).items()})


def enumerated(masks):
    """The weights of an MLP of these sizes on some path whose every weight is kept."""
    names = list(masks)
    kept = {name: mask.to_bool() for name, mask in masks.items()}
    alive = {name: torch.zeros_like(mask) for name, mask in kept.items()}
    for units in itertools.product(*map(range, SIZES)):
        edges = list(zip(names, units[1:], units, strict=False))
        if all(kept[name][o, i] for name, o, i in edges):
            for name, o, i in edges:
                alive[name][o, i] = True
    return alive


@pytest.mark.parametrize("density", [0.15, 0.3, 0.5, 1.0])
def test_dead_paths_are_those_an_enumeration_does_not_find(density):
    model = mlp(*SIZES)
    for _ in range(5):
        masks = masks_of(model, density)
        expected = sp.Masks(enumerated(masks))
        assert dict(effective_masks(model, masks, torch.ones(1, 3))) == dict(expected)
        found = collapse(model, masks, torch.ones(1, 3))
        assert found.effective_density == expected.density <= found.density == masks.density
        assert found.connected == (expected.count() > 0)
        assert found.empty_layers == tuple(name for name, count in masks.counts().items() if not count)


def test_layer_collapse_and_path_collapse_are_told_apart():
    model = residual_net()
    full = sp.Masks.ones(weights(model))
    image = torch.ones(1, 3, 8, 8)
    around = sp.Masks({**full, "5.shortcut.weight": torch.zeros(8, 4, 1, 1, dtype=torch.bool)})
    assert collapse(model, around, image).to_dict()["empty_layers"] == ["5.shortcut.weight"]
    assert collapse(model, around, image).connected
    eye = torch.eye(2, dtype=torch.bool)
    cut = sp.Masks({"0.weight": eye[:1].expand(2, 2), "2.weight": eye[:1] & ~eye[:1]})
    crossed = sp.Masks({"0.weight": torch.tensor([[1, 1], [0, 0]]).bool(), "2.weight": torch.tensor([[0, 1]]).bool()})
    for masks, empty in ((cut, ("2.weight",)), (crossed, ())):
        found = collapse(mlp(2, 2, 1), masks, torch.ones(1, 2))
        assert found.empty_layers == empty and not found.connected and found.effective_density == 0


def every_mask(model):
    """All ways to prune a tiny model."""
    sizes = {name: w.numel() for name, w in weights(model).items()}
    for bits in itertools.product([False, True], repeat=sum(sizes.values())):
        parts = torch.tensor(bits).split(list(sizes.values()))
        yield sp.Masks({n: part.reshape(w.shape) for (n, w), part in zip(weights(model).items(), parts, strict=True)})


@pytest.mark.parametrize("build", [lambda: mlp(2, 1, 2), Skip], ids=["chain", "skip"])
def test_maximal_compression_is_that_of_the_best_of_all_masks(build):
    model, x = build(), torch.ones(1, 2 if build is not Skip else 1)
    every = list(every_mask(model))
    fewest = min(m.count() for m in every if all(m.counts().values()))
    assert maximal_compression(model) == every[0].numel() / fewest
    fewest = min(m.count() for m in every if collapse(model, m, x).connected)
    assert maximal_compression(model, example_input=x) == every[0].numel() / fewest


def test_maximal_compression_of_the_papers_networks():
    assert maximal_compression(sp.models.lenet_300_100()) == 266_200 / 3
    assert maximal_compression(sp.models.lenet5_caffe()) == 107_625
    model = residual_net(3)  # a path crosses the stem, one layer of the last block and the head
    total = sum(w.numel() for w in weights(model).values())
    assert maximal_compression(model, example_input=torch.ones(1, 3, 8, 8)) == total / 3
    spared = maximal_compression(model, "10", example_input=torch.ones(1, 3, 8, 8))
    assert spared == (total - model[10].weight.numel()) / 2


@pytest.mark.parametrize("by_path", [False, True])
def test_critical_compression_is_where_trying_every_k_collapses(by_path):
    model, x = mlp(3, 5, 2), torch.ones(1, 3)
    options = {"by_path": True, "example_input": x} if by_path else {}
    for seed in range(4):
        torch.manual_seed(seed)
        scores = {name: torch.rand(w.shape) for name, w in weights(model).items()}

        def criterion(model, params, scores=scores):
            return scores

        found = critical_compression(model, criterion, **options)
        whole = []
        for k in range(1, 26):
            result = collapse(model, sp.prune(model, criterion, keep=k), x)
            if result.connected if by_path else not result.empty_layers:
                whole.append(k)
        assert (found.keep, found.total) == (min(whole), 25) and found.ratio == 25 / min(whole)
        assert found.ratio <= found.maximal == 12.5


def test_synflow_meets_the_axiom_and_one_step_of_it_does_not():
    """Published for 784-300-100-100-100-10: 100 exponential steps end with one weight a layer."""
    model = mlp(20, 10, 10, 5)
    x = torch.ones(1, 20)
    many = critical_compression(model, sp.SynFlow(x), steps=60)
    assert many.keep == 3 and many.ratio == many.maximal
    assert critical_compression(model, sp.SynFlow(x)).ratio < many.maximal / 2


def test_costs_count_biases_norms_and_layers_without_masks():
    model = residual_net(1)
    masks = masks_of(model, 0.3)
    some = sp.Masks({name: mask for name, mask in masks.items() if name != "0.weight"})
    image = torch.ones(2, 3, 8, 8)
    found = costs(model, some, image)
    parameters = sum(p.numel() for p in model.parameters())
    assert found.dense_parameters == parameters
    assert found.parameters == parameters - sum((~m.to_bool()).sum().item() for m in some.values())
    positions = {"0": 64, "3.body.0": 64, "3.body.3": 64, "4.body.0": 16, "4.body.3": 16, "4.shortcut": 16, "8": 1}
    kept = {name.removesuffix(".weight"): m.count() for name, m in some.items()} | {"0": model[0].weight.numel()}
    assert found.flops == 2 * sum(positions[name] * kept[name] for name in positions)
    assert found.dense_flops == 2 * sum(
        positions[n.removesuffix(".weight")] * w.numel() for n, w in weights(model).items()
    )


def test_refusals():
    model = mlp(3, 4, 2)
    with pytest.raises(ValueError, match="example_input must be given with by_path"):
        critical_compression(model, sp.Magnitude(), by_path=True)
    with pytest.raises(ValueError, match="not excluded"):
        maximal_compression(model, nn.Linear)
    with pytest.raises(ValueError, match="masks must name parameters"):
        effective_masks(model, sp.Masks({"x": torch.ones(1, 1).bool()}), torch.ones(1, 3))
    with pytest.raises(ValueError, match="example_input must be one that the model runs on"):
        costs(model, masks_of(model, 1), torch.ones(1, 7))

    class Around(Skip):
        def forward(self, x):
            return x + super().forward(x)

    with pytest.raises(ValueError, match="prunable weights on every path"):
        maximal_compression(Around(), example_input=torch.ones(1, 1))
