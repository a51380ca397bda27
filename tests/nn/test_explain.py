"""explain(): what it says is what happens."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparseprune as sp
from sparseprune.ops import costs


def net():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 8, 1, stride=2), nn.Flatten(), nn.Linear(8 * 16, 5),
    )  # fmt: skip
    return sp.sparsify(model, {n: torch.rand(p.shape) < 0.1 for n, p in model.named_parameters() if p.dim() > 1})


def test_three_products_of_every_layer(monkeypatch):
    model = net().train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    rows = sp.explain(model, (4, 3, 8, 8))
    products = ["forward", "input gradient", "weight gradient"]
    assert [(row.layer, row.product) for row in rows] == [(name, p) for name in "035" for p in products]
    assert all(row.chosen in row.predicted and row.measured is None for row in rows)
    assert model.training and all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    # What the ops themselves ask for in a step is what was explained.
    asked, choose = [], costs.choose
    monkeypatch.setattr(costs, "choose", lambda work: asked.append(work) or choose(work))
    model(torch.randn(4, 3, 8, 8, requires_grad=True)).sum().backward()
    backward = [2, 1, 0]
    expected = [rows[3 * i].predicted for i in range(3)] + [rows[3 * i + k].predicted for i in backward for k in (1, 2)]
    assert [choose(work).predicted for work in asked] == expected


def test_measured_times_of_every_candidate():
    layer = sp.sparsify(nn.Linear(64, 32), {"weight": torch.rand(32, 64) < 0.1})
    for row in layer.explain((2, 5, 64), measured=True):
        assert row.measured.keys() == row.predicted.keys() >= {"dense", "native"}
        assert all(seconds > 0 for seconds in row.measured.values())
        assert row.to_dict()["chosen"] == row.chosen and row.density == layer.density


def test_layouts_are_seen():
    layer = sp.sparsify(nn.Conv2d(3, 16, 3), {"weight": torch.rand(16, 3, 3, 3) < 0.1})
    x = torch.randn(4, 3, 8, 8)
    one, other = (sp.explain(layer, t)[0].predicted for t in (x, x.contiguous(memory_format=torch.channels_last)))
    assert one != other


def test_where_nothing_is_predicted():
    layer = sp.sparsify(nn.Linear(8, 4), {"weight": torch.rand(4, 8) < 0.5})
    assert {(row.chosen, row.reason) for row in layer.explain((0, 8))} == {("dense", "the batch is empty")}
    assert "do not take torch.bfloat16" in layer.bfloat16().explain((3, 8))[0].reason
    with pytest.raises(ValueError, match="model must have a sparse layer, got none"):
        sp.explain(nn.Linear(3, 3), (1, 3))
