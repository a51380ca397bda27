"""The selection over ranks: equal to a sort of the whole tensors, however they are cut; and never a hang."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from cases import score_cases
from ops import ranks
from ops.ranks import World
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.placement_types import Partial, _StridedShard

import sparseprune as sp

README = Path(__file__).resolve().parents[2] / "README.md"
NAN = float("nan")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.fixture(scope="module", params=[1, 2, 3, 5])
def world(request, tmp_path_factory):
    world = World(request.param, tmp_path_factory.mktemp("group"))
    yield world
    world.close()


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    world = World(4, tmp_path_factory.mktemp("group"))
    yield world
    world.close()


def by_sorting(tensors, k, masks=None, largest=True, abs=False):
    """Masks, threshold and counts of the whole tensors, by one stable sort in float64."""
    competing = torch.cat(
        [
            torch.ones(t.numel(), dtype=torch.bool) if masks is None else masks[i].flatten()
            for i, t in enumerate(tensors)
        ]
    )
    values = torch.cat([t.double().flatten() for t in tensors])
    values = values.abs() if abs else values
    where = competing.nonzero()[:, 0]
    order = torch.sort(values[where], descending=largest, stable=True).indices[:k]
    kept = torch.zeros_like(competing)
    kept[where[order]] = True
    whole = [m.reshape(t.shape) for m, t in zip(kept.split([t.numel() for t in tensors]), tensors, strict=True)]
    return whole, (values[where[order[-1]]].item() if k else NAN), [int(m.sum()) for m in whole]


def assert_result(actual, masks, threshold, counts, where=""):
    assert actual[0] == masks, where
    assert actual[1] == threshold or (actual[1] != actual[1] and threshold != threshold), where
    assert actual[2] == counts, where


def random_cuts(tensor, size, generator):
    """Where pieces end, some of them empty."""
    if torch.rand((), generator=generator) < 0.2:
        return [0] * (size - 1)  # all of it on the last rank
    return sorted(torch.randint(0, len(tensor) + 1, (size - 1,), generator=generator).tolist())


def random_cases(size, seed, count):
    r = torch.Generator().manual_seed(seed)
    found = []
    hard = list(score_cases().values())
    while len(found) < count:
        tensors = [t.reshape(1) if t.dim() == 0 else t for t in hard[len(found) % len(hard)]]
        one = DTYPES[int(torch.randint(4, (), generator=r))]
        mixed = torch.rand((), generator=r) < 0.4
        pick = [DTYPES[int(torch.randint(4, (), generator=r))] if mixed else one for _ in tensors]
        tensors = [t.to(d) for t, d in zip(tensors, pick, strict=True)]
        masks = None
        if torch.rand((), generator=r) < 0.4:
            masks = [torch.rand(t.shape, generator=r) < 0.6 for t in tensors]
            tensors = [torch.where(m, t, NAN) for m, t in zip(masks, tensors, strict=True)]
        total = sum(t.numel() for t in tensors) if masks is None else sum(int(m.sum()) for m in masks)
        k = (0, total, int(torch.randint(total + 1, (), generator=r)), total // 3, total // 2)[len(found) % 5]
        options = {"largest": bool(torch.rand((), generator=r) < 0.7), "abs": bool(torch.rand((), generator=r) < 0.4)}
        found.append((tensors, [random_cuts(t, size, r) for t in tensors], k, masks, options))
    return found


def assert_all_equal_sorting(size, cases, results):
    for i, (tensors, cuts, k, masks, options) in enumerate(cases):
        whole, threshold, counts = by_sorting(tensors, k, masks, **options)
        for rank in range(size):
            assert not isinstance(results[rank], Exception), results[rank]
            own = [ranks.pieces(m, c, rank).tolist() for m, c in zip(whole, cuts, strict=True)]
            assert_result(results[rank][i], own, threshold, counts, f"case {i} on rank {rank}")


def test_hard_scores_however_they_are_cut(world):
    cases = random_cases(world.size, seed=world.size, count=45)
    assert_all_equal_sorting(world.size, cases, world.run(ranks.select_all, cases))


def test_the_reference_in_slabs(world):
    cases = random_cases(world.size, seed=10 + world.size, count=15)
    assert_all_equal_sorting(world.size, cases, world.run(ranks.in_slabs, 256, cases))


def test_equals_one_process(world):
    tensors = [torch.randint(-9, 9, (101, 67)).float(), torch.randn(64, 3, 3, 3), torch.zeros(40)]
    cuts = [random_cuts(t, world.size, torch.Generator().manual_seed(7)) for t in tensors]
    for k in (1, 3000, 6000):
        whole = [m.to_bool() for m in sp.topk_mask(tensors, k).masks]
        for rank, (masks, _, counts) in enumerate(world.run(ranks.select, tensors, cuts, k, None, {})):
            assert masks == [ranks.pieces(m, c, rank).tolist() for m, c in zip(whole, cuts, strict=True)]
            assert counts == [int(m.sum()) for m in whole]


def test_strides_do_not_matter(world):
    tensor = torch.randint(0, 5, (4 * world.size, 6, 3, 3)).float()
    cuts = [[4 * i for i in range(1, world.size)]]
    [plain, strided] = [
        world.run(ranks.select, [t], cuts, 70 * world.size, None, {})
        for t in (tensor, tensor.to(memory_format=torch.channels_last))
    ]
    assert plain == strided
    assert sum(plain[0][2]) == 70 * world.size


MESHES = {
    "1-D": ((4,), [[Shard(0)], [Shard(1)], [Shard(2)], [Replicate()]]),
    "HSDP": ((2, 2), [[Replicate(), Shard(0)], [Replicate(), Shard(1)], [Replicate(), Shard(0)], [Replicate()] * 2]),
    "2-D": ((2, 2), [[Shard(0), Shard(1)], [Shard(1), Shard(0)], [Shard(0), Shard(0)], [Shard(0), Replicate()]]),
}


@pytest.mark.parametrize("mesh", MESHES)
def test_dtensors(four, mesh):
    """Ties are cut in every tensor in turn, also where the parts of ranks interleave."""
    shape, placements = MESHES[mesh]
    tensors = [
        torch.randint(0, 3, s).to(d)
        for s, d in zip(
            [(7, 6), (3, 9), (2, 5, 7), (9, 2)], (torch.float32, torch.bfloat16, torch.float32, torch.float16)
        )
    ]
    for k in (5, 30, 50, 62, 75, 100, 120, 140, 150):
        for options in ({}, {"largest": False}):
            expected = by_sorting(tensors, k, **options)
            for result in four.run(ranks.select_dtensors, shape, tensors, placements, k, options):
                assert not isinstance(result, Exception), result
                assert_result(result, [m.tolist() for m in expected[0]], *expected[1:], (mesh, k, options))


def test_parameters_of_fsdp2(world):
    """The README's example. FSDP2 cuts dimension 0 as ``torch.chunk`` does: unevenly, and into nothing for some."""
    [source] = re.findall(r"```python\n(fully_shard.*?)```", README.read_text(), re.DOTALL)
    torch.manual_seed(3)
    state = {n: (10 * p).round() / 10 for n, p in ranks.Odd().state_dict().items()}  # so that there are ties
    weights = [w for w in state.values() if w.dim() > 1]
    whole, threshold, counts = by_sorting(weights, sum(w.numel() for w in weights) // 10, abs=True)
    pruned = [torch.where(m, w, 0).tolist() for m, w in zip(whole, weights, strict=True)]
    for rank, (masks, *found, after) in enumerate(world.run(ranks.fully_sharded, state, source)):
        own = [(*m.chunk(world.size), *[m[:0]] * world.size)[rank] for m in whole]
        assert [m.tolist() for m in masks] == [m.tolist() for m in own]
        assert found == [pytest.approx(threshold), counts]
        assert [w.tolist() for w in after] == pruned


def test_a_group_of_some_ranks(four):
    shards = [[torch.full((3,), float(r))] for r in range(4)]
    results = four.run(ranks.in_group, (1, 3), shards, 4)
    assert results[1] == ([[True, False, False]], 1.0, [4]) and results[3] == ([[True] * 3], 1.0, [4])
    for outside in results[::2]:
        assert type(outside) is ValueError and "group must contain this rank" in str(outside)


def test_a_mesh_of_some_ranks(four):
    """Ranks outside the mesh hold nothing; a mesh that reaches outside the group is refused."""
    results = four.run(ranks.beyond_the_mesh, torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0]), (0, 2), None, 3)
    assert [r[1:] for r in results] == [(2.0, [3])] * 4
    assert results[0][0] == [[False, True, True]] and results[2][0] == [[True, False]]
    results = four.run(ranks.beyond_the_mesh, torch.ones(5), (0, 2), (0, 1), 3)
    for member in results[:2]:
        assert type(member) is ValueError
        assert str(member) == "shards[0] must lie on ranks of the group, got 3 of its 5 elements on them"


