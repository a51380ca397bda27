"""Learned masks: gradients by hand and by enumeration, exact counts, weights that never move."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim

import sparseprune as sp
from sparseprune.training import BernoulliMasks, EdgePopup, Piggyback


def net():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )


def popup_layer(absolute):
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1, -1, 2, 0.5]]))
    popup = EdgePopup(layer, density=0.5, absolute=absolute)
    with torch.no_grad():
        popup.scores[0].copy_(torch.tensor([[0.3, -0.9, 0.1, 0.5]]))
    return popup


@pytest.mark.parametrize(
    ("absolute", "kept", "gradient"),
    [(True, [1, 3], [3, 1.5, -3, 2.25]), (False, [0, 3], [3, -1.5, -3, 2.25])],
)
def test_edge_popup_is_the_worked_example(absolute, kept, gradient):
    popup, x = popup_layer(absolute), torch.tensor([[2.0, 1, -1, 3]])
    assert popup.masks()["weight"].to_bool()[0].nonzero().flatten().tolist() == kept
    output = popup(x)
    assert output.item() == sum(x[0, i].item() * [1, -1, 2, 0.5][i] for i in kept)
    (1.5 * output).backward()
    assert popup.scores[0].grad.tolist() == [gradient]


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_edge_popup_learns_with_frozen_weights_and_exact_counts(scope, memory_format):
    model = net().to(memory_format=memory_format)
    popup = EdgePopup(model, density=0.3, scope=scope)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    learned = [p for p in popup.parameters() if p.requires_grad]
    assert len(learned) == 2
    optimizer = optim.SGD(learned, 0.1, momentum=0.9, weight_decay=1e-4)
    x = torch.randn(32, 2, 4, 4).to(memory_format=memory_format)
    target = (x.mean((1, 2, 3)) > 0).long()
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(popup(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        counts = popup.masks().counts()
        if scope == "layer":
            assert counts == {"0.weight": round(0.3 * 72), "4.weight": round(0.3 * 192)}
        else:
            assert sum(counts.values()) == round(0.3 * 264)
    assert min(losses[-5:]) < 0.7 * losses[0]
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    popup.eval()
    expected = popup(x)
    sp.sparsify(model, popup.masks())
    torch.testing.assert_close(model(x), expected)


def test_scores_travel_with_the_state():
    popup = EdgePopup(net(), density=0.3)
    other = EdgePopup(net(), density=0.3)
    assert other.masks().digest() != popup.masks().digest()
    other.load_state_dict(popup.state_dict())
    x = torch.randn(2, 2, 4, 4)
    assert other.masks().digest() == popup.masks().digest() and torch.equal(other.eval()(x), popup.eval()(x))


def test_piggyback_is_the_worked_example():
    layer = nn.Linear(2, 2, bias=False)
    weight = torch.tensor([[1.0, 3], [-0.5, 2]])
    with torch.no_grad():
        layer.weight.copy_(weight)
    task = Piggyback(layer)
    optimizer = optim.SGD([p for p in task.parameters() if p.requires_grad], 0.01)
    x, dy = torch.tensor([[2.0, -1]]), torch.tensor([[0.4, -1]])
    output = task(x)
    assert torch.equal(output, x @ weight.t())
    output.backward(dy)
    torch.testing.assert_close(task.scores[0].grad, torch.tensor([[0.8, -1.2], [1, 2]]))
    optimizer.step()  # r = .01 - .01 dM: above .005 only where dM is negative
    assert task.masks()["weight"].to_bool().tolist() == [[False, True], [False, False]]
    assert torch.equal(layer.weight, weight)


def test_two_tasks_on_one_backbone():
    backbone = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    before = backbone[0].weight.detach().clone()
    x, masks = torch.randn(64, 6), []
    for task in range(2):
        wrapper = Piggyback(backbone, trained=("2.weight", "2.bias"))
        optimizer = optim.Adam([p for p in wrapper.parameters() if p.requires_grad], 1e-3)
        first = F.cross_entropy(wrapper(x), (x[:, task] > 0).long()).item()
        for _ in range(60):
            optimizer.zero_grad()
            loss = F.cross_entropy(wrapper(x), (x[:, task] > 0).long())
            loss.backward()
            optimizer.step()
        assert loss.item() < 0.85 * first
        masks.append(wrapper.masks())
    assert torch.equal(backbone[0].weight, before) and list(masks[0]) == ["0.weight"]
    assert masks[0].digest() != masks[1].digest() and 0 < masks[0].density < 1


W, TARGET, SCORES = torch.tensor([[1.0, -2, 0.5]]), 0.7, torch.tensor([[0.3, -0.2, 1]])


def bernoulli(**options):
    layer = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(W)
    masks = BernoulliMasks(layer, **options)
    with torch.no_grad():
        masks.scores[0].copy_(SCORES)
    return masks


def enumeration():
    """E[L] and its exact gradient, over the 8 masks."""
    scores = SCORES[0].double().requires_grad_()
    p, mean = scores.sigmoid(), 0.0
    for mask in itertools.product((0.0, 1.0), repeat=3):
        b = torch.tensor(mask, dtype=torch.float64)
        mean = mean + (p * b + (1 - p) * (1 - b)).prod() * ((b * W[0]).sum() - TARGET) ** 2
    mean.backward()
    return mean.item(), scores.grad


def test_enumeration_is_as_published_in_the_specification():
    value, gradient = enumeration()
    assert value == pytest.approx(1.7197532, abs=1e-7)
    torch.testing.assert_close(gradient.float(), torch.tensor([-0.3592573, 0.7524783, -0.1525491]))


def test_reinforce_is_unbiased():
    masks = bernoulli(gradient="reinforce", momentum=0.99)
    _, exact = enumeration()
    draws, ones = 6000, torch.ones(1, 3)
    for _ in range(draws):
        masks.reinforce((masks(ones) - TARGET).square().sum())
    error = (masks.scores[0].grad[0] / draws - exact).abs()
    assert error.max() < 5 * (1.3 / draws) ** 0.5


def test_straight_through_is_its_own_formula():
    masks, ones = bernoulli(), torch.ones(1, 3)
    p = SCORES.sigmoid()
    seen = set()
    for _ in range(20):
        masks.scores[0].grad = None
        output = masks(ones)
        drawn = masks._drawn[0]
        seen.add(tuple(drawn[0].tolist()))
        assert output.item() == pytest.approx((drawn * W).sum().item())
        (output - TARGET).square().sum().backward()
        expected = 2 * (output.detach() - TARGET) * W * p * (1 - p)
        torch.testing.assert_close(masks.scores[0].grad, expected)
    assert len(seen) > 3
    masks.eval()
    assert masks(ones).item() == pytest.approx(1.5) and masks.masks()["weight"].to_bool().tolist() == [
        [True, False, True]
    ]


def test_rescaling_and_the_state():
    masks, ones = bernoulli(rescale=True), torch.ones(1, 3)
    assert masks.eval()(ones).item() == pytest.approx(1.5 * 3 / 2)
    masks.train()
    state = masks.state_dict()
    first = [masks(ones).item() for _ in range(8)]
    other = bernoulli(rescale=True, seed=9)
    assert len(set(first)) > 1 and [other(ones).item() for _ in range(8)] != first
    other.load_state_dict(state)
    assert [other(ones).item() for _ in range(8)] == first


def test_wrong_arguments_are_named():
    for call, words in (
        (lambda: EdgePopup(net(), density=1.5), r"density must be a number in \[0, 1\]"),
        (lambda: EdgePopup(net(), density=0.5, scope="rows"), "scope must be layer or global"),
        (lambda: Piggyback(net(), trained=("head",)), "trained must name parameters of the model"),
        (lambda: BernoulliMasks(net(), gradient="score"), "gradient must be straight-through or reinforce"),
        (lambda: bernoulli().reinforce(torch.ones(())), "reinforce must follow a forward in training mode"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: EdgePopup(model, density=0.3),
        lambda model: Piggyback(model, threshold=0.0),
        lambda model: BernoulliMasks(model, rescale=True),
    ],
    ids=["EdgePopup", "Piggyback", "Bernoulli, rescaled"],
)
def test_what_was_learned_is_held_by_the_model_itself(wrap):
    wrapper = wrap(net())
    with torch.no_grad():
        for score in wrapper.scores:
            score.copy_(torch.randn_like(score))
    x = torch.randn(5, 2, 4, 4)
    expected, masks = wrapper.eval()(x), wrapper.masks()
    model = wrapper.hold()
    assert model is wrapper.model and sp.held_masks(model).digest() == masks.digest() and 0 < masks.density < 1
    torch.testing.assert_close(model(x), expected)
