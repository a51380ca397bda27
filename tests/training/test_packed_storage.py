"""Every method does on packed weights what it does on owned ones: the same masks, weights and optimizer state, to the bit."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn, optim
from training.test_method_contract import METHODS, PRUNING, net

import sparseprune as sp
from sparseprune import training as tr
from sparseprune.nn.dense_gradients import sparse_weights
from sparseprune.ops import costs
from sparseprune.ops.packed_values import unpack_values

STEPS = 16

OPTIMIZERS = {
    "SGD": lambda ps: optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "Adam": lambda ps: optim.Adam(ps, lr=0.01, amsgrad=True),
}
optimizers = pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)


@pytest.fixture(params=["native", "dense"])
def one_kernel(request, monkeypatch):
    """Both storages are computed by the same kernel: another one would add in another order."""
    predicted = {"native": 1.0, "dense": 0.0 if request.param == "dense" else 2.0}
    monkeypatch.setattr(costs, "choose", lambda work: costs.Choice(request.param, "as the test wants", predicted))
    monkeypatch.setattr("sparseprune.ops.choice.SPREAD", 0.0)


def start(storage, make_optimizer, make=lambda model, optimizer: None, density=0.3, seed=0):
    torch.manual_seed(seed)
    model = net()
    sp.sparsify(model, sp.prune(model, sp.Random(), density=density, pattern=sp.LayerWise(sp.erk)), storage=storage)
    optimizer = make_optimizer(model.parameters())
    return model, optimizer, make(model, optimizer)


def step(model, optimizer, number):
    x = torch.randn(12, 1, 4, 4, generator=torch.Generator().manual_seed(number))
    optimizer.zero_grad()
    loss = (model(x) - x[:, 0, 0, :3].sin()).square().mean()
    loss.backward()
    optimizer.step()
    return loss  # which may outlive the masks of its graph


def everything(model, optimizer):
    """Masks, weights, gradients and optimizer state, all of the dense shapes."""
    found = {name: mask.words for name, mask in sp.held_masks(model).items()}
    packed = {id(ls[0].parameter): ls[0].mask for ls in sparse_weights(model).values() if ls[0].storage == "packed"}
    for number, parameter in enumerate(model.parameters()):
        values = {"value": parameter.detach(), "gradient": parameter.grad, **optimizer.state.get(parameter, {})}
        for key, value in values.items():
            dense = value is not None and value.dim() and id(parameter) in packed
            found[number, key] = unpack_values(value, packed[id(parameter)]) if dense else value
    return copy.deepcopy(found)


def assert_same(owned, packed):
    assert owned.keys() == packed.keys()
    for key, value in owned.items():
        assert value is packed[key] is None or torch.equal(value, packed[key]), key


def steps_of(storage, run, numbers, after=lambda: None):
    """What the model and the optimizer hold after each step."""
    model, optimizer, method = run
    history = []
    for number in numbers:
        loss = step(model, optimizer, number)  # noqa: F841
        if method is not None:
            method.step()
        after()
        history.append(everything(model, optimizer))
    assert {layers[0].storage for layers in sparse_weights(model).values()} == {storage}
    return history


@optimizers
@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_each_method_has_the_same_bits(make, make_optimizer, one_kernel):
    density = 1.0 if make in PRUNING.values() else 0.3
    runs = {storage: start(storage, make_optimizer, make, density) for storage in ("owned", "packed")}
    owned, packed = (steps_of(storage, run, range(STEPS)) for storage, run in runs.items())
    for a, b in zip(owned, packed, strict=True):
        assert_same(a, b)
    changes = [any(not torch.equal(a[n], b[n]) for n in a if isinstance(n, str)) for a, b in pairwise(owned)]
    assert sum(changes) > 1


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_resuming_equals_not_stopping(make, order, tmp_path):
    density = 1.0 if make in PRUNING.values() else 0.3
    run = start("packed", OPTIMIZERS["Adam"], make, density)
    steps_of("packed", run, range(13))
    torch.save([part.state_dict() for part in run], tmp_path / "c.pt")
    expected = steps_of("packed", run, range(13, 20))
    later = start("packed", OPTIMIZERS["Adam"], make, density, seed=7)
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    tr.attach(later[1], later[0])
    for i in order:
        later[i].load_state_dict(saved[i])
    for a, b in zip(expected, steps_of("packed", later, range(13, 20)), strict=True):
        assert_same(a, b)


@optimizers
def test_attached_state_follows_set_mask(make_optimizer, one_kernel):
    """Masks by ``set_mask``, which knows no optimizer, by ``sparsify``, and there and back between two steps."""
    runs = {storage: start(storage, make_optimizer) for storage in ("owned", "packed")}
    histories = []
    for storage, run in runs.items():
        model, optimizer, _ = run
        tr.attach(optimizer, model)
        count = 0

        def change(model=model, optimizer=optimizer):
            nonlocal count
            count += 1
            generator = torch.Generator().manual_seed(count)
            first, second = (torch.rand(6, 64, generator=generator) < 0.3 + 0.1 * (count % 3) for _ in range(2))
            before = model[4].mask
            if count % 4 == 1:
                model[4].set_mask(first)
            elif count % 4 == 2:
                sp.sparsify(model, {"4.weight": first}, optimizer=optimizer)
                model[4].set_mask(first.flip(0))
            elif count % 4 == 3:
                model[4].set_mask(before & sp.BitMask.from_bool(second))
                model[4].set_mask(before)

        history = []
        for number in range(9):
            history += steps_of(storage, run, [number])
            change()
        histories.append(history)
    for a, b in zip(*histories, strict=True):
        assert_same(a, b)


def test_an_optimizer_of_two_models_is_let_go_of_by_one():
    models = [sp.SparseLinear(8, 4, mask=torch.rand(4, 8) < 0.5) for _ in range(2)]
    optimizer = torch.optim.SGD([p for model in models for p in sp.set_storage(model, "packed").parameters()], 0.1, 0.9)
    for model in models:
        model(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    holds = [tr.attach(optimizer, model) for model in models]
    holds[0].remove()
    for model, follows in zip(models, (False, True), strict=True):
        model.set_mask(torch.ones(4, 8).bool())
        momentum = optimizer.state[model.weight_values]["momentum_buffer"]
        assert (momentum.shape == model.weight_values.shape) is follows


@optimizers
def test_rewinding(make_optimizer, one_kernel):
    ends = []
    for storage in ("owned", "packed"):
        run = start(storage, make_optimizer, density=0.5)
        model, optimizer, _ = run
        steps_of(storage, run, range(2))
        snapshot = tr.Snapshot(model, optimizer)
        steps_of(storage, run, range(2, 4))
        sp.sparsify(
            model,
            {"4.weight": torch.rand(6, 64, generator=torch.Generator().manual_seed(1)) < 0.4},
            optimizer=optimizer,
        )
        steps_of(storage, run, range(4, 6))
        for _ in range(2):
            snapshot.rewind()
            ends += [everything(model, optimizer), *steps_of(storage, run, range(2, 4))]
        copied = tr.Snapshot(model)
        copied.load_state_dict(snapshot.state_dict())
        assert copied._state["model"].keys() == snapshot._state["model"].keys()
    for a, b in zip(ends[: len(ends) // 2], ends[len(ends) // 2 :], strict=True):
        assert_same(a, b)


def test_grown_neurons_and_penalties_and_weak_units(one_kernel):
    ends = []
    for storage in ("owned", "packed"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        keep = (torch.arange(6) < 4)[:, None] & (torch.rand(6, 4) < 0.7)
        masks = {"0.weight": keep, "2.weight": keep.any(1)[None].expand(3, 6) & (torch.rand(3, 6) < 0.7)}
        sp.sparsify(model, masks, storage=storage)
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(12, 4)).square().sum().backward()
            tr.L1(0.1).add_gradients_(model)
            optimizer.step()
        tr.grow_neurons(model[0], model[2], torch.randn(3, 4), count=2, rate=0.1, optimizer=optimizer)
        grown = everything(model, optimizer)
        found, removed = tr.remove_weak_units(model[0], model[2], 0.8, nn.ReLU())
        assert removed.any() and not model[0].weight[removed].any() and not model[2].weight[:, removed].any()
        penalty = tr.L2(0.5)(model)
        ends.append((grown, everything(model, optimizer), found.digest(), penalty))
    assert_same(ends[0][0], ends[1][0])
    assert_same(ends[0][1], ends[1][1])
    assert ends[0][2] == ends[1][2]
    torch.testing.assert_close(ends[0][3], ends[1][3])


CRITERIA = {
    "magnitude": lambda x: sp.Magnitude(),
    "SNIP": lambda x: sp.SNIP(nn.functional.mse_loss, [(x, torch.zeros(12, 3))]),
    "SynFlow": lambda x: sp.SynFlow(torch.ones(1, 1, 4, 4)),
    "a function": lambda x: lambda model, params: {n: p.detach() ** 2 for n, p in params.items()},
}


@pytest.mark.parametrize("make", CRITERIA.values(), ids=CRITERIA)
def test_prune_chooses_the_same_and_changes_nothing(make, one_kernel):
    x, found = torch.randn(12, 1, 4, 4), []
    for storage in ("owned", "packed"):
        model, optimizer, _ = start(storage, OPTIMIZERS["Adam"])
        step(model, optimizer, 0)
        before, parameters = everything(model, optimizer), list(model.parameters())
        state = list(model.state_dict())
        found.append(sp.prune(model, make(x), density=0.1, steps=3, masks=sp.held_masks(model), min_per_layer=2))
        assert_same(before, everything(model, optimizer))
        assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
        assert list(model.state_dict()) == state and model[0].storage == storage
    assert found[0].digest() == found[1].digest()
    sp.prune(model, make(x), density=0.1, masks=sp.held_masks(model), apply=True)
    assert 0 < sum(int(model[i].weight.count_nonzero()) for i in (0, 4, 6)) < 60


def test_a_criterion_that_raises_leaves_packed_weights_packed():
    model, optimizer, _ = start("packed", OPTIMIZERS["SGD"])
    step(model, optimizer, 0)
    before = everything(model, optimizer)

    def broken(model, params):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        sp.prune(model, broken, density=0.1)
    assert_same(before, everything(model, optimizer))
    assert model[0].storage == "packed"
    with pytest.raises(ValueError, match="model must have dense weights, got '0.weight' packed"):
        sp.pruning.prunable(model)


def test_memory_follows_the_density_after_updates():
    """Value, gradient and two moments of each weight that is kept, also after those that are kept have changed."""
    model = nn.Sequential(nn.Linear(256, 128, bias=False))
    sp.sparsify(model, {"0.weight": torch.rand(128, 256) < 0.1}, storage="packed")
    optimizer = optim.Adam(model.parameters())
    method = tr.RigL(model, optimizer, every=2, until=7)
    kept = model[0].mask.count()
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.randn(16, 256)).square().sum().backward()
        optimizer.step()
        method.step()
    held = [*model.parameters(), model[0].weight_values.grad, *optimizer.state[model[0].weight_values].values()]
    storage = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held if t.dim()}
    assert sum(storage.values()) == 16 * kept and model[0].mask.count() == kept