def test_bytes_do_not_depend_on_the_size(world):
    small, large = world.run(ranks.sent_bytes, 700), world.run(ranks.sent_bytes, 70_000)
    assert small == large and len(set(small)) == 1
    assert small[0] < 250_000


def test_disagreement_raises_everywhere(four):
    ones, halves = [torch.ones(3)], [torch.ones(3).half()]
    rows = [torch.ones(2, 3)]

    def alike(value):
        return [value] * 4

    def odd(value, other, rank):
        return [other if r == rank else value for r in range(4)]

    cases = {
        "k must be the same on every rank, got 5 on rank 0 and 6 on rank 2": (alike(ones), odd(5, 6, 2), alike({})),
        "the number of shards must be the same on every rank, got 1 on rank 0 and 2 on rank 3": (
            odd(ones, ones * 2, 3), alike(5), alike({}),
        ),
        "the dtype of shards[0] must be the same on every rank, got float32 on rank 0 and float16 on rank 1": (
            odd(ones, halves, 1), alike(5), alike({}),
        ),
        "largest must be the same on every rank, got False on rank 0 and True on rank 1": (
            alike(ones), alike(5), odd({}, {"largest": False}, 0),
        ),
        "abs must be the same on every rank, got False on rank 0 and True on rank 2": (
            alike(ones), alike(5), odd({}, {"abs": True}, 2),
        ),
        "shards[0] must have rows of one size on every rank, got 1 elements on rank 0 and 3 on rank 1": (
            odd(ones, rows, 1), alike(5), alike({}),
        ),
        "k must be between 0 and the 12 competing scores, got 13": (alike(ones), alike(13), alike({})),
        "scores must not be NaN, got NaN in fc on rank 2": (
            odd(ones, [torch.tensor([1.0, NAN])], 2), alike(5), alike({"names": ["fc"]}),
        ),
    }  # fmt: skip
    for message, (shards, k, options) in cases.items():
        for result in four.run(ranks.differently, shards, k, options):
            assert type(result) is ValueError and str(result) == message
    assert (
        four.run(ranks.differently, alike(ones), alike(0), alike({}))
        == [([[False] * 3], pytest.approx(NAN, nan_ok=True), [0])] * 4
    )


