"""The smaller network equals the masked one, and no unit more is gone than the budget needs."""

from __future__ import annotations

import copy

import pytest
import torch
from criteria.networks import conv_chain, mlp, residual_net, weights
from torch import nn

import sparseprune as sp
from sparseprune.diagnostics import sculpt, shrink

IMAGE = torch.ones(1, 3, 8, 8)


class Flat(nn.Sequential):
    """A norm after flattening, which has several entries a channel, and one without parameters before."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten(),
            nn.BatchNorm1d(24), nn.Linear(24, 10), nn.Tanh(), nn.Linear(10, 4),
        )  # fmt: skip


NETWORKS = {
    "mlp": (lambda: mlp(7, 12, 9, 3, bias=True), torch.ones(2, 7)),
    "tanh": (lambda: mlp(7, 12, 9, 3, bias=True, activation=nn.Tanh), torch.ones(2, 7)),
    "conv": (lambda: conv_chain(bias=True), IMAGE),
    "flat": (Flat, IMAGE),
    "residual": (lambda: residual_net(2), IMAGE),
    "lenet5": (lambda: sp.models.lenet5(input_shape=(1, 28, 28)), torch.ones(1, 1, 28, 28)),
    "resnet20": (lambda: sp.models.resnet20(), torch.ones(1, 3, 32, 32)),
}


def built(name):
    build, x = NETWORKS[name]
    model = build()
    for norm in (m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))):
        for tensor in (norm.running_mean, *norm.parameters()):
            nn.init.normal_(tensor)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return model.eval(), x


def outputs(model, x):
    with torch.no_grad():
        return model(torch.randn(3, *x.shape[1:], generator=torch.Generator().manual_seed(9)))


def counted(model, x):
    """Parameters, and 2 * multiply-adds by hooks of our own."""
    flops = []

    def hook(module, inputs, output):
        positions = output.shape[2:].numel() if output.dim() == 4 else 1
        flops.append(2 * positions * module.weight.numel())

    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    handles = [layer.register_forward_hook(hook) for layer in layers]
    model(x[:1])
    for handle in handles:
        handle.remove()
    return sum(p.numel() for p in model.parameters()), sum(flops)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("budget", ["parameters", "flops"])
def test_sculpted_equals_masked_and_meets_the_budget(name, budget):
    model, x = built(name)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    whole = dict(zip(("parameters", "flops"), counted(model, x), strict=True))
    target = whole[budget] // 2
    result = sculpt(model, sp.Magnitude(), x, **{budget: target})
    assert (result.parameters, result.flops) == counted(result.model, x)
    assert getattr(result, budget) <= target
    masked = result.masks.apply_(copy.deepcopy(model))
    torch.testing.assert_close(outputs(result.model, x), outputs(masked, x), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    for layer, units in result.units.items():
        rows = result.masks[f"{layer}.weight"].to_bool().flatten(1).any(1)
        assert torch.equal(rows.nonzero().flatten(), units)
        assert len(units) == len(result.model.get_submodule(layer).weight)


@pytest.mark.parametrize("name", ["flat", "residual"])
@pytest.mark.parametrize("budget", ["parameters", "flops"])
def test_a_budget_that_is_met_exactly_is_not_undercut(name, budget):
    model, x = built(name)
    whole = dict(zip(("parameters", "flops"), counted(model, x), strict=True))
    exact = getattr(sculpt(model, sp.Magnitude(), x, **{budget: whole[budget] // 2}), budget)
    assert getattr(sculpt(model, sp.Magnitude(), x, **{budget: exact}), budget) == exact


def test_no_unit_more_than_the_budget_needs():
    """By brute force over an MLP's hidden units in the order of their worth."""
    model, x = built("mlp")
    worth = {(i, u): model[i].weight[u].abs().sum().item() for i in (0, 2) for u in range(len(model[i].weight))}
    ranked = sorted(worth, key=worth.get)
    last = [max((u for u in ranked if u[0] == i), key=worth.get) for i in (0, 2)]
    ranked = [unit for unit in ranked if unit not in last]

    def size(gone):
        a, b = 12 - sum(i == 0 for i, _ in gone), 9 - sum(i == 2 for i, _ in gone)
        return 8 * a + (a + 1) * b + (b + 1) * 3

    for target in (100, 150, 200, size([])):
        count = next(c for c in range(len(ranked) + 1) if size(ranked[:c]) <= target)
        result = sculpt(model, sp.Magnitude(), x, parameters=target)
        assert result.parameters == size(ranked[:count])
        gone = {
            (i, u)
            for i in (0, 2)
            for u in range(len(model[i].weight))
            if not result.masks[f"{i}.weight"].to_bool()[u].any()
        }
        assert gone == set(ranked[:count])


