"""Values by rank, against sorting."""

from __future__ import annotations

import pytest
import torch

from sparseprune import Product, kth_value, quantile


def tensors():
    return [torch.randn(300, 41), torch.randint(-2, 3, (5000,)).float(), torch.randn(7, 3, 3, 3).mT, torch.zeros(0)]


def flat(parts):
    return torch.cat([p.flatten() for p in parts])


def test_kth_value():
    parts = tensors()
    values = flat(parts)
    for k in (1, 2, 100, 9000, len(values) - 1, len(values)):
        assert kth_value(parts, k) == values.kthvalue(k).values
        assert kth_value(parts, k, largest=True) == values.sort(descending=True).values[k - 1]
        assert kth_value(parts, k, abs=True) == values.abs().kthvalue(k).values
    assert kth_value([torch.ones(2).half(), torch.ones(1).bfloat16()], 1).dtype == torch.float32
    assert kth_value([torch.ones(2).half()], 1).dtype == torch.float16
    assert kth_value([Product(torch.tensor([1.0, 2.0]), torch.tensor([-3.0, 1.0]), "w*g")], 1) == -3


def test_quantile_against_torch():
    parts = tensors()
    for q in (0, 0.0, 0.1, 0.25, 1 / 3, 0.5, 0.999, 1):
        assert quantile(parts, q) == torch.quantile(flat(parts).double(), q)
    infinite = [torch.tensor([-torch.inf, -torch.inf, 1.0, torch.inf])]
    assert quantile(infinite, 0.1) == -torch.inf
    assert quantile(infinite, 1) == torch.inf


def test_quantile_of_more_than_torch_takes():
    x = torch.arange(2**24 + 2, dtype=torch.int32).float()
    x = x[torch.randperm(len(x))]
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(x, 0.5)
    assert quantile([x], 0.25) == (2**24 + 1) / 4


def test_errors():
    parts = [torch.ones(3)]
    with pytest.raises(ValueError, match="k must be between 1 and the number of values, got 0"):
        kth_value(parts, 0)
    with pytest.raises(ValueError, match="k must be between 0 and the 3 competing scores, got 4"):
        kth_value(parts, 4)
    for q in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"q must be a number in \[0, 1\], got"):
            quantile(parts, q)
    with pytest.raises(ValueError, match="tensors must hold at least one value, got none"):
        quantile([torch.ones(0)], 0.5)
    with pytest.raises(TypeError, match="q must be a number, got str"):
        quantile(parts, "half")
    with pytest.raises(ValueError, match="got NaN in b"):
        quantile([torch.ones(1), torch.tensor([torch.nan])], 0.5, names=["a", "b"])


@pytest.mark.parametrize("q", [0.0, 0.2, 0.5, 0.7, 1.0])
def test_quantiles_next_to_infinity(q):
    """Finite + share of an infinite distance; only between both infinities nothing can be said."""
    inf = float("inf")
    assert float(quantile([torch.tensor([0.0, inf])], q)) == (inf if q else 0)
    assert float(quantile([torch.tensor([0.0, -inf])], q)) == (-inf if q < 1 else 0)
    assert quantile([torch.tensor([inf, -inf])], q).isnan() == (0 < q < 1)
