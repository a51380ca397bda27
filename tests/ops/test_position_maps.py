"""Maps and maxima over positions: against dense matrices, and torch's pooling."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import Backend, backends

from sparseprune.ops.position_maps import MAP, map_positions, max_positions, max_positions_grad

BACKENDS = [*backends(MAP), Backend("reference"), Backend("auto")]


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_map_is_a_matrix(backend, dtype):
    runs = torch.tensor([[0, 2, 3], [1, 0, 1], [4, 4, 1], [0, 0, 5], [6, 1, 0]], dtype=torch.int32)
    factors = torch.tensor([1, 2, 0.5, 0.25, 9], dtype=dtype)
    matrix = torch.zeros(5, 7, dtype=dtype)
    for (to, start, length), factor in zip(runs.tolist(), factors, strict=True):
        for i in range(length):
            matrix[start + i, to + i] += factor
    x, y = torch.rand(3, 5, dtype=dtype), torch.rand(3, 7, dtype=dtype)
    with backend.forced():
        forward = map_positions(x, runs, factors, 7, backend=backend.name)
        back = map_positions(y, runs, factors, 5, backward=True, backend=backend.name)
    torch.testing.assert_close(forward, x @ matrix)
    torch.testing.assert_close(back, y @ matrix.t())


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
def test_maxima_are_those_of_pooling_and_the_first_wins(backend):
    x = torch.randint(0, 3, (6, 25), dtype=torch.float32, requires_grad=True)  # ties everywhere
    grid = torch.arange(25.0).view(1, 1, 5, 5)
    padded = F.pad(grid, (1, 1, 1, 1), value=-1)
    windows = F.unfold(padded, 3, stride=2)[0].t().int().contiguous()
    expected = F.max_pool2d(x.view(1, 6, 5, 5), 3, 2, 1).view(6, 9)
    grad = torch.rand(6, 9)
    expected.backward(grad)
    with backend.forced():
        y, winners = max_positions(x.detach(), windows, 16, backend=backend.name)
        inner = max_positions_grad(F.pad(grad, (0, 7), value=5), winners, 25, backend=backend.name)
    assert torch.equal(y[:, :9], expected.detach()) and not y[:, 9:].any() and (winners[:, 9:] == -1).all()
    torch.testing.assert_close(inner, x.grad)


def test_runs_beyond_the_positions_are_refused():
    run, one = torch.tensor([[0, 3, 3]], dtype=torch.int32), torch.ones(1)
    with pytest.raises(RuntimeError, match="`runs` must lie within 5 and 7 positions, got another at 0"):
        map_positions(torch.ones(2, 5), run, one, 7)
    with pytest.raises(RuntimeError, match="`windows` must hold positions below 5"):
        max_positions(torch.ones(2, 5), torch.tensor([[5]], dtype=torch.int32), 4)
