"""train() with lottery tickets, penalties and learned masks, against loops written out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training import small

import sparseprune as sp
import sparseprune.training as tr
from sparseprune.training.batches import training_order

EPOCHS, STEPS = 2, 7  # 50 samples in batches of 8
SETTINGS = {"epochs": EPOCHS, "batch_size": 8, "lr": 0.05, "seed": 3, "weight_decay": 0.0, "schedule": "step"}
SETTINGS |= {"milestones": (1,)}


class Stop(Exception):
    pass


def network(seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))


def make_tickets(rewind_to=0, rewind="weights"):
    options = {"steps_per_round": EPOCHS * STEPS, "rounds": 3, "rewind_to": rewind_to, "rewind": rewind}
    return lambda model, optimizer: tr.LotteryTickets(model, optimizer, rate=0.3, **options)


def by_hand(rewind_to, rewind):
    """The same training, step by step; returns the model, the masks, and the test error at the end of each round."""
    model, data = network(), small.dataset()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    tickets = make_tickets(rewind_to, rewind)(model, optimizer)
    x, y = data.train
    errors = []
    for _ in range(tickets.total_steps):
        epoch, step = divmod(tickets.position, STEPS)
        late = epoch >= 1 or (rewind == "nothing" and tickets.round > 0)
        optimizer.param_groups[0]["lr"] = 0.05 * (0.1 if late else 1.0)
        chosen = training_order(data, 8, 3, epoch)[step]
        optimizer.zero_grad()
        F.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
        if tickets.position == EPOCHS * STEPS - 1:
            errors.append(tr.evaluate(model, data)[1])
        tickets.step()
    return model, errors


@pytest.mark.parametrize(
    ("rewind_to", "rewind"), [(0, "weights"), (3, "weights"), (7, "learning rate"), (9, "weights"), (0, "nothing")]
)
def test_tickets_in_train_are_the_loop_by_hand(rewind_to, rewind):
    expected, errors = by_hand(rewind_to, rewind)
    model, events = network(), []
    history = tr.train(
        model, small.dataset(), **SETTINGS, method=make_tickets(rewind_to, rewind), progress=events.append
    )
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    later = EPOCHS - rewind_to // STEPS
    assert [epoch.epoch for epoch in history] == list(range(1, EPOCHS + 2 * later + 1))
    assert [history[i].test_error for i in (EPOCHS - 1, EPOCHS + later - 1, -1)] == errors
    assert {event.epochs for event in events} == {len(history)}
    assert sum(event.record is None for event in events) == EPOCHS * STEPS + 2 * (EPOCHS * STEPS - rewind_to)


def test_the_loss_of_a_partial_epoch_is_the_mean_of_its_batches():
    """A learning rate of almost 0 leaves the loss as it is, so that every epoch has the same one."""
    still = {**SETTINGS, "lr": 1e-12}
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    make = lambda model, optimizer: tr.LotteryTickets(  # noqa: E731
        model, optimizer, steps_per_round=EPOCHS * STEPS, rounds=2, rate=0.0, rewind_to=5
    )
    history = tr.train(linear, small.dataset(), **still, method=make)
    x, y = small.dataset().train
    rest = torch.cat(training_order(small.dataset(), 8, 3, 0)[5:])
    assert history[2].train_loss == pytest.approx(F.cross_entropy(linear(x[rest]), y[rest]).item(), rel=1e-5)
    assert history[3].train_loss == pytest.approx(history[1].train_loss, rel=1e-6) != history[2].train_loss


@pytest.mark.parametrize("stop", [(1, 4, False), (2, 7, False), (3, 5, False), (4, 7, True), (5, 5, False)])
def test_tickets_stopped_anywhere_go_on_with_the_same_bits(tmp_path, stop):
    expected = network()
    tr.train(expected, small.dataset(), **SETTINGS, method=make_tickets(3))

    def progress(event):
        if (event.epoch, event.step, event.record is not None) == stop:
            raise Stop

    saving = {"checkpoint": tmp_path / "c.pt", "checkpoint_seconds": 0, "method": make_tickets(3)}
    with pytest.raises(Stop):
        tr.train(network(), small.dataset(), **SETTINGS, **saving, progress=progress)
    model = network(seed=9)
    history = tr.train(model, small.dataset(), **SETTINGS, **saving, resume=True)
    assert len(history) == 6
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_stopped_between_a_round_and_its_test(tmp_path, monkeypatch):
    expected = network()
    tr.train(expected, small.dataset(), **SETTINGS, method=make_tickets(3))
    evaluate, calls = tr.trainer.evaluate, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        return None if len(calls) == 2 else evaluate(*args, **kwargs)  # as Ctrl-C during the test does

    saving = {"checkpoint": tmp_path / "c.pt", "method": make_tickets(3)}
    monkeypatch.setattr(tr.trainer, "evaluate", interrupted)
    with pytest.raises(tr.TrainingInterrupted, match="1 of 6 epochs"):
        tr.train(network(), small.dataset(), **SETTINGS, **saving)
    model = network(seed=9)
    tr.train(model, small.dataset(), **SETTINGS, **saving, resume=True)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_rounds_of_another_length_are_refused():
    make = lambda model, optimizer: tr.LotteryTickets(model, optimizer, steps_per_round=5, rounds=2)  # noqa: E731
    with pytest.raises(ValueError, match="steps_per_round must be all 14 steps of the training, got 5"):
        tr.train(network(), small.dataset(), **SETTINGS, method=make)


def test_a_penalty_is_that_much_more_gradient():
    """L2 of strength s is weight decay s of the weights, for plain SGD."""
    plain, penalised = network(), network()
    biases = [p for p in plain.parameters() if p.dim() == 1]
    weights = [p for p in plain.parameters() if p.dim() > 1]
    options = {"epochs": 1, "batch_size": 8, "lr": 0.05, "momentum": 0.0, "seed": 3, "schedule": "constant"}
    tr.train(penalised, small.dataset(), **options, weight_decay=0.0, penalty=tr.L2(0.1))
    optimizer = torch.optim.SGD([{"params": weights, "weight_decay": 0.1}, {"params": biases}], 0.05)
    x, y = small.dataset().train
    for chosen in training_order(small.dataset(), 8, 3, 0):
        optimizer.zero_grad()
        F.cross_entropy(plain(x[chosen]), y[chosen]).backward()
        optimizer.step()
    for a, b in zip(plain.parameters(), penalised.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_run_with_a_penalty_is_resumed_with_it_only(tmp_path):
    options = {**SETTINGS, "checkpoint": tmp_path / "c.pt"}
    tr.train(network(), small.dataset(), **options, penalty=tr.L1(0.1))
    with pytest.raises(ValueError, match=r"penalty must be 'L1\(strength=0.1\)' as in the checkpoint"):
        tr.train(network(), small.dataset(), **options, penalty=tr.L1(0.2), resume=True)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: tr.EdgePopup(model, density=0.5),
        lambda model: tr.BernoulliMasks(model, gradient="reinforce", seed=2),
        lambda model: tr.Piggyback(model, trained=("4.bias",)),
    ],
    ids=["EdgePopup", "REINFORCE", "Piggyback"],
)
def test_learned_masks_are_trained_and_resumed_over_fixed_weights(tmp_path, wrap):
    def fresh():
        torch.manual_seed(4)
        return wrap(network())

    options = {**SETTINGS, "lr": 1.0}
    model, before = fresh(), network()
    start = [score.detach().clone() for score in model.scores]
    history = tr.train(model, small.dataset(), **options)
    assert all(torch.equal(p, q) for p, q in zip(model.model[1].parameters(), before[1].parameters(), strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(start, model.scores, strict=True))
    assert sp.held_masks(model.model).count() == 0 and len(history) == EPOCHS

    def progress(event):
        if (event.epoch, event.step) == (2, 3):
            raise Stop

    with pytest.raises(Stop):
        tr.train(
            fresh(), small.dataset(), **options, checkpoint=tmp_path / "c", checkpoint_seconds=0, progress=progress
        )
    other = fresh()
    tr.train(other, small.dataset(), **options, checkpoint=tmp_path / "c", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(model.scores, other.scores, strict=True))
