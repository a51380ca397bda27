"""ResNets at 224x224: R overflows float32 from ResNet-34 on; scaled, float32 keeps what float64 keeps."""

from __future__ import annotations

import pytest
import torch
from criteria.networks import clear_cut, published_synflow, weights

from sparseprune import models
from sparseprune.criteria import SynFlow
from sparseprune.ops.topk_mask import topk_mask

IMAGE = torch.ones(1, 3, 224, 224)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_float32_masks_equal_float64_masks(name):
    model = getattr(models, name)()
    step = SynFlow(IMAGE).plan(model, weights(model))
    scores = list(step().values())
    assert (step.log2_flow > 128) == (name != "resnet18")
    flow, exact = published_synflow(model, IMAGE)
    assert 2**step.log2_flow == pytest.approx(flow, rel=1e-4)
    exact = list(exact.values())
    k = clear_cut(exact, density=0.01)
    assert topk_mask(scores, k).masks == topk_mask(exact, k).masks
