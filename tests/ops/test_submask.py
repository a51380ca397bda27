"""A mask within a mask, and the scores of survivors: against plain Python and against selection among all slots."""

from __future__ import annotations

import math

import pytest
import torch
from cases import Backend, backends

from sparseprune import BitMask, topk_mask
from sparseprune.ops.native import loaded
from sparseprune.ops.submask import (
    SPREAD,
    collect_values,
    is_zero_outside,
    keep_within,
    spread_values_,
    within,
    zero_pruned_,
)
from sparseprune.ops.survivor_scores import SurvivorScores

BACKENDS = [*backends(SPREAD), Backend("reference"), Backend("auto")]


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (5, 3, 3, 3), (7, 64), (3, 65), (40, 130), (200,), (0, 4)], ids=str)
@pytest.mark.parametrize("density", [0.0, 0.1, 0.6, 1.0])
def test_within_and_back(backend, shape, density):
    mask, part = torch.rand(shape) < density, torch.rand(shape) < 0.7
    expected = [bool(p) for m, p in zip(mask.flatten().tolist(), part.flatten().tolist(), strict=True) if m]
    whole, some = BitMask.from_bool(mask), BitMask.from_bool(part)
    with backend.forced():
        kept, count, others = within(whole, some, len(expected), backend=backend.name)
        back = keep_within(whole, kept, backend=backend.name)
    assert kept.to_bool().tolist() == expected
    assert (count, others) == (sum(expected), int((part & ~mask).sum()))
    assert torch.equal(back.to_bool(), mask & part)
    assert torch.equal(back.words, BitMask.from_bool(mask & part).words)  # no stray bits


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (7, 64), (3, 65), (40, 130)], ids=str)
def test_pruned_slots_become_zero_whatever_they_held(backend, shape):
    mask, weight = torch.rand(shape) < 0.5, torch.rand(shape)
    weight[~mask] = torch.nan
    expected = [w if m else 0.0 for w, m in zip(weight.flatten().tolist(), mask.flatten().tolist(), strict=True)]
    with backend.forced():
        zero_pruned_(weight, BitMask.from_bool(mask), backend=backend.name)
    assert weight.flatten().tolist() == expected


SHAPES = [(1, 1), (7, 64), (3, 65), (40, 130), (300, 784), (0, 4), (4, 0)]


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_values_are_collected_and_spread_row_by_row(backend, shape, dtype, density):
    keep, weight = torch.rand(shape) < density, torch.randn(shape, dtype=dtype)
    mask, other, new = BitMask.from_bool(keep), torch.full(shape, torch.nan, dtype=dtype), -weight
    with backend.forced():
        values = collect_values(weight, mask, backend=backend.name)
        spread_values_(other, mask, values, backend=backend.name)
        spread_values_(new, mask, values, backend=backend.name)
    assert values.tolist() == [w for row, k in zip(weight, keep, strict=True) for w in row[k].tolist()]
    assert torch.equal(other[keep], weight[keep]) and bool(other[~keep].isnan().all())
    assert torch.equal(new, torch.where(keep, weight, -weight))


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [1e-45, -2.0, math.nan, math.inf])
def test_one_value_outside_is_found_wherever_it_is(backend, shape, dtype, value):
    keep = torch.rand(shape) < 0.5
    mask, weight = BitMask.from_bool(keep), torch.where(keep, torch.randn(shape, dtype=dtype), -0.0)
    with backend.forced():
        assert is_zero_outside(weight, mask.words, backend=backend.name) is True
        for at in (~keep).nonzero()[[0, -1]].tolist() if not keep.all() else ():
            wrong = weight.clone()
            wrong[tuple(at)] = value
            assert is_zero_outside(wrong, mask.words, backend=backend.name) is False


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
def test_what_is_written_is_seen_by_autograd(backend):
    weight, mask = torch.randn(3, 70), BitMask.from_bool(torch.rand(3, 70) < 0.5)
    x = torch.ones(3, 70, requires_grad=True)
    with backend.forced():
        for write in (
            lambda: zero_pruned_(weight, mask, backend=backend.name),
            lambda: spread_values_(weight, mask, torch.ones(mask.count()), backend=backend.name),
        ):
            loss = (x * weight).sum()
            write()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()


def test_values_must_be_as_many_as_are_kept():
    if loaded()["cpu"]:
        pytest.skip(loaded()["cpu"])
    with pytest.raises(RuntimeError, match="`values` must have size 2 in dimension 0, got 3"):
        spread_values_(torch.ones(1, 3), BitMask.from_bool(torch.tensor([[True, False, True]])), torch.ones(3))


@pytest.mark.parametrize("options", [{}, {"floors": [9, 0, 2]}, {"ceilings": [5, 40, 30]}, {"largest": False}])
def test_selection_among_survivors_is_selection_among_all(options):
    shapes = [(8, 7), (5, 3, 3, 3), (90,)]
    scores = [torch.randint(0, 6, shape).float() for shape in shapes]  # ties, so that their order shows
    masks = [BitMask.from_bool(torch.rand(shape) < 0.5) for shape in shapes]
    survivors = [SurvivorScores(s[m.to_bool()], m) for s, m in zip(scores, masks, strict=True)]
    k = 40
    expected = topk_mask(scores, k, masks=masks, **options)
    equal = [BitMask.from_bool(mask.to_bool()) for mask in masks]
    for given, among in ((survivors, masks), (survivors, equal), ([scores[0], *survivors[1:]], masks)):
        found = topk_mask(given, k, masks=among, **options)
        assert found.masks == expected.masks
        assert found.threshold == expected.threshold and torch.equal(found.counts, expected.counts)
    fewer = [mask & BitMask.from_bool(torch.rand(mask.shape) < 0.9) for mask in masks]
    assert topk_mask(survivors, 20, masks=fewer).masks == topk_mask(scores, 20, masks=fewer).masks


def test_survivor_scores_must_fit_their_mask():
    with pytest.raises(ValueError, match=r"values must have shape \(2,\), one for each slot kept, got \(3,\)"):
        SurvivorScores(torch.ones(3), BitMask.from_bool(torch.tensor([[True, False, True]])))
