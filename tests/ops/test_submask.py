"""A mask within a mask, and the scores of survivors: against plain Python and against selection among all slots."""

from __future__ import annotations

import pytest
import torch
from cases import Backend, backends

from sparseprune import BitMask, topk_mask
from sparseprune.ops.submask import SPREAD, keep_within, within, zero_pruned_
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
