"""Exactly k of every group, ties to the lowest index, NaN refused: against a sort in plain Python."""

from __future__ import annotations

import pytest
import torch
from cases import FLOATS, backends
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseprune import Product, group_topk_mask
from sparseprune.ops import backends as backends_module
from sparseprune.ops.group_topk_mask import IMPLEMENTATIONS

BACKENDS = [*backends(IMPLEMENTATIONS), *backends({"reference": None, "auto": None})]
INF, NAN = float("inf"), float("nan")
VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, -1e-45, 3e38, INF, -INF, 2.0**-126]) | st.floats(
    width=32, allow_nan=False
)


def by_sorting(scores, k, group, largest=True):
    """The k best of each group by (score, index), in plain Python."""
    flat, kept = scores.double().flatten().tolist(), set()
    for start in range(0, len(flat), group or 1):
        members = range(start, start + group)
        kept.update(sorted(members, key=lambda i: (-flat[i] if largest else flat[i], i))[:k])
    return torch.tensor([i in kept for i in range(len(flat))], dtype=torch.bool).reshape(scores.shape)


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_scores_against_sorting(backend, dtype, data):
    group, count, rows = (data.draw(st.integers(*bounds)) for bounds in ((1, 45), (0, 5), (1, 3)))
    k, largest = data.draw(st.integers(0, group)), data.draw(st.booleans())
    size = rows * count * group
    scores = torch.tensor(data.draw(st.lists(VALUES, min_size=size, max_size=size)), dtype=dtype)
    scores = scores.reshape(rows, count * group)
    with backend.forced():
        mask = group_topk_mask(scores, k, group, largest=largest, backend=backend.name)
    assert mask.row_counts().tolist() == [k * count] * rows
    assert mask.to_bool().tolist() == by_sorting(scores, k, group, largest).tolist()


HARD = ("sampled low", "sampled high", "two values", "powers", "sorted", "infinite", "normal")


