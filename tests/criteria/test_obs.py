from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from criteria.networks import Shared, conv_chain, images, mixed_net, mlp, residual_net, weights
from criteria.oracles import flat, sample_gradients
from torch import nn

import sparseprune as sp
from sparseprune.criteria import OBS
from sparseprune.criteria.inverse_hessian import InverseHessian

pytestmark = pytest.mark.usefixtures("doubles")


def toy():
    """H = [[2, 1], [1, 2]] at w = (1, 2), exactly: an inverse may be given."""
    block = InverseHessian({"weight": torch.tensor([[1.0, 2.0]])}, 1.0, 1)
    block.inverse = torch.linalg.inv(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    return block


def test_two_weights_by_hand():
    """L = .75 with dw = (-1, .5) and 3 with (1, -2), where OBD says 1 and 4."""
    block = toy()
    torch.testing.assert_close(block.costs(), torch.tensor([0.75, 3.0]))
    block.remove_cheapest()
    assert block.values.tolist() == [0.0, 2.5] and block.there.tolist() == [False, True]
    torch.testing.assert_close(block.costs()[1], torch.tensor(2 * 2.5**2 / 2))  # what is left is H_11 = 2 alone


def regression(examples=50, size=5):
    model = nn.Linear(size, 1, bias=False)
    x = torch.randn(examples, size) @ torch.randn(size, size)
    y = x @ torch.randn(size, 1) + torch.randn(examples, 1)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    return model, (x, y)


def half_error(output, target):
    return (output - target).square().mean() / 2


def test_linear_regression_is_the_refit_without_the_column():
    model, (x, y) = regression()
    result = sp.compensate(model, OBS(half_error, [(x, y)]), keep=4)
    kept = result.masks["weight"].to_bool()[0]
    refit = torch.linalg.lstsq(x[:, kept], y).solution[:, 0]
    torch.testing.assert_close(result.weights["weight"][0, kept], refit, rtol=1e-4, atol=1e-5)
    assert result.weights["weight"][0, ~kept] == 0
    costs = OBS(half_error, [(x, y)])(model, weights(model))["weight"][0]
    before = half_error(model(x), y)
    result.apply_(model)
    torch.testing.assert_close(half_error(model(x), y) - before, costs.min(), rtol=1e-4, atol=1e-6)


def test_three_deletions_are_the_joint_minimiser():
    """Of (v - w)' (H + alpha) (v - w) / 2 over all v that are zero where weights were removed."""
    model, (x, y) = regression(size=7)
    result = sp.compensate(model, OBS(half_error, [(x, y)]), keep=4)
    kept = result.masks["weight"].to_bool()[0]
    hessian, w = x.T @ x / len(x) + 1e-6 * torch.eye(7), model.weight.detach()[0]
    expected = w[kept] + torch.linalg.solve(hessian[kept][:, kept], hessian[kept][:, ~kept] @ w[~kept])
    torch.testing.assert_close(result.weights["weight"][0, kept], expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("make", [residual_net, mixed_net, Shared, lambda: mlp(5, 6, 3, activation=nn.Tanh)])
@pytest.mark.parametrize("blocks", ["network", "layer"])
def test_recursive_inverse_is_the_inverse_of_the_gauss_newton_matrix(make, blocks):
    model = make().eval()
    convolutional = any(isinstance(m, nn.Conv2d) for m in model.modules())
    params = {n: w for n, w in weights(model).items() if w.numel() <= 200}
    inputs, target = images(6, 3) if convolutional else (torch.randn(6, 5), torch.randint(0, 3, (6,)))
    classes = model(inputs).shape[1]
    # For the cross-entropy: the mean over the model's own predictions of g g'.
    chances, matrix = model(inputs).softmax(1).detach(), 0
    for label in range(classes):
        rows = sample_gradients(model, params, (inputs, torch.full((6,), label)), F.cross_entropy)
        gradients = torch.cat([part.flatten(1) for part in rows.values()], 1)
        matrix = matrix + (chances[:, label, None] * gradients).T @ gradients / 6
    if blocks == "layer":
        ends = list(itertools.accumulate(w.numel() for w in params.values()))
        mask = torch.block_diag(*[torch.ones(b - a, b - a) for a, b in zip([0, *ends], ends, strict=False)])
        matrix = matrix * mask
    diagonal = torch.linalg.inv(matrix + 1e-3 * torch.eye(len(matrix))).diagonal()
    parts = [(inputs[:4], target[:4]), (inputs[4:], target[4:])]
    scores = OBS(F.cross_entropy, parts, alpha=1e-3, blocks=blocks)(model, params)
    torch.testing.assert_close(flat(scores), flat(params) ** 2 / (2 * diagonal), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", ["linear", "convolution", "grouped"])
def test_rows_are_least_squares_on_the_layers_own_output(name):
    make = {
        "linear": (lambda: nn.Linear(6, 4, bias=False), torch.randn(40, 3, 6)),
        "convolution": (lambda: nn.Conv2d(2, 3, 2, bias=False, stride=2, padding=1), torch.randn(40, 2, 5, 5)),
        "grouped": (lambda: nn.Conv2d(4, 4, 2, bias=False, groups=2), torch.randn(40, 4, 4, 4)),
    }[name]
    model, inputs = make[0](), make[1]
    obs = OBS(half_error, [(inputs[:30], None), (inputs[30:], None)], alpha=1e-10, blocks="row")
    result = sp.compensate(model, obs, density=0.4)
    assert result.masks.count() == round(0.4 * model.weight.numel())
    before, after = model(inputs).detach(), None
    kept, values = result.masks["weight"].to_bool(), result.weights["weight"]
    assert not values[~kept].any()
    # No change of the survivors lowers the error any further: the gradient is zero there.
    free = values.clone().requires_grad_()
    with torch.no_grad():
        model.weight.copy_(values)
    after = torch.func.functional_call(model, {"weight": free}, (inputs,))
    error = (after - before).square().sum()
    gradient = torch.autograd.grad(error, free)[0]
    assert gradient[kept].abs().max() < 1e-6 * float(before.square().sum())
    plain = torch.func.functional_call(make[0]().requires_grad_(False), {"weight": values * 0}, (inputs,))
    assert error < (plain - before).square().sum()


def test_survivors_make_up_for_the_removed_in_a_trained_network():
    model, (inputs, _) = mlp(6, 8, 2, activation=nn.Tanh), (torch.randn(80, 6), None)
    target = torch.stack([torch.sin(inputs[:, 0] + inputs[:, 1]), inputs[:, 2] * 0.5], 1)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.mse_loss(model(inputs), target)
        loss.backward()
        return loss

    optimizer.step(closure)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    errors = {}
    for name, result in {
        blocks: sp.compensate(model, OBS(F.mse_loss, [(inputs, target)], alpha=1e-4, blocks=blocks), density=0.7)
        for blocks in ("network", "layer", "row")
    }.items():
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
        state = {n: p.clone() for n, p in before.items()}
        moved = torch.func.functional_call(model, state | result.weights, (inputs,))
        cut = {n: torch.where(result.masks[n].to_bool(), before[n], 0) for n in result.masks}
        errors[name] = (
            float(F.mse_loss(moved, target)),
            float(F.mse_loss(torch.func.functional_call(model, cut, (inputs,)), target)),
        )
    assert all(compensated < cut for compensated, cut in errors.values()), errors
    assert errors["network"][0] < errors["network"][1] / 3


def test_pruning_by_it_changes_no_weight():
    model, batch = conv_chain(), images(5, 3)
    before = [p.detach().clone() for p in model.parameters()]
    masks = sp.prune(model, OBS(F.cross_entropy, [batch]), density=0.3)
    assert masks.count() == round(0.3 * masks.numel())
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_bad_arguments():
    model, batch = regression()
    with pytest.raises(ValueError, match="blocks must be one of 'network', 'layer', 'row', got 'column'"):
        OBS(half_error, [], blocks="column")
    with pytest.raises(ValueError, match="alpha must be positive and finite, got 0"):
        OBS(half_error, [], alpha=0)
    with pytest.raises(ValueError, match="at most 4 weights in one Hessian, got 5 in weight: take smaller"):
        OBS(half_error, [batch], limit=4)(model, weights(model))
    with pytest.raises(ValueError, match="at most 4 inputs to a row, got 5 in weight"):
        OBS(half_error, [batch], limit=4, blocks="row")(model, weights(model))
    with pytest.raises(ValueError, match="got a transposed|two-dimensional convolution for OBS by rows"):
        OBS(F.cross_entropy, [images(2)], blocks="row")(mixed_net(), weights(mixed_net()))
    with pytest.raises(ValueError, match="batches must yield at least one"):
        OBS(half_error, [])(model, weights(model))
    with pytest.raises(TypeError, match=r"criterion must be one that compensates \(OBS\), got Magnitude"):
        sp.compensate(model, sp.Magnitude(), keep=1)
    with pytest.raises(ValueError, match="exactly one of sparsity, density and keep"):
        sp.compensate(model, OBS(half_error, [batch]))
    result = sp.compensate(model, OBS(half_error, [batch]), keep=2)
    with pytest.raises(ValueError, match=r"model must have a weight 'weight' of shape \(1, 5\), got \(1, 4\)"):
        result.apply_(nn.Linear(4, 1))
