"""Lowered networks against the published algorithm in float64, path counts by enumeration, and what stays as it is."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from criteria.networks import Residual, conv_chain, mlp, published_synflow, residual_net, weights
from torch import nn

import sparseprune as sp
from sparseprune import models
from sparseprune.criteria import SynFlow
from sparseprune.criteria.lowering.engine import LoweredNetwork
from sparseprune.criteria.lowering.positions import layouts
from sparseprune.criteria.lowering.program import Kind, consumers
from sparseprune.criteria.lowering.trace import trace

IMAGE = torch.ones(1, 3, 8, 8)


def seq(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


class Branches(nn.Module):
    """Concatenation, a constant, views, pooling by ``mean``, a norm without a layer before it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.a = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.b = nn.Conv2d(3, 2, 5, padding=2, bias=False)
        self.c = nn.Conv2d(6, 6, 3, stride=2, dilation=2, padding="valid", bias=False)
        self.head = nn.Linear(6, 3, bias=False)

    def forward(self, x):
        x = self.norm(x)
        x = torch.cat([F.relu(self.a(x)), torch.relu_(self.b(x))], 1)
        x = F.dropout(self.c(x), 0.5, self.training)
        return self.head(x.mean((2, 3)).view(1, -1))


class Twice(nn.Module):
    """One weight in two places, and one in none."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out, self.unused = nn.Linear(5, 5), nn.Linear(5, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.out(self.layer(self.layer(x).relu()).relu())


NETWORKS = {
    "residual": (residual_net, IMAGE),
    "residual, 17x21": (lambda: residual_net(3), torch.ones(1, 3, 17, 21)),
    "chain": (conv_chain, IMAGE),
    "linear": (lambda: mlp(30, 20, 10), torch.ones(1, 30)),
    "shared": (Twice, torch.ones(1, 5)),
    "branches": (Branches, torch.ones(1, 3, 19, 18)),
    "map": (lambda: seq(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)), IMAGE),  # all positions alike, and summed
    "depthwise": (
        lambda: seq(nn.Conv2d(3, 6, 3, 1, 1, groups=3), nn.Conv2d(6, 6, 3, 2, 1, groups=6), nn.Flatten(), nn.Linear(96, 2)),
        IMAGE,
    ),
    "max pool": (
        lambda: seq(nn.Conv2d(3, 5, 3, 1, 1), nn.MaxPool2d(3, 2, 1), nn.Conv2d(5, 4, 3, 1, 1), nn.MaxPool2d(2), nn.Flatten(1), nn.Linear(36, 2)),
        torch.ones(1, 3, 13, 13),
    ),
    "average pool": (
        lambda: seq(
            nn.Conv2d(3, 4, 3, 1, 1), nn.AvgPool2d(3, 2, 1), nn.Conv2d(4, 4, 3), nn.AvgPool2d(3, 1, 1, count_include_pad=False),
            nn.AdaptiveAvgPool2d((3, 2)), nn.Conv2d(4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
        ),
        torch.ones(1, 3, 21, 17),
    ),
}  # fmt: skip


@pytest.mark.parametrize("density", [1.0, 0.6, 0.2])
@pytest.mark.parametrize("name", NETWORKS)
def test_scores_are_those_of_the_published_algorithm(name, density):
    make, example = NETWORKS[name]
    model = make()
    with torch.no_grad():
        for parameter_name, p in model.named_parameters():
            if p.dim() == 1 and "weight" in parameter_name:
                p.uniform_(-2, 2)  # gammas, of any sign
    kept = {n: (torch.rand(w.shape) < density).double() for n, w in weights(model).items()}
    masks = sp.Masks({n: mask.bool() for n, mask in kept.items()})
    flow, expected = published_synflow(model, example, kept)
    for dtype, rtol in ((torch.float64, 1e-11), (torch.float32, 2e-5)):
        for scale in (True, False):
            network = LoweredNetwork(model, example, dtype, scale)
            scores = network.scores({n: masks[n] for n in network.weights})
            value, exponent = network.flow
            assert math.ldexp(value, exponent) == pytest.approx(flow, rel=rtol)
            assert set(weights(model)) - set(scores) <= {"unused.weight"}
            for n, score in scores.items():
                actual = score.tensor().double() * masks[n].to_bool()
                torch.testing.assert_close(actual * 2.0**exponent, expected[n], rtol=rtol, atol=0)


def test_prune_runs_the_program_and_keeps_what_the_network_as_it_is_would():
    """Step by step: from the same masks, exact float64 scores leave no doubt about what float32 should keep."""
    model = residual_net(3)
    step = SynFlow(IMAGE).plan(model, weights(model))
    assert step.reason is None
    seen = []

    class Both:
        def __call__(self, model, params):
            return self.plan(model, params)()

        def plan(self, model, params):
            lowered, exact = (SynFlow(IMAGE, dtype).plan(model, params) for dtype in (torch.float32, torch.float64))

            def scores(masks):
                found = lowered.products(masks)
                for name, score in exact(masks).items():
                    ratio = found[name].tensor().double() / score * 2.0 ** (exact.log2_flow - lowered.log2_flow)
                    alive = score > 0
                    seen.append((ratio[alive] / ratio[alive].median() - 1).abs().max() if alive.any() else ratio.sum())
                return found

            return scores

    masks = sp.prune(model, Both(), density=0.05, steps=12)
    assert masks == sp.prune(model, SynFlow(IMAGE), density=0.05, steps=12)
    assert len(seen) == 12 * len(masks) and max(seen) < 1e-5


def test_positions_together_have_one_value_and_groups_one_sum():
    """By running the network on all positions: within a class every channel is constant."""
    model = nn.Sequential(*list(residual_net(2))[:-4]).double()
    nodes = trace(model, (3, 16, 16), torch.float64)
    consumers(nodes)
    value = torch.ones(1, 3, 16, 16, dtype=torch.float64)
    for p in model.parameters():
        p.data.abs_()
    output = model.eval()(value)[0].flatten(1).detach()
    classes = layouts(nodes)[nodes[-1]]
    if not classes.sums:
        for number in range(classes.count):
            columns = output[:, classes.of == number]
            torch.testing.assert_close(columns, columns[:, :1].expand_as(columns), rtol=1e-13, atol=0)
    # What is read only through a mean is one sum: the last layers of a residual network.
    pooled = trace(residual_net(2), (3, 16, 16), torch.float32)
    stored = layouts(pooled)
    last = [node for node in pooled if node.kind is Kind.LAYER][-2]
    assert stored[last].sums and stored[last].count == 1


def test_a_third_of_a_resnet50_and_seven_tenths_of_a_vgg16_are_computed():
    for model, shape, share in (
        (models.resnet50(), (3, 224, 224), 0.34),
        (models.vgg16_bn(num_classes=100), (3, 32, 32), 0.71),
    ):
        nodes = trace(model, shape, torch.float32)
        stored, sizes = layouts(nodes), {name: p.numel() for name, p in model.named_parameters()}
        layers = [node for node in nodes if node.kind is Kind.LAYER]
        whole = sum(sizes[node.weight] * node.positions for node in layers)
        assert sum(sizes[node.weight] * stored[node].width for node in layers) <= share * whole


def paths_of(sizes, masks):
    """How many paths there are through every weight of a linear network, by enumeration."""
    through = {name: torch.zeros(mask.shape) for name, mask in masks.items()}
    for units in itertools.product(*map(range, sizes)):
        edges = [(name, b, a) for name, a, b in zip(masks, units, units[1:], strict=False)]
        if all(masks[name][b, a] for name, b, a in edges):
            for name, b, a in edges:
                through[name][b, a] += 1
    return through


@pytest.mark.parametrize("density", [1.0, 0.7, 0.3])
def test_weights_of_one_count_paths(density):
    sizes = (3, 4, 5, 3)
    model = mlp(*sizes)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.where(torch.rand_like(p) < 0.5, -1.0, 1.0))
    masks = {n: torch.rand(w.shape) < density for n, w in weights(model).items()}
    step = SynFlow(torch.ones(1, 3), scale=False).plan(model, weights(model))
    scores, expected = step(sp.Masks(masks)), paths_of(sizes, masks)
    assert step.reason is None
    assert all(torch.equal(scores[n], expected[n]) for n in expected)


def test_rescaling_a_layer_by_a_power_of_two_changes_no_mask():
    model = residual_net(2)
    expected = sp.prune(model, SynFlow(IMAGE), density=0.05, steps=10)
    for name, factor in zip(weights(model), (2.0**9, 2.0**-12, 2.0, 2.0**-3), strict=False):
        with torch.no_grad():
            model.get_parameter(name).mul_(factor)
    # Both branches of a block must grow alike, or it is another network: so only what all paths cross was changed.
    chain = conv_chain()
    before = sp.prune(chain, SynFlow(IMAGE), density=0.1, steps=10)
    with torch.no_grad():
        for i, p in enumerate(weights(chain).values()):
            p.mul_(2.0 ** (7 * i - 5))
    assert sp.prune(chain, SynFlow(IMAGE), density=0.1, steps=10) == before
    assert expected.count() == sp.prune(model, SynFlow(IMAGE), density=0.05, steps=10).count()


def test_permuting_channels_permutes_scores():
    chain = conv_chain()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    first, second = chain[0].weight, chain[4].weight
    scores = SynFlow(IMAGE)(chain, weights(chain))
    with torch.no_grad():
        first.copy_(first[order].clone())
        second.copy_(second[:, order].clone())
    permuted = SynFlow(IMAGE)(chain, weights(chain))
    torch.testing.assert_close(permuted["0.weight"], scores["0.weight"][order])
    torch.testing.assert_close(permuted["4.weight"], scores["4.weight"][:, order])


def test_runs_are_the_same_to_the_bit():
    model = residual_net(2)
    first = SynFlow(IMAGE)(model, weights(model))
    for _ in range(3):
        again = SynFlow(IMAGE)(model, weights(model))
        assert all(torch.equal(again[name], first[name]) for name in first)


def test_masks_may_come_in_any_order():
    """Fewer, more and other weights than at the call before; dense and sparse by turns."""
    model = residual_net()
    step = SynFlow(IMAGE).plan(model, weights(model))
    for density in (0.9, 0.5, 0.1, 0.8, 0.3, 1.0):
        masks = sp.Masks({n: torch.rand(w.shape) < density for n, w in weights(model).items()})
        expected = SynFlow(IMAGE).plan(model, weights(model))(masks)
        scores = step(masks)
        for name, mask in masks.items():
            kept = mask.to_bool()
            torch.testing.assert_close(scores[name][kept], expected[name][kept], rtol=1e-5, atol=0)


class Squared(nn.Module):
    def forward(self, x):
        return (x * x).flatten(1)


@pytest.mark.parametrize(
    ("model", "example", "reason"),
    [
        (lambda: seq(nn.Linear(4, 3), nn.Linear(3, 2)).double(), torch.ones(1, 4), "float64 follows the published"),
        (lambda: seq(nn.Conv1d(3, 2, 3), nn.Flatten(), nn.Linear(4, 2)), torch.ones(1, 3, 4), "torch's conv1d"),
        (lambda: seq(nn.Conv2d(3, 2, 3), Squared(), nn.Linear(72, 2)), IMAGE, "torch's mul"),
        (lambda: seq(nn.Conv2d(3, 2, 3), nn.LayerNorm((2, 6, 6)), nn.Flatten(), nn.Linear(72, 2)), IMAGE, "layer_norm"),
        (lambda: seq(nn.Conv2d(3, 2, 3), nn.MaxPool2d(4, 3, ceil_mode=True), nn.Flatten(), nn.Linear(8, 2)), IMAGE, "ceil_mode"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)), torch.ones(1, 4), "computed from others"),
    ],
)  # fmt: skip
def test_what_is_not_lowered_says_why_and_runs_as_it_is(model, example, reason):
    model = model()
    params = dict(model.named_parameters()) if "others" in reason else weights(model)
    step = SynFlow(example).plan(model, params)
    assert reason in step.reason
    assert all(score.isfinite().all() for score in step().values())


def test_an_unused_weight_scores_zero():
    model = Twice()
    step = SynFlow(torch.ones(1, 5)).plan(model, weights(model))
    scores = step()
    assert step.reason is None and not scores["unused.weight"].any() and (scores["layer.weight"] > 0).all()


def test_a_hundred_layers_and_a_collapse_in_one_step():
    deep = mlp(32, *[64] * 99, 10)
    masks = sp.prune(deep, SynFlow(torch.ones(1, 32)), density=0.05, steps=5)
    assert masks.count() == round(0.05 * masks.numel()) and masks.summary.connected
    model = seq(nn.Conv2d(3, 8, 3, 1, 1), *(Residual(8, 2) for _ in range(1)), Residual(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))  # fmt: skip
    collapsed = sp.prune(model, SynFlow(IMAGE), density=1e-3, steps=1)
    assert min(collapsed.counts().values()) == 0
    assert any("keep" in w or "collapse" in w or "no " in w for w in collapsed.summary.warnings)
    further = sp.prune(model, SynFlow(IMAGE), keep=1, steps=2, masks=collapsed)
    assert further.count() == 1
