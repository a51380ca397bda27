"""analyze(): the same numbers as its parts give, and notes where a part cannot be had."""

from __future__ import annotations

import json

import pytest
import torch
from criteria.networks import conv_chain, residual_net
from torch import nn

import sparseprune as sp
from sparseprune.diagnostics import analysis as module
from sparseprune.diagnostics import analyze, conservation, jacobian_spectrum, layer_spectra
from sparseprune.report.analysis import conservation_figure, kernels_figure, spectra_figure


def test_parts_are_those_of_the_functions():
    model, x = conv_chain(bias=True), torch.randn(2, 3, 8, 8)
    masks = sp.prune(model, sp.Magnitude(), density=0.3)
    found = analyze(model, masks, x)
    assert torch.equal(found.network.dense.values, jacobian_spectrum(model, x).values)
    assert torch.equal(found.network.pruned.values, jacobian_spectrum(model, x, masks=masks).values)
    assert torch.equal(found.layers["4"].pruned.values, layer_spectra(model, x, masks=masks)["4"].values)
    assert found.conservation.output == conservation(model, x, masks=masks).output
    assert list(found.kernels) == ["0.weight", "4.weight"] and found.notes == ()
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (
        told["collapse"]["density"] == masks.density
        and told["kernels"]["0.weight"] == found.kernels["0.weight"].tolist()
    )


def test_large_jacobians_are_told_by_their_largest_value(monkeypatch):
    monkeypatch.setattr(module, "WHOLE_UP_TO", 9)
    model, x = conv_chain(), torch.randn(1, 3, 8, 8)
    found = analyze(model, sp.prune(model, sp.Magnitude(), density=0.3), x)
    whole = layer_spectra(model, x)
    assert found.network.dense.complete and found.layers["7"].dense.complete
    assert found.layers["0"].dense.values.shape == (1, 1) and not found.layers["0"].dense.complete
    assert found.layers["0"].dense.max == pytest.approx(whole["0"].max, rel=1e-4)


def test_an_empty_layer_whose_pruned_slots_hold_values():
    model = residual_net()
    masks = sp.prune(model, sp.Magnitude(), density=0.3)
    empty = sp.Masks({**masks, "0.weight": masks["0.weight"] & ~masks["0.weight"]})
    with torch.no_grad():
        model[0].weight.fill_(7.0)
    found = analyze(model, empty, torch.randn(2, 3, 8, 8))
    assert found.collapse.empty_layers == ("0.weight",) and not found.collapse.connected
    assert found.network.pruned.max == 0 < found.network.dense.min and found.layers["0"].pruned.max == 0


def test_what_a_model_does_not_allow_becomes_a_note():
    class Odd(nn.Sequential):
        def forward(self, x):
            return super().forward(x).exp(), x

    model = Odd(nn.Linear(3, 2))
    found = analyze(model, sp.Masks.ones({"0.weight": model[0].weight}), torch.randn(2, 3))
    assert found.network is None and found.layers == {} and found.collapse is None and found.costs is not None
    assert [note.partition(":")[0] for note in found.notes] == [
        "collapse", "Jacobian of the network", "Jacobians of layers", "conservation"
    ]  # fmt: skip
    for draw in (spectra_figure, conservation_figure, kernels_figure):
        with pytest.raises(ValueError, match="analysis must have"):
            draw(found)
    with pytest.raises(ValueError, match="masks must name parameters"):
        analyze(model, sp.Masks({"x": torch.ones(1, 1).bool()}), torch.randn(2, 3))
