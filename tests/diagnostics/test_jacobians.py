"""Singular values against the full Jacobian by torch.autograd.functional, and against closed forms."""

from __future__ import annotations

import pytest
import torch
from criteria.networks import conv_chain, mlp, residual_net, weights
from torch import nn
from torch.autograd.functional import jacobian

import sparseprune as sp
from sparseprune.diagnostics import jacobian_spectrum, layer_spectra, spectra_by_sparsity


def oracle(function, x):
    """[N, k] from each example's whole Jacobian."""
    rows = []
    for example in x:
        j = jacobian(lambda e: function(e[None])[0], example)
        rows.append(torch.linalg.svdvals(j.reshape(-1, example.numel())))
    return torch.stack(rows)


def random_masks(model, density):
    return sp.Masks({name: torch.rand(w.shape) < density for name, w in weights(model).items()})


NETWORKS = {
    "wide in": (lambda: mlp(9, 7, 4, activation=nn.Tanh), (9,)),
    "wide out": (lambda: mlp(4, 7, 9, activation=nn.Tanh), (4,)),
    "conv": (lambda: conv_chain(bias=True), (3, 8, 8)),
    "residual": (lambda: residual_net(1), (3, 8, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("pruned", [False, True])
def test_input_output_values_are_those_of_the_whole_jacobian(name, pruned):
    build, shape = NETWORKS[name]
    model = build().double()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean), nn.init.uniform_(norm.running_var, 0.5, 2)
    x = torch.randn(3, *shape, dtype=torch.float64)
    masks = random_masks(model, 0.5) if pruned else None
    spectrum = jacobian_spectrum(model, x, masks=masks)
    two = jacobian_spectrum(model, x, masks=masks, count=2)
    if pruned:
        masks.apply_(model)
    expected = oracle(model.eval(), x)
    torch.testing.assert_close(spectrum.values, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(two.values, expected[:, :2], rtol=1e-7, atol=1e-12)
    assert spectrum.complete and not two.complete and two.condition_numbers is None
    assert spectrum.mean == pytest.approx(expected.mean().item())
    assert spectrum.std == pytest.approx(expected.std(correction=0).item())
    assert (spectrum.max, spectrum.min) == pytest.approx((expected.max().item(), expected.min().item()))


def test_layers_go_from_their_input_to_the_next_layers():
    model = conv_chain(bias=True).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    spectra = layer_spectra(model, x)
    parts = {"0": model[:4], "4": model[4:7], "7": model[7:]}
    assert list(spectra) == list(parts)
    for name, part in parts.items():
        torch.testing.assert_close(spectra[name].values, oracle(part, x), rtol=1e-9, atol=1e-12)
        x = part(x).detach()


def test_a_shortcut_is_no_part_of_a_layers_jacobian():
    model = residual_net(1).double().eval()
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    spectra = layer_spectra(model, x, count=3)
    stream = model[:3](x).detach()  # enters the first block, whose first convolution goes on to its second
    torch.testing.assert_close(spectra["3.body.0"].values, oracle(model[3].body[:3], stream)[:, :3])
    inner = model[3].body[:3](stream).detach()

    def second(a):  # the shortcut's value is a constant
        return torch.relu(model[3].body[3:](a) + stream)

    torch.testing.assert_close(spectra["3.body.3"].values, oracle(second, inner)[:, :3])


@pytest.mark.parametrize("count", [1, 4, 6])
@pytest.mark.parametrize(("rows", "columns"), [(6, 30), (30, 6), (20, 20)])
def test_largest_values_though_many_are_equal(count, rows, columns):
    """The Krylov space of an isometry is exhausted after one step, that of a rank-2 map after two."""
    layer = nn.Linear(columns, rows, bias=False).double()
    nn.init.orthogonal_(layer.weight, 1.5)
    x = torch.randn(2, columns)
    assert jacobian_spectrum(layer, x, count=count).values.allclose(torch.tensor(1.5, dtype=torch.float64))
    with torch.no_grad():
        u, _, vh = torch.linalg.svd(layer.weight, full_matrices=False)
        layer.weight.copy_(3 * u[:, :1] @ vh[:1] + 2 * u[:, 1:2] @ vh[1:2])
    expected = torch.tensor([3.0, 2, 0, 0, 0, 0], dtype=torch.float64)[:count].expand(2, -1)
    torch.testing.assert_close(jacobian_spectrum(layer, x, count=count).values, expected, rtol=0, atol=1e-7)
    nn.init.zeros_(layer.weight)
    assert jacobian_spectrum(layer, x, count=count).values.abs().max() == 0


def test_largest_values_of_a_known_spectrum():
    layer = nn.Linear(80, 60, bias=False).double()
    nn.init.orthogonal_(layer.weight)
    values = torch.logspace(0, -3, 60, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.mul_(values[:, None])
    spectrum = jacobian_spectrum(layer, torch.randn(1, 80), count=10)
    torch.testing.assert_close(spectrum.values[0], values[:10], rtol=1e-8, atol=0)
    assert jacobian_spectrum(layer, torch.randn(1, 80)).condition_numbers.item() == pytest.approx(1000)


def test_deep_linear_network_of_orthogonal_layers_keeps_every_length():
    """784-(100)x6-10: all singular values are gain^7 exactly, and pruning destroys that."""
    model = mlp(784, *[100] * 6, 10, activation=nn.Identity)
    sp.models.initialize_(model, "orthogonal", torch.Generator().manual_seed(0), gain=1.1)
    x = torch.randn(2, 784)
    spectra = spectra_by_sparsity(model, sp.Random(torch.Generator().manual_seed(0)), x, [0, 0.5, 0.9])
    torch.testing.assert_close(spectra[0].values, torch.full((2, 10), 1.1**7, dtype=torch.float64), rtol=1e-5, atol=0)
    assert spectra[0].mean > 4 * spectra[0.5].mean > 40 * spectra[0.9].mean > 0
    assert all(s.mean == pytest.approx(1.1, rel=1e-5) for s in layer_spectra(model, x).values())


def test_rank_lost_is_an_infinite_condition_number():
    model = mlp(3, 3).double()
    masks = sp.Masks({"0.weight": torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 0]], dtype=torch.bool)})
    spectrum = jacobian_spectrum(model, torch.ones(1, 3), masks=masks)
    assert spectrum.condition_numbers.item() == float("inf")
    told = spectrum.to_dict()
    assert told["condition"] is None and told["full_rank"] is False and told["complete"] is True


def test_sparse_layers_are_followed():
    model = mlp(6, 5, 4, activation=nn.Tanh).double()
    masks = random_masks(model, 0.5)
    x = torch.randn(2, 6)
    for count in (None, 2):
        expected = jacobian_spectrum(model, x, masks=masks, count=count)
        sparse = sp.sparsify(model, masks)
        torch.testing.assert_close(jacobian_spectrum(sparse, x, count=count).values, expected.values)
        sp.densify(model)


def test_model_is_as_before_and_hooks_are_gone():
    model = residual_net().train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    masks, state = random_masks(model, 0.5), torch.get_rng_state()
    jacobian_spectrum(model, torch.ones(2, 3, 8, 8), masks=masks, count=1)
    with pytest.raises(RuntimeError):
        layer_spectra(model, torch.ones(2, 5, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (torch.ones(2, 3, dtype=torch.int64), {}, TypeError, "x must be a floating tensor, got torch.int64"),
        ([1.0], {}, TypeError, "x must be a tensor, got list"),
        (torch.ones(3), {}, ValueError, r"x must have shape \(batch, ...\)"),
        (torch.ones(0, 3), {}, ValueError, "at least one example"),
        (torch.ones(2, 3), {"count": 0}, ValueError, "count must be a positive integer or None, got 0"),
        (torch.ones(2, 3), {"masks": sp.Masks({"a": torch.ones(1, 1).bool()})}, ValueError, "masks must name"),
    ],
)
def test_wrong_arguments(x, options, error, message):
    with pytest.raises(error, match=message):
        jacobian_spectrum(mlp(3, 2), x, **options)


def test_models_without_a_jacobian():
    class Constant(nn.Linear):
        def forward(self, x):
            return super().forward(torch.ones_like(x))

    class Two(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    with pytest.raises(ValueError, match="depends on its input"):
        jacobian_spectrum(Constant(3, 2), torch.ones(1, 3))
    with pytest.raises(TypeError, match="model must return one tensor, got tuple"):
        jacobian_spectrum(Two(3, 2), torch.ones(1, 3))
