"""The one accuracy rule, and bitwise equality of masks. No tolerance is written in a test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# A result whose reference happens to be exact may still be rounded: a few units in the last place of its magnitude.
# In float64 the reference is compared with itself and errs by nothing, while a sum in another order rounds otherwise.
SLACK_ULPS = {torch.float64: 64}


def assert_as_accurate(actual: Tensor, reference: Callable[..., Tensor], inputs: Sequence[Any]) -> None:
    """``actual`` errs from float64 at most twice as much as the plain reference does in the inputs' own dtype.

    Both the largest error and the root mean square must hold: each can hide what the other shows.
    """
    exact = reference(*_double(inputs))
    plain = reference(*inputs)
    assert actual.shape == plain.shape, f"shape {tuple(actual.shape)}, not {tuple(plain.shape)}"
    assert actual.dtype == plain.dtype, f"dtype {actual.dtype}, not {plain.dtype}"
    if not exact.numel():
        return
    assert torch.isfinite(actual).all(), "not finite"
    ours, theirs = (actual.double() - exact).abs(), (plain.double() - exact).abs()
    slack = SLACK_ULPS.get(actual.dtype, 4) * torch.finfo(actual.dtype).eps * exact.abs().max()
    assert ours.max() <= 2 * theirs.max() + slack, f"largest error {ours.max():.3g}, reference's {theirs.max():.3g}"
    rms, their_rms = ours.square().mean().sqrt(), theirs.square().mean().sqrt()
    assert rms <= 2 * their_rms + slack, f"rms error {rms:.3g}, reference's {their_rms:.3g}"


def assert_same_bits(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Masks, counts and thresholds are compared bit for bit."""
    assert len(actual) == len(expected)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.dtype == e.dtype and a.shape == e.shape, f"tensor {i}: {a.dtype}{a.shape}, not {e.dtype}{e.shape}"
        a, e = a.cpu(), e.cpu()
        differ = (a != e) & ~((a != a) & (e != e))  # NaN equals NaN
        assert not differ.any(), f"tensor {i} differs in {int(differ.sum())} entries"


def _double(inputs: Sequence[Any]) -> list[Any]:
    return [a.double() if isinstance(a, Tensor) and a.dtype.is_floating_point else a for a in inputs]
