"""train(): masks held, settings obeyed, and the same bits after an interruption anywhere."""

from __future__ import annotations

import math
import signal
import threading
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from training import small

import sparseprune as sp
import sparseprune.training as tr
from sparseprune.training import History, TrainingInterrupted, evaluate, load_checkpoint, train
from sparseprune.training.batches import read_batches, training_order

SETTINGS = {"epochs": 3, "batch_size": 8, "lr": 0.05, "seed": 3}


class Stop(Exception):
    pass


def stop_at(epoch, step):
    def progress(event):
        if (event.epoch, event.step, event.record) == (epoch, step, None):
            raise Stop

    return progress


def results(model, history):
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in history.to_list()]
    return rows, model.state_dict()


def assert_same(first, second):
    assert first[0] == second[0]
    assert list(first[1]) == list(second[1])
    for name, value in first[1].items():
        assert torch.equal(value, second[1][name]), name


@pytest.fixture(scope="module")
def uninterrupted():
    torch.manual_seed(0)
    model = small.network()
    return results(model, train(model, small.dataset(), **SETTINGS))


def test_it_learns_and_reports(uninterrupted):
    rows, _ = uninterrupted
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert rows[-1]["test_error"] < 0.5


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_pruned_weights_stay_zero(kind, device):
    model = small.network().to(device)
    train(model, small.dataset(), epochs=2, batch_size=8, optimizer=kind, weight_decay=0.01)
    layer = model[5]
    pruned = ~layer.mask.to_bool()
    assert pruned.any() and (layer.weight[pruned] == 0).all() and (layer.weight[~pruned] != 0).all()


@pytest.mark.parametrize(("epoch", "step"), [(1, 1), (1, 7), (2, 3), (3, 6)])
def test_resuming_anywhere_gives_the_same_bits(tmp_path, uninterrupted, epoch, step):
    path = tmp_path / "c.pt"
    with pytest.raises(Stop):
        train(
            small.network(), small.dataset(), **SETTINGS, checkpoint=path, checkpoint_seconds=0,
            progress=stop_at(epoch, step),
        )  # fmt: skip
    torch.rand(17)  # the caller's own draws must not matter
    model = small.network()
    seen = []
    history = train(
        model,
        small.dataset(),
        **SETTINGS,
        checkpoint=path,
        resume=True,
        checkpoint_seconds=0,
        progress=seen.append,
    )
    assert_same(results(model, history), uninterrupted)
    if (epoch, step) != (1, 1):
        assert (seen[0].epoch, seen[0].step) == (epoch, step)


@pytest.mark.parametrize(
    "make",
    [
        lambda model, optimizer: tr.RigL(model, optimizer, every=3, until=20),
        lambda model, optimizer: tr.GradualPruning(model, optimizer, density=0.2, begin=2, end=18, every=3),
    ],
)
def test_masks_that_change_are_resumed_too(tmp_path, make):
    model, path = small.network(), tmp_path / "c.pt"
    history = train(model, small.dataset(), **SETTINGS, method=make)
    expected, masks = results(model, history), sp.held_masks(model)
    assert masks.digest() != sp.held_masks(small.network()).digest()
    with pytest.raises(Stop):
        train(
            small.network(), small.dataset(), **SETTINGS, method=make, checkpoint=path, checkpoint_seconds=0,
            progress=stop_at(2, 4),
        )  # fmt: skip
    model = small.network()
    history = train(model, small.dataset(), **SETTINGS, method=make, checkpoint=path, resume=True)
    assert_same(results(model, history), expected)
    assert sp.held_masks(model).digest() == masks.digest()
    with pytest.raises(ValueError, match="method must be 'given' as in the checkpoint"):
        train(small.network(), small.dataset(), **SETTINGS, checkpoint=path, resume=True)


