"""NM: n of every m along the input dimension, tap by tap; what cannot be that is refused with what to do about it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import sparseprune as sp


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(8, 4, 3), nn.Conv1d(8, 6, 5, groups=2), nn.ConvTranspose3d(8, 4, (1, 2, 3)), nn.Linear(24, 10)
    )


def best_of_groups(score, kept, n, m):
    """The n largest that are left of every m along dimension 1, one group at a time."""
    best = torch.zeros(score.shape, dtype=torch.bool)
    others = [range(size) for dim, size in enumerate(score.shape) if dim != 1]
    for place in itertools.product(*others):
        for start in range(0, score.shape[1], m):
            slots = [(place[0], i, *place[1:]) for i in range(start, start + m)]
            left = sorted((-float(score[slot]), slot) for slot in slots if kept[slot])
            for _, slot in left[:n]:
                best[slot] = True
    return best


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (1, 4), (4, 4), (0, 2)])
def test_n_of_every_m_along_the_input(n, m):
    model = net()
    keep = sum(p.numel() for p in model.parameters() if p.dim() > 1) * n // m
    masks = sp.prune(model, sp.Magnitude(), keep=keep, pattern=sp.NM(n, m))
    for name, mask in masks.items():
        weight = model.get_parameter(name).detach()
        expected = best_of_groups(weight.abs(), torch.ones(weight.shape), n, m)
        assert torch.equal(mask.to_bool(), expected), name


@pytest.mark.parametrize("score", ["normal", "lowest"])
def test_pruned_weights_do_not_come_back(score):
    """Also where those that are left score as low as a score can be; a group with fewer than n keeps them."""
    torch.manual_seed(1)
    scores = {"w": torch.randn(6, 8, 3)}
    start = torch.rand(6, 8, 3) < 0.4
    if score == "lowest":
        scores = {"w": torch.full((6, 8, 3), -torch.inf)}
    scores["w"][~start] = torch.nan
    expected = best_of_groups(scores["w"], start, 2, 4)
    masks = sp.Masks({"w": start})
    kept = sp.NM(2, 4).select(scores, masks, int(expected.sum()), {"w": 0})
    assert torch.equal(kept["w"].to_bool(), expected)


def test_a_schedule_of_one_shot_may_take_steps():
    model = nn.Linear(16, 6)
    once = sp.prune(model, sp.Magnitude(), density=0.25, pattern=sp.NM(1, 4))
    assert once == sp.prune(model, sp.Magnitude(), density=0.25, pattern=sp.NM(1, 4), steps=3, schedule=sp.one_shot)
    finer = sp.prune(model, sp.Magnitude(), keep=12, pattern=sp.NM(1, 8), masks=once)
    assert (finer & once) == finer and finer.count() == 12


def test_the_errors_say_what_helps():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(9, 8))
    half = {"density": 0.5, "pattern": sp.NM(2, 4)}
    with pytest.raises(
        ValueError, match=r"NM\(n=2, m=4\), got \{'0.weight': 3, '2.weight': 9\}; exclude=(.*)$"
    ) as caught:
        sp.prune(model, sp.Magnitude(), **half)
    exclude = eval(str(caught.value).partition("exclude=")[2])
    assert sp.prune(model, sp.Magnitude(), exclude=exclude, **half).count() == 288
    with pytest.raises(
        ValueError, match=r"k must be the 288 weights that NM\(n=2, m=4\) keeps, got 58; ask for density=0.5 "
    ):
        sp.prune(model, sp.Magnitude(), exclude=exclude, density=0.1, pattern=sp.NM(2, 4))
    with pytest.raises(ValueError, match="in one step"):
        sp.prune(model, sp.Magnitude(), exclude=exclude, steps=2, **half)
    third = nn.Linear(21, 7)
    with pytest.raises(ValueError, match="ask for density=") as caught:
        sp.prune(third, sp.Magnitude(), density=0.5, pattern=sp.NM(1, 3))
    density = float(str(caught.value).partition("density=")[2].split()[0])
    assert sp.prune(third, sp.Magnitude(), density=density, pattern=sp.NM(1, 3)).count() == 49
    uneven = nn.Sequential(nn.Linear(4, 2), nn.Linear(40, 10))
    with pytest.raises(
        ValueError, match=r"min_per_layer must be at most the 4 weights that .* keeps of 0.weight, got 5"
    ):
        sp.prune(uneven, sp.Magnitude(), min_per_layer=5, **half)
    with torch.no_grad():
        third.weight[5, 3] = torch.nan
    with pytest.raises(ValueError, match="scores must not be NaN, got NaN in row 5 of weight"):
        sp.prune(third, sp.Magnitude(), density=density, pattern=sp.NM(1, 3))


@pytest.mark.parametrize(
    ("n", "m", "kind", "message"),
    [
        (3, 2, ValueError, "n must be between 0 and m, and m positive, got 3 and 2"),
        (-1, 4, ValueError, "n must be between 0 and m"),
        (0, 0, ValueError, "n must be between 0 and m, and m positive, got 0 and 0"),
        (2.0, 4, TypeError, "n and m must be integers, got 2.0 and 4"),
        (True, 4, TypeError, "n and m must be integers, got True and 4"),
    ],
)
def test_wrong_patterns(n, m, kind, message):
    with pytest.raises(kind, match=message):
        sp.NM(n, m)
