"""ResNets at 224x224: float32 overflows from ResNet-34 on without scaling, and with it equals float64."""

from __future__ import annotations

import pytest
import torch
from criteria.networks import best, weights

from sparseprune import models
from sparseprune.criteria import SynFlow

IMAGE = torch.ones(1, 3, 224, 224)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_float32_masks_equal_float64_masks(name):
    model = getattr(models, name)()
    step = SynFlow(IMAGE).plan(model, weights(model))
    scores = step()
    assert (step.log2_flow > 128) == (name != "resnet18")
    exact = SynFlow(IMAGE, torch.float64)(model, weights(model))
    assert all(map(torch.equal, best(scores, 0.9), best(exact, 0.9)))
    assert all(map(torch.equal, best(scores, 0.1), best(exact, 0.1)))
