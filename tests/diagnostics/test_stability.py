"""Agreement of masks by set arithmetic, and masks built from layer shares."""

from __future__ import annotations

import itertools

import pytest
import torch
from criteria.networks import mlp, residual_net, weights

import sparseprune as sp
from sparseprune.diagnostics import jaccard, layer_shares, masks_from_shares, stability


def masks_of(model, *densities):
    return sp.Masks(
        {n: torch.rand(w.shape) < d for (n, w), d in zip(weights(model).items(), itertools.cycle(densities))}
    )


def as_sets(masks):
    return {n: {tuple(i) for i in m.to_bool().nonzero().tolist()} for n, m in masks.items()}


def test_jaccard_is_that_of_the_sets():
    model = mlp(9, 8, 7, 3)
    a, b = masks_of(model, 0.3, 0.9), masks_of(model, 0.5)
    expected = {n: len(s & as_sets(b)[n]) / len(s | as_sets(b)[n]) for n, s in as_sets(a).items()}
    assert jaccard(a, b) == expected == jaccard(b, a)
    assert set(jaccard(a, a).values()) == {1.0} and set(jaccard(a, ~a).values()) == {0.0}
    nothing = a & ~a
    assert set(jaccard(nothing, nothing).values()) == {1.0}


def test_stability_of_three_masks():
    model = mlp(9, 8, 7, 3)
    three = [masks_of(model, d, 0.5, 0.9) for d in (0.2, 0.4, 0.6)]
    result = stability(three)
    unions = [{(n, i) for n, s in as_sets(m).items() for i in s} for m in three]
    expected = [[len(a & b) / len(a | b) for a in unions] for b in unions]
    assert torch.equal(result.matrix, torch.tensor(expected, dtype=torch.float64))
    pairs = list(itertools.combinations(range(3), 2))
    assert result.mean == pytest.approx(sum(expected[i][j] for i, j in pairs) / 3)
    first = [jaccard(three[i], three[j])["0.weight"] for i, j in pairs]
    assert result.layers["0.weight"] == pytest.approx(sum(first) / 3)
    assert result.shares["2.weight"].tolist() == [m["2.weight"].count() / m.count() for m in three]
    told = result.to_dict()
    assert told["shares"]["0.weight"]["mean"] == pytest.approx(result.shares["0.weight"].mean().item())
    assert told["matrix"] == result.matrix.tolist()


def test_chance_is_what_random_masks_of_these_densities_reach():
    model = mlp(200, 100, 50)
    result = stability([masks_of(model, 0.1, 0.7) for _ in range(4)])
    assert result.mean == pytest.approx(result.chance, abs=0.01)
    same = masks_of(model, 0.1, 0.7)
    assert stability([same, same]).mean == 1 > 2 * result.chance


def test_mask_from_layer_shares_alone():
    model = residual_net()
    masks = sp.prune(model, sp.SynFlow(torch.ones(1, 3, 8, 8)), density=0.1, steps=5)
    shares = layer_shares(masks)
    assert sum(shares.values()) == pytest.approx(1)
    generator = torch.Generator().manual_seed(3)
    built = masks_from_shares(model, shares, density=0.1, generator=generator)
    assert built.counts() == masks.counts() and dict(built) != dict(masks)
    scaled = masks_from_shares(model, {n: 100 * s for n, s in shares.items()}, density=0.1, generator=generator)
    assert scaled.counts() == masks.counts() and dict(scaled) != dict(built)


def test_a_full_layer_hands_its_share_on():
    model = mlp(4, 4, 2)
    built = masks_from_shares(model, {"0.weight": 1, "2.weight": 9}, keep=12)
    assert built.counts() == {"0.weight": 4, "2.weight": 8}
    only = masks_from_shares(model, {"2.weight": 1}, keep=3, exclude="0")
    assert only.counts() == {"2.weight": 3}


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"0.weight": 1}, "shares must be those of the prunable weights"),
        ({"0.weight": 1, "2.weight": -1}, "shares must be finite, not negative"),
        ({"0.weight": 0, "2.weight": 0}, "not all zero"),
        ({"0.weight": float("nan"), "2.weight": 1}, "shares must be finite"),
        ({}, "not all zero"),
    ],
)
def test_wrong_shares(shares, message):
    with pytest.raises(ValueError, match=message):
        masks_from_shares(mlp(4, 4, 2), shares, keep=3)


def test_masks_that_cannot_be_compared():
    one = masks_of(mlp(3, 2), 0.5)
    with pytest.raises(ValueError, match="at least two, got 1"):
        stability([one])
    with pytest.raises(ValueError, match="same names"):
        stability([one, masks_of(mlp(3, 2, 2), 0.5)])
    with pytest.raises(ValueError, match="shape"):
        stability([one, masks_of(mlp(4, 2), 0.5)])
