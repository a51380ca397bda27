from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from criteria.networks import images, mixed_net, residual_net, weights
from criteria.oracles import assert_close, sample_gradients
from torch import nn

from sparseprune.criteria import SNIP, Taylor

pytestmark = pytest.mark.usefixtures("doubles")


@pytest.mark.parametrize("make", [residual_net, mixed_net])
def test_weights_equal_a_loop_over_the_examples(make):
    model, batch = make(), images(5)
    params = weights(model)
    gradients = sample_gradients(model, params, batch, F.cross_entropy)
    expected = {n: (w.detach() * gradients[n]).abs().mean(0) for n, w in params.items()}
    assert_close(Taylor(F.cross_entropy, [batch])(model, params), expected)


def test_examples_that_pull_in_opposite_directions_do_not_cancel():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    batch = (torch.tensor([[1.0], [-1.0]]), torch.zeros(2))
    params = {"weight": model.weight}
    assert Taylor(lambda output, _: output.mean(), [batch])(model, params)["weight"].item() == 2.0
    assert SNIP(lambda output, _: output.mean(), [batch])(model, params)["weight"].item() == 0.0


def maps(values):
    """Two maps by two 1x1 filters of weight ``values`` from one map; the gradient at both is the target."""
    model = nn.Conv2d(1, 2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(values).reshape(2, 1, 1, 1))
    a = torch.tensor([[[[1.0, 2], [0, 1]]], [[[2, 1], [1, 0]]]])
    g = torch.tensor([[[[0.1, -0.1], [0.2, 0.3]]], [[[-0.2, 0.1], [0.4, 0.1]]]])
    return model, lambda output, target: (output * target).sum() / 2, [(a, g)]


def test_maps_by_hand():
    """|mean over the map| is .05 and .025 for the two examples, .0375 on average; 3 and 4 times that give .6 and .8."""
    model, loss, batches = maps([3.0, -4.0])
    scores = Taylor(loss, batches, per="unit")(model, weights(model))["weight"].flatten()
    torch.testing.assert_close(scores, torch.tensor([0.6, 0.8]))
    model, loss, batches = maps([1.0, 0.0])
    scores = Taylor(loss, batches, per="unit")(model, weights(model))["weight"].flatten()
    assert scores.tolist() == [1.0, 0.0]


def test_units_are_behind_the_activation():
    """A map that the activation closes has no relevance; tanh's own value counts, not what came into it."""
    for activation, value in ((nn.ReLU(), 0.0), (nn.Tanh(), torch.tensor(-3.0).tanh().item())):
        model = nn.Sequential(nn.Linear(1, 2, bias=False), activation)
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor([[-3.0], [1.0]]))
        batch = (torch.ones(1, 1), torch.ones(1))
        scores = Taylor(lambda output, _: output.sum(), [batch], per="unit")(model, weights(model))["0.weight"]
        other = activation(torch.tensor(1.0)).item()
        torch.testing.assert_close(scores[0] / scores[1], torch.tensor([abs(value) / other]))


def test_a_sum_in_place_is_not_part_of_the_unit():
    """``out += shortcut; relu_(out)``: the gate is on the branch, before the sum."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = nn.Linear(1, 1, bias=False)

        def forward(self, x):
            out = self.branch(x)
            out += x
            return torch.relu_(out)

    model = Block()
    nn.init.constant_(model.branch.weight, 2.0)
    units = Taylor(lambda output, _: output.mean(), [(torch.tensor([[3.0]]), None)], per="unit")
    fisher_like = SNIP(lambda output, _: output.mean(), [(torch.tensor([[3.0]]), None)])
    assert units(model, weights(model))["branch.weight"].item() == 1.0
    assert fisher_like(model, weights(model))["branch.weight"].item() == 6.0  # the gate's own gradient

    from sparseprune.criteria import Fisher

    score = Fisher(lambda output, _: output.mean(), [(torch.tensor([[3.0]]), None)], per="unit")
    assert score(model, weights(model))["branch.weight"].item() == 18.0  # 6^2 / 2, where the sum's would be 9^2 / 2


def test_dead_layers_score_zero():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].bias.fill_(-100)
    batch = (torch.randn(6, 3), torch.randint(0, 2, (6,)))
    for per in ("weight", "unit"):
        score = Taylor(F.cross_entropy, [batch], per=per)(model, weights(model))["0.weight"]
        assert torch.equal(score, torch.zeros_like(score))


def test_bad_arguments():
    with pytest.raises(ValueError, match="per must be one of 'weight', 'unit', got 'map'"):
        Taylor(F.cross_entropy, [], per="map")
