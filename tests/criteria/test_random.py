from __future__ import annotations

import pytest
import torch
from criteria.networks import mlp, weights

from sparseprune.criteria import Random


def test_uniform_and_the_same_for_every_dtype():
    model = mlp(200, 100, 50)
    scores = Random(torch.Generator().manual_seed(3))(model, weights(model))
    flat = torch.cat([s.flatten() for s in scores.values()])
    assert flat.min() >= 0 and flat.max() < 1 and abs(flat.mean() - 0.5) < 0.01 and abs(flat.var() - 1 / 12) < 0.003
    half = Random(torch.Generator().manual_seed(3))(model.half(), weights(model))
    assert all(torch.equal(scores[name], half[name]) for name in scores)


def test_each_call_draws_anew_from_the_generator():
    model = mlp(30, 20, 10)
    generator = torch.Generator().manual_seed(3)
    first, second = (Random(generator)(model, weights(model)) for _ in range(2))
    assert not torch.equal(first["0.weight"], second["0.weight"])
    again = Random(torch.Generator().manual_seed(3))(model, weights(model))
    assert torch.equal(first["0.weight"], again["0.weight"])


def test_without_a_generator_the_global_seed_decides():
    model = mlp(30, 20, 10)
    torch.manual_seed(5)
    first = Random()(model, weights(model))["0.weight"]
    torch.rand(3)
    assert torch.equal(first, Random()(model, weights(model))["0.weight"])
    torch.manual_seed(6)
    assert not torch.equal(first, Random()(model, weights(model))["0.weight"])


@pytest.mark.parametrize("generator", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_independent_of_weights_drawn_under_the_same_seed_or_the_next(generator, seed):
    torch.manual_seed(seed)
    model = mlp(100, 100)
    torch.manual_seed(0)
    scores = Random(torch.Generator().manual_seed(0) if generator else None)(model, weights(model))
    pairs = torch.stack([model[0].weight.detach().flatten(), scores["0.weight"].flatten()])
    assert torch.corrcoef(pairs)[0, 1].abs() < 0.05


def test_refuses_a_seed():
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator, got int"):
        Random(0)
