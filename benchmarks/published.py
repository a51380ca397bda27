"""The published pruning loop in plain PyTorch: what every peer runs, and what ours is timed beside.

One step of SynFlow as published (Tanaka et al. 2020, algorithm 1): take absolute values, forward and backward on a
batch of ones, scores |w * dR/dw|, restore the signs, concatenate all scores, `kthvalue`, and compare each layer with
the threshold. Written from the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparseprune.pruning import prunable


def published_synflow(model: nn.Module, ones: Tensor, density: float, steps: int) -> dict[str, Tensor]:
    """Masks as float tensors by parameter name. The model is in evaluation mode and is changed while this runs."""
    weights = prunable(model)
    original = {name: p.detach().clone() for name, p in weights.items()}
    masks = {name: torch.ones_like(p) for name, p in weights.items()}
    try:
        for step in range(1, steps + 1):
            _one_step(model, weights, masks, original, ones, density ** (step / steps))
    finally:
        with torch.no_grad():
            for name, p in weights.items():
                p.copy_(original[name])
                p.grad = None
    return masks


def _one_step(model, weights, masks, original, ones, density) -> None:
    state = {name: t for name, t in model.state_dict().items() if t.dtype.is_floating_point}
    with torch.no_grad():
        for name, p in weights.items():
            torch.mul(original[name], masks[name], out=p)
        signs = {name: t.sign() for name, t in state.items()}
        for t in state.values():
            t.abs_()
    model(ones).sum().backward()
    with torch.no_grad():
        scores = {name: (p.grad * p).abs() for name, p in weights.items()}
        for p in model.parameters():
            p.grad = None
        for name, t in state.items():
            t.mul_(signs[name])
        flat = torch.cat([s.flatten() for s in scores.values()])
        threshold = torch.kthvalue(flat, max(1, flat.numel() - round(density * flat.numel()))).values
        for name, score in scores.items():
            masks[name].copy_(score > threshold)


def published_threshold(scores: list[Tensor], k: int) -> list[Tensor]:
    """Concatenate, `kthvalue`, compare: the global threshold of the published loops."""
    flat = torch.cat([s.flatten() for s in scores])
    if k == flat.numel():
        return [torch.ones_like(s) for s in scores]
    threshold = torch.kthvalue(flat, flat.numel() - k).values
    return [(s > threshold).to(s.dtype) for s in scores]
