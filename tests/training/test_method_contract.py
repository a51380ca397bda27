"""What every method that changes masks promises, whatever it is."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from torch import nn, optim
from torch.multiprocessing import spawn
from training.small import hooks_on

import sparseprune as sp
from sparseprune.training import (
    DSR,
    SET,
    DeepR,
    GradualPruning,
    GramSchmidtTraining,
    LotteryTickets,
    NeST,
    RigL,
    SparseMomentum,
    attach,
)  # fmt: skip

STEPS, STOP = 24, 13
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}

BATCH = torch.randn(30, 1, 4, 4, generator=torch.Generator().manual_seed(0))

DYNAMIC = {
    "SET": lambda m, o: SET(m, o, every=3, until=20),
    "RigL": lambda m, o: RigL(m, o, every=3, until=20),
    "RigL, zeroed": lambda m, o: RigL(m, o, every=2, until=20, keep_regrown=False),
    "SparseMomentum": lambda m, o: SparseMomentum(m, o, every=3, until=20),
    "DSR": lambda m, o: DSR(m, o, every=3, until=20, fraction=0.2, threshold=0.02),
    "DeepR": lambda m, o: DeepR(m, o, until=20, l1=1e-3, temperature=1e-3),
}
PRUNING = {
    "AGP": lambda m, o: GradualPruning(m, o, density=0.1, begin=2, end=20, every=3),
    "tickets": lambda m, o: LotteryTickets(m, o, steps_per_round=8, rounds=4, rewind_to=2),
    "Gram-Schmidt": lambda m, o: GramSchmidtTraining(m, o, BATCH, every=2, tolerance=0.5, prune_after=2),
}
GROWING = {
    "NeST": lambda m, o: NeST(m, o, grow_until=14, prune_until=22, every=2, rate=0.1),
}
METHODS = DYNAMIC | PRUNING | GROWING


def net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 3)
    )  # fmt: skip


def start(make, seed=0):
    torch.manual_seed(seed)
    model = net()
    if make not in PRUNING.values():
        sp.sparsify(model, sp.prune(model, sp.Random(), density=0.3, pattern=sp.LayerWise(sp.erk)))
    optimizer = optim.SGD(model.parameters(), **SGD)
    return model, optimizer, make(model, optimizer)


def train(model, optimizer, method, begin=0, end=STEPS, check=lambda: None, part=slice(None), run=None):
    for number in range(begin, end):
        x = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        output = (run or model)(x[part])
        (output - x[part, 0, 0, :3].sin()).square().mean().backward()
        optimizer.step()
        method.step()
        check()


def pruned_slots(model):
    return {n: ~m.to_bool() for n, m in sp.held_masks(model).items()}


@pytest.fixture(params=METHODS.values(), ids=METHODS)
def make(request):
    return request.param


@pytest.mark.parametrize("make", DYNAMIC.values(), ids=DYNAMIC)
def test_the_budget_is_exact_at_every_step_and_masks_move(make):
    model, optimizer, method = start(make)
    budget, digests = method.masks.count(), set()

    def check():
        assert method.masks.count() == budget
        digests.add(method.masks.digest())

    train(model, optimizer, method, check=check)
    assert len(digests) > 3


def test_masks_are_applied_and_the_state_is_clean(make):
    model, optimizer, method = start(make)
    before = {}

    def check():
        for name, pruned in pruned_slots(model).items():
            weight = model.get_parameter(name)
            momentum = optimizer.state[weight].get("momentum_buffer", torch.zeros_like(weight))
            assert not weight[pruned].any() and not momentum[pruned].any()
            if name in before:  # what was grown
                grown = before[name] & ~pruned
                assert not weight[grown].any() and not momentum[grown].any()
            before[name] = pruned
        x = torch.randn(2, 1, 4, 4)
        twin = copy.deepcopy(model).eval()
        expected = twin(x)
        with torch.no_grad():
            for name, pruned in pruned_slots(twin).items():
                twin.get_parameter(name)[pruned] = float("nan")
        assert torch.equal(twin(x), expected), "pruned weights are not read"

    train(model, optimizer, method, check=check)


def test_everything_is_a_function_of_the_seed(make):
    runs = []
    for noise in (0, 1):
        model, optimizer, method = start(make)
        torch.manual_seed(100 + noise)  # the global stream must not matter
        train(model, optimizer, method)
        runs.append((method.masks.digest(), [p.detach().clone() for p in model.parameters()]))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_resuming_equals_not_stopping(make, order, tmp_path):
    model, optimizer, method = start(make)
    train(model, optimizer, method, end=STOP)
    torch.save([part.state_dict() for part in (model, optimizer, method)], tmp_path / "c.pt")
    train(model, optimizer, method, begin=STOP)
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    later = start(make, seed=7)
    attach(later[1], later[0])
    for i in order:
        later[i].load_state_dict(saved[i])
    train(*later, begin=STOP)
    assert later[2].masks.digest() == method.masks.digest()
    states = (model.state_dict().values(), later[0].state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def on_a_rank(rank, world, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/init", rank=rank, world_size=world)
    for name, make in METHODS.items():
        model, optimizer, method = start(make)
        wrapped = nn.parallel.DistributedDataParallel(model)
        with torch.random.fork_rng():
            torch.manual_seed(rank)
            digests = []

            def note(digests=digests, method=method):
                digests.append(method.masks.digest())

            part = slice(4 * rank, 4 * rank + 4)
            train(model, optimizer, method, check=note, part=part, run=wrapped)
        others = [None] * world
        torch.distributed.all_gather_object(others, (digests, [p.detach().sum().item() for p in model.parameters()]))
        assert others[0] == others[1] and len(set(digests)) > 2, name
    check_fsdp(rank)
    torch.distributed.destroy_process_group()


def check_fsdp(rank):
    """Sharded parameters: masks hold, a change of masks reaches weights and momenta, RigL takes the same masks."""
    from torch.distributed.fsdp import fully_shard

    model, _, _ = start(DYNAMIC["RigL"])
    fully_shard(model)
    optimizer = optim.SGD(model.parameters(), **SGD)
    attach(optimizer, model)
    method = RigL(model, optimizer, every=3, until=20)
    digests = []

    def check():
        digests.append(method.masks.digest())
        for name, pruned in pruned_slots(model).items():
            weight = model.get_parameter(name)
            assert not weight.full_tensor()[pruned].any()
            assert not optimizer.state[weight]["momentum_buffer"].full_tensor()[pruned].any()

    part = slice(4 * rank, 4 * rank + 4)
    train(model, optimizer, method, check=check, part=part)
    others = [None, None]
    torch.distributed.all_gather_object(others, digests)
    assert others[0] == others[1] and len(set(digests)) > 2


def test_ranks_agree(tmp_path):
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    spawn(on_a_rank, (2, str(tmp_path)), nprocs=2)


@pytest.mark.parametrize("end", [1, 2, STOP])
def test_nothing_stays_on_model_and_optimizer(make, end):
    model, optimizer, method = start(make)
    with method as entered:
        assert entered is method
        train(model, optimizer, method, end=end)
        masks, state = method.masks.digest(), method.state_dict()
    assert not hooks_on(model, optimizer)
    assert method.masks.digest() == masks and method.state_dict().keys() == state.keys()
    with pytest.raises(RuntimeError, match=f"{type(method).__name__} must not step after remove"):
        method.step()
    method.remove()  # again
    assert not hooks_on(model, optimizer)


def test_methods_that_need_hooks_have_them():
    """What the test above would not see is that nothing is looked for in the right place."""
    for name in ("Gram-Schmidt", "RigL, zeroed", "SparseMomentum", "NeST"):
        model, optimizer, method = start(METHODS[name])
        train(model, optimizer, method, end=1)
        assert hooks_on(model, optimizer), name
    hold = attach(optimizer, model)
    before = len(hooks_on(model, optimizer))
    with hold:
        pass
    assert len(hooks_on(model, optimizer)) == before - 3


def test_a_method_that_cannot_be_made_leaves_nothing():
    torch.manual_seed(0)
    model = net()
    optimizer = optim.SGD(model.parameters(), **SGD)
    with pytest.raises(RuntimeError):
        GramSchmidtTraining(model, optimizer, torch.randn(30, 5, 4, 4), every=2)
    assert not hooks_on(model, optimizer)
