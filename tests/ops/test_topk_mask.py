"""Exactly k, ties to the lowest index, NaN refused: against a sort, on every backend, for any input."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from cases import backends, score_cases
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseprune import BitMask, Product, topk_mask
from sparseprune.ops import topk_mask as module

NATIVE = backends({"native": None})
INF, NAN = float("inf"), float("nan")


def by_sorting(scores, k, masks=None):
    """The k best by (-score, tensor, flat index), in plain Python."""
    entries = []
    for t, score in enumerate(scores):
        competing = [True] * score.numel() if masks is None else masks[t].flatten().tolist()
        flat = score.double().flatten().tolist()
        entries += [(-v, t, i) for i, (v, c) in enumerate(zip(flat, competing, strict=True)) if c]
    chosen = {(t, i) for _, t, i in sorted(entries)[:k]}
    return [
        torch.tensor([(t, i) in chosen for i in range(s.numel())], dtype=torch.bool).reshape(s.shape)
        for t, s in enumerate(scores)
    ]


def assert_keeps(kept, expected):
    assert [m.to_bool().tolist() for m in kept.masks] == [e.tolist() for e in expected]


VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, -1e-45, 3e38, INF, -INF, 2.0**-126]) | st.floats(
    width=32, allow_nan=False
)


@pytest.mark.parametrize("backend", NATIVE, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_scores_against_sorting(backend, dtype, data):
    sizes = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=4))
    scores = [torch.tensor(data.draw(st.lists(VALUES, min_size=n, max_size=n)), dtype=dtype) for n in sizes]
    masks = None
    if data.draw(st.booleans()):
        masks = [
            torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=torch.bool) for n in sizes
        ]
    competing = sum(sizes) if masks is None else sum(int(m.sum()) for m in masks)
    k = data.draw(st.integers(0, competing))
    bits = None if masks is None else [BitMask.from_bool(m) for m in masks]
    with backend.forced():
        kept = topk_mask(scores, k, masks=bits, backend=backend.name)
    assert sum(m.count() for m in kept.masks) == int(kept.counts.sum()) == k
    assert_keeps(kept, by_sorting(scores, k, masks))


@pytest.mark.parametrize("case", score_cases())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_known_hard_scores(case, dtype, device):
    scores = [s.to(dtype) for s in score_cases()[case]]
    total = sum(s.numel() for s in scores)
    for k in {0, 1, total // 3, total - 1, total} & set(range(total + 1)):
        kept = topk_mask([s.to(device) for s in scores], k)
        assert sum(m.count() for m in kept.masks) == int(kept.counts.sum()) == k
        if total < 2000:
            assert_keeps(kept, by_sorting(scores, k))


def by_lexsort(values, competing, k, largest):
    """Bits of the k best competing values: by value, then by place. ``values`` are float64 and exact."""
    places = np.flatnonzero(competing)
    chosen = places[np.lexsort((places, -values[places] if largest else values[places]))[:k]]
    kept = np.zeros(len(values), dtype=bool)
    kept[chosen] = True
    return kept, values[chosen[-1]] if len(chosen) else np.nan


LEVELS = [b for b in NATIVE if b.name == "native"]


@pytest.mark.parametrize("level", LEVELS, ids=str)
def test_ten_thousand_random_cases_against_sorting(level):
    """Every dtype in any mix, formulas, strides, candidates, ties, signs of zero, denormals, infinities; 1 to 9 threads."""
    r = random.Random(0)
    threads = torch.get_num_threads()
    try:
        with level.forced():
            for case in range(10_000 // len(LEVELS) + 1):
                torch.set_num_threads(r.randint(1, 9) if case % 100 == 0 else 1)
                check_random_case(r, torch.Generator().manual_seed(case), large=case % 100 == 0)
    finally:
        torch.set_num_threads(threads)


def random_operand(r, g, shape, dtype):
    kind = r.randrange(6)
    if kind == 0:
        x = torch.randn(shape, generator=g)
    elif kind == 1:  # ties
        x = torch.randint(-2, 3, shape, generator=g).float()
    elif kind == 2:  # mostly zeros of either sign
        x = torch.randn(shape, generator=g) * (torch.rand(shape, generator=g) > 0.9)
    elif kind == 3:  # the ends of the range
        ends = torch.tensor(
            [0.0, -0.0, INF, -INF, 1.0, torch.finfo(dtype).tiny / 4, torch.finfo(dtype).max], dtype=dtype
        )
        return ends[torch.randint(len(ends), shape, generator=g)]
    elif kind == 4:  # neighbours
        x = 1 + torch.randint(0, 5, shape, generator=g) * torch.finfo(dtype).eps
    else:
        x = torch.arange(math.prod(shape)).float().reshape(shape)
    return x.to(dtype)


def _double(tensor):
    return None if tensor is None else tensor.double()


def check_random_case(r, g, large):
    halves = [torch.float16, torch.bfloat16, torch.float32]
    dtypes = halves if r.random() < 0.7 else [*halves, torch.float64]
    scores, values, masks = [], [], []
    for _ in range(r.randint(1, 3)):
        dims = r.randint(1, 4)
        shape = [r.randint(0, 12 if dims > 1 else 200) for _ in range(dims)]
        if large:
            shape = [r.randint(100, 400), r.randint(100, 400)]
        dtype = r.choice(dtypes)
        weight, gradient = (random_operand(r, g, shape, dtype) for _ in range(2))
        if r.random() < 0.3 and dims > 1:
            weight = weight.transpose(0, -1).contiguous().transpose(0, -1)
        formula = r.choice(["w", "|w|", "w*g", "|w*g|", "|w|*g"])
        product = Product(weight, gradient if "g" in formula else None, formula)
        score = product.tensor()
        nan = (weight * gradient).isnan().flatten() | score.isnan().flatten()
        masks.append((torch.rand(nan.shape, generator=g) < r.choice([0.0, 0.1, 0.7, 1.0])) & ~nan)
        scores.append(score if formula == "w" and r.random() < 0.5 else product)
        values.append(score)
    if any(v.dtype == torch.float64 for v in values):  # then products are not rounded to float32
        values = [
            Product(*map(_double, (s.weight, s.gradient)), s.formula).tensor() if isinstance(s, Product) else s
            for s in scores
        ]
    if r.random() < 0.5 and not any(v.isnan().any() for v in values):
        masks = [torch.ones_like(m) for m in masks]
        bits = None
    else:
        bits = [BitMask.from_bool(m.reshape(v.shape)) for m, v in zip(masks, values, strict=True)]
    flat, competing = torch.cat([v.double().flatten() for v in values]).numpy(), torch.cat(masks).numpy()
    k, largest = r.randint(0, int(competing.sum())), r.random() < 0.7
    expected, threshold = by_lexsort(flat + 0.0, competing, k, largest)
    found = topk_mask(scores, k, masks=bits, largest=largest, backend="native")
    actual = torch.cat([m.to_bool().flatten() for m in found.masks]).numpy()
    assert (actual == expected).all()
    np.testing.assert_equal(float(found.threshold), float(threshold))
    assert found.counts.tolist() == [int(m.count()) for m in found.masks]


def sampled_scores(words):
    """Which scores of so many words the native kernel looks at first."""
    stride = -(-words // 1024)
    picked = [g * stride + (((g + 1) * 0x9E3779B97F4A7C15 % 2**64) >> 32) % stride for g in range(words // stride + 1)]
    return (torch.tensor([p for p in picked if p < words])[:, None] * 64 + torch.arange(64)).flatten()


@pytest.mark.parametrize("level", LEVELS, ids=str)
@pytest.mark.parametrize(
    "kind", ["high", "low", "ties", "many inside", "two values", "neighbours", "sorted", "nearly all zero"]
)
def test_a_sample_that_misleads_costs_time_and_nothing_else(kind, level):
    """What the sample shows differs from the rest, and more than can be put aside lies between the bounds."""
    count = 64 * 16_000
    x, seen = torch.rand(count), sampled_scores(count // 64)
    if kind == "high":
        x[seen] += 5
    elif kind == "low":
        x[seen] -= 5
    elif kind == "ties":
        x = torch.randint(0, 9, (count,)).float()
        x[seen] = 4.5
    elif kind == "many inside":
        x = 0.5 + x * 1e-4
        x[seen] = torch.rand(len(seen))
    elif kind == "two values":
        x = (x > 0.5).float()
    elif kind == "neighbours":  # half each, and no key between the two bounds
        x = torch.tensor([1.0, 1.0 + 2**-23])[torch.randperm(count) % 2]
    elif kind == "sorted":
        x = torch.arange(count).float()
    else:
        x *= torch.rand(count) > 0.99
    order = x.sort(descending=True, stable=True).indices
    with level.forced():
        for k in (1, 5000, count // 10, count // 2, count // 2 + 3, len(seen), count - 3):
            expected = torch.zeros(count, dtype=torch.bool)
            expected[order[:k]] = True
            found = topk_mask([x.view(100, -1)], k, backend="native")
            assert torch.equal(found.masks[0].to_bool().flatten(), expected)
            assert float(found.threshold) == float(x[order[k - 1]])


def test_more_than_two_to_the_31_scores():
    """One row in memory, seen 2^15 + 1 times: each value is tied across all rows."""
    row = torch.randperm(65536).float()
    found = topk_mask([row.expand(2**15 + 1, 65536)], 10 * (2**15 + 1) + 7)
    assert float(found.threshold) == 65525
    assert found.masks[0].row_counts().tolist() == [11] * 7 + [10] * (2**15 - 6)


MEMORY = """
import resource, sys, torch, sparseprune as sp
x = torch.rand(int(sys.argv[1]))
sp.topk_mask([x[:1_000_000]], 1000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sp.topk_mask([x], len(x) // 10)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_is_the_masks_and_four_megabytes():
    if "native" not in {b.name for b in NATIVE}:
        pytest.skip("this installation was built without the CPU library")
    for count in (20_000_000, 80_000_000):
        run = subprocess.run([sys.executable, "-c", MEMORY, str(count)], capture_output=True, text=True, check=True)
        assert int(run.stdout) < (4 * 2**20 + count / 8) / 1024


def test_denormals_count_where_the_thread_flushes_them():
    tiny = torch.tensor([0.0, 1e-45, 2e-45, -1e-45, 3e-45])
    assert torch.set_flush_denormal(True)
    try:
        found = topk_mask([tiny], 3).masks[0].to_bool()
    finally:
        torch.set_flush_denormal(False)
    assert found.tolist() == [False, True, True, False, True]


def test_many_scores_with_ties_across_chunks():
    """Large enough that several threads share one tensor, with a threshold that cuts through equal scores."""
    scores = [torch.randint(0, 50, (700, 1003)).float(), torch.randint(0, 50, (400_000,)).float()]
    flat = torch.cat([s.flatten() for s in scores])
    order = flat.sort(descending=True, stable=True).indices
    for k in (12_345, 500_000, 1_000_000):
        expected = torch.zeros(len(flat), dtype=torch.bool)
        expected[order[:k]] = True
        kept = topk_mask(scores, k)
        assert torch.equal(torch.cat([m.to_bool().flatten() for m in kept.masks]), expected)


def test_floors():
    scores = [torch.tensor([9.0, 8.0, 7.0]), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0])]
    kept = topk_mask(scores, 4, floors=[0, 2, 5])
    assert_keeps(kept, [torch.tensor([True, False, False]), torch.tensor([False, True, True]), torch.tensor([True])])
    masks = [BitMask.ones((3,)), BitMask.from_bool(torch.tensor([True, False, True])), BitMask.zeros((1,))]
    kept = topk_mask(scores, 3, masks=masks, floors=[1, 2, 1])
    assert_keeps(kept, [torch.tensor([True, False, False]), torch.tensor([True, False, True]), torch.tensor([False])])


