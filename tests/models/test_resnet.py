"""ImageNet ResNets: torchvision's names, shapes and counts, stride placement, the CIFAR stem."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import nn

from sparseprune import models

# depth: blocks, bottleneck, parameters, SHA-256 of torchvision's sorted lines "name (shape)" (state_dict).
NETWORKS = {
    18: ([2] * 4, False, 11_689_512, "5191d63ec398959223d67ef37376f9061e6965b859fc2d4e40e23d037147a0d7"),
    34: ([3, 4, 6, 3], False, 21_797_672, "f8de2a1812ef85e46b3f60c61589921afee0c2a6d4165e27508ad215f101671b"),
    50: ([3, 4, 6, 3], True, 25_557_032, "a87e91cd6bd1f939e0b723852e567a7205d33b0ac984ac02dd1a5f225d37c036"),
    101: ([3, 4, 23, 3], True, 44549160, "dbc3ca74fffafc728641ec2b524ccedcbae337de9d3e3cf1f0552330d07303ea"),
    152: ([3, 8, 36, 3], True, 60192808, "7d486dbdc941506eeed76c4b06e6a00c943ff5aa11c0ced1b2e1b12faebd4729"),
}


def build(depth, **options):
    with torch.device("meta"):
        return models.create(f"resnet{depth}", **options)


def expected_parameters(blocks, bottleneck):
    """The names and shapes in torchvision's order, from table 1 of the paper."""
    entries = []

    def conv(name, out, inputs, kernel):
        entries.append((f"{name}.weight", (out, inputs, kernel, kernel)))

    def norm(name, size):
        entries.extend((f"{name}.{part}", (size,)) for part in ("weight", "bias"))

    conv("conv1", 64, 3, 7)
    norm("bn1", 64)
    inputs = 64
    for stage, count in enumerate(blocks, start=1):
        width = 32 * 2**stage
        outputs = 4 * width if bottleneck else width
        for index in range(count):
            block = f"layer{stage}.{index}"
            shapes = [(width, inputs, 3), (width, width, 3)]
            if bottleneck:
                shapes = [(width, inputs, 1), (width, width, 3), (outputs, width, 1)]
            for number, shape in enumerate(shapes, start=1):
                conv(f"{block}.conv{number}", *shape)
                norm(f"{block}.bn{number}", shape[0])
            if inputs != outputs:
                conv(f"{block}.downsample.0", outputs, inputs, 1)
                norm(f"{block}.downsample.1", outputs)
            inputs = outputs
    return [*entries, ("fc.weight", (1000, inputs)), ("fc.bias", (1000,))]


@pytest.mark.parametrize("depth", NETWORKS)
def test_names_shapes_and_counts_are_torchvisions(depth):
    blocks, bottleneck, count, digest = NETWORKS[depth]
    model = build(depth)
    assert sum(p.numel() for p in model.parameters()) == count
    found = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    assert found == expected_parameters(blocks, bottleneck)
    lines = sorted(f"{name} {tuple(value.shape)}" for name, value in model.state_dict().items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == digest
    assert model.input_shape == (3, 224, 224)


@pytest.mark.parametrize(("depth", "carrier"), [(18, "conv1"), (50, "conv2")])
def test_strides_are_where_torchvision_has_them(depth, carrier):
    convolutions = {name: m for name, m in build(depth).named_modules() if isinstance(m, nn.Conv2d)}
    strided = [name for name, m in convolutions.items() if m.stride == (2, 2)]
    stages = [f"layer{stage}.0.{part}" for stage in (2, 3, 4) for part in (carrier, "downsample.0")]
    assert strided == ["conv1", *stages]


@pytest.mark.parametrize("depth", [18, 50])
def test_a_block_adds_its_shortcut_before_the_last_relu(depth):
    model = models.create(f"resnet{depth}", num_classes=3).eval()
    block = model.layer2[1]
    last = block.bn3 if depth == 50 else block.bn2
    nn.init.zeros_(last.weight)
    x = torch.randn(1, last.num_features, 4, 4)
    assert torch.equal(block(x), x.relu())


def test_resolution_falls_by_32_and_the_maps_are_averaged():
    model = models.resnet18(5).eval()
    seen = {}
    model.layer4.register_forward_hook(lambda module, inputs, output: seen.update(features=output))
    logits = model(torch.randn(2, 3, 64, 96))
    assert seen["features"].shape == (2, 512, 2, 3)
    torch.testing.assert_close(logits, model.fc(seen["features"].mean(dim=(2, 3))))


def test_cifar_stem():
    model = models.resnet18(10, stem="cifar").eval()
    assert sum(p.numel() for p in model.parameters()) == 11_173_962
    assert model.input_shape == (3, 32, 32)
    seen = {}
    model.layer1.register_forward_hook(lambda module, inputs, output: seen.update(shape=output.shape))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert seen["shape"] == (2, 64, 32, 32)


def test_initial_weights_follow_torchvisions_rules():
    model = models.resnet18(generator=torch.Generator().manual_seed(3))
    weight = model.layer3[0].conv1.weight  # fan_out = 256 * 9, fan_in = 128 * 9
    assert weight.var().item() * 256 * 9 == pytest.approx(2, rel=0.05)
    bound = 512**-0.5
    assert 0.99 * bound < model.fc.weight.abs().max() <= bound
    assert 0.9 * bound < model.fc.bias.abs().max() <= bound


def test_channels_and_errors():
    assert models.resnet18(2, input_shape=(1, 64, 64)).conv1.weight.shape == (64, 1, 7, 7)
    with pytest.raises(ValueError, match="stem must be imagenet or cifar, got 'tiny'"):
        models.resnet50(stem="tiny")
    with pytest.raises(ValueError, match="input_shape must be three positive integers"):
        models.resnet50(input_shape=(3, 224))


@pytest.mark.parametrize("factory", [models.resnet18, models.lenet5, models.vgg11_bn, models.resnet20, models.wrn_16_8])
def test_one_seed_gives_one_network(factory):
    """However the seed is given, and without using up anybody else's random numbers."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = factory(generator=torch.Generator().manual_seed(7)).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    second = factory().state_dict()
    other = factory(generator=torch.Generator().manual_seed(8)).state_dict()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        assert value.isfinite().all(), name
        if value.dim() > 1:
            assert not torch.equal(value, other[name]), name
