from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from criteria.networks import Shared, conv_chain, images, mixed_net, mlp, residual_net, weights
from criteria.oracles import assert_close, flat, removal_changes
from torch import nn
from torch.func import functional_call

from sparseprune.criteria import ExactSaliency, removals

pytestmark = pytest.mark.usefixtures("doubles")

NETWORKS = {
    "residual": lambda: (residual_net(1), images(3)),
    "mixed": lambda: (mixed_net(), images(3)),
    "chain": lambda: (conv_chain(bias=True), images(3, classes=3)),
    "mlp": lambda: (mlp(6, 7, 4, bias=True), (torch.randn(7, 6), torch.randint(0, 4, (7,)))),
    "shared": lambda: (Shared(), (torch.randn(7, 5), torch.randint(0, 3, (7,)))),
    "attention": lambda: (
        nn.Sequential(nn.TransformerEncoderLayer(4, 2, 4, batch_first=True), nn.Flatten(), nn.Linear(8, 3)),
        (torch.randn(3, 2, 4), torch.randint(0, 3, (3,))),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_setting_each_weight_to_zero(name):
    model, (inputs, target) = NETWORKS[name]()
    expected = removal_changes(model, weights(model), (inputs, target), F.cross_entropy)
    parts = [(inputs[:1], target[:1]), (inputs[1:], target[1:])]
    scores = ExactSaliency(F.cross_entropy, parts)(model, weights(model))
    assert_close(scores, {n: change.abs() for n, change in expected.items()})


@pytest.mark.parametrize("name", ["residual", "mlp"])
def test_units_equal_setting_rows_to_zero(name):
    model, (inputs, target) = NETWORKS[name]()
    scores = ExactSaliency(F.cross_entropy, [(inputs, target)], per="unit")(model, weights(model))
    before = F.cross_entropy(model.eval()(inputs), target)
    for name, weight in weights(model).items():
        for row in range(len(weight)):
            without = weight.detach().clone()
            without[row] = 0
            after = F.cross_entropy(functional_call(model, {name: without}, (inputs,)), target)
            expected = (after - before).abs().detach().expand(weight[row].shape)
            torch.testing.assert_close(scores[name][row], expected, rtol=1e-9, atol=1e-14)


def test_how_many_at_a_time_changes_nothing(monkeypatch):
    model, batch = conv_chain(), images(3, classes=3)
    expected = flat(ExactSaliency(F.cross_entropy, [batch])(model, weights(model)))
    monkeypatch.setattr(removals, "ENTRIES", 1)
    torch.testing.assert_close(flat(ExactSaliency(F.cross_entropy, [batch])(model, weights(model))), expected)


def test_computes_in_double_whatever_the_model():
    model, (inputs, target) = conv_chain().float(), images(3, classes=3)
    scores = ExactSaliency(F.cross_entropy, [(inputs.float(), target)])(model, weights(model))
    double = model.double()
    expected = removal_changes(double, weights(double), (inputs.float().double(), target), F.cross_entropy)
    assert_close(scores, {n: change.abs() for n, change in expected.items()})
    own = ExactSaliency(F.cross_entropy, [(inputs.float(), target)], dtype=None)(model.float(), weights(model))
    assert all(score.dtype == torch.float32 for score in own.values())


def test_what_comes_before_the_layer_is_not_repeated():
    """The first layer of two runs on the batch itself while weights of the second are removed."""
    shapes = []
    model = mlp(6, 7, 4)
    model[0].register_forward_hook(
        lambda module, inputs, output: shapes.append(torch._C._functorch.is_batchedtensor(output))
    )
    ExactSaliency(F.cross_entropy, [(torch.randn(5, 6), torch.randint(0, 4, (5,)))])(
        model, {"2.weight": model[2].weight}
    )
    assert shapes and not any(shapes)


def test_bad_arguments():
    with pytest.raises(ValueError, match="dtype must be None, torch.float32 or torch.float64, got torch.float16"):
        ExactSaliency(F.cross_entropy, [], dtype=torch.float16)
    with pytest.raises(ValueError, match="per must be one of"):
        ExactSaliency(F.cross_entropy, [], per="layer")
    with pytest.raises(ValueError, match="batches must yield at least one"):
        ExactSaliency(F.cross_entropy, [])(nn.Linear(2, 2), weights(nn.Linear(2, 2)))
