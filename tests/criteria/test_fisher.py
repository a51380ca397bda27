from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from criteria.networks import Shared, conv_chain, images, mixed_net, mlp, residual_net, weights
from criteria.oracles import assert_close, hessian_diagonal, sample_gradients
from torch import nn

from sparseprune.criteria import Fisher, per_sample

pytestmark = pytest.mark.usefixtures("doubles")


def halves(batch):
    return [(batch[0][:2], batch[1][:2]), (batch[0][2:], batch[1][2:])]


NETWORKS = {
    "residual": lambda: (residual_net(), images(5)),
    "mixed": lambda: (mixed_net(), images(5)),
    "chain": lambda: (conv_chain(bias=True), images(5, classes=3)),
    "mlp": lambda: (mlp(6, 7, 4, bias=True), (torch.randn(7, 6), torch.randint(0, 4, (7,)))),
    "shared": lambda: (Shared(), (torch.randn(7, 5), torch.randint(0, 3, (7,)))),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_a_loop_over_the_examples(name):
    model, batch = NETWORKS[name]()
    params = weights(model)
    gradients = sample_gradients(model, params, batch, F.cross_entropy)
    expected = {n: w.detach() ** 2 * gradients[n].square().mean(0) / 2 for n, w in params.items()}
    assert_close(Fisher(F.cross_entropy, halves(batch))(model, params), expected)


@pytest.mark.parametrize("make", [residual_net, mixed_net])
@pytest.mark.parametrize("entries", [1, 300])
def test_a_few_examples_at_a_time_give_the_same(make, entries, monkeypatch):
    """However large the batch, no more gradients of single examples are held than fit the memory set aside."""
    model, batch = make(), images(5)
    expected = Fisher(F.cross_entropy, [batch])(model, weights(model))
    monkeypatch.setattr(per_sample, "CHUNK", entries)
    monkeypatch.setattr(per_sample, "CACHED", entries)
    held = []
    reused, formed = per_sample._reused_samples, per_sample.per_sample_gradients
    monkeypatch.setattr(per_sample, "_reused_samples", lambda *a: (held.append(s) or s for s in reused(*a)))
    monkeypatch.setattr(per_sample, "per_sample_gradients", lambda *a: held.append(formed(*a)) or held[-1])
    assert_close(Fisher(F.cross_entropy, [batch])(model, weights(model)), expected)
    assert held and all(part.numel() <= max(entries, part[0].numel()) for part in held)


def test_gradients_are_squared_before_they_are_averaged():
    """g = (1, -2), (-1, 2), (3, 0) at w = (2, 1): [22/3, 4/3], where the squared mean would give [2, 0]."""
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, 1.0]]))
    batches = [(torch.tensor([[1.0, -2.0], [-1.0, 2.0], [3.0, 0.0]]), torch.zeros(3))]
    scores = Fisher(lambda output, _: output.mean(), batches)(model, {"weight": model.weight})
    torch.testing.assert_close(scores["weight"], torch.tensor([[22 / 3, 4 / 3]]))


@pytest.mark.parametrize("name", ["residual", "mixed", "mlp"])
def test_true_fisher_is_the_mean_over_the_models_own_predictions(name):
    model, (inputs, _) = NETWORKS[name]()
    model.eval()
    params = weights(model)
    share = model(inputs).softmax(1).detach()
    expected = {n: torch.zeros_like(w) for n, w in params.items()}
    for label in range(share.shape[1]):
        target = torch.full((len(inputs),), label)
        for n, gradient in sample_gradients(model, params, (inputs, target), F.cross_entropy).items():
            chance = share[:, label].reshape(-1, *[1] * (gradient.dim() - 1))
            expected[n] += params[n].detach() ** 2 * (chance * gradient**2).mean(0) / 2
    scores = Fisher(F.cross_entropy, halves((inputs, torch.zeros(len(inputs), dtype=torch.long))), kind="true")
    assert_close(scores(model, params), expected)


def test_logistic_regression_where_fisher_is_the_hessian():
    """Targets drawn from the model: the empirical Fisher, the true one and the Hessian are one matrix."""
    model = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -0.5, 0.25]]))
    inputs = torch.randn(100_000, 3)
    target = torch.bernoulli(model(inputs).sigmoid()).detach()
    params = weights(model)
    exact = hessian_diagonal(model, params, (inputs, target), F.binary_cross_entropy_with_logits)["weight"]
    half = model.weight.detach() ** 2 / 2
    for kind, tolerance in (("true", 1e-9), ("empirical", 0.02)):
        scores = Fisher(F.binary_cross_entropy_with_logits, [(inputs, target)], kind=kind)(model, params)
        torch.testing.assert_close(scores["weight"], half * exact, rtol=tolerance, atol=0)


def test_gate_of_a_map():
    """Two examples of one map: sums of a * g are .2 and .1, so (.04 + .01) / 4."""
    model = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(model.weight)
    a = torch.tensor([[[[1.0, 2], [0, 1]]], [[[2, 1], [1, 0]]]])
    g = torch.tensor([[[[0.1, -0.1], [0.2, 0.3]]], [[[-0.2, 0.1], [0.4, 0.1]]]])
    scores = Fisher(lambda output, target: (output * target).sum() / 2, [(a, g)], per="unit")(model, weights(model))
    torch.testing.assert_close(scores["weight"].item(), 0.0125)