@pytest.mark.parametrize("progress", [None, stop_at(2, 1)], ids=["to its end", "until it fails"])
@pytest.mark.parametrize(
    "make",
    [
        lambda model, optimizer: tr.RigL(model, optimizer, every=1, until=100),
        lambda model, optimizer: tr.GramSchmidtTraining(model, optimizer, torch.randn(20, 1, 4, 4), every=50),
    ],
)
def test_the_method_leaves_nothing_behind(make, progress):
    model, made = small.network(), []

    def method(model, optimizer):
        made.append(make(model, optimizer))
        assert small.hooks_on(model, optimizer)
        return made[0]

    with nullcontext() if progress is None else pytest.raises(Stop):
        train(model, small.dataset(), **SETTINGS, method=method, progress=progress)
    assert made[0].steps and not small.hooks_on(model, made[0].optimizer)


def test_a_finished_run_resumes_to_its_result(tmp_path, uninterrupted):
    train(small.network(), small.dataset(), **SETTINGS, checkpoint=tmp_path / "c.pt")
    model, seen = small.network(), []
    history = train(model, small.dataset(), **SETTINGS, checkpoint=tmp_path / "c.pt", resume=True, progress=seen.append)
    assert not seen
    assert_same(results(model, history), uninterrupted)


def test_ctrl_c_finishes_the_batch_and_saves(tmp_path, uninterrupted):
    path = tmp_path / "c.pt"

    def progress(event):
        if (event.epoch, event.step, event.record) == (2, 3, None):
            signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingInterrupted, match="1 of 3 epochs and 3 batches") as caught:
        train(small.network(), small.dataset(), **SETTINGS, checkpoint=path, progress=progress)
    assert isinstance(caught.value, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGINT) is handler
    saved = load_checkpoint(path)
    assert (saved["epoch"], saved["step"]) == (1, 3)
    model = small.network()
    history = train(model, small.dataset(), **SETTINGS, checkpoint=path, resume=True)
    assert_same(results(model, history), uninterrupted)


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    def progress(event):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        train(small.network(), small.dataset(), **SETTINGS, checkpoint=tmp_path / "c.pt", progress=progress)
    assert not isinstance(caught.value, TrainingInterrupted)


def test_without_a_checkpoint_ctrl_c_is_pythons_own(request):
    # Where the tests run in the background of a shell, Ctrl-C is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(KeyboardInterrupt) as caught:
        train(
            small.network(),
            small.dataset(),
            **SETTINGS,
            progress=lambda event: signal.raise_signal(signal.SIGINT),
        )
    assert not isinstance(caught.value, TrainingInterrupted)


def test_it_trains_in_another_thread(tmp_path):
    done = []
    thread = threading.Thread(
        target=lambda: done.append(train(small.network(), small.dataset(), **SETTINGS, checkpoint=tmp_path / "c.pt"))
    )
    thread.start()
    thread.join()
    assert len(done[0]) == 3


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"lr": 0.06}, "lr"),
        ({"epochs": 4}, "epochs"),
        ({"seed": 4}, "seed"),
        ({"batch_size": 9}, "batch_size"),
        ({"weight_decay": 0.0}, "weight_decay"),
        ({"schedule": "constant"}, "schedule"),
        ({"model": small.network(keep=50)}, "masks"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(16, 3))}, "model"),
        ({"dataset": small.dataset(40)}, "dataset"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_run_is_not_resumed(tmp_path, change, field):
    path = tmp_path / "c.pt"
    train(small.network(), small.dataset(), **SETTINGS, checkpoint=path)
    before = path.read_bytes()
    arguments = {"model": small.network(), "dataset": small.dataset(), **SETTINGS, **change}
    weights = {name: value.clone() for name, value in arguments["model"].state_dict().items()}
    with pytest.raises(ValueError, match=f"^{field} must be "):
        train(**arguments, checkpoint=path, resume=True)
    assert path.read_bytes() == before
    for name, value in arguments["model"].state_dict().items():
        assert torch.equal(value, weights[name])


def test_the_callers_random_state_is_as_before():
    with torch.random.fork_rng():
        draw = torch.rand(3)
    train(small.network(), small.dataset(), **SETTINGS)
    assert torch.equal(torch.rand(3), draw)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"schedule": "constant"}, [0.5] * 4),
        ({"schedule": "step", "milestones": (1, 3), "gamma": 0.1}, [0.5, 0.05, 0.05, 0.005]),
        ({"schedule": "cosine"}, [0.25 * (1 + math.cos(math.pi * (e + 6 / 7) / 4)) for e in range(4)]),
    ],
)
def test_learning_rates(schedule, expected):
    history = train(small.network(), small.dataset(), epochs=4, batch_size=8, lr=0.5, momentum=0.0, **schedule)
    assert [epoch.lr for epoch in history] == pytest.approx(expected, rel=1e-12)


