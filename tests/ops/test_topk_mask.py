"""Exactly k, ties to the lowest index, NaN refused: against a sort, on every backend, for any input."""

from __future__ import annotations

import pytest
import torch
from cases import backends, score_cases
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseprune import BitMask, topk_mask
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


ONE = [torch.ones(3)]
ERRORS = {
    "k too large": (ValueError, "k must be between 0 and the 3 competing scores, got 4", (ONE, 4), {}),
    "k negative": (ValueError, "k must be between 0", (ONE, -1), {}),
    "k float": (TypeError, "k must be an integer, got float", (ONE, 1.0), {}),
    "k bool": (TypeError, "k must be an integer, got bool", (ONE, True), {}),
    "one tensor": (TypeError, "scores must be a list of tensors, got Tensor", (torch.ones(3), 1), {}),
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
