"""Initialisation: the moments of each scheme, orthogonality, what else is reset, what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sparseprune.models.init import SCHEMES, initialize_

# scheme: variance for a 64 -> 96 channel 5x5 convolution (fan_in 1600, fan_out 2400), and whether uniform.
MOMENTS = {
    "kaiming_normal": (2 / 1600, False),
    "kaiming_uniform": (2 / 1600, True),
    "kaiming_normal_fan_out": (2 / 2400, False),
    "lecun_normal": (1 / 1600, False),
    "xavier_normal": (1 / 2000, False),
    "xavier_uniform": (1 / 2000, True),
    "pytorch": (1 / 3 / 1600, True),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_scheme_is_tested():
    assert {*MOMENTS, "orthogonal", "delta_orthogonal"} == set(SCHEMES)


@pytest.mark.parametrize("gain", [None, 0.5])
@pytest.mark.parametrize("scheme", MOMENTS)
def test_variance_and_distribution(scheme, gain):
    variance, uniform = MOMENTS[scheme]
    natural = {"kaiming": math.sqrt(2), "pytorch": math.sqrt(1 / 3)}.get(scheme.split("_")[0], 1.0)
    if gain is not None:
        variance *= (gain / natural) ** 2
    weight = initialize_(nn.Conv2d(64, 96, 5), scheme, generator(), gain=gain).weight
    assert weight.var().item() == pytest.approx(variance, rel=0.05)
    assert abs(weight.mean().item()) < 5 * math.sqrt(variance / weight.numel())
    # E x^4 / (E x^2)^2 is 9/5 for a uniform and 3 for a normal variable.
    kurtosis = (weight**4).mean() / (weight**2).mean() ** 2
    assert kurtosis.item() == pytest.approx(1.8 if uniform else 3.0, rel=0.05)


def test_pytorch_scheme_draws_what_torch_draws():
    weight = nn.Linear(400, 300).weight
    ours = initialize_(nn.Linear(400, 300), "pytorch", generator())
    bound = 1 / math.sqrt(400)
    assert 0.999 * bound < ours.weight.abs().max() <= bound
    assert 0.9 * bound < ours.bias.abs().max() <= bound
    assert ours.weight.var().item() == pytest.approx(weight.var().item(), rel=0.05)


@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
def test_orthogonal_linear(shape):
    weight = initialize_(nn.Linear(*shape).double(), "orthogonal", generator(), gain=1.5).weight.detach()
    small = weight @ weight.T if weight.shape[0] < weight.shape[1] else weight.T @ weight
    torch.testing.assert_close(small, 2.25 * torch.eye(30, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 4])
def test_orthogonal_convolution_by_group(groups):
    layer = initialize_(nn.Conv2d(8, 24, 3, groups=groups).double(), "orthogonal", generator())
    for block in layer.weight.detach().flatten(1).chunk(groups):
        small = block @ block.T if block.shape[0] < block.shape[1] else block.T @ block
        torch.testing.assert_close(small, torch.eye(len(small), dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "kernel", "groups"), [(nn.Conv1d, 3, 1), (nn.Conv2d, 5, 1), (nn.Conv2d, 3, 3), (nn.Conv3d, 1, 1)]
)
def test_delta_orthogonal_convolution_keeps_the_norm(kind, kernel, groups):
    layer = kind(6, 9, kernel, padding=kernel // 2, groups=groups, bias=False).double()
    initialize_(layer, "delta_orthogonal", generator())
    x = torch.randn(2, 6, *[7] * (layer.weight.dim() - 2), dtype=torch.float64)
    torch.testing.assert_close(layer(x).norm(), x.norm(), rtol=1e-12, atol=0)
    assert layer.weight.count_nonzero() == 9 * 6 // layer.groups


def test_biases_norms_and_statistics_are_reset_and_the_rest_is_left():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Embedding(5, 2))
    with torch.no_grad():
        for value in model.state_dict().values():
            value.fill_(7)
    initialize_(model, "lecun_normal")
    state = model.state_dict()
    for name in ("0.bias", "1.bias", "1.running_mean", "1.num_batches_tracked", "2.bias"):
        assert not state[name].any(), name
    for name in ("1.weight", "1.running_var", "2.weight"):
        assert (state[name] == 1).all(), name
    assert (state["3.weight"] == 7).all()
    assert (state["0.weight"] != 7).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_seed_one_network_in_every_dtype(scheme):
    def draw(dtype):
        model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Linear(6, 5)).to(dtype)
        return initialize_(model, scheme, generator(4)).state_dict()

    first, second, half = draw(torch.float32), draw(torch.float32), draw(torch.bfloat16)
    for name, value in first.items():
        assert torch.equal(value, second[name])
        assert torch.equal(value.bfloat16(), half[name])


def test_parameters_stay_the_same_objects_and_the_model_is_returned():
    model = nn.Linear(3, 2)
    weight = model.weight
    assert initialize_(model, "orthogonal") is model
    assert model.weight is weight and weight.requires_grad and weight.grad_fn is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "he"}, "scheme must be one of kaiming_normal, .*pytorch, got 'he'"),
        ({"scheme": "lecun_normal", "gain": 0.0}, "gain must be positive and finite, got 0.0"),
        ({"scheme": "lecun_normal", "gain": math.nan}, "gain must be positive and finite, got nan"),
        ({"scheme": "delta_orthogonal"}, "got '1' with 4 inputs and 2 outputs"),
    ],
)
def test_errors_change_nothing(arguments, message):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        initialize_(model, **arguments)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_pruned_layer_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].register_buffer("weight_mask", torch.zeros(4, 2, dtype=torch.int32))
    before = model[0].weight.clone()
    with pytest.raises(ValueError, match="model must be dense, got a pruned layer '1'"):
        initialize_(model, "kaiming_normal")
    assert torch.equal(model[0].weight, before)


def test_empty_layers_are_left_alone():
    with pytest.warns(UserWarning, match="zero-element"):
        layer = nn.Linear(0, 3)
    initialize_(layer, "kaiming_normal")
    assert layer.weight.shape == (3, 0)