def test_one_step_is_the_optimizers():
    """The loop against the formula: w - lr * (g + decay * w), one batch of everything."""
    data, model = small.dataset(train=6), nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    weight = model[1].weight.detach().clone()
    loss = nn.functional.cross_entropy(model(data.train[0].double()), data.train[1])
    (gradient,) = torch.autograd.grad(loss, model[1].weight)
    history = train(model, data, epochs=1, batch_size=6, lr=0.2, momentum=0.0, weight_decay=0.01, schedule="constant")
    assert torch.allclose(model[1].weight, weight - 0.2 * (gradient + 0.01 * weight), rtol=1e-12, atol=0)
    assert history[0].train_loss == pytest.approx(loss.item(), rel=1e-12)


def test_order_depends_on_seed_and_epoch_and_covers_everything():
    data = small.dataset()
    orders = {(s, e): torch.cat(training_order(data, 8, s, e)) for s in (0, 1) for e in (0, 1)}
    assert all(torch.equal(order.sort().values, torch.arange(50)) for order in orders.values())
    assert len({tuple(order.tolist()) for order in orders.values()}) == 4
    assert torch.equal(orders[0, 1], torch.cat(training_order(data, 8, 0, 1)))


def test_a_last_batch_of_one_is_left_out():
    assert [len(batch) for batch in training_order(small.dataset(train=17), 8, 0, 0)] == [8, 8]
    assert [len(batch) for batch in training_order(small.dataset(train=3), 1, 0, 0)] == [1, 1, 1]


class Lazy(torch.utils.data.Dataset):
    targets = torch.arange(7) % 3

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return torch.full((1, 4, 4), float(index)), int(self.targets[index])


def test_lazy_splits_come_in_the_given_order_and_leave_the_random_state():
    before = torch.get_rng_state()
    indices = list(torch.tensor([6, 2, 5, 0, 1]).split(2))
    batches = list(read_batches(Lazy(), indices))
    assert [x[:, 0, 0, 0].tolist() for x, _ in batches] == [[6, 2], [5, 0], [1]]
    assert [y.tolist() for _, y in batches] == [[0, 2], [2, 0], [1]]
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluate_counts_and_restores_the_mode():
    data = small.dataset()
    model = small.network().train()
    loss, error = evaluate(model, data, batch_size=7)
    assert model.training
    model.eval()
    logits = model(data.test[0])
    assert error == (logits.argmax(1) != data.test[1]).sum().item() / 20
    assert loss == pytest.approx(nn.functional.cross_entropy(logits, data.test[1]).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs must be an integer >= 1"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"lr": 0.0}, "lr must be"),
        ({"lr": math.nan}, "lr must be"),
        ({"momentum": 1.0}, "momentum must be"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
        ({"optimizer": "lion"}, "optimizer must be one of sgd, adam, adamw, got 'lion'"),
        ({"schedule": "linear"}, "schedule must be one of cosine, step, constant, got 'linear'"),
        ({"schedule": "step"}, "milestones must be given"),
        ({"milestones": (2,)}, "milestones must be given with schedule 'step'"),
        ({"schedule": "step", "milestones": (3, 2)}, "milestones must be increasing"),
        ({"resume": True}, "checkpoint must be given"),
        ({"lr": 1e30}, "lr must be low enough"),
    ],
)
def test_wrong_settings(wrong, message):
    with pytest.raises(ValueError, match=message):
        train(small.network(), small.dataset(), **{**SETTINGS, **wrong})


def test_history_round_trip():
    history = train(small.network(), small.dataset(), **SETTINGS)
    assert History.from_list(history.to_list()) == history
    assert history.best.test_error == min(epoch.test_error for epoch in history)
    with pytest.raises(ValueError, match="epoch 1 must have the fields"):
        History.from_list([{"epoch": 1}])
    with pytest.raises(ValueError, match="at least one epoch"):
        _ = History().best