def test_ceilings():
    scores = [torch.tensor([9.0, 8.0, 7.0]), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0])]
    kept = topk_mask(scores, 4, ceilings=[1, 3, 1])
    assert_keeps(kept, [torch.tensor([True, False, False]), torch.tensor([False, True, True]), torch.tensor([True])])
    assert kept.counts.tolist() == [1, 2, 1] and float(kept.threshold) == 2.0
    kept = topk_mask(scores, 4, floors=[0, 3, 0], ceilings=[3, 3, 0])
    assert_keeps(kept, [torch.tensor([True, False, False]), torch.tensor([True] * 3), torch.tensor([False])])


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_bounds_against_exhaustion(data):
    """Of all choices that the bounds allow, the one whose sorted scores are the best; ties to the lowest index."""
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    scores = [torch.tensor(data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))).float() for n in sizes]
    bounds = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in sizes]
    floors, ceilings = [b[0] for b in bounds], [b[1] for b in bounds]
    k = data.draw(st.integers(sum(floors), sum(ceilings)))
    entries = sorted((-float(v), t, i) for t, s in enumerate(scores) for i, v in enumerate(s))
    allowed = [
        choice
        for choice in itertools.combinations(entries, k)
        if all(f <= sum(e[1] == t for e in choice) <= c for t, (f, c) in enumerate(bounds))
    ]
    best = {e[1:] for e in min(allowed)}
    for check in (True, False):
        found = topk_mask(scores, k, floors=floors, ceilings=ceilings, check=check)
        kept = {(t, i) for t, m in enumerate(found.masks) for i, b in enumerate(m.to_bool().tolist()) if b}
        assert kept == best
        assert found.counts.tolist() == [sum(t == e[0] for e in best) for t in range(len(sizes))]


