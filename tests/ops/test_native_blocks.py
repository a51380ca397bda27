"""The native CPU kernels where their work is cut: several threads, panels, blocks, chunks; against the reference."""

from __future__ import annotations

import random
from functools import partial

import cases
import pytest
import torch
from cases import CONV, LINEAR, OPS, Backend, conv_inputs, isa_levels, linear_inputs, packed_inputs
from oracle import assert_as_accurate, assert_same_bits

pytestmark = pytest.mark.skipif(not isa_levels(), reason="this installation was built without the CPU library")
LEVELS = isa_levels() or ["portable"]
THREADS = (1, 3)
# Batches on both sides of the small-batch paths (8; 32 for the input gradient) and of a panel (64 floats of AVX-512),
# rows of many words, panels cut among threads for want of rows, and a gradient too large for the caches.
LAYERS = {
    "eight": (linear_inputs, (8, 1100, 260, 0.3)),
    "few": (linear_inputs, (3, 1100, 260, 0.02)),
    "nine": (linear_inputs, (9, 1100, 260, 0.3)),
    "panels": (linear_inputs, (150, 523, 301, 0.2)),
    "thirty": (linear_inputs, (30, 1100, 260, 0.3)),
    "narrow": (linear_inputs, (300, 60, 2, 0.6)),
    "large": (linear_inputs, (33, 1403, 3001, 0.02)),
    "tall": (linear_inputs, (65, 70, 3001, 0.1)),
    "images": (conv_inputs, (5, 19, 23, (17, 16), (3, 3), (1, 1), (1, 1), (1, 1), 1, 0.3)),
    "strides": (conv_inputs, (3, 12, 26, (31, 30), (3, 5), (2, 3), (1, 2), (1, 2), 2, 0.4)),
    "channels": (conv_inputs, (2, 130, 70, (6, 7), (1, 1), (1, 1), (0, 0), (1, 1), 1, 0.2)),
    "depthwise": (conv_inputs, (2, 48, 48, (14, 15), (3, 3), (1, 1), (1, 1), (1, 1), 48, 0.6)),
    "blocks of channels": (conv_inputs, (2, 190, 40, (9, 8), (3, 3), (1, 1), (1, 1), (1, 1), 1, 0.3)),
    "line": (conv_inputs, (2, 3, 4, (1, 5000), (1, 9), (1, 2), (0, 4), (1, 1), 1, 0.5)),
    "small maps": (conv_inputs, (40, 70, 60, (4, 4), (3, 3), (2, 2), (1, 1), (1, 1), 1, 0.1)),
}


def op_named(name):
    return next(op for op in OPS if op.name == name)


def on_threads(op, level, inputs):
    """The results at each number of threads, as lists."""
    results = []
    for threads in THREADS:
        torch.set_num_threads(threads)
        with Backend("native", level).forced():
            result = op.run(*inputs, "native")
        results.append(result if isinstance(result, list) else [result])
    return results


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize("storage", ["masked", "packed"])
@pytest.mark.parametrize("layer", LAYERS)
def test_layers(monkeypatch, layer, storage, kind, dtype, level):
    make, size = LAYERS[layer]
    linear = make is linear_inputs
    monkeypatch.setitem(LINEAR if linear else CONV, "cut", size)
    family = f"{storage}_linear" if linear else f"{storage}_conv2d"
    if storage == "packed":
        make = partial(packed_inputs, make)
        kind = kind.replace("weight", "values")
    op = op_named(family if kind == "forward" else f"{family}_{kind}")
    inputs = make(kind, "cut")(torch.float32, "cpu")
    floating = [a.to(dtype) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in inputs]
    one, several = on_threads(op, level, floating)
    assert_same_bits(several, one)
    # Sums this long in float64 have no better oracle than float32's.
    assert_as_accurate(one[0].float(), op.implementations["reference"].run, inputs)


