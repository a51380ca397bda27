"""Every op beside its reference, dense and the best of the rest; the cases of one group are read as ratios."""

from __future__ import annotations

import numpy
import pytest
import torch
import torch.nn.functional as F

import sparseprune as sp
from sparseprune.ops.mask_bits import pack_mask

from .published import published_threshold

LINEAR = [(batch, density) for batch in (1, 16, 256) for density in (0.5, 0.1, 0.02)]
CONV = [(batch, density) for batch in (1, 8) for density in (0.5, 0.1, 0.02)]


def _forward_backward(function, x, weight):
    y = function(x, weight)
    return torch.autograd.grad(y, (x, weight), torch.ones_like(y))


def _sides(masked, dense, mask, keep):
    return {
        "eager W*M": lambda x, w: dense(x, w * keep),
        "dense": dense,
        "reference": lambda x, w: masked(x, w, mask, backend="reference"),
        "native": lambda x, w: masked(x, w, mask, backend="native"),
        "auto": lambda x, w: masked(x, w, mask),
    }


def _time(benchmark, sides, side, x, weight):
    expected = _forward_backward(sides["eager W*M"], x, weight)
    actual = _forward_backward(sides[side], x, weight)
    if side != "dense":
        torch.testing.assert_close(actual[0], expected[0], rtol=1e-3, atol=1e-3)
    benchmark.pedantic(_forward_backward, args=(sides[side], x, weight), rounds=7, warmup_rounds=2)


@pytest.mark.parametrize("side", ["eager W*M", "dense", "reference", "native", "auto"])
@pytest.mark.parametrize(("batch", "density"), LINEAR)
def test_linear(benchmark, batch, density, side):
    benchmark.group = f"linear 2048x2048, forward + backward, batch {batch}, density {density}"
    torch.manual_seed(0)
    keep = torch.rand(2048, 2048) < density
    x = torch.randn(batch, 2048, requires_grad=True)
    weight = (torch.randn(2048, 2048) * keep / 45).requires_grad_()
    sides = _sides(sp.masked_linear, F.linear, sp.BitMask.from_bool(keep), keep.float())
    _time(benchmark, sides, side, x, weight)


@pytest.mark.parametrize("side", ["eager W*M", "dense", "reference", "native", "auto"])
@pytest.mark.parametrize(("batch", "density"), CONV)
def test_conv(benchmark, batch, density, side):
    benchmark.group = f"conv 3x3 256->256 at 14x14, forward + backward, batch {batch}, density {density}"
    torch.manual_seed(0)
    keep = torch.rand(256, 256, 3, 3) < density
    x = torch.randn(batch, 256, 14, 14, requires_grad=True)
    weight = (torch.randn(256, 256, 3, 3) * keep / 48).requires_grad_()

    def masked(x, w, mask, **options):
        return sp.masked_conv2d(x, w, mask, padding=1, **options)

    def dense(x, w):
        return F.conv2d(x, w, padding=1)

    _time(benchmark, _sides(masked, dense, sp.BitMask.from_bool(keep), keep.float()), side, x, weight)


def _by_partition(scores, k):
    flat = torch.cat([s.flatten() for s in scores]).numpy()
    threshold = numpy.partition(flat, len(flat) - k)[len(flat) - k]
    return [s >= float(threshold) for s in scores]


THRESHOLDS = {
    "cat + kthvalue": published_threshold,
    "cat + numpy.partition": _by_partition,
    "reference": lambda scores, k: sp.topk_mask(scores, k, backend="reference"),
    "native": lambda scores, k: sp.topk_mask(scores, k, backend="native"),
}


@pytest.mark.parametrize("zeros", [0.0, 0.9])
@pytest.mark.parametrize("side", THRESHOLDS)
def test_threshold(benchmark, side, zeros):
    """8 M scores in 50 tensors, keep 5 %. Bound: two reads of 32 MB, about 1 ms on two cores."""
    benchmark.group = f"global threshold, 8 M scores in 50 tensors, {zeros:.0%} zeros"
    torch.manual_seed(0)
    scores = [torch.randn(400, 400).mul(torch.randn(400, 400)).abs() for _ in range(50)]
    scores = [torch.where(torch.rand_like(s) < zeros, 0, s) for s in scores]
    k = 400_000
    kept = sum(int(m.count() if isinstance(m, sp.BitMask) else m.sum()) for m in THRESHOLDS[side](scores, k))
    assert kept == k, f"{kept} kept instead of {k}"
    benchmark.pedantic(THRESHOLDS[side], args=(scores, k), rounds=7, warmup_rounds=1)


PACKINGS = {
    "numpy.packbits": lambda keep: numpy.packbits(keep.numpy(), axis=1, bitorder="little"),
    "reference": lambda keep: pack_mask(keep, backend="reference"),
    "native": lambda keep: pack_mask(keep, backend="native"),
}


@pytest.mark.parametrize("side", PACKINGS)
def test_pack(benchmark, side):
    """16 M booleans. Bound: one read of 16 MB, 0.2 ms on two cores."""
    benchmark.group = "pack 4096x4096 booleans"
    keep = torch.rand(4096, 4096) < 0.5
    words = PACKINGS[side](keep)
    bits = numpy.unpackbits(numpy.asarray(words).view(numpy.uint8), axis=1, bitorder="little")
    assert (bits == keep.numpy()).all()
    benchmark.pedantic(PACKINGS[side], args=(keep,), rounds=9, warmup_rounds=2)
