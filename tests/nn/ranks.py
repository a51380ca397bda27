"""What each rank does in the tests of wrapped and sharded sparse models."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import sparseprune as sp


def net():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 4, 1, bias=False), nn.Flatten(), nn.Linear(64, 5)
    ).double()  # fmt: skip


def train(rank, wrapper, storage, state, masks, others, batches):
    """Two steps, other masks where the storage can take them, two steps: the weights, whole and dense, of this rank."""
    model = net()
    model.load_state_dict(state)
    sp.sparsify(model, masks, storage=storage)
    if wrapper == "ddp":
        wrapped = DistributedDataParallel(model)
    else:
        wrapped = fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for number, batch in enumerate(batches):
        if number == 2 and storage != "packed":
            sp.sparsify(model, others, optimizer=optimizer)
        optimizer.zero_grad()
        wrapped(batch[rank]).square().mean().backward()
        optimizer.step()
    values = {
        name: p.detach().full_tensor() if wrapper == "fsdp" else p.detach() for name, p in model.named_parameters()
    }
    return {name: value.tolist() for name, value in values.items()}


def change_packed(rank, masks):
    """The messages with which sharded packed weights refuse other masks."""
    model = sp.sparsify(net(), masks, storage="packed")
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    actions = [
        lambda: model[4].set_mask(masks["4.weight"]),
        lambda: sp.sparsify(model, masks),
        lambda: sp.training.RigL(model, optimizer, until=9),
    ]
    messages = []
    for action in actions:
        try:
            messages.append(action())
        except ValueError as error:
            messages.append(str(error))
    return messages


def move_packed(rank, masks, batches):
    """RigL under DDP on packed weights, whose number stays: the masks of all ranks and the weights of this one."""
    model = sp.sparsify(net(), masks, storage="packed")
    for p in model.parameters():
        torch.nn.init.ones_(p)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    method = sp.training.RigL(model, optimizer, every=2, until=9)
    wrapped = DistributedDataParallel(model)
    for batch in batches:
        optimizer.zero_grad()
        wrapped(batch[rank]).square().mean().backward()
        optimizer.step()
        method.step()
    return method.masks.digest(), [p.detach().tolist() for p in model.parameters()]


def pack_sharded(rank, masks):
    """The message with which a sharded weight refuses to be packed."""
    model = sp.sparsify(net(), masks)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    try:
        sp.set_storage(model, "packed")
    except ValueError as error:
        return str(error), model[4].storage
    return None
