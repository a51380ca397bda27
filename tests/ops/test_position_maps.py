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
@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize(("positions", "width"), [(5, 7), (150, 90)])  # sources of one vector, and of many
def test_a_map_is_a_matrix(backend, dtype, copies, positions, width):
    matrix = torch.zeros(positions, width, dtype=dtype)
    if copies and positions > 5:
        matrix[torch.randperm(positions)[:width], torch.arange(width)] = 1
    elif copies:  # at most one source each, whose factor is one
        matrix[[2, 0, 4, 4], [0, 1, 4, 6]] = 1
    else:
        matrix[torch.rand(positions, width) < 0.5] = 0.25
        matrix[1, 3], matrix[:, 5] = 9, 0
    to, sources = matrix.t().nonzero(as_tuple=True)
    starts = torch.searchsorted(to, torch.arange(width + 1))
    x = torch.rand(300, positions, dtype=dtype)
    with backend.forced():
        y = map_positions(x, starts.int(), sources.int(), matrix[sources, to], backend=backend.name)
    torch.testing.assert_close(y, x @ matrix)


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


def test_what_lies_beyond_the_positions_is_refused():
    starts, one = torch.tensor([0, 1], dtype=torch.int32), torch.ones(1)
    with pytest.raises(RuntimeError, match="`sources` must hold positions below 5, got 5"):
        map_positions(torch.ones(2, 5), starts, 5 * one.int(), one)
    with pytest.raises(RuntimeError, match="`starts` must ascend from 0 to the 2 sources"):
        map_positions(torch.ones(2, 5), starts, torch.ones(2).int(), torch.ones(2))
    with pytest.raises(RuntimeError, match="`windows` must hold positions below 5"):
        max_positions(torch.ones(2, 5), torch.tensor([[5]], dtype=torch.int32), 4)
