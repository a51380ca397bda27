"""Runs that read nothing back until their end, and the graph that their steps are replayed from.

No GPU is needed: an operation that would wait for one is refused while a step runs, and a tape stands in for the graph.
"""

from __future__ import annotations

import pytest
import torch
from criteria.networks import conv_chain, mixed_net, residual_net
from tape import Cuda, NoHost
from torch import nn

import sparseprune as sp
from sparseprune.pruning import prunable
from sparseprune.runs import Run
from sparseprune.unread import UnreadRuns, captured

IMAGE = torch.ones(1, 3, 8, 8)


def planned(model, dtype=torch.float64, scale=True):
    step = sp.SynFlow(IMAGE, dtype, scale).plan(model, prunable(model))
    assert step.reads_late
    return step


def run_of(model, density, steps, floor=0):
    start = sp.Masks.ones(prunable(model))
    return Run.plan(start, None, density, None, steps, sp.exponential, sp.Global(), floor)


@pytest.mark.parametrize("make", [residual_net, conv_chain, mixed_net])
@pytest.mark.parametrize("floors", [None, 2])
def test_a_step_reads_nothing_back(make, floors):
    model = make()
    step, masks = planned(model), sp.Masks.ones(prunable(model))
    bounds = None if floors is None else [floors] * len(masks)
    with step.entered(), NoHost():
        scores, reading = step.unread(masks)
        best = sp.topk_mask(list(scores.values()), 100, masks=list(masks.values()), floors=bounds, check=False)
    [flow] = step.read(reading[None])
    expected = sp.prune(model, sp.SynFlow(IMAGE, torch.float64), keep=100, min_per_layer=floors or 0, trace=True)
    assert list(expected.values()) == best.masks and expected.trace[0].log2_flow == flow


def test_what_refuses_reading_does_refuse():
    model = residual_net()
    step = planned(model)
    with NoHost(), pytest.raises(RuntimeError, match="capturing: tolist"):
        step.products(sp.Masks.ones(prunable(model)))
    for read in (lambda x: x.item(), lambda x: x[x > 0], bool, float, torch.nonzero, lambda x: x.to("meta")):
        with NoHost(), pytest.raises(RuntimeError, match="capturing"):
            read(torch.ones(1))


@pytest.mark.parametrize("make", [residual_net, mixed_net])
def test_a_replayed_step_prunes_as_the_loop_does(make):
    model, cuda = make(), Cuda()
    unread = UnreadRuns(planned(model), sp.Masks.ones(prunable(model)), False, cuda)
    assert unread.reason is None
    assert cuda.log == ["side waits for current", "on side", "current waits for side", "capture"]
    for density, steps in ((0.05, 9), (0.3, 4), (1.0, 1)):  # the graph serves run after run
        run, told = run_of(model, density, steps), []
        unread.run(run, lambda run=run, told=told: told.append((run.done, run.kept)), trace=True)
        alone = sp.prune(model, sp.SynFlow(IMAGE, torch.float64), density=density, steps=steps, trace=True)
        assert run.masks == alone and tuple(run.traced) == alone.trace
        assert told == [(t.step, sum(t.counts.values())) for t in alone.trace]
    assert cuda.tapes[0].replays == 9 + 4 + 1


def test_floors_are_kept_without_a_graph():
    model, cuda = residual_net(), Cuda()
    run = run_of(model, 0.1, 6, floor=5)
    unread = UnreadRuns(planned(model), run.masks, True, cuda)
    unread.run(run, lambda: None, trace=False)
    assert "min_per_layer" in unread.reason and not cuda.tapes
    alone = sp.SynFlow(IMAGE, torch.float64)
    assert run.masks == sp.prune(model, alone, density=0.1, steps=6, min_per_layer=5)


class Reading(nn.Module):
    def forward(self, x):
        return x * (2.0 if x.sum().item() > 0 else 1.0)


def test_a_model_that_reads_values_is_not_captured_and_runs_all_the_same():
    model = nn.Sequential(*conv_chain(), Reading())
    unread = UnreadRuns(planned(model), sp.Masks.ones(prunable(model)), False, Cuda())
    assert unread.reason.startswith("a step could not be captured: operation not permitted")
    run = run_of(model, 0.2, 5)
    unread.run(run, lambda: None, trace=False)
    assert run.masks == sp.prune(model, sp.SynFlow(IMAGE, torch.float64), density=0.2, steps=5)


def test_a_flow_out_of_range_is_an_error_when_the_run_ends():
    model = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (192, 1)), nn.Conv1d(192, 4, 1), nn.Conv1d(4, 2, 1))
    step = planned(model, torch.float32, scale=False)
    run = run_of(model, 0.5, 3)
    UnreadRuns(step, run.masks, False, Cuda()).run(run, lambda: None, trace=False)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1e30)
    run, told = run_of(model, 0.5, 3), []
    unread = UnreadRuns(planned(model, torch.float32, scale=False), run.masks, False, Cuda())
    with pytest.raises(ValueError, match=r"dtype must hold the flow R .*torch\.float32"):
        unread.run(run, lambda: told.append(1), trace=False)
    assert len(told) == 3


def test_capture_goes_through_when_nothing_is_refused():
    places, cuda = torch.zeros(3), Cuda()

    def step():
        places.add_(1)

    replay, reason = captured(step, cuda)
    assert reason is None and places.tolist() == [2.0] * 3
    replay()
    assert places.tolist() == [3.0] * 3 and cuda.tapes[0].replays == 1


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_captured_run_is_that_of_each_step():
    model = residual_net().cuda()
    image = IMAGE.cuda()
    step = sp.SynFlow(image, torch.float64).plan(model, prunable(model))
    run = run_of(model, 0.05, 20)
    unread = UnreadRuns(step, run.masks, False, torch.cuda)
    unread.run(run, lambda: None, trace=False)
    masks = run.masks
    run = run_of(model, 0.05, 20)
    while run.done < run.steps:
        run.advance(step.products(run.masks))
    assert masks == run.masks and unread.reason is None