def adversarial(kind, n):
    """Keys whose evenly spread sample says nothing about the rest, and keys that many share."""
    scores = torch.randn(n, dtype=torch.float64)
    if kind == "sampled low":
        scores[torch.arange(32) * n // 32] = -100.0 - torch.rand(32).double()
    if kind == "sampled high":
        scores[torch.arange(32) * n // 32] = 1e300
    if kind == "two values":
        scores = (scores > 1).double()
    if kind == "powers":
        scores = torch.exp2((scores * 300).round())
    if kind == "sorted":
        scores = torch.arange(n).double()
    if kind == "infinite":
        scores = torch.where(scores > 1, INF, torch.where(scores < -1, -INF, scores))
    return scores


@pytest.mark.parametrize("backend", backends(IMPLEMENTATIONS), ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "kind", ["sampled low", "sampled high", "two values", "powers", "sorted", "infinite", "normal"]
)
def test_large_groups(kind, dtype, backend):
    n = 5003
    scores = adversarial(kind, n).to(dtype).reshape(1, n)
    for k in (1, 2, 100, n // 2, n - 100, n - 1, n):
        with backend.forced():
            mask = group_topk_mask(scores, k, backend=backend.name)
        assert torch.equal(mask.to_bool(), by_sorting(scores, k, n))


@pytest.mark.parametrize("backend", backends(IMPLEMENTATIONS), ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_groups_of_neighbours(dtype, backend):
    """No number lies between two of them, so a bound that is off by one shows, at one k or another."""
    order = torch.randperm(61)
    scores = (1 + order.to(dtype) * torch.finfo(dtype).eps).reshape(1, 61)
    for k in range(62):
        with backend.forced():
            mask = group_topk_mask(scores, k, backend=backend.name)
        assert torch.equal(mask.to_bool()[0], order >= 61 - k)


@pytest.mark.parametrize("backend", backends(IMPLEMENTATIONS), ids=str)
def test_many_rows_on_several_threads(backend):
    scores = torch.randn(300, 4000)
    torch.set_num_threads(4)
    for k, group in ((2, 4), (3, 5), (900, 1000)):
        with backend.forced():
            mask = group_topk_mask(scores, k, group, backend=backend.name)
        least = scores.reshape(300, -1, group).sort(-1).values[..., group - k].repeat_interleave(group, 1)
        assert torch.equal(mask.to_bool(), scores >= least)  # no ties among so many different numbers


@pytest.mark.parametrize("group", [4, 5, 40, None])
def test_shapes_and_strides(group, device):
    """Rows are dimension 0 and the rest is in logical order, wherever it lies in memory."""
    scores = torch.randn(6, 20, 2, 4, requires_grad=True, device=device)
    expected = by_sorting(scores.detach(), 2, group or 160).to(device)
    wide = torch.full((6, 20, 2, 8), NAN, device=device)
    wide[..., ::2] = scores.detach()
    views = {
        "plain": scores,
        "channels last": scores.to(memory_format=torch.channels_last),
        "every other": wide[..., ::2],
        "turned": scores.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    }
    for name, view in views.items():
        mask = group_topk_mask(view, 2, group)
        assert mask.shape == scores.shape and torch.equal(mask.to_bool(), expected), name
    line = scores[0].flatten()
    assert torch.equal(group_topk_mask(line, 2, group).to_bool(), expected[0].flatten())


@pytest.mark.parametrize("formula", ["w", "|w|", "w*g", "|w*g|", "|w|*g"])
@pytest.mark.parametrize("largest", [True, False])
def test_products_are_their_tensors(formula, largest, device):
    weight = torch.randn(5, 60, device=device, dtype=torch.float16)
    gradient = torch.randn(5, 60, device=device, dtype=torch.bfloat16) if "g" in formula else None
    product = Product(weight, gradient, formula)
    for group in (4, 5, None):
        mask = group_topk_mask(product, 3, group, largest=largest)
        expected = by_sorting(product.tensor(), 3, group or 60, largest)
        assert torch.equal(mask.to_bool(), expected.to(device))
    assert group_topk_mask(weight, 1, 4, abs=True) == group_topk_mask(Product(weight, None, "|w|"), 1, 4)


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("group", [4, 8, 10, 40, None])
def test_the_first_row_with_nan_is_named(group, backend):
    scores = torch.zeros(900, 400)
    scores[[700, 555, 899], [1, 399, 0]] = NAN
    torch.set_num_threads(3)
    with (
        backend.forced(),
        pytest.raises(ValueError, match=r"scores must not be NaN, got NaN in row 555 of fc\.weight$"),
    ):
        group_topk_mask(scores, 2, group, name="fc.weight", backend=backend.name)


def test_one_group_needs_no_group():
    assert group_topk_mask(torch.zeros(3, 0), 0).shape == (3, 0)
    assert group_topk_mask(torch.tensor(1.0), 1).to_bool().tolist() is True
    assert group_topk_mask(torch.zeros(2, 3), 1).to_bool().tolist() == [[True, False, False]] * 2


ROW = torch.ones(2, 6)
ERRORS = {
    "k too large": (ValueError, "k must be between 0 and the 3 scores of a group, got 4", (ROW, 4, 3), {}),
    "k of a row": (ValueError, "k must be between 0 and the 6 scores of a group, got 7", (ROW, 7), {}),
    "k negative": (ValueError, "k must be between 0 and", (ROW, -1), {}),
    "k float": (TypeError, "k must be an integer, got float", (ROW, 1.0), {}),
    "k bool": (TypeError, "k must be an integer, got bool", (ROW, True), {}),
    "group": (ValueError, "group must be positive and divide the 6 scores of a row, got 4", (ROW, 1, 4), {}),
    "group zero": (ValueError, "group must be positive and divide the 6", (ROW, 0, 0), {}),
    "group negative": (ValueError, "group must be positive and divide the 6", (ROW, 0, -3), {}),
    "group float": (TypeError, "group must be an integer, got float", (ROW, 1, 3.0), {}),
    "group bool": (TypeError, "group must be an integer, got bool", (ROW, 1, True), {}),
    "list": (TypeError, "scores must be a tensor or Product, got list", ([ROW], 1), {}),
    "integers": (
        TypeError,
        "w must be a tensor of float16, .*got a torch.int64 tensor",
        (ROW.long(), 1),
        {"name": "w"},
    ),
    "abs of a product": (ValueError, "abs must be False for a Product", (Product(ROW, ROW), 1), {"abs": True}),
    "backend": (ValueError, "backend must be one of auto, native, reference", (ROW, 1), {"backend": "triton"}),
}


@pytest.mark.parametrize(("kind", "message", "args", "options"), ERRORS.values(), ids=ERRORS)
def test_errors(kind, message, args, options):
    with pytest.raises(kind, match=message):
        group_topk_mask(*args, **options)


def test_native_refuses_a_gpu_and_says_why(monkeypatch):
    monkeypatch.setattr(backends_module, "devices", lambda _: {"cuda"})
    arguments = (torch.ones(2, 4), None, 0, 2, 4, True)
    assert IMPLEMENTATIONS["native"].refusal(*arguments) == "there is no native kernel for device type 'cuda'"
    assert IMPLEMENTATIONS["reference"].refusal(*arguments) is None
