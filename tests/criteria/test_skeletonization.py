from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from criteria.networks import mlp, weights
from torch import nn

from sparseprune.criteria import Skeletonization
from sparseprune.criteria.skeletonization import linear_error

pytestmark = pytest.mark.usefixtures("doubles")


def toy(v=(1.0, -0.5, 0.2)):
    """Hidden values are the input itself (identity weights); output v z: 3 units, targets 1.5 and -1."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3))
        model[1].weight.copy_(torch.tensor([v]))
    return model, (torch.tensor([[1.0, 2, 0], [0.5, 1, 3]]), torch.tensor([[1.5], [-1.0]]))


def summed(output, target):
    return (target - output).abs().sum()


def test_relevance_by_hand_equals_removal():
    """rho = [.5, -.5, -.6]: outputs 0 and .6 for targets 1.5 and -1; a squared error would say [1.4, -1.4, -1.92]."""
    model, batch = toy()
    scores = Skeletonization(summed, [batch])(model, weights(model))["0.weight"]
    torch.testing.assert_close(scores, torch.tensor([[0.5], [-0.5], [-0.6]]).expand(3, 3))
    before = summed(model(batch[0]), batch[1])
    for unit in range(3):
        without, _ = toy(tuple(0.0 if i == unit else v for i, v in enumerate((1.0, -0.5, 0.2))))
        torch.testing.assert_close(scores[unit, 0], (summed(without(batch[0]), batch[1]) - before).detach())
    squared = Skeletonization(lambda o, t: (t - o).square().sum(), [batch])(model, weights(model))["0.weight"]
    torch.testing.assert_close(squared[:, 0], torch.tensor([1.4, -1.4, -1.92]))


@pytest.mark.parametrize("decay", [0.0, 0.8])
def test_moving_average(decay):
    """Batches in order, the last counts most, and the weights of the average add up to one."""
    model, (inputs, target) = toy()
    parts = [(inputs[:1], target[:1]), (inputs[1:], target[1:]), (inputs, target)]
    alone = [Skeletonization(summed, [part], decay=decay)(model, weights(model))["0.weight"] for part in parts]
    average = Skeletonization(summed, parts, decay=decay)(model, weights(model))["0.weight"]
    shares = torch.tensor([decay**2, decay, 1.0])
    torch.testing.assert_close(average, sum(s * a for s, a in zip(shares / shares.sum(), alone, strict=True)))


def test_relu_units_carry_what_comes_in_and_what_goes_out():
    """-rho is the sum of g w over the weights and the bias that come in, and over those that go out."""
    model, batch = mlp(5, 6, 3, bias=True), (torch.randn(9, 5), torch.randint(0, 3, (9,)))
    linear_error(model(batch[0]), batch[1]).backward()
    scores = Skeletonization(linear_error, [batch])(model, weights(model))["0.weight"][:, 0]
    coming = (model[0].weight * model[0].weight.grad).sum(1) + model[0].bias * model[0].bias.grad
    going = (model[2].weight * model[2].weight.grad).sum(0)
    torch.testing.assert_close(-scores, coming.detach())
    torch.testing.assert_close(-scores, going.detach())


def test_linear_error_of_classes():
    output, target = torch.randn(7, 4), torch.randint(0, 4, (7,))
    expected = (F.one_hot(target, 4) - output.softmax(1)).abs().sum(1).mean()
    torch.testing.assert_close(linear_error(output, target), expected)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1.0"):
        Skeletonization(linear_error, [], decay=1.0)
    with pytest.raises(ValueError, match="batches must yield at least one"):
        Skeletonization(linear_error, [])(toy()[0], weights(toy()[0]))
