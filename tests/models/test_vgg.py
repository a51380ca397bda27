"""VGG for CIFAR: the layer sizes of the published SynFlow runs, the average-pooled head."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseprune import models

# Convolutions 0 to 12 and the linear layer of VGG-16 on CIFAR-100, as published with Tanaka et al. 2020.
GOLDEN = [1728, 36864, 73728, 147456, 294912, 589824, 589824, 1179648, *[2359296] * 5, 51200]


def prunable(model):
    return [m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def test_vgg16_has_the_published_layer_sizes():
    model = models.vgg16_bn(100)
    assert prunable(model) == GOLDEN
    assert sum(prunable(model)) == 14_761_664
    names = [name for name, p in model.named_parameters() if p.dim() > 1]
    blocks = [0, 1, 3, 4, 6, 7, 8, 10, 11, 12, 14, 15, 16]
    assert names == [*(f"layers.{index}.conv.weight" for index in blocks), "fc.weight"]


@pytest.mark.parametrize(
    ("factory", "convolutions", "weights"),
    [(models.vgg11_bn, 8, 9_222_848), (models.vgg16_bn, 13, 14_715_584), (models.vgg19_bn, 16, 20_024_000)],
)
def test_depths(factory, convolutions, weights):
    model = factory()
    assert len(prunable(model)) == convolutions + 1
    assert sum(prunable(model)) == weights
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == convolutions
    assert all(m.bias is None for m in model.modules() if isinstance(m, nn.Conv2d))
    assert model.input_shape == (3, 32, 32)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_the_head_averages_2x2_positions():
    model = models.vgg11_bn(5).eval()
    features = model.layers(torch.randn(2, 3, 32, 32))
    assert features.shape == (2, 512, 2, 2)
    model.layers = nn.Identity()
    torch.testing.assert_close(model(features), model.fc(features.mean(dim=(2, 3))))


def test_a_block_is_convolution_norm_and_relu():
    block = models.vgg11_bn(5).layers[0].eval()
    block.bn.running_mean.normal_()
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(block(x), block.bn(block.conv(x)).clamp(min=0))
    assert block.bn(block.conv(x)).min() < 0


def test_is_initialised_by_kaiming_fan_in():
    model = models.vgg16_bn(100, generator=torch.Generator().manual_seed(1))
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            # 1728 draws of the first convolution: the variance is known to 4 sqrt(2/1728) = 14 %.
            slack = max(0.05, 4 * (2 / module.weight.numel()) ** 0.5)
            assert module.weight.var().item() * module.weight[0].numel() == pytest.approx(2, rel=slack)
    assert not model.fc.bias.any()


def test_refuses_other_image_sizes():
    with pytest.raises(ValueError, match=r"must be \(3, 32, 32\) for this model, got \(3, 64, 64\)"):
        models.vgg16_bn(input_shape=(3, 64, 64))
