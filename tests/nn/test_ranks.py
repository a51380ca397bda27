"""DDP and FSDP2 on two ranks train a sparse model of any storage as one process trains it on both batches."""

from __future__ import annotations

import pytest
import torch
from nn import ranks
from ops.ranks import World

import sparseprune as sp
from sparseprune.nn.base import STORAGES


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(2, tmp_path_factory.mktemp("ranks"))
    yield world
    world.close()


def random_masks(model):
    return {n: torch.rand(p.shape) < 0.4 for n, p in model.named_parameters() if p.dim() > 1}


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
@pytest.mark.parametrize("storage", STORAGES)
def test_two_ranks_train_as_one(world, wrapper, storage):
    model = ranks.net()
    state, masks, others = model.state_dict(), random_masks(model), random_masks(model)
    state = {name: value.clone() for name, value in state.items()}
    batches = [torch.randn(2, 3, 2, 4, 4, dtype=torch.float64) for _ in range(4)]
    found = world.run(ranks.train, wrapper, storage, state, masks, others, batches)
    sp.sparsify(model, masks, storage=storage)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for number, batch in enumerate(batches):
        if number == 2 and storage != "packed":
            sp.sparsify(model, others, optimizer=optimizer)
        optimizer.zero_grad()
        model(batch.flatten(0, 1)).square().mean().backward()
        optimizer.step()
    for values in found:
        assert not isinstance(values, Exception), values
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(torch.tensor(values[name], dtype=torch.float64), parameter.detach())


def test_a_sharded_weight_refuses_to_be_packed(world):
    for message, storage in world.run(ranks.pack_sharded, random_masks(ranks.net())):
        assert message.startswith("storage must become packed before fully_shard") and storage == "owned"


def test_sharded_packed_weights_refuse_other_masks(world):
    for messages in world.run(ranks.change_packed, random_masks(ranks.net())):
        assert len(messages) == 3
        assert all(m.startswith("masks of packed weights must not change once they are sharded") for m in messages)


def test_packed_weights_move_under_ddp(world):
    masks = random_masks(ranks.net())
    batches = [torch.randn(2, 3, 2, 4, 4, dtype=torch.float64) for _ in range(6)]
    first, second = world.run(ranks.move_packed, masks, batches)
    assert first == second and not isinstance(first, Exception), first
    assert first[0] != sp.Masks(masks).digest()
