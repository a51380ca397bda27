"""Lottery tickets: counts, rewinding, resuming."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn, optim

import sparseprune as sp
from sparseprune.training import LotteryTickets, scratch_epochs


def net():
    return nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 3))


def run(model, tickets, optimizer, scheduler, after=lambda: None):
    """A run of all rounds; batches depend on the position in the round alone."""
    for _ in range(tickets.total_steps):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(tickets.position))
        optimizer.zero_grad()
        (model(x) - x[:, :3].sin()).square().mean().backward()
        optimizer.step()
        scheduler.step()
        tickets.step()
        after()


def make(model, **options):
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    options = {"steps_per_round": 10, "rounds": 4} | options
    return LotteryTickets(model, optimizer, scheduler, **options), optimizer, scheduler


def test_the_papers_percentages():
    """LeNet-300-100 at 20 %, its output layer at 10 %: 51.3, 21.1, 7.0, 3.6, 1.9 % after 3, 7, 12, 15, 18 rounds."""
    model = sp.models.lenet_300_100()
    optimizer = optim.SGD(model.parameters(), 0.1)
    last = list(sp.pruning.prunable(model))[-1]
    tickets = LotteryTickets(model, optimizer, steps_per_round=1, rounds=19, scope="layer", rates={last: 0.1})
    remaining = {}
    for level in range(1, 19):
        assert tickets.step()
        remaining[level] = 100 * tickets.masks.density
    expected = {1: 80.04, 2: 64.06, 3: 51.28, 7: 21.07, 12: 6.95, 15: 3.58, 18: 1.85}
    assert {level: round(remaining[level], 2) for level in expected} == expected


@pytest.mark.parametrize("k", [0, 4])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_rounds_are_nested_exact_and_rewound_bit_for_bit(scope, k):
    model = net()
    tickets, optimizer, scheduler = make(model, scope=scope, rewind_to=k)
    rates, seen, states = [], [tickets.masks], []
    initial = {n: t.clone() for n, t in model.state_dict().items() if "mask" not in n}

    def after():
        if tickets.steps == k:
            initial.update({n: t.clone() for n, t in model.state_dict().items() if "mask" not in n})
        if tickets.position == k and tickets.round:
            seen.append(tickets.masks)
            rates.append(optimizer.param_groups[0]["lr"])
            states.append((copy.deepcopy(model.state_dict()), tickets.masks))
        if tickets.position == k and not tickets.round:
            rates.append(optimizer.param_groups[0]["lr"])

    if not k:
        rates.append(optimizer.param_groups[0]["lr"])
    run(model, tickets, optimizer, scheduler, after)
    assert tickets.steps == tickets.total_steps == 10 + 3 * (10 - k) and len(states) == 3
    assert len(set(rates)) == 1 and len(rates) == 4, "every round starts with the learning rate of step k"
    sizes = {n: m.numel() for n, m in seen[0].items()}
    for before, masks in pairwise(seen):
        assert all((masks[n] & before[n]) == masks[n] for n in masks), "nested"
        if scope == "global":
            assert masks.count() == round(0.8 * before.count())
        else:
            assert masks.counts() == {n: round(0.8 * c) for n, c in before.counts().items()}
    assert sizes == {"0.weight": 60, "3.weight": 30}
    for state, masks in states:
        for name, tensor in initial.items():
            expected = masks[name].apply(tensor) if name in masks else tensor
            assert torch.equal(state[name], expected), name


def test_the_smallest_go():
    model = nn.Linear(5, 1)
    tickets, _, _ = make(model, rate=0.4, steps_per_round=1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.3, -0.1, 0.5, 0.2, -0.4]]))
    tickets.step()
    assert tickets.masks["weight"].to_bool().tolist() == [[True, False, True, False, True]]


@pytest.mark.parametrize(("rewind", "rate"), [("learning rate", 0.1), ("nothing", 0.0)])
def test_learning_rate_rewinding_and_fine_tuning_keep_the_weights(rewind, rate):
    model = net()
    tickets, optimizer, scheduler = make(model, rewind=rewind, rounds=2)
    trained = {}

    def keep(*_):
        if tickets.steps == 9:  # the last step of the round is being made
            trained["weight"] = model[0].weight.detach().clone()

    def after():
        if tickets.steps == 10:
            trained["pruned"], trained["lr"] = model[0].weight.detach().clone(), optimizer.param_groups[0]["lr"]

    optimizer.register_step_post_hook(keep)
    run(model, tickets, optimizer, scheduler, after)
    assert trained["lr"] == pytest.approx(rate, abs=1e-12)
    live = trained["pruned"] != 0
    assert torch.equal(trained["pruned"], trained["weight"] * live) and 0 < live.sum() < 60


def test_resuming_in_the_middle_equals_not_stopping():
    def whole(stop=None):
        torch.manual_seed(3)
        model = net()
        tickets, optimizer, scheduler = make(model, rewind_to=2)
        saved = []

        def after():
            if tickets.steps == 15:
                parts = (model, optimizer, scheduler, tickets)
                saved.append(copy.deepcopy([part.state_dict() for part in parts]))

        run(model, tickets, optimizer, scheduler, after)
        return model, saved[0]

    model, saved = whole()
    other = net()
    tickets, optimizer, scheduler = make(other, rewind_to=2)
    for part, state in zip((other, optimizer, scheduler, tickets), saved, strict=True):
        part.load_state_dict(state)
    steps = tickets.total_steps - tickets.steps
    tickets.__class__ = type("Rest", (LotteryTickets,), {"total_steps": steps})
    run(other, tickets, optimizer, scheduler)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_wrong_arguments_are_named():
    model = net()
    for options, words in (
        ({"scope": "rows"}, "scope must be global or layer"),
        ({"rewind": "init"}, "rewind must be one of weights, learning rate, nothing"),
        ({"rewind_to": 10}, "rewind_to must be below the 10 steps"),
        ({"rate": 1.5}, r"rate must be a number in \[0, 1\]"),
        ({"rates": {"0.weight": 0.1}}, "rates must name prunable weights"),
        ({"rounds": 0}, "rounds must be an integer >= 1"),
    ):
        with pytest.raises(ValueError, match=words):
            make(model, **options)
    assert type(model[0]) is nn.Linear
    with pytest.raises(ValueError, match="pruned_flops must be in"):
        scratch_epochs(10, 1.0, 2.0)
