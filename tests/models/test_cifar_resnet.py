"""CIFAR ResNets and wide ResNets: published sizes, shortcuts, options."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseprune import models


def size(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("factory", "parameters", "convolutions"),
    [
        (models.resnet20, 269_722, 19),
        (models.resnet32, 464_154, 31),
        (models.resnet56, 853_018, 55),
        (models.wrn_16_8, 10_961_370, 16),
        (models.wrn_22_8, 17_158_106, 22),
        (models.wrn_28_10, 36_479_194, 28),
    ],
)
def test_published_sizes(factory, parameters, convolutions):
    with torch.device("meta"):
        model = factory()
    assert size(model) == parameters
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == convolutions
    assert model.input_shape == (3, 32, 32)


@pytest.mark.parametrize("factory", [models.resnet20, lambda *a, **k: models.wide_resnet(10, 1, *a, **k)])
def test_forward_and_resolution(factory):
    model = factory(7, input_shape=(1, 32, 32)).eval()
    seen = []
    for stage in (model.layer1, model.layer2, model.layer3):
        stage.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[1:])))
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    assert seen == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_the_padded_shortcut_is_every_second_pixel_between_zero_channels():
    block = models.resnet20().layer2[0].eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(1, 16, 7, 7)
    out = block(x)
    assert out.shape == (1, 32, 4, 4)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2].relu())
    assert not out[:, :8].any() and not out[:, 24:].any()


def test_convolution_shortcut_adds_two_1x1_layers():
    extra = size(models.resnet32(shortcut="conv")) - size(models.resnet32())
    assert extra == 16 * 32 + 32 * 64 + 2 * (32 + 64)
    assert models.resnet20(shortcut="conv")(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_double_width_is_the_network_of_the_grasp_paper():
    model = models.resnet32(width=2)
    widths = [stage[0].conv2.out_channels for stage in (model.layer1, model.layer2, model.layer3)]
    assert widths == [32, 64, 128]
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_a_wide_block_activates_before_its_convolutions_and_shortcut():
    model = models.wide_resnet(16, 2).eval()
    first, second = model.layer2
    x = -torch.rand(1, 32, 8, 8) - 1
    assert not first(x).any(), "negative input is cut before the 1x1 shortcut and the convolutions"
    y = -torch.rand(1, 64, 8, 8) - 1
    assert torch.equal(second(y), y), "an identity shortcut passes the input on unchanged"


def test_dropout_acts_in_training_only():
    model = models.wide_resnet(10, 1, dropout=0.5).eval()
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(model(x), model(x))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.wide_resnet(27, 10), "depth must be 6n"),
        (lambda: models.wide_resnet(4, 10), "depth must be 6n"),
        (lambda: models.wide_resnet(16, 0), "width must be a positive integer"),
        (lambda: models.wide_resnet(16, 1, dropout=1.0), r"dropout must be in \[0, 1\)"),
        (lambda: models.resnet20(width=0), "width must be a positive integer"),
        (lambda: models.resnet20(shortcut="none"), "shortcut must be pad or conv, got 'none'"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_initial_variances():
    he = models.resnet20(width=4, generator=torch.Generator().manual_seed(0)).layer3[0].conv1.weight
    assert he.var().item() * 128 * 9 == pytest.approx(2, rel=0.05)  # fan_in, 128 channels in
    wide = models.wide_resnet(10, 4, generator=torch.Generator().manual_seed(0)).layer3[0].conv1.weight
    assert wide.var().item() * 256 * 9 == pytest.approx(2, rel=0.05)  # fan_out, 256 channels out
