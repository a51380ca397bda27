"""Tables, heat maps and distributions against loops over single weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from criteria.networks import conv_chain, mlp, weights

import sparseprune as sp
from sparseprune.diagnostics import (
    connections,
    input_pixels,
    kernel_positions,
    links,
    remaining_table,
    weight_distributions,
)
from sparseprune.masks import BitMask


def masks_of(model, density):
    return sp.Masks({name: torch.rand(w.shape) < density for name, w in weights(model).items()})


def test_table_of_the_published_lenet_5():
    """Weights left by SNIP at 95 %; published as 29.3, 72.3, 97.5, 92.4 and 69.9 % pruned."""
    counts = {"conv1": (106, 150), "conv2": (666, 2400), "fc1": (1214, 48000), "fc2": (768, 10080), "fc3": (253, 840)}
    rows = remaining_table(sp.Masks({name: torch.arange(total) < kept for name, (kept, total) in counts.items()}))
    assert [100 * row.pruned for row in rows] == pytest.approx([29.3, 72.3, 97.5, 92.4, 69.9], abs=0.06)
    assert sum(row.share for row in rows) == pytest.approx(1)
    told = {"name": "fc1", "kept": 1214, "total": 48000, "pruned": 1 - 1214 / 48000, "share": 1214 / 3007}
    assert rows[2].to_dict() == told


def test_heat_maps_by_loops():
    keep = torch.rand(4, 3, 5, 2) < 0.4
    mask = BitMask.from_bool(keep)
    for a, b in np.ndindex(5, 2):
        assert kernel_positions(mask)[a, b].item() == pytest.approx(keep[:, :, a, b].sum().item() / 12)
    for o, i in np.ndindex(4, 3):
        assert connections(mask)[o, i].item() == pytest.approx(keep[o, i].sum().item() / 10)
    flat = BitMask.from_bool(keep.reshape(4, 30))
    assert torch.equal(connections(flat), keep.reshape(4, 30).double())
    pixels = input_pixels(flat, (3, 5, 2))
    assert pixels.shape == (3, 5, 2) and pixels[2, 4, 1] == keep[:, 2, 4, 1].sum() / 4


def test_links_count_both_ends():
    keep = torch.rand(6, 2, 3, 3) < 0.3
    incoming, outgoing = links(BitMask.from_bool(keep), groups=3)
    assert incoming.tolist() == [keep[o].sum().item() for o in range(6)]
    assert outgoing.tolist() == [keep[2 * g : 2 * g + 2, i].sum().item() for g in range(3) for i in range(2)]
    assert incoming.sum() == outgoing.sum() == keep.sum()


def test_distributions_are_numpys():
    model = conv_chain()
    masks = masks_of(model, 0.3)
    found = weight_distributions(model, masks, bins=7)
    for name, w in weights(model).items():
        values, keep = w.detach().double().numpy().ravel(), masks[name].to_bool().numpy().ravel()
        counts, edges = np.histogram(values, 7)
        assert found[name].everything.tolist() == counts.tolist()
        np.testing.assert_allclose(found[name].edges, edges)
        assert found[name].kept.tolist() == np.histogram(values[keep], edges)[0].tolist()
        kept = values[keep]
        told = found[name].to_dict()
        assert (told["mean"], told["std"], told["negative"]) == pytest.approx(
            (kept.mean(), kept.std(), (kept < 0).mean())
        )
        np.testing.assert_allclose(
            told["quantiles"], np.quantile(abs(kept), [0, 0.25, 0.5, 0.75, 1], method="nearest"), rtol=0.05
        )


def test_nothing_kept_and_equal_weights():
    model = mlp(3, 2)
    torch.nn.init.constant_(model[0].weight, 2.0)
    empty = weight_distributions(model, masks_of(model, 0))["0.weight"]
    assert empty.kept.sum() == 0 and empty.everything.sum() == 6 and empty.quantiles == () and empty.std == 0
    assert (empty.edges[0], empty.edges[-1]) == (1.5, 2.5)
    assert remaining_table(masks_of(model, 0))[0].share == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: kernel_positions(m), "mask must be of a convolution"),
        (lambda m: input_pixels(m, (1, 2, 2)), r"mask must have shape \(out, 4\)"),
        (lambda m: connections(BitMask.ones((3,))), "at least two dimensions"),
        (lambda m: links(m, groups=5), "divisible by groups=5"),
        (lambda m: weight_distributions(mlp(3, 2), sp.Masks({"0.weight": m}), bins=0), "bins must be"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call(BitMask.ones((2, 3)))


def test_a_kept_weight_that_is_not_finite():
    model = mlp(3, 2)
    with torch.no_grad():
        model[0].weight[1, 1] = float("inf")
    keep = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="kept weights must be finite, got '0.weight'"):
        weight_distributions(model, sp.Masks({"0.weight": keep}))
    keep[1, 1] = False
    assert weight_distributions(model, sp.Masks({"0.weight": keep}))["0.weight"].everything.sum() == 5
