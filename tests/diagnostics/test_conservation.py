"""Flows against w * dL/dw by autograd on the parameters, and the residuals that must and must not be zero."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from criteria.networks import conv_chain, mlp, residual_net, weights
from torch import nn

import sparseprune as sp
from sparseprune.diagnostics import conservation


def loss_of(target):
    return lambda output: F.cross_entropy(output, target)


def saliency(model, x, objective, masks=None):
    """theta * dR/dtheta of every parameter."""
    if masks is not None:
        masks.apply_(model)
    objective(model.eval()(x)).backward()
    return {name: (p * p.grad).detach() for name, p in model.named_parameters()}


def with_statistics(model):
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor in (norm.running_mean, norm.weight, norm.bias):
            nn.init.normal_(tensor)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return model.double()


def masks_of(model, density):
    return sp.Masks({name: torch.rand(w.shape) < density for name, w in weights(model).items()})


@pytest.mark.parametrize("pruned", [False, True])
def test_mlp_units_against_parameter_gradients(pruned):
    model = mlp(5, 7, 6, 3, bias=True).double()
    x, objective = torch.randn(4, 5, dtype=torch.float64), loss_of(torch.tensor([0, 1, 2, 0]))
    masks = masks_of(model, 0.5) if pruned else None
    result = conservation(model, x, objective, masks=masks)
    s = saliency(model, x, objective, masks)
    entry, first, second, last = result.streams
    assert (entry.writers, entry.readers) == (("input",), ("0",))
    assert (first.writers, first.readers) == (("0",), ("2",)) and last.readers == ("output",)
    torch.testing.assert_close(entry.outgoing, s["0.weight"].sum(0))
    torch.testing.assert_close(first.incoming, s["0.weight"].sum(1) + s["0.bias"])
    torch.testing.assert_close(first.biases, s["0.bias"])
    torch.testing.assert_close(first.outgoing, s["2.weight"].sum(0))
    torch.testing.assert_close(second.outgoing, s["4.weight"].sum(0))
    assert all(stream.relative < 1e-13 for stream in result.streams)
    assert [row.flow for row in result.layers] == pytest.approx([s[f"{i}.weight"].sum().item() for i in (0, 2, 4)])


def test_layers_carry_the_output_flow_until_a_bias_adds_to_it():
    model = mlp(5, 7, 6, 3).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    result = conservation(model, x)
    assert result.output == pytest.approx(model(x).sum().item())
    assert all(abs(row.residual) < 1e-13 * abs(result.output) for row in result.layers)
    model[2].bias = nn.Parameter(torch.rand(6, dtype=torch.float64))
    result = conservation(model, x)
    s = saliency(model, x, torch.sum)
    assert [row.residual for row in result.layers] == pytest.approx([-s["2.bias"].sum().item()] * 2 + [0], abs=1e-12)
    assert all(stream.relative < 1e-13 for stream in result.streams)  # counted, so the units still conserve


def test_a_bias_of_no_layer_is_found():
    class Shifted(nn.ReLU):
        def forward(self, x):
            return super().forward(x) + 0.3

    model = mlp(5, 7, 6, 3).double()
    model[3] = Shifted()
    first, second = conservation(model, torch.randn(4, 5)).streams[1:3]
    assert first.relative < 1e-13 and second.relative > 1e-2


def test_activations_that_are_not_homogeneous():
    x = torch.randn(4, 5)
    assert conservation(mlp(5, 7, 3, activation=nn.Tanh), x).streams[1].relative > 1e-3
    for activation in (nn.LeakyReLU, nn.Identity):
        assert conservation(mlp(5, 7, 3, activation=activation), x).streams[1].relative < 1e-12


def test_convolutions_batch_norm_pooling_and_flattening():
    model = with_statistics(conv_chain(bias=True))
    x, objective = torch.randn(4, 3, 8, 8, dtype=torch.float64), loss_of(torch.tensor([0, 1, 2, 0]))
    result = conservation(model, x, objective)
    s = saliency(model, x, objective)
    _, first, second, _ = result.streams
    conv = s["0.weight"].sum((1, 2, 3)) + s["0.bias"]
    torch.testing.assert_close(first.incoming - first.biases, s["0.weight"].sum((1, 2, 3)))
    # The norm's shift: its bias, and the mean it takes away.
    norm = model[1]
    mean = -norm.weight * norm.running_mean / (norm.running_var + norm.eps).sqrt() * norm.bias.grad
    torch.testing.assert_close(first.incoming, conv + s["1.bias"] + mean.detach())
    torch.testing.assert_close(first.outgoing, s["4.weight"].sum((0, 2, 3)))
    torch.testing.assert_close(second.outgoing, s["7.weight"].sum(0).reshape(5, 4).sum(1))
    assert len(first.incoming) == 6 and len(second.incoming) == 5
    assert all(stream.relative < 1e-12 for stream in result.streams)


def test_blocks_on_one_shortcut_are_conserved_together():
    model = with_statistics(residual_net(2))
    x, objective = torch.randn(4, 3, 8, 8, dtype=torch.float64), loss_of(torch.tensor([0, 1, 2, 3]))
    result = conservation(model, x, objective)
    s = saliency(model, x, objective)
    stream = next(stream for stream in result.streams if "0" in stream.writers)
    assert stream.writers == ("0", "3.body.3", "4.body.3")
    assert stream.readers == ("3.body.0", "4.body.0", "5.body.0", "5.shortcut")
    torch.testing.assert_close(stream.outgoing, sum(s[f"{n}.weight"].sum((0, 2, 3)) for n in stream.readers))
    assert len(stream.incoming) == 4 and all(stream.relative < 1e-12 for stream in result.streams)
    cuts = {row.name: row.residual for row in result.layers}
    assert cuts["0"] is not None and cuts["9"] == pytest.approx(-s["9.bias"].sum().item())
    assert all(cuts[name] is None for name in ("3.body.0", "4.body.3", "5.shortcut", "5.body.0"))


def test_residual_network_without_shifts_carries_the_output_flow_through_stem_and_head():
    model = residual_net(2).double()
    nn.init.zeros_(model[9].bias)
    result = conservation(model, torch.randn(2, 3, 8, 8))
    assert [row.name for row in result.layers if row.residual is not None] == ["0", "9"]
    assert all(abs(row.residual) < 1e-12 for row in result.layers if row.residual is not None)


def test_concatenation_is_conserved_as_a_whole():
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(3, 4), nn.Linear(7, 2)

        def forward(self, x):
            a = self.a(x).relu()
            return self.c(torch.cat([a, self.b(a).relu()], 1))

    streams = conservation(Dense(), torch.randn(3, 4)).streams
    [joined] = [stream for stream in streams if "c" in stream.readers]
    assert joined.writers == ("a", "b") and joined.readers == ("b", "c")
    assert joined.incoming.shape == (1,) and joined.relative < 1e-12


def test_told_as_numbers():
    told = conservation(mlp(3, 4, 2), torch.randn(2, 3)).to_dict()
    assert [s["units"] for s in told["streams"]] == [3, 4, 2]
    assert told["streams"][1]["writers"] == ["0"] and told["layers"][0]["name"] == "0"
    assert told["layers"][0]["flow"] == pytest.approx(told["output"])


def test_objective_must_be_one_number():
    for objective in (lambda y: y, lambda y: 1.0, lambda y: y.detach().sum()):
        with pytest.raises(ValueError, match="objective must return one number that depends on the output"):
            conservation(mlp(3, 2), torch.randn(2, 3), objective)
