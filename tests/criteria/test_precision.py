"""SynFlow's inexact modes: how far their masks are from float64's, that scaling holds them in range, who else they touch."""

from __future__ import annotations

import math

import pytest
import torch
from criteria.networks import conv_chain, mlp, residual_net, weights
from torch import nn

import sparseprune as sp
from sparseprune.criteria import SynFlow
from sparseprune.criteria.linear_run import power_of_two

IMAGE = torch.ones(1, 3, 8, 8)
NETWORKS = {
    "residual": (lambda: residual_net(3), IMAGE),
    "mlp": (lambda: mlp(64, 100, 100, 10), torch.ones(1, 64)),
    "lenet5": (sp.models.lenet5, torch.ones(1, 1, 28, 28)),
}


@pytest.mark.parametrize(("precision", "share"), [("tf32", (0.0, 0.02)), ("bfloat16", (0.01, 0.1))])
@pytest.mark.parametrize("network", NETWORKS)
def test_masks_are_near_those_of_float64(network, precision, share):
    """Of the weights kept at density 0.1, in one step and after twenty; bfloat16 rounds to 1 in 256."""
    make, example = NETWORKS[network]
    model = make()
    for steps, most in zip((1, 20), share, strict=True):
        exact = sp.prune(model, SynFlow(example, torch.float64), density=0.1, steps=steps)
        masks = sp.prune(model, SynFlow(example, precision=precision), density=0.1, steps=steps)
        assert masks.count() == exact.count()
        assert (exact & ~masks).count() <= most * exact.count()


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_scores_are_near_and_float32(precision):
    model = residual_net(2)
    step = SynFlow(IMAGE, precision=precision).plan(model, weights(model))
    exact = SynFlow(IMAGE, torch.float64).plan(model, weights(model))
    scores, expected = step(), exact()
    ratio = 2.0 ** (step.log2_flow - exact.log2_flow)
    assert abs(ratio - 1) < 0.05 and "as it is" in step.reason and step.operations is None
    rounds = [expected[n] / s.double() for n, s in scores.items()]
    middle = torch.cat([r.flatten() for r in rounds]).median()
    for name, score in scores.items():
        assert score.dtype == torch.float32
        torch.testing.assert_close(score.double() * middle, expected[name], rtol=0.1, atol=0)
    rounded = torch.cat([s.flatten() for s in scores.values()]).bfloat16().float()
    assert not torch.equal(rounded, torch.cat([s.flatten() for s in scores.values()]))  # weights are not


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_scaling_holds_it_in_range(precision):
    model, example = mlp(64, *[256] * 50, 10), torch.ones(1, 64)
    with pytest.raises(ValueError, match="dtype must hold the flow R"):
        SynFlow(example, scale=False, precision=precision)(model, weights(model))
    step = SynFlow(example, precision=precision).plan(model, weights(model))
    assert all(score.isfinite().all() and score.any() for score in step().values())
    exact = SynFlow(example, torch.float64).plan(model, weights(model))
    exact()
    assert 128 < exact.log2_flow == pytest.approx(step.log2_flow, abs=0.2)


def test_powers_of_two_of_bfloat16_are_those_of_float32():
    for value in (1.0, 0.75, 3e38, 1e-30, 0.0, 2.0**-126):
        largest = torch.tensor(value).bfloat16()
        factor, exponent = power_of_two(largest)
        expected = power_of_two(largest.float())
        assert factor.dtype == torch.bfloat16 and (float(factor), int(exponent)) == tuple(map(float, expected))
        assert value == 0 or 1 <= float(factor) * float(largest) < 2 or math.frexp(value)[1] - 1 > 126


class Watching(nn.Module):
    """Remembers what it was computed in."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append((x.dtype, torch.get_float32_matmul_precision()))
        return x


def test_what_is_computed_in_what():
    watching = Watching()
    model = nn.Sequential(*conv_chain(), watching).double()
    expected = {
        "tf32": (torch.float32, "high"), "bfloat16": (torch.bfloat16, "highest"), None: (torch.float64, "highest"),
    }  # fmt: skip
    default = sp.prune(model, SynFlow(IMAGE), density=0.2, steps=3)
    before = torch.get_float32_matmul_precision()
    for precision, seen in expected.items():
        watching.seen.clear()
        step = SynFlow(IMAGE, precision=precision).plan(model, weights(model))
        watching.seen.clear()
        step()
        assert watching.seen == [seen] and torch.get_float32_matmul_precision() == before
    assert sp.prune(model, SynFlow(IMAGE), density=0.2, steps=3) == default


def test_refuses():
    with pytest.raises(ValueError, match="precision must be None, 'tf32' or 'bfloat16', got 'fp16'"):
        SynFlow(IMAGE, precision="fp16")
    with pytest.raises(ValueError, match=r"precision must be None where dtype is torch.float64, got 'tf32'"):
        SynFlow(IMAGE, torch.float64, precision="tf32")