def test_k_on_the_device_and_no_checks():
    scores = [torch.tensor([3.0, 1.0, 2.0])]
    for backend in ("native", "reference"):
        if module.IMPLEMENTATIONS[backend].refusal(scores, [], [], [0], 1, None, True):
            continue
        assert_keeps(topk_mask(scores, torch.tensor(2), backend=backend), [torch.tensor([True, False, True])])
        assert_keeps(topk_mask(scores, torch.tensor([9]), check=False, backend=backend), [torch.ones(3).bool()])
        assert topk_mask([torch.tensor([NAN, 1.0])], 1, check=False, backend=backend).threshold.isnan()
    with pytest.raises(ValueError, match="k must be between 0 and the 3 competing scores, got 9"):
        topk_mask(scores, torch.tensor(9))


def test_mixed_dtypes_compare_by_value():
    scores = [torch.tensor([1.0], dtype=torch.float16), torch.tensor([1.0 + 1e-9], dtype=torch.float64)]
    assert_keeps(topk_mask(scores, 1), [torch.tensor([False]), torch.tensor([True])])


def test_strides_and_gradients_do_not_matter():
    score = torch.randn(4, 6, 3, 3, requires_grad=True)
    other = score.detach().to(memory_format=torch.channels_last)
    assert topk_mask([score], 20).masks == topk_mask([other], 20).masks


