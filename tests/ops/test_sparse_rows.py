"""Products, gradients and scores of the kept weights: against dense matrices of float64, slot by slot."""

from __future__ import annotations

import pytest
import torch
from cases import Backend, backends

from sparseprune import BitMask
from sparseprune.ops.sparse_rows import MOST_COLUMNS, PRODUCT, SparseRows
from sparseprune.ops.submask import within

BACKENDS = [*backends(PRODUCT), Backend("reference"), Backend("auto")]
CASES = [  # rows, columns of a row, groups, width, density
    (1, 1, 1, 1, 1.0),
    (3, 5, 1, 4, 0.5),
    (64, 9, 1, 8, 0.3),
    (300, 70, 1, 24, 0.1),
    (3, 65536, 1, 4, 0.2),  # columns beyond 32,767, which are negative as int16
    (20, 9000, 1, 16, 0.6),  # sixteen blocks, which narrowing joins
    (9, 700, 1, 32, 0.4),
    (257, 7, 1, 16, 0.0),
    (12, 9, 3, 40, 0.6),
    (8, 9, 8, 1, 0.7),  # depthwise
    (40, 200, 1, 200, 0.05),
    (520, 130, 2, 1, 0.2),
]


def layer(rows, columns, groups, width, density, dtype=torch.float32):
    weight, mask = torch.rand(rows, columns, dtype=dtype) + 0.1, torch.rand(rows, columns) < density
    dense = torch.zeros(rows, groups * columns, dtype=torch.float64)
    for row in range(rows):
        first = row // (rows // groups) * columns
        dense[row, first : first + columns] = torch.where(mask[row], weight[row], 0).double()
    return weight, mask, dense


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_a_dense_matrix(backend, dtype, case):
    rows, columns, groups, width, _ = case
    weight, mask, dense = layer(*case, dtype=dtype)
    weight[~mask] = torch.nan  # a pruned slot is never read
    x, grad = torch.rand(groups * columns, width, dtype=dtype), torch.rand(rows, width, dtype=dtype)
    scale = torch.rand(rows, dtype=dtype)
    tolerance = {"rtol": 1e-5 if dtype == torch.float32 else 1e-13, "atol": 0}
    with backend.forced():
        packed = SparseRows.pack(weight, BitMask.from_bool(mask), groups, backend.name)
        for s in (None, scale):
            y, (inner, scores, peak) = packed.product(x, s), packed.gradients(grad, x, s)
            g = grad.double() if s is None else grad.double() * s.double()[:, None]
            factor = 1 if s is None else s.double()[:, None]
            torch.testing.assert_close(y.double(), factor * (dense @ x.double()), **tolerance)
            torch.testing.assert_close(inner.double(), dense.t() @ g, **tolerance)
            whole = dense * (g @ x.double().t())
            own = torch.stack([whole[r].view(groups, columns)[r // (rows // groups)] for r in range(rows)])
            torch.testing.assert_close(scores.double(), own[mask], **tolerance)
            largest = (own[mask] / weight[mask].double()).amax() if mask.any() else torch.zeros(()).double()
            torch.testing.assert_close(peak.double(), largest[None], **tolerance)
        nothing, again, _ = packed.gradients(grad, x, scale, input_grad=False)
        assert nothing.numel() == 0 and torch.equal(again, scores)


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_narrowed_is_packed_under_fewer(backend, case):
    weight, mask, _ = layer(*case)
    for share in (1.0, 0.9, 0.3, 0.0):
        fewer = mask & (torch.rand(mask.shape) < share)
        with backend.forced():
            before = SparseRows.pack(weight, BitMask.from_bool(mask), case[2], backend.name)
            kept, count, others = within(BitMask.from_bool(mask), BitMask.from_bool(fewer), len(before.values))
            narrowed = before.narrow(kept, count)
            expected = SparseRows.pack(weight, BitMask.from_bool(fewer), case[2], backend.name)
        assert (count, others) == (int(fewer.sum()), 0)
        for name in ("starts", "columns", "values"):
            assert torch.equal(getattr(narrowed, name), getattr(expected, name)), name


def test_results_do_not_depend_on_threads_or_levels():
    results = []
    for threads, backend in [(1, BACKENDS[0]), (2, BACKENDS[0]), *((2, b) for b in backends(PRODUCT))]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        torch.manual_seed(5)
        weight, mask, _ = layer(300, 900, 1, 40, 0.3)
        x, grad = torch.rand(900, 40), torch.rand(300, 40)
        try:
            with backend.forced():
                packed = SparseRows.pack(weight, BitMask.from_bool(mask), 1, backend.name)
                results.append((packed.product(x), *packed.gradients(grad, x), packed.values))
        finally:
            torch.set_num_threads(before)
    for result in results[1:2]:
        assert all(map(torch.equal, result, results[0]))
    for result in results[2:]:  # levels differ in whether a product and a sum are rounded once
        assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(result, results[0], strict=True))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"mask must have the weight's shape \(2, 3\), got \(3, 2\)"):
        SparseRows.pack(torch.ones(2, 3), BitMask.ones((3, 2)))
    with pytest.raises(ValueError, match="weight must have at most 65,536 values a row, got 65,537"):
        SparseRows.pack(torch.ones(1, MOST_COLUMNS + 1), BitMask.ones((1, MOST_COLUMNS + 1)))
    packed = SparseRows.pack(torch.ones(2, 3), BitMask.ones((2, 3)))
    with pytest.raises(RuntimeError, match="`x` must have 1, 4 or a multiple of 8 columns, got 5"):
        packed.product(torch.ones(3, 5))
