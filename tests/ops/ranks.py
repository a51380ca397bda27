"""Processes that form a gloo group and run functions of this file together, and those functions."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from datetime import timedelta
from functools import cache, partial

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import sparseprune as sp
from sparseprune.ops import distributed_topk, topk_shards


class World:
    """So many ranks, started once. ``run(function, *args)`` runs ``function(rank, *args)`` on all of them.

    It returns a list with each rank's result, or the exception that it raised.
    """

    def __init__(self, size, folder, timeout=60):
        # Forked from a server that has imported everything: no rank pays for the imports, none inherits threads.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            ["torch._dynamo", "torch.distributed.tensor", "torch.distributed.fsdp", "sparseprune"]
        )
        self.size = size
        self.pipes, self.processes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            args = (rank, size, f"file://{folder}/store{size}", timeout, theirs)
            self.processes.append(context.Process(target=serve, args=args, daemon=True))
            self.processes[-1].start()
            self.pipes.append(ours)
            theirs.close()

    def run(self, function, *args, seconds=60):
        for pipe in self.pipes:
            pipe.send_bytes(pickle.dumps((function, args)))
        return [self._answer(pipe, seconds) for pipe in self.pipes]

    def _answer(self, pipe, seconds):
        if not pipe.poll(seconds):
            return TimeoutError(f"no answer in {seconds} s")
        try:
            return pickle.loads(pipe.recv_bytes())
        except (EOFError, ConnectionResetError):
            return ConnectionError("died")

    def close(self):
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(5)
            process.kill()


def serve(rank, size, store, timeout, pipe):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout))
    while True:
        try:
            function, args = pickle.loads(pipe.recv_bytes())
        except EOFError:
            os._exit(0)
        try:
            result = function(rank, *args)
        except Exception as error:
            result = error
            result.__cause__ = result.__context__ = None
        pipe.send_bytes(pickle.dumps(result))


def pieces(tensor, cuts, rank):
    """This rank's piece of a tensor cut along dimension 0."""
    return tensor.tensor_split(cuts)[rank]


def flat(kept):
    return [m.to_bool().tolist() for m in kept.masks], kept.threshold.item(), kept.counts.tolist()


def select_all(rank, cases):
    """``distributed_topk_mask`` of each case: whole tensors, cuts of each, k, whole masks or None, options."""
    return [select(rank, *case) for case in cases]


def select(rank, tensors, cuts, k, masks, options):
    shards = [pieces(t, c, rank) for t, c in zip(tensors, cuts, strict=True)]
    if masks is not None:
        own = [pieces(m, c, rank) for m, c in zip(masks, cuts, strict=True)]
        options = {**options, "masks": [sp.BitMask.from_bool(m) for m in own]}
    return flat(sp.distributed_topk_mask(shards, k, **options))


def differently(rank, shards, k, options):
    """Every rank with arguments of its own."""
    return flat(sp.distributed_topk_mask(shards[rank], k[rank], **options[rank]))


def in_slabs(rank, slab, cases):
    """The reference with so few scores at a time that every tensor is many slabs."""
    before, topk_shards.SLAB = topk_shards.SLAB, slab
    try:
        return select_all(rank, [(*case, {**options, "backend": "reference"}) for *case, options in cases])
    finally:
        topk_shards.SLAB = before


@cache
def mesh_of(shape):
    return init_device_mesh("cpu", shape)


def select_dtensors(rank, mesh_shape, tensors, placements, k, options):
    """The masks of DTensors, put together again, and whether all ranks that hold an element agree about it."""
    mesh = mesh_of(mesh_shape)
    shards = [distribute_tensor(t, mesh, p) for t, p in zip(tensors, placements, strict=True)]
    kept = sp.distributed_topk_mask(shards, k, **options)
    masks = []
    for mask, shard, place in zip(kept.masks, shards, placements, strict=True):
        local = DTensor.from_local(
            mask.to_bool().to(torch.int32), mesh, place, run_check=False, shape=shard.shape, stride=shard.stride()
        )
        masks.append(local.full_tensor().bool().tolist())
    return masks, kept.threshold.item(), kept.counts.tolist()


def sent_bytes(rank, size):
    """What one call hands to collectives, in bytes, for shards of so many scores, cut by ties and not."""
    sent, originals = [0], (dist.all_reduce, dist.all_gather)

    def counted(original, tensor_of, *args, **kwargs):
        tensor = args[tensor_of]
        sent[0] += tensor.numel() * tensor.element_size()
        return original(*args, **kwargs)

    dist.all_reduce, dist.all_gather = (partial(counted, o, i) for i, o in enumerate(originals))
    try:
        sp.distributed_topk_mask([torch.arange(size) % 7 / 7.0, torch.arange(float(size))], size // 2)
    finally:
        dist.all_reduce, dist.all_gather = originals
    return sent[0]


def failing(rank, where, call, how):
    """A selection in which the given call of a local step fails on rank 1."""
    original, calls = getattr(distributed_topk, where), [0]

    def step(*args, **kwargs):
        calls[0] += 1
        if rank == 1 and calls[0] == call:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise how("out of memory")
        return original(*args, **kwargs)

    setattr(distributed_topk, where, step)
    try:
        return flat(sp.distributed_topk_mask([torch.ones(50), torch.ones(20)], 77))
    except KeyboardInterrupt as interrupt:
        return RuntimeError(f"interrupted: {interrupt}")
    finally:
        setattr(distributed_topk, where, original)


def dying(rank, where, call):
    """The same with a death. The survivors leave at once, as programs do whose rank has raised."""
    try:
        failing(rank, where, call, "kill")
    finally:
        dist.destroy_process_group()


class Odd(nn.Module):
    """Layers whose rows no number of ranks divides."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 3)
        self.fc = nn.Linear(11, 1)
        self.head = nn.Linear(5, 13)


def fully_sharded(rank, state, source):
    """The README's lines on an FSDP2 model: what they find, and the weights that FSDP2 gathers afterwards."""
    model = Odd()
    model.load_state_dict(state)
    scope = {"model": model, "sp": sp, "fully_shard": partial(fully_shard, mesh=mesh_of((dist.get_world_size(),)))}
    exec(source, scope)
    model.unshard()
    weights = [p.detach() for p in model.parameters() if p.dim() > 1]
    return [m.to_bool() for m in scope["masks"]], scope["threshold"].item(), scope["counts"].tolist(), weights


def in_group(rank, members, shards, k):
    """A selection by some of the ranks; the others get what they are told who are not among them."""
    return flat(sp.distributed_topk_mask(shards[rank], k, group=group_of(members)))


def beyond_the_mesh(rank, tensor, members, group, k):
    """A tensor that only some of the ranks hold."""
    mesh = DeviceMesh("cpu", members)
    shard = distribute_tensor(tensor, mesh, [Shard(0)])
    return flat(sp.distributed_topk_mask([shard], k, group=None if group is None else group_of(group)))


@cache
def group_of(members):
    return dist.new_group(members)


def placed(rank, tensor, placement):
    shard = DTensor.from_local(tensor, mesh_of((4,)), [placement], run_check=False)
    return sp.distributed_topk_mask([shard], 1)