def test_both_budgets_spared_layers_and_least_units():
    model, x = built("residual")
    parameters, flops = counted(model, x)
    result = sculpt(model, sp.Magnitude(), x, parameters=parameters // 2, flops=flops // 3, min_units=2)
    assert result.parameters <= parameters // 2 and result.flops <= flops // 3
    assert min(len(units) for units in result.units.values()) >= 2
    spared = sculpt(model, sp.Magnitude(), x, parameters=parameters * 3 // 4, exclude=["3", "0"])
    assert not set(spared.units) & {"0", "3.body.0", "3.body.3", "4.body.3"}  # one shortcut joins them
    with pytest.raises(
        ValueError, match="the budget must leave every layer 1 units, got parameters=10; the smallest has"
    ):
        sculpt(model, sp.Magnitude(), x, parameters=10)


def test_criteria_of_any_kind_choose():
    model, x = built("residual")
    target = counted(model, x)[0] // 2
    for criterion in (
        sp.SynFlow(x),
        sp.Random(),
        sp.SNIP(nn.functional.cross_entropy, [(torch.randn(4, 3, 8, 8), torch.arange(4))]),
    ):
        assert sculpt(model, criterion, x, parameters=target).parameters <= target


@pytest.mark.parametrize("name", NETWORKS)
def test_shrunk_equals_masked(name):
    model, x = built(name)
    masks = sp.Masks({n: torch.rand(w.shape) < 0.5 for n, w in weights(model).items() if w.dim() in (2, 4)})
    half = sculpt(model, sp.Random(torch.Generator().manual_seed(0)), x, parameters=counted(model, x)[0] // 2)
    both = masks & half.masks
    result = shrink(model, both, x)
    torch.testing.assert_close(
        outputs(result.model, x), outputs(both.apply_(copy.deepcopy(model)), x), rtol=1e-4, atol=1e-4
    )
    assert result.parameters == counted(result.model, x)[0] < counted(model, x)[0]
    assert result.parameters <= half.parameters  # all that was sculpted is seen to be dead


def test_what_only_led_to_a_dead_unit_goes_with_it():
    model = mlp(4, 3, 3, 2).double()
    masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights(model).items()}
    masks["4.weight"][:, 1] = False  # nothing reads unit 1 of the second layer
    masks["2.weight"][:, 2] = False
    masks["2.weight"][1, 2] = True  # which alone read unit 2 of the first
    masks["0.weight"][0] = False  # without bias this unit is zero
    result = shrink(model, sp.Masks(masks), torch.ones(1, 4))
    assert [tuple(w.shape) for w in weights(result.model).values()] == [(1, 4), (2, 1), (2, 2)]
    assert {name: units.tolist() for name, units in result.units.items()} == {"0": [1], "2": [0, 2]}


def test_a_dead_unit_with_a_constant_stays_and_so_does_the_last_one():
    model = mlp(4, 3, 2, bias=True).double()
    nn.init.constant_(model[0].bias, 0.5)
    masks = sp.Masks({"0.weight": torch.tensor([[0, 1, 1]]).T.expand(3, 4).bool(), "2.weight": torch.ones(2, 3).bool()})
    assert shrink(model, masks, torch.ones(1, 4)).units == {}
    nn.init.constant_(model[0].bias, -0.5)  # ReLU makes it zero
    assert shrink(model, masks, torch.ones(1, 4)).units["0"].tolist() == [1, 2]
    nothing = masks & ~masks
    result = shrink(model, nothing, torch.ones(1, 4))
    assert tuple(result.model[0].weight.shape) == (1, 4)
    assert torch.equal(outputs(result.model.float(), torch.ones(1, 4))[0], model[2].bias.float())


def test_sparse_layers_and_frozen_parameters():
    model, x = built("residual")
    model[0].weight.requires_grad_(False)
    sp.sparsify(model, sp.prune(model, sp.Magnitude(), density=0.5))
    result = sculpt(model, sp.Magnitude(), x, parameters=counted(model, x)[0] // 2)
    assert type(result.model[0]) is nn.Conv2d and not result.model[0].weight.requires_grad
    assert isinstance(model[0], sp.SparseConv2d)
    torch.testing.assert_close(outputs(result.model, x), outputs(result.masks.apply_(model), x), rtol=1e-4, atol=1e-4)


class Parts(nn.Module):
    """What cannot be taken apart, around what can."""

    def __init__(self):
        super().__init__()
        self.a, self.depthwise = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4, padding=1)
        self.b, self.c, self.up = nn.Conv2d(4, 5, 1), nn.Conv2d(5, 4, 1), nn.ConvTranspose2d(8, 6, 2)
        self.norm, self.twice, self.free = nn.GroupNorm(2, 6), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 7, 1)
        self.last = nn.Conv2d(7, 2, 1)

    def forward(self, x):
        x = self.depthwise(self.a(x))
        x = self.up(torch.cat([x, self.c(self.b(x).relu())], 1))
        x = self.twice(self.twice(self.norm(x)))
        return self.last(self.free(x).relu()).mean((2, 3))


def test_what_cannot_be_taken_apart_keeps_its_size():
    model = Parts().eval()
    parameters = counted(model, IMAGE)[0]
    result = sculpt(model, sp.Magnitude(), IMAGE, parameters=parameters - 30)
    assert set(result.units) <= {"b", "free"} and result.units
    torch.testing.assert_close(
        outputs(result.model, IMAGE), outputs(result.masks.apply_(copy.deepcopy(model)), IMAGE), rtol=1e-4, atol=1e-4
    )


def test_sizes_in_the_code_and_units_out_of_order_are_refused():
    class Sized(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x).view(-1, 2, 4).flatten(1))

    class Shuffled(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x).relu().flip(1))

    layers = nn.Linear(3, 8), nn.Linear(8, 2)
    with pytest.raises(ValueError, match="model must take its sizes from its layers, got one that fails with fewer"):
        sculpt(Sized(*layers), sp.Magnitude(), torch.ones(1, 3), parameters=30)
    with pytest.raises(ValueError, match="model must pass its units on in order"):
        sculpt(Shuffled(*layers), sp.Magnitude(), torch.ones(1, 3), parameters=30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "parameters or flops must be given, got neither"),
        ({"parameters": 0}, "parameters must be a positive integer, got 0"),
        ({"flops": -2}, "flops must be a positive integer, got -2"),
        ({"flops": 9, "min_units": 0}, "min_units must be a positive integer, got 0"),
    ],
)
def test_wrong_budgets(options, message):
    with pytest.raises(ValueError, match=message):
        sculpt(mlp(3, 4, 2), sp.Magnitude(), torch.ones(1, 3), **options)
