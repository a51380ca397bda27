"""The rules of dynamic sparse training, each on its published or hand-made example."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import nn, optim

import sparseprune as sp
from sparseprune.training import DSR, SET, DeepR, DynamicSparseTraining, RigL, SparseMomentum, cosine
from sparseprune.training.drop import Threshold, Topology, smallest, smallest_per_sign
from sparseprune.training.grow import at_random, by_gradient
from sparseprune.training.redistribute import by_momentum, by_survivors, in_place


def topology(weights, masks=None, gradients=None, seed=0):
    weights = {n: torch.as_tensor(w) for n, w in weights.items()}
    masks = {n: torch.as_tensor(m).bool() for n, m in (masks or {n: w != 0 for n, w in weights.items()}).items()}
    gradients = {n: torch.as_tensor(g) for n, g in (gradients or {}).items()}
    return Topology(weights, sp.Masks(masks), gradients, torch.Generator().manual_seed(seed))


def indices(mask):
    return set(mask.to_bool().flatten().nonzero().flatten().tolist())


TEN = [0.9, 0.8, 0.05, 0.02, 0.03, -0.4, 0.01, -0.3, 0.04, -0.6]


@pytest.mark.parametrize(("rule", "gone"), [(smallest, {3, 4, 6, 8}), (smallest_per_sign, {3, 6, 7})])
def test_what_is_dropped(rule, gone):
    kept = rule(topology({"w": TEN}), 0.4)
    assert set(range(10)) - indices(kept["w"]) == gone


@pytest.mark.parametrize(("fraction", "count"), [(0.35, 65), (0.29, 71), (0.0, 100), (1.0, 0), (0.299, 71)])
def test_never_more_than_the_share_is_dropped(fraction, count):
    t = topology({"w": torch.rand(100) + 1})
    assert smallest(t, fraction)["w"].count() == smallest_per_sign(t, fraction)["w"].count() == count


@pytest.mark.parametrize("rule", [smallest, smallest_per_sign])
def test_pruned_slots_are_never_candidates(rule):
    t = topology({"w": [-7.0, 1.0, 2.0, math.nan, 3.0, 0.0]}, {"w": [0, 1, 1, 0, 1, 1]})
    assert indices(rule(t, 0.5)["w"]) == {2, 4}


def test_the_threshold_steers_itself():
    for dropped, expected in ((0.001, 0.002), (0.0095, 0.001), (0.0105, 0.001), (0.012, 0.0005)):
        rule = Threshold(0.001)
        rule.steer(dropped, 0.01)
        assert rule.value == expected
    rule = Threshold(0.035)
    kept = rule(topology({"a": TEN, "b": [0.001, 5.0]}), 0.3)
    assert (indices(kept["a"]), indices(kept["b"])) == ({0, 1, 2, 5, 7, 8, 9}, {1})
    assert rule.value == 0.035 / 2 or 4 / 12 <= 0.33


def sized(numbers, sizes, values=None):
    """Masks with so many live of so many slots."""
    return {n: [1] * k + [0] * (size - k) for n, k, size in zip("abc", numbers, sizes, strict=True)}


def test_redistribution_by_survivors_is_the_worked_example():
    sizes = (1000, 5000, 200)
    before, after = sized((100, 400, 100), sizes), sized((90, 350, 95), sizes)
    t = topology({n: torch.ones(len(m)) for n, m in before.items()}, before)
    kept = sp.Masks({n: torch.tensor(m).bool() for n, m in after.items()})
    assert by_survivors(t, kept) == {"a": 11, "b": 42, "c": 12}
    assert in_place(t, kept) == {"a": 10, "b": 50, "c": 5}


def test_redistribution_by_momentum_is_the_worked_example():
    sizes = (1000, 1000, 1000)
    before, after = sized((100, 200, 50), sizes), sized((80, 160, 40), sizes)
    momentum = {n: torch.full((1000,), 9.0) for n in "abc"}  # what pruned slots hold must not count
    for name, value in zip("abc", (0.02, -0.01, 0.05), strict=True):
        momentum[name][torch.tensor(after[name]).bool()] = value
    t = topology({n: torch.ones(1000) for n in "abc"}, before, momentum)
    kept = sp.Masks({n: torch.tensor(m).bool() for n, m in after.items()})
    assert by_momentum(t, kept) == {"a": 17, "b": 9, "c": 44}


def test_what_a_full_layer_cannot_take_goes_to_the_others():
    before, after = sized((10, 10, 10), (10, 50, 50)), sized((9, 4, 4), (10, 50, 50))
    t = topology({n: torch.ones(len(m)) for n, m in before.items()}, before)
    got = by_survivors(t, sp.Masks({n: torch.tensor(m).bool() for n, m in after.items()}))
    assert got["a"] == 1 and sum(got.values()) == 13


def test_random_growth_is_uniform_over_the_pruned_slots():
    live = torch.zeros(20, dtype=torch.bool)
    live[[0, 5, 19]] = True
    t = topology({"w": live.float()})
    found = Counter()
    for _ in range(2000):
        grown = at_random(t, t.masks, {"w": 4})["w"]
        assert grown.count() == 7 and indices(t.masks["w"]) <= indices(grown)
        found.update(indices(grown & ~t.masks["w"]))
    expected = 2000 * 4 / 17
    chi2 = sum((found[i] - expected) ** 2 / expected for i in range(20) if not live[i])
    assert len(found) == 17 and chi2 < 39.25  # 0.999 quantile of chi-square with 16 degrees of freedom


def test_most_of_the_pruned_slots_are_as_uniform():
    t = topology({"w": torch.zeros(17)}, {"w": torch.zeros(17)})
    found = Counter()
    for _ in range(2000):
        grown = at_random(t, t.masks, {"w": 13})["w"]
        assert grown.count() == 13
        found.update(indices(grown))
    expected = 2000 * 13 / 17
    # Of draws without repetition the statistic is chi-square times (17 - 13) / 16; 39.25 its 0.999 quantile.
    assert sum((found[i] - expected) ** 2 / expected for i in range(17)) < 39.25 * 4 / 16
    assert at_random(t, t.masks, {"w": 17})["w"].count() == 17 and at_random(t, t.masks, {"w": 0})["w"].count() == 0
    with pytest.raises(ValueError, match=r"counts\['w'\] must be at most the 17 slots that are free, got 18"):
        at_random(t, t.masks, {"w": 18})


@pytest.mark.parametrize("storage", ["owned", "overlay", "packed"])
def test_a_layer_that_gets_back_what_it_dropped_starts_from_zero(storage):
    """Its mask is as before, its values are not."""
    layer = sp.sparsify(nn.Linear(4, 1, bias=False), {"weight": torch.tensor([[True, True, False, False]])})
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0, 1.0, 0.0, 0.0]]))
    optimizer = optim.SGD(layer.parameters(), lr=0.0, momentum=0.9)
    sp.set_storage(layer, storage)
    method = RigL(layer, optimizer, every=1, until=9, fraction=0.5, keep_regrown=False)
    layer(torch.tensor([[1.0, 3.0, 0.0, 0.0]])).sum().backward()
    optimizer.step()
    assert method.step()
    momentum = optimizer.state[layer.parameter]["momentum_buffer"]
    assert layer.mask.to_bool().tolist() == [[True, True, False, False]]
    assert momentum.flatten()[:2].tolist() == [1, 0]
    assert layer.weight[0, :2].tolist() == ([2, 1] if storage == "overlay" else [2, 0])


def rigl_example(keep_regrown):
    """The layer, its optimizer and gradients of the worked example."""
    layer = nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, -0.1, 0.3, 0, 0, 0, -0.9, 0.2]]))
    sp.sparsify(layer, {"weight": torch.tensor([[1, 1, 1, 0, 0, 0, 1, 1]]).bool()})
    optimizer = optim.SGD(layer.parameters(), lr=0.0, momentum=0.9)
    method = RigL(layer, optimizer, every=1, until=1000, fraction=0.4, keep_regrown=keep_regrown)
    layer(torch.tensor([[0.1, 5, 0.2, -3, 0.5, 2, 0.1, 0.1]])).sum().backward()
    optimizer.step()
    assert method.step()
    return layer, optimizer


def test_rigl_is_the_worked_example():
    layer, optimizer = rigl_example(keep_regrown=True)
    assert layer.mask.to_bool().int().tolist() == [[1, 1, 1, 1, 0, 0, 1, 0]]
    torch.testing.assert_close(layer.weight.detach(), torch.tensor([[0.5, -0.1, 0.3, 0, 0, 0, -0.9, 0]]))
    assert optimizer.state[layer.weight]["momentum_buffer"].tolist()[0][1] == 5
    layer, optimizer = rigl_example(keep_regrown=False)
    assert layer.mask.to_bool().int().tolist() == [[1, 1, 1, 1, 0, 0, 1, 0]]
    assert layer.weight[0, 1] == 0 and optimizer.state[layer.weight]["momentum_buffer"].tolist()[0][1] == 0


def test_the_share_falls_as_a_cosine():
    share = cosine(0.3)
    got = [round(share(t / 25000), 6) for t in (0, 100, 6250, 12500, 18750, 25000)]
    assert got == [0.3, 0.299988, 0.256066, 0.15, 0.043934, 0.0]
    assert [round(cosine(0.5, 0.005)(t), 4) for t in (0, 0.5, 1)] == [0.5, 0.2525, 0.005]


def test_the_dense_gradient_is_asked_for_only_when_it_grows():
    layer = sp.sparsify(nn.Linear(6, 4), {"weight": torch.rand(4, 6) < 0.5})
    optimizer = optim.SGD(layer.parameters(), 0.1)
    method = RigL(layer, optimizer, every=3, until=7)
    asked = []
    for _ in range(9):
        asked.append(layer.dense_gradient is not None)
        layer(torch.randn(2, 6)).sum().backward()
        optimizer.step()
        method.step()
    assert asked == [False, False, True, False, False, True, False, False, False]


def test_gradients_that_overflowed_postpone_the_update():
    layer = sp.sparsify(nn.Linear(6, 4), {"weight": torch.rand(4, 6) < 0.5})
    method = RigL(layer, None, every=2, until=9, fraction=0.5)
    done = []
    for scale in (1.0, math.inf, math.inf, 1.0, 1.0, 1.0):
        (layer(torch.randn(2, 6)).sum() * scale).backward()
        done.append(method.step())
    assert done == [False, False, False, True, False, True]


def test_sparse_momentum_is_a_moving_average_of_dense_gradients():
    layer = sp.sparsify(nn.Linear(3, 2, bias=False), {"weight": torch.tensor([[True, False, False]] * 2)})
    method = SparseMomentum(layer, None, every=100, until=1000, decay=0.75)
    expected = torch.zeros(2, 3)
    for scale in (1.0, 2.0, math.inf, 3.0):
        x = torch.randn(1, 3)
        (layer(x).sum() * scale).backward()
        method.step()
        if math.isfinite(scale):
            expected = 0.75 * expected + 0.25 * scale * x.expand(2, 3)
    torch.testing.assert_close(method.average["weight"], expected)


def deepr_layer(theta, sign, **options):
    layer = nn.Linear(len(theta), 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([theta]) * torch.tensor([sign]))
    live = torch.tensor([theta]) > 0
    sp.sparsify(layer, {"weight": live})
    optimizer = optim.SGD(layer.parameters(), lr=0.05)
    return layer, optimizer, DeepR(layer, optimizer, until=100, **options)


def test_deepr_is_the_worked_example():
    """theta = [.3, .01, .2], dE/dtheta = [1, 1, -1], lr .05, alpha .01 -> [.2495, -.0405, .2495]: one goes dormant."""
    sign = [1.0, -1.0, -1.0]
    layer, optimizer, method = deepr_layer([0.3, 0.01, 0.2, 0, 0, 0], [*sign, 1, 1, 1], l1=0.01, temperature=0.0)
    negative = method.negative["weight"].to_bool().clone()
    gradient = torch.tensor([1.0, 1, -1]) * torch.tensor(sign)  # dE/dw = sign dE/dtheta
    layer(torch.cat([gradient, torch.zeros(3)])[None]).sum().backward()
    optimizer.step()
    assert method.step()
    torch.testing.assert_close(layer.weight[0, [0, 2]], torch.tensor([0.2495, -0.2495]))
    assert layer.mask.count() == 3 and not layer.weight[0, [1, 3, 4, 5]].any()
    assert torch.equal(method.negative["weight"].to_bool(), negative)
    assert negative[0, :3].tolist() == [False, True, True]


def test_deepr_noise_has_the_temperature():
    layer = nn.Linear(200, 100, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    sp.sparsify(layer, {"weight": torch.rand(100, 200) < 0.5})
    optimizer = optim.SGD(layer.parameters(), lr=0.05)
    method = DeepR(layer, optimizer, until=100, l1=0.0, temperature=1e-3)
    method.step()
    moved = layer.weight.detach()[layer.mask.to_bool()] - 1
    assert moved.std().item() == pytest.approx(math.sqrt(2 * 0.05 * 1e-3), rel=0.03)
    assert abs(moved.mean().item()) < 4 * 0.01 / math.sqrt(len(moved))


def test_deepr_never_changes_a_sign():
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 3))
    sp.sparsify(model, sp.prune(model, sp.Random(), density=0.3, pattern=sp.LayerWise()))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    method = DeepR(model, optimizer, until=400, l1=1e-3, temperature=1e-3)
    negative = {n: m.to_bool() for n, m in method.negative.items()}
    budget, moves = method.masks.counts(), 0
    for _ in range(300):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
        before = method.masks.digest()
        method.step()
        moves += method.masks.digest() != before
        assert method.masks.counts() == budget
        for name, negatives in negative.items():
            weight = model.get_parameter(name)
            assert not ((weight > 0) & negatives).any() and not ((weight < 0) & ~negatives).any()
    assert moves > 20


def test_rules_combine_freely():
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 3))
    sp.sparsify(model, sp.prune(model, sp.Random(), density=0.3, pattern=sp.LayerWise(sp.erk)))

    def drop_the_first(topology, fraction):
        cut = {}
        for name, mask in topology.masks.items():
            kept = mask.to_bool()
            kept.view(-1)[kept.view(-1).nonzero()[0]] = False
            cut[name] = kept
        return sp.Masks(cut)

    method = DynamicSparseTraining(
        model,
        None,
        drop=drop_the_first,
        grow=by_gradient,
        redistribute=by_survivors,
        gradients="step",
        every=1,
        until=9,
    )
    before = method.masks
    model(torch.randn(4, 8)).square().mean().backward()
    assert method.step() and method.masks.count() == before.count() and method.masks.digest() != before.digest()


def test_wrong_arguments_are_named():
    layer = sp.sparsify(nn.Linear(3, 2), {"weight": torch.rand(2, 3) < 0.5})
    optimizer = optim.SGD(layer.parameters(), 0.1)
    for call, words in (
        (lambda: RigL(nn.Linear(2, 2), None, until=5), "model must hold masks"),
        (lambda: SET(layer, optimizer, every=0, until=5), "every must be an integer >= 1"),
        (lambda: SET(layer, optimizer, every=1, until=5, fraction=1.2), "fraction must be a number in"),
        (lambda: DSR(layer, optimizer, until=5, seed=-1), "seed must be an integer >= 0"),
        (lambda: DeepR(layer, optimizer, until=5, temperature=-1.0), "temperature must be a finite number >= 0"),
        (lambda: cosine(2.0), "start must be a number in"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer"):
        RigL(layer, "sgd", until=5)
