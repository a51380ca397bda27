"""The local steps of the selection over ranks: counted and written score by score, and native against reference."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from cases import isa_levels

from sparseprune.ops import topk_shards
from sparseprune.ops.bitmask import as_rows
from sparseprune.ops.mask_bits import pack_reference, unpack_reference
from sparseprune.ops.topk_shards import Order

INF, NAN = float("inf"), float("nan")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ORDERS = [Order(w, g, a) for w in (False, True) for g in (True, False) for a in (True, False)]


def key_of(value, order):
    """From the bytes of the number: sign and magnitude."""
    [bits] = struct.unpack(*(("<q", struct.pack("<d", value)) if order.wide else ("<i", struct.pack("<f", value))))
    magnitude = bits & (2 ** (order.bits - 1) - 1)
    key = -magnitude if bits < 0 and not order.abs else magnitude
    return key if order.largest else -key


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_keys_order_as_scores_do(order):
    values = [-INF, -3e38, -1.5, -1.0, -(2.0**-126), -1e-45, -0.0, 0.0, 1e-45, 2.0**-126, 1.0, 1.5, 3e38, INF]
    dtype = torch.float64 if order.wide else torch.float32
    values = torch.tensor(values, dtype=dtype).tolist()
    keys = order.keys(torch.tensor(values, dtype=dtype)).tolist()
    compared = [(abs(v) if order.abs else v) * (1 if order.largest else -1) for v in values]
    for a, key in zip(compared, keys, strict=True):
        assert [key < other for other in keys] == [a < b for b in compared]
        assert order.lowest <= key < -order.lowest
    for value, key in zip(values, keys, strict=True):
        assert order.value(key) == (abs(value) if order.abs else value)
        assert math.copysign(1, order.value(key)) == 1 or order.value(key) < 0


@pytest.mark.parametrize("backend", topk_shards.HISTOGRAM)
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_steps_against_counting_one_by_one(order, backend):
    dtype = torch.float64 if order.wide else torch.float16
    scores = torch.randint(-4, 5, (5, 70)).to(dtype) / 4
    scores[0, 3] = scores[2, 66] = NAN
    competing = torch.rand(5, 70) < 0.7
    competing[0, 3], competing[2, 66] = True, False
    words = pack_reference(competing)
    numbers = [v for v, c in zip(scores.flatten().tolist(), competing.flatten().tolist(), strict=True) if c and v == v]
    keys = [key_of(v, order) for v in numbers]
    low = order.lowest
    for shift, width in topk_shards.digits(order.bits):
        found = topk_shards.digit_histogram(scores, words, order, low, shift, width, backend).tolist()
        inside = [(key - low) >> shift for key in keys]
        assert found[:-1] == [inside.count(d) for d in range(2**width)] and found[-1] == 1
        low += max(d for d in inside if d < 2**width) << shift
    assert low == max(keys)
    scores = scores.nan_to_num(0.25)
    flat = [key_of(v, order) if c else None for v, c in zip(scores.flatten().tolist(), competing.flatten().tolist())]
    threshold = key_of(0.5, order)
    for quota in (0, 1, 7, 1000):
        kept, left = [], quota
        for key in flat:
            kept.append(key is not None and (key > threshold or (key == threshold and left > 0)))
            left -= key == threshold
        words_, counts = topk_shards.threshold_mask(scores, words, order, threshold, quota, backend)
        assert unpack_reference(words_, 70).flatten().tolist() == kept
        assert counts.tolist() == [sum(k is not None and k > threshold for k in flat), flat.count(threshold)]


@pytest.mark.parametrize("isa", isa_levels())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_native_steps_agree_with_the_reference(isa, dtype, monkeypatch):
    monkeypatch.setenv("SPARSEPRUNE_CPU_ISA", isa)
    for shape in ((3, 5), (7, 64), (130, 117), (40_000,), (0, 4), (4, 0)):
        scores = (torch.randn(shape) * 2.0 ** torch.randint(-20, 15, shape)).to(dtype)
        for i, value in enumerate((0.0, -0.0, 1.0, -1.0, INF, -INF, NAN, 6e-8, 1e-40)):
            scores.view(-1)[i :: 17 + i] = value
        for wide in {dtype == torch.float64, True}:
            for largest in (True, False):
                for absolute in (True, False):
                    words = None if absolute else pack_reference(torch.rand(as_rows(shape)) < 0.6)
                    _compare_steps(scores, words, Order(wide, largest, absolute))
    strided = torch.randn(9, 6, 3, 5).to(dtype).to(memory_format=torch.channels_last)
    _compare_steps(strided, None, Order(dtype == torch.float64, True, False))


def _compare_steps(scores, words, order):
    low = order.lowest
    for shift, width in topk_shards.digits(order.bits):
        args = (scores, words, order, low, shift, width)
        torch.set_num_threads(3)
        native, reference = (topk_shards.digit_histogram(*args, b) for b in ("native", "reference"))
        assert torch.equal(native, reference), (order, shift)
        low += int(native[:-1].argmax()) << shift
    numbers = scores.nan_to_num(1.0)
    for threshold in (order.lowest, 0, low, int(order.keys(torch.ones(1, dtype=scores.dtype)))):
        for quota in (0, 1, 50, topk_shards.ALL):
            args = (numbers, words, order, threshold, quota)
            native, reference = (topk_shards.threshold_mask(*args, b) for b in ("native", "reference"))
            assert torch.equal(native[0], reference[0]) and torch.equal(native[1], reference[1]), (order, threshold)
