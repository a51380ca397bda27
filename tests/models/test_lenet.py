"""The LeNets: published counts, shapes, sizes they refuse."""

from __future__ import annotations

import pytest
import torch

from sparseprune import models


def counts(model):
    weights = sum(p.numel() for name, p in model.named_parameters() if name.endswith("weight"))
    return weights, sum(p.numel() for name, p in model.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize(
    ("factory", "expected", "layers"),
    [
        (models.lenet_300_100, (266_200, 410), [235_200, 30_000, 1_000]),
        (models.lenet5, (61_470, 236), [150, 2_400, 48_000, 10_080, 840]),
        (models.lenet5_caffe, (430_500, 580), [500, 25_000, 400_000, 5_000]),
    ],
)
def test_sizes_of_the_literature(factory, expected, layers):
    model = factory()
    assert counts(model) == expected
    assert [p.numel() for p in model.parameters() if p.dim() > 1] == layers
    assert model.input_shape == (1, 28, 28)
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)


def test_lenet_300_100_on_digits_has_the_50200_weights_of_the_digits_table():
    model = models.lenet_300_100(input_shape=(1, 8, 8))
    assert counts(model)[0] == 50_200
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(model(images), model(images.flatten(1)))


def test_lenet5_takes_the_original_32x32_images_with_the_same_weights():
    small, large = models.lenet5(), models.lenet5(input_shape=(1, 32, 32))
    large.load_state_dict(small.state_dict())
    image = torch.randn(2, 1, 28, 28)
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
    assert torch.equal(small(image), large(padded))


@pytest.mark.parametrize("factory", [models.lenet_300_100, models.lenet5, models.lenet5_caffe])
def test_channels_and_classes(factory):
    model = factory(7, input_shape=(3, 32, 32))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert model.input_shape == (3, 32, 32)


def test_lenet5_caffe_has_no_nonlinearity_between_its_convolutions():
    model = models.lenet5_caffe()
    with torch.no_grad():
        model.conv2.bias.zero_()
        model.conv1.bias.zero_()
        model.conv2.weight.copy_(model.conv2.weight.abs())
        model.conv1.weight.copy_(-model.conv1.weight.abs())
        negative = model.conv1(torch.ones(1, 1, 28, 28))
        assert (negative < 0).all()
        first = model(torch.ones(1, 1, 28, 28))
        second = model(2 * torch.ones(1, 1, 28, 28))
    # A ReLU after conv1 would make both outputs fc(0).
    assert not torch.equal(first, second) or not model.fc1.weight.any()


@pytest.mark.parametrize(
    ("factory", "shape", "message"),
    [
        (models.lenet5, (1, 8, 8), r"input_shape must be \(1, 28, 28\) or \(1, 32, 32\)"),
        (models.lenet5, (1, 28, 32), r"input_shape must be \(1, 28, 28\)"),
        (models.lenet5_caffe, (1, 15, 28), "sides of at least 16"),
        (models.lenet_300_100, (784,), "three positive integers"),
        (models.lenet_300_100, (1, 0, 8), "three positive integers"),
    ],
)
def test_refuses_images_it_cannot_take(factory, shape, message):
    with pytest.raises(ValueError, match=message):
        factory(input_shape=shape)


def test_the_smallest_image_of_lenet5_caffe_works():
    assert models.lenet5_caffe(input_shape=(1, 16, 16))(torch.ones(1, 1, 16, 16)).shape == (1, 10)


@pytest.mark.parametrize("classes", [0, -1])
def test_refuses_class_counts(classes):
    with pytest.raises(ValueError, match="num_classes must be a positive integer"):
        models.lenet_300_100(classes)