def random_conv(seed):
    """Any kernel, stride, padding, dilation and groups; maps of one position to many tiles."""
    r = random.Random(seed)
    groups, kernel = r.choice((1, 1, 2, 3)), (r.randint(1, 5), r.randint(1, 5))
    stride, padding, dilation = ((r.randint(a, b), r.randint(a, b)) for a, b in ((1, 3), (0, 3), (1, 3)))
    size = tuple(
        max(1, d * (k - 1) + 1 - 2 * p) + r.choice((0, r.randint(0, 9), r.randint(0, 60)))
        for k, p, d in zip(kernel, padding, dilation, strict=True)
    )
    channels = (groups * r.randint(1, 14) for _ in range(2))
    return (r.randint(1, 5), *channels, size, kernel, stride, padding, dilation, groups, r.choice((0.02, 0.3, 1.0)))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize("seeds", [range(0, 100), range(100, 200)], ids=["first", "second"])
def test_random_convolutions(monkeypatch, seeds, kind, level):
    for seed in seeds:
        monkeypatch.setitem(CONV, "random", random_conv(seed))
        op = op_named("masked_conv2d" if kind == "forward" else f"masked_conv2d_{kind}")
        inputs = conv_inputs(kind, "random")(torch.float32, "cpu")
        # Sums of integers have no rounding error, so nothing is left to tolerate.
        inputs = [(4 * a).round() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in inputs]
        one, several = on_threads(op, level, inputs)
        assert_same_bits(several, one)
        assert_same_bits(one, [op.implementations["reference"].run(*inputs)])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("density", [0.02, 0.3])
@pytest.mark.parametrize("kind", ["", "_input_grad"])
def test_a_sample_of_five_to_eight_has_the_same_bits(monkeypatch, kind, density, level):
    """One path takes up to eight samples, and from five on sums them alike."""
    monkeypatch.setitem(LINEAR, "eight", (8, 1100, 260, density))
    samples, *rest = linear_inputs(kind.removeprefix("_") or "forward", "eight")(torch.float32, "cpu")
    op = op_named(f"masked_linear{kind}")
    with Backend("native", level).forced():
        eight, five = (op.run(samples[:n], *rest, "native") for n in (8, 5))
    assert_same_bits([eight[:5]], [five])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", [(700, 1003), (5, 140_001), (3000, 130)])
def test_masks(shape, level):
    for op in OPS[:3]:
        kind = op.name.removesuffix("_mask")
        inputs = cases.mask_inputs(kind, shape, 0.4)(torch.float32, "cpu")
        one, several = on_threads(op, level, inputs)
        assert_same_bits(several, one)
        assert_same_bits(one, [op.implementations["reference"].run(*inputs)])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("values", ["normal", "few", "close"])
def test_selection(values, dtype, level):
    """Two dozen chunks; all kept or none, thresholds above and below, among equal scores and among close ones."""
    sizes, op = ((600, 1003), (211_111,)), op_named("topk_mask")
    make = {
        "normal": lambda size: torch.randn(size, dtype=dtype),
        "few": lambda size: torch.randint(-3, 4, size).to(dtype) / 4,
        "close": lambda size: 1 + torch.randint(0, 9, size).to(dtype) * torch.finfo(dtype).eps,
    }[values]
    scores = [make(size) for size in sizes]
    scores = [score.view(-1, score.shape[-1]) for score in scores]
    flat = torch.cat([score.flatten() for score in scores])
    order = flat.sort(descending=True, stable=True).indices
    for k in (1, len(flat) // 50, len(flat) // 2, len(flat) - 1):
        keep = torch.zeros(len(flat), dtype=torch.bool)
        keep[order[:k]] = True
        one, several = on_threads(op, level, [scores, [], [], [0, 0], k, None, True])
        assert_same_bits(several, one)
        parts = keep.split([score.numel() for score in scores])
        expected = [cases.mask_bits.pack_reference(p.view_as(s)) for p, s in zip(parts, scores, strict=True)]
        assert_same_bits(one[:-2], expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("tensor", [0, 1, 2])
def test_the_first_nan_of_several_threads_is_reported(tensor, level):
    """Also where a later thread sees another NaN, or none."""
    scores = [torch.zeros(200, 1000) for _ in range(3)]
    for later in (tensor, 2):
        scores[later][-1, -1] = float("nan")
        for result in on_threads(op_named("topk_mask"), level, [scores, [], [], [0] * 3, 9, None, True]):
            assert result[-2].tolist()[:2] == [tensor, 600_000]
            assert result[-1].isnan().all()
