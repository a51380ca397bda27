"""The backward pass of a layer that keeps most of its weights: against dense matrices of float64."""

from __future__ import annotations

import pytest
import torch
from cases import Backend, backends

from sparseprune.ops.dense_scores import SCORES, dense_scores

BACKENDS = [*backends(SCORES), Backend("reference"), Backend("auto")]
CASES = [  # rows, columns, width
    (1, 1, 1),
    (5, 3, 4),
    (64, 27, 16),
    (70, 99, 8),  # no whole vectors, no whole words
    (131, 64, 12),
    (7, 1100, 24),  # several blocks of columns
    (300, 520, 1),  # several blocks of rows
    (3, 2000, 40),
    (0, 4, 4),
    (4, 0, 8),
]


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_a_dense_matrix(backend, dtype, case):
    rows, columns, width = case
    weight = torch.rand(rows, columns, dtype=dtype) * (torch.rand(rows, columns) < 0.6)
    x, grad = torch.rand(columns, width, dtype=dtype), torch.rand(rows, width, dtype=dtype)
    scores = torch.full_like(weight, torch.nan)
    tolerance = {"rtol": 1e-5 if dtype == torch.float32 else 1e-13, "atol": 0}
    with backend.forced():
        inner, peak = dense_scores(weight, grad, x, scores, backend=backend.name)
        again = torch.full_like(weight, torch.nan)
        nothing, _ = dense_scores(weight, grad, x, again, input_grad=False, backend=backend.name)
    exact, gradients = weight.double(), grad.double() @ x.double().t()
    torch.testing.assert_close(inner.double(), exact.t() @ grad.double(), **tolerance)
    torch.testing.assert_close(scores.double(), exact * gradients, **tolerance)
    largest = gradients.max() if gradients.numel() else torch.zeros(()).double()
    torch.testing.assert_close(peak.double(), largest[None], **tolerance)
    assert nothing.numel() == 0 and torch.equal(again, scores)


def test_an_infinite_gradient_is_the_peak():
    scores = torch.empty(1, 70)
    _, peak = dense_scores(torch.ones(1, 70), torch.full((1, 4), 1e30), torch.full((70, 4), 1e30), scores)
    assert peak == torch.inf and (scores == torch.inf).all()


def test_results_do_not_depend_on_threads():
    torch.manual_seed(5)
    weight, x, grad, results = torch.rand(300, 900), torch.rand(900, 40), torch.rand(300, 40), []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            scores = torch.empty(300, 900)
            results.append((*dense_scores(weight, grad, x, scores), scores))
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True))


def test_bad_arguments():
    weight, grad = torch.ones(2, 3), torch.ones(2, 4)
    with pytest.raises(RuntimeError, match="`x` must have 1 or a multiple of 4 columns, got 5"):
        dense_scores(weight, torch.ones(2, 5), torch.ones(3, 5), torch.ones(2, 3), backend="native")
    with pytest.raises(RuntimeError, match="`scores` must have size 3 in dimension 1, got 2"):
        dense_scores(weight, grad, torch.ones(3, 4), torch.ones(2, 2), backend="native")