ONE = torch.ones(3)
BAD = {
    "k float": (TypeError, "k must be an integer, got float", [ONE], 1.0, {}),
    "k bool": (TypeError, "k must be an integer, got bool", [ONE], True, {}),
    "k negative": (ValueError, "k must be between 0 and the competing scores, got -1", [ONE], -1, {}),
    "k huge": (ValueError, f"k must be between 0 and the competing scores, got {1 << 70}", [ONE], 1 << 70, {}),
    "one tensor": (TypeError, "shards must be a list of tensors, got Tensor", ONE, 1, {}),
    "integers": (TypeError, "shards[0] must be a tensor of float16, bfloat16, float32, float64, got a torch.int64 tensor", [ONE.long()], 1, {}),
    "no dimension": (ValueError, "shards[0] must have a dimension that ranks hold pieces of, got a tensor without any", [ONE[0]], 1, {}),
    "names": (ValueError, "names must have one entry a tensor, got 0 for 1", [ONE], 1, {"names": []}),
    "masks": (ValueError, "masks must have one entry a tensor, got 0 for 1", [ONE], 1, {"masks": []}),
    "backend": (ValueError, "backend must be one of auto, native, reference for digit_histogram, got 'triton'", [ONE], 1, {"backend": "triton"}),
}  # fmt: skip


def test_what_one_rank_raises_all_raise(four):
    for kind, message, shards, k, options in BAD.values():
        results = four.run(ranks.differently, [[ONE]] * 2 + [shards, [ONE]], [1, 1, k, 1], [{}, {}, options, {}])
        assert type(results.pop(2)) is kind, message
        for other in results:
            assert type(other) is ValueError
            assert str(other) == f"distributed_topk_mask failed on rank 2 with {kind.__name__}: {message}"[: 44 + 256]


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_rank_that_fails_in_the_middle(four, error):
    """At every local step in turn; and the group serves the next call."""
    for step, calls in (("digit_histogram", (1, 2, 4, 6)), ("threshold_mask", (1, 2, 3))):
        for call in calls:
            results = four.run(ranks.failing, step, call, error)
            assert "out of memory" in str(results.pop(1)), (step, call)
            for other in results:
                assert type(other) is RuntimeError
                assert str(other) == f"distributed_topk_mask failed on rank 1 with {error.__name__}: out of memory"
    assert [r[2] for r in four.run(ranks.failing, "threshold_mask", 99, error)] == [[77, 0]] * 4


@pytest.mark.parametrize("step", ["digit_histogram", "threshold_mask"])
def test_a_rank_that_dies(tmp_path, step):
    world = World(3, tmp_path, timeout=30)
    results = world.run(ranks.dying, step, 1, seconds=20)
    assert type(results.pop(1)) is ConnectionError
    for other in results:
        assert type(other) is RuntimeError
        assert str(other).startswith("distributed_topk_mask lost its group while exchanging")
    world.close()


def test_placements_that_are_refused(four):
    tensor = torch.ones(8, 4)
    for place in (Partial(), _StridedShard(0, split_factor=2)):
        for result in four.run(ranks.placed, tensor, place):
            assert type(result) is ValueError
            assert str(result) == f"shards[0] must be placed by Shard and Replicate, got {place}"
