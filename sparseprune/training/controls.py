"""What a lottery ticket is compared with: the same mask on other weights, another mask on the same, more training."""

from __future__ import annotations

import torch
from torch import nn

from ..masks import Masks
from ..nn.base import zero_outside
from ..nn.dense_gradients import sparse_weights
from ..ops.topk_mask import topk_mask
from .random_state import derived_generator, seeded


def reinitialize(model: nn.Module, seed: int) -> nn.Module:
    """Draw every layer's parameters anew with its own ``reset_parameters``, in place; masks stay, pruned weights too.

    Source: Frankle and Carbin 2019, arXiv:1803.03635, section 2 (random reinitialization); Liu et al. 2019,
    arXiv:1810.05270 (training from scratch).
    """
    with seeded(seed):
        for module in model.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    for layers in sparse_weights(model).values():
        zero_outside(layers[0].mask, layers[0].weight)
    return model


def random_masks_like(masks: Masks, seed: int) -> Masks:
    """Masks with as many weights in every layer, at random places.

    >>> masks = Masks({"w": torch.tensor([[True, False, False, True]])})
    >>> random_masks_like(masks, seed=0).counts()
    {'w': 2}
    """
    generator = derived_generator(seed)
    drawn = {}
    for name, mask in masks.items():
        scores = torch.rand(mask.shape, generator=generator, dtype=torch.float64).to(mask.device)
        drawn[name] = topk_mask([scores], mask.count(), names=[name]).masks[0]
    return Masks(drawn)


def scratch_epochs(epochs: int, dense_flops: float, pruned_flops: float) -> tuple[int, int]:
    """Epochs of training from scratch: (as many as the dense network: "E", as much computation: "B", at most twice).

    Source: Liu et al. 2019, arXiv:1810.05270, section 3.

    >>> scratch_epochs(160, 3, 2), scratch_epochs(160, 3, 1)
    ((160, 240), (160, 320))
    """
    if not 0 < pruned_flops <= dense_flops:
        raise ValueError(f"pruned_flops must be in (0, dense_flops], got {pruned_flops} of {dense_flops}")
    return epochs, round(epochs * min(dense_flops / pruned_flops, 2))
