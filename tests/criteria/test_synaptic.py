from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from criteria.networks import images, mlp, residual_net, weights
from criteria.oracles import assert_close
from torch import nn

import sparseprune as sp
from sparseprune.criteria import SNIP, SynapticSaliency, SynFlow

pytestmark = pytest.mark.usefixtures("doubles")


def scores_of(model, objective, batch, **options):
    params = dict(model.named_parameters())
    return SynapticSaliency(objective, [batch], **options)(model, params)


@pytest.mark.parametrize("objective", [F.cross_entropy, lambda output, _: (output**3).mean()])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.Tanh])
def test_conserved_at_every_hidden_unit_where_units_are_piecewise_linear(objective, activation):
    model, batch = mlp(6, 7, 5, 4, bias=True, activation=activation), (torch.randn(9, 6), torch.randint(0, 4, (9,)))
    scores = scores_of(model, objective, batch)
    gaps = []
    for into, out in (("0", "2"), ("2", "4")):
        coming = scores[f"{into}.weight"].sum(1) + scores[f"{into}.bias"]
        gaps.append(float((coming - scores[f"{out}.weight"].sum(0)).abs().max()))
    assert (max(gaps) < 1e-12) == (activation is not nn.Tanh)


def test_conserved_at_every_channel():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4))
    scores = scores_of(model, F.cross_entropy, images(5))
    coming = scores["0.weight"].sum((1, 2, 3)) + scores["0.bias"]
    torch.testing.assert_close(coming, scores["2.weight"].sum((0, 2, 3)), rtol=1e-10, atol=1e-14)
    coming = scores["2.weight"].sum((1, 2, 3)) + scores["2.bias"]
    torch.testing.assert_close(coming, scores["5.weight"].reshape(4, 5, 16).sum((0, 2)), rtol=1e-10, atol=1e-14)


def test_snip_and_synflow_are_cases_of_it():
    model, batch = residual_net(), images(5)
    snip = SNIP(F.cross_entropy, [batch])(model, weights(model))
    assert_close(SynapticSaliency(F.cross_entropy, [batch], form="absolute")(model, weights(model)), snip)
    squared = SynapticSaliency(F.cross_entropy, [batch], form="squared")(model, weights(model))
    assert_close(squared, {name: score**2 for name, score in snip.items()})
    chain = mlp(6, 7, 4)
    with torch.no_grad():
        for weight in chain.parameters():
            weight.abs_()
    flow = SynapticSaliency(lambda output, _: output.sum(), [(torch.ones(1, 6), None)])(chain, weights(chain))
    assert_close(flow, SynFlow(torch.ones(1, 6), scale=False)(chain, weights(chain)))


def test_iterative_snip_is_snip_in_steps():
    """At 0.2 % one shot empties a layer of a deep narrow network; a hundred steps, each under the last masks, do not."""
    model = mlp(64, 40, 40, 40, 40, 10)
    batch = (torch.randn(64, 64), torch.randint(0, 10, (64,)))
    masks = {steps: sp.prune(model, SNIP(F.cross_entropy, [batch]), density=0.01, steps=steps) for steps in (1, 100)}
    assert masks[1].count() == masks[100].count()
    paths = {}
    for steps, kept in masks.items():
        reach = torch.ones(64)
        for mask in kept.values():
            reach = mask.to_bool().double() @ reach
        paths[steps] = float(reach.sum())
    assert paths[100] > 4 * max(paths[1], 1.0)


def test_bad_arguments():
    with pytest.raises(ValueError, match="form must be one of 'signed', 'absolute', 'squared', got 'abs'"):
        SynapticSaliency(F.cross_entropy, [], form="abs")
    with pytest.raises(ValueError, match="bn must be one of"):
        SynapticSaliency(F.cross_entropy, [], bn="batch")