@pytest.mark.parametrize("kind", ["empirical", "true"])
def test_gates_behind_batch_norm_and_activation(kind):
    """Against explicit gates of one, behind the ReLU of each block's first convolution."""
    model, (inputs, target) = residual_net(1).eval(), images(5)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(), module.bias.normal_(), module.weight.normal_()
    block = model[3]
    gate = torch.ones(5, 4, requires_grad=True)
    handle = block.body[2].register_forward_hook(lambda m, i, output: output * gate[..., None, None])
    output = model(inputs)
    handle.remove()
    if kind == "empirical":
        gradients = [torch.autograd.grad(F.cross_entropy(output, target, reduction="sum"), gate)[0]]
        chances = [torch.ones(5)]
    else:
        share = output.softmax(1).detach()
        losses = F.log_softmax(output, 1).sum(0)
        gradients = [torch.autograd.grad(loss, gate, retain_graph=True)[0] for loss in losses]
        chances = share.unbind(1)
    expected = sum((c[:, None] * g**2).mean(0) for c, g in zip(chances, gradients, strict=True)) / 2
    scores = Fisher(F.cross_entropy, halves((inputs, target)), kind=kind, per="unit")(model, weights(model))
    name = "3.body.0.weight"
    torch.testing.assert_close(scores[name], expected.reshape(-1, 1, 1, 1).expand(scores[name].shape))


def test_cost_counts_multiply_adds():
    """6 maps of 8x8 from 27 weights each, read by 5 maps of 2x2; those by 3 outputs, each of whose weights is used once."""
    model, batch = conv_chain(), images(4, classes=3)
    params = weights(model)
    free, priced = (Fisher(F.cross_entropy, [batch], cost=cost)(model, params) for cost in (0.0, 0.5))
    for name, saved in (("0.weight", 64), ("4.weight", 4), ("7.weight", 1)):
        torch.testing.assert_close(free[name] - priced[name], torch.full_like(free[name], saved / 2))
    free, priced = (Fisher(F.cross_entropy, [batch], per="unit", cost=cost)(model, params) for cost in (0.0, 0.5))
    second = 4 * 6 * 9
    for name, saved in (("0.weight", 64 * 27 + 5 * second / 6), ("4.weight", second + 3 * 20 / 5), ("7.weight", 20)):
        torch.testing.assert_close(free[name] - priced[name], torch.full_like(free[name], saved / 2))


def test_cost_follows_shortcuts_and_uses_every_batch_once():
    model, params = residual_net(1), None
    params = weights(model)
    batches = [images(3), images(2)]
    free, priced = (Fisher(F.cross_entropy, iter(batches), per="unit", cost=c)(model, params) for c in (0.0, 1.0))
    assert_close(
        {"r": Fisher(F.cross_entropy, batches, per="unit")(model, params)["8.weight"]}, {"r": free["8.weight"]}
    )
    # The first convolution's maps reach, through the shortcuts, both blocks: their first layers read all of them.
    readers = 64 * 4 * 36 + 16 * (8 * 36 + 8 * 4)
    torch.testing.assert_close((free["0.weight"] - priced["0.weight"])[0, 0, 0, 0].item(), 64 * 27 + readers / 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "exact"}, "kind must be one of 'empirical', 'true', got 'exact'"),
        ({"per": "filter"}, "per must be one of 'weight', 'unit', got 'filter'"),
        ({"cost": -1.0}, "cost must be at least 0 and finite, got -1.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Fisher(F.cross_entropy, [], **arguments)


def test_what_has_no_gradients_of_single_examples_is_refused():
    encoder = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(24, 3))
    batch = (torch.randn(4, 3, 8), torch.randint(0, 3, (4,)))
    used = {name: w for name, w in weights(encoder).items() if "in_proj" not in name}
    with pytest.raises(ValueError, match="weight '0.self_attn.out_proj.weight' must be used by linear or convolution"):
        Fisher(F.cross_entropy, [batch])(encoder, used)
    first = {name: w for name, w in weights(encoder).items() if "attn" not in name}
    gradients = sample_gradients(encoder, first, batch, F.cross_entropy)
    expected = {n: w.detach() ** 2 * gradients[n].square().mean(0) / 2 for n, w in first.items()}
    assert_close(Fisher(F.cross_entropy, [batch])(encoder, first), expected)
    rows = nn.Sequential(nn.Flatten(0, 1), nn.Linear(8, 2))
    with pytest.raises(ValueError, match="keep the 4 examples in the first dimension at '1.weight', got .*(12, 8)"):
        Fisher(lambda output, _: output.mean(), [batch])(rows, {"1.weight": rows[1].weight})
    with pytest.raises(ValueError, match="convex"):
        Fisher(lambda output, _: -output.square().mean(), [batch], kind="true")(rows[1], {"weight": rows[1].weight})
    with pytest.raises(ValueError, match="got a transposed convolution: exclude it"):
        Fisher(F.cross_entropy, [images(2)], per="unit")(mixed_net(), weights(mixed_net()))
    with pytest.raises(ValueError, match="batches must yield at least one"):
        Fisher(F.cross_entropy, [], cost=1.0)(rows[1], {"weight": rows[1].weight})