def test_nan_is_named_where_it_competes_and_ignored_where_not():
    scores = [torch.zeros(3), torch.tensor([1.0, NAN])]
    for backend, implementation in module.IMPLEMENTATIONS.items():
        if implementation.refusal(scores, [], [], [0, 0], 1, None, True):  # Triton is an extra
            continue
        with pytest.raises(ValueError, match=r"scores must not be NaN, got NaN in fc\.weight"):
            topk_mask(scores, 1, names=["conv.weight", "fc.weight"], backend=backend)
        masks = [BitMask.ones((3,)), BitMask.from_bool(torch.tensor([True, False]))]
        kept = topk_mask(scores, 2, masks=masks, backend=backend)
        assert_keeps(kept, [torch.tensor([True, False, False]), torch.tensor([True, False])])


def test_no_tensors():
    assert topk_mask([], 0).masks == []


def test_products_are_compared_without_being_stored():
    """In float32 at least: in bfloat16 these two products would be equal."""
    weight, gradient = torch.tensor([1.0, -1.0078125]).bfloat16(), torch.tensor([1.015625, 1.0078125]).bfloat16()
    assert_keeps(topk_mask([Product(weight, gradient, "|w*g|")], 1), [torch.tensor([False, True])])
    assert_keeps(topk_mask([Product(weight, gradient, "w*g")], 1, largest=False), [torch.tensor([False, True])])
    assert_keeps(
        topk_mask([Product(weight, gradient, "|w|*g"), torch.tensor([9.0])], 1),
        [torch.zeros(2).bool(), torch.ones(1).bool()],
    )


