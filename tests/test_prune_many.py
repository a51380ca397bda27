"""prune_many(): every run is to the bit the one that prune() makes alone, and what runs share is computed once."""

from __future__ import annotations

import pytest
import torch
from criteria.networks import residual_net

import sparseprune as sp
from sparseprune.progress import Progress

IMAGE = torch.ones(1, 3, 8, 8)


class Counting:
    """SynFlow that counts its plans and the masks that it scores."""

    example_input = IMAGE

    def __init__(self, dtype=None):
        self.plans, self.calls, self.criterion = 0, 0, sp.SynFlow(IMAGE, dtype)

    def __call__(self, model, params):
        return self.plan(model, params)()

    def plan(self, model, params):
        self.plans += 1
        step = self.criterion.plan(model, params)

        def products(masks):
            self.calls += 1
            return step.products(masks)

        return products


DENSITIES = [0.9, 0.5, 0.3, 0.1, 0.02, 0.3]
VARIED = {
    "density": {"density": DENSITIES, "steps": 9},
    "keep": {"keep": [700, 50, 200], "steps": 6, "min_per_layer": 1},
    "floors": {"density": 0.05, "min_per_layer": [0, 2, 0.03, 8], "steps": 8},
    "steps": {"sparsity": [0.8, 0.9, 0.8], "steps": [1, 7, 3]},
    "schedule": {"density": 0.2, "steps": 5, "schedule": [sp.linear, sp.cubic, sp.exponential]},
    "pattern": {"density": 0.3, "steps": 4, "pattern": [sp.Global(), sp.LayerWise(), sp.LayerWise(sp.erk)]},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("given", VARIED.values(), ids=VARIED)
def test_every_run_is_that_of_prune_alone(given, dtype):
    model, criterion = residual_net(2), Counting(dtype)
    found = sp.prune_many(model, criterion, **given)
    count = max(len(v) for v in given.values() if isinstance(v, list))
    rows = [{n: v[i] if isinstance(v, list) else v for n, v in given.items()} for i in range(count)]
    alone = [sp.prune(model, sp.SynFlow(IMAGE, dtype), **row) for row in rows]
    assert found == alone and len({m.digest() for m in found}) > 1
    assert criterion.plans == 1 and criterion.calls < sum(row["steps"] for row in rows)
    assert [str(m.summary) for m in found] == [str(m.summary) for m in alone]


def test_runs_are_scored_together_while_they_have_the_same_masks():
    model, criterion = residual_net(2), Counting()
    sp.prune_many(model, criterion, density=[0.5, 0.2, 0.1], steps=7)
    assert criterion.calls == 1 + 3 * 6  # all start whole
    criterion = Counting()
    sp.prune_many(model, criterion, density=[0.5, 0.2, 0.1])
    assert criterion.calls == 1
    criterion, counts = Counting(), []
    first, second = sp.prune_many(
        model, criterion, density=0.05, min_per_layer=[0, 8], steps=10, trace=True, progress=lambda p: counts.append(p)
    )
    apart = next(i for i, (a, b) in enumerate(zip(first.trace, second.trace, strict=True)) if a.counts != b.counts)
    assert 0 < apart < 9 and criterion.calls == (apart + 1) + 2 * (9 - apart)
    assert [p.run for p in counts[: 2 * apart + 2]] == [0, 1] * (apart + 1)
    assert sorted((p.run, p.step) for p in counts) == [(run, step) for run in (0, 1) for step in range(1, 11)]


def test_trace_and_progress_are_those_of_each_run():
    model = residual_net()
    seen = []
    found = sp.prune_many(model, sp.SynFlow(IMAGE), density=[0.4, 0.1], steps=[2, 3], trace=True, progress=seen.append)
    for number, (masks, (density, steps)) in enumerate(zip(found, [(0.4, 2), (0.1, 3)], strict=True)):
        told = []
        alone = sp.prune(model, sp.SynFlow(IMAGE), density=density, steps=steps, trace=True, progress=told.append)
        assert masks.trace == alone.trace and len(alone.trace) == steps
        assert [p for p in seen if p.run == number] == [Progress(p.step, steps, p.kept, p.total, number) for p in told]


def test_a_criterion_without_a_plan_is_called_for_one_run_after_the_other():
    model = residual_net()
    found = sp.prune_many(model, sp.Random(torch.Generator().manual_seed(1)), density=[0.5, 0.1], steps=3)
    random = sp.Random(torch.Generator().manual_seed(1))
    assert found == [sp.prune(model, random, density=density, steps=3) for density in (0.5, 0.1)]


def test_models_and_starts_of_their_own():
    models, criterion = [residual_net(), residual_net()], Counting()
    found = sp.prune_many([models[0], models[1], models[0]], criterion, density=[0.3, 0.3, 0.05], steps=4)
    alone = [(models[0], 0.3), (models[1], 0.3), (models[0], 0.05)]
    assert found == [sp.prune(m, sp.SynFlow(IMAGE), density=d, steps=4) for m, d in alone]
    assert criterion.plans == 2 and criterion.calls == 7 + 4
    further = sp.prune_many(models[0], sp.SynFlow(IMAGE), density=0.02, masks=[found[0], found[2]], steps=2)
    starts = (found[0], found[2])
    assert further == [sp.prune(models[0], sp.SynFlow(IMAGE), density=0.02, masks=m, steps=2) for m in starts]


def test_one_run_and_none():
    model = residual_net()
    assert sp.prune_many(model, sp.Magnitude(), density=0.5) == [sp.prune(model, sp.Magnitude(), density=0.5)]
    assert sp.prune_many(model, sp.Magnitude(), density=[]) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"density": [0.5, 0.1], "steps": [1]},
            r"lists must have an entry for each run, got .*'density': 2, 'steps': 1",
        ),
        ({"density": [0.5, 1.5]}, r"density must be in \(0, 1\], got 1.5"),
        ({"density": [0.5, 0.1], "keep": 3}, "exactly one of sparsity, density and keep"),
        ({"density": [0.5, 0.1], "min_per_layer": [0, 10**6]}, "min_per_layer must"),
        ({"density": 0.5, "masks": [None, {}]}, "masks must be Masks"),
    ],
    ids=range(5),
)
def test_what_is_wrong_is_said_before_anything_runs(given, message):
    def never(model, params):
        raise AssertionError("a criterion was called")

    with pytest.raises((ValueError, TypeError), match=message):
        sp.prune_many(residual_net(), never, **given)