PRODUCT_ERRORS = {
    "formula": (ValueError, r"formula must be one of w, \|w\|, .*got 'g'", (torch.ones(1), None, "g")),
    "no gradient": (ValueError, "gradient must be given for w.g, got None", (torch.ones(1), None, "w*g")),
    "gradient": (ValueError, "gradient must be None for w, got a tensor", (torch.ones(1), torch.ones(1), "w")),
    "shape": (ValueError, r"gradient must have the weight's shape \(2,\)", (torch.ones(2), torch.ones(1), "w*g")),
    "integers": (
        TypeError,
        "weight must be a floating-point tensor, got a torch.int64",
        (torch.ones(2).long(), None, "w"),
    ),
    "list": (TypeError, "gradient must be a floating-point tensor, got list", (torch.ones(2), [1.0, 2.0], "w*g")),
}


@pytest.mark.parametrize(("kind", "message", "args"), PRODUCT_ERRORS.values(), ids=PRODUCT_ERRORS)
def test_product_errors(kind, message, args):
    with pytest.raises(kind, match=message):
        Product(*args)


ONE = [torch.ones(3)]
ERRORS = {
    "k too large": (ValueError, "k must be between 0 and the 3 competing scores, got 4", (ONE, 4), {}),
    "k tensor": (
        ValueError,
        "k must be one int64 on the scores' device, got 2 of torch.int64",
        (ONE, torch.ones(2).long()),
        {},
    ),
    "k tensor and floors": (ValueError, "k must be an int where floors", (ONE, torch.tensor(1)), {"floors": [1]}),
    "abs": (ValueError, "abs must be False for a Product", ([Product(torch.ones(1), None, "w")], 1), {"abs": True}),
    "ceilings": (ValueError, "ceilings must allow k, got a sum of 1 for k=2", (ONE, 2), {"ceilings": [1]}),
    "crossed": (ValueError, "floors must not be above ceilings", (ONE, 2), {"floors": [2], "ceilings": [1]}),
    "k negative": (ValueError, "k must be between 0", (ONE, -1), {}),
    "k float": (TypeError, "k must be an integer or a tensor, got float", (ONE, 1.0), {}),
    "k bool": (TypeError, "k must be an integer or a tensor, got bool", (ONE, True), {}),
    "one tensor": (TypeError, "scores must be a sequence, got Tensor", (torch.ones(3), 1), {}),
    "no scores": (TypeError, "scores must be a sequence, got NoneType", (None, 1), {}),
    "integers": (
        TypeError,
        "scores.0. must be a tensor of float16, .*got a torch.int64",
        ([torch.ones(3).long()], 1),
        {},
    ),
    "complex": (TypeError, "w must be a tensor of float16", ([torch.ones(3) * 1j], 1), {"names": ["w"]}),
    "two devices": (ValueError, "scores must be on one device", ([*ONE, torch.ones(3, device="meta")], 1), {}),
    "names": (ValueError, "names must have one entry a tensor", (ONE, 1), {"names": []}),
    "masks": (ValueError, "masks must have one entry a tensor", (ONE, 1), {"masks": []}),
    "mask shape": (ValueError, r"masks.0. must have shape \(3,\)", (ONE, 1), {"masks": [BitMask.ones((4,))]}),
    "mask kind": (TypeError, "masks.0. must be a BitMask", (ONE, 1), {"masks": [torch.ones(3).bool()]}),
    "floors": (ValueError, "floors must fit in k, got a sum of 2 for k=1", (ONE, 1), {"floors": [2]}),
    "floor negative": (ValueError, "floors must not be negative", (ONE, 1), {"floors": [-1]}),
    "floor float": (TypeError, "floors must be integers", (ONE, 1), {"floors": [0.5]}),
    "floor count": (ValueError, "floors must have one entry a tensor", (ONE, 1), {"floors": [1, 1]}),
    "backend": (ValueError, "backend must be one of auto, native, triton, reference", (ONE, 1), {"backend": "cub"}),
}


@pytest.mark.parametrize(("kind", "message", "args", "options"), ERRORS.values(), ids=ERRORS)
def test_errors(kind, message, args, options):
    with pytest.raises(kind, match=message):
        topk_mask(*args, **options)
