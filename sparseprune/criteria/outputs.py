"""What the loss says at the model's output: gradients and Hessians of single examples, of each its own loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .batches import BatchLoss

__all__ = ["loss_gradient", "output_factors", "output_hessian"]

TOLERANCE = 1e-4  # how negative, beside the largest, an eigenvalue of a convex loss may come out in float32


def loss_gradient(loss: BatchLoss, output: Tensor, target: Tensor) -> Tensor:
    """Each example's own ``d loss_n / d output_n``: N times the gradient of the mean."""
    output = output.detach().requires_grad_()
    value = loss.value(output, target)
    if not value.requires_grad:
        return torch.zeros_like(output)
    return torch.autograd.grad(value, output)[0] * len(output)


def output_hessian(loss: BatchLoss, output: Tensor, target: Tensor) -> Tensor:
    """Each example's own ``d2 loss_n / d output_n2``: (N, D, D) with D the size of one example's output.

    Examples do not meet in a mean loss, so one pass for each of the D rows serves all of them.
    """
    output = output.detach().requires_grad_()
    size = output[0].numel()
    value = loss.value(output, target)
    gradient = torch.autograd.grad(value, output, create_graph=True)[0] if value.requires_grad else value
    if not gradient.requires_grad:  # a loss linear in the output
        return output.new_zeros(len(output), size, size)
    rows = [
        torch.autograd.grad(entry.sum(), output, retain_graph=True, materialize_grads=True)[0].flatten(1)
        for entry in gradient.flatten(1).unbind(1)
    ]
    return torch.stack(rows, 1) * len(output)


def output_factors(loss: BatchLoss, output: Tensor, target: Tensor) -> Iterator[Tensor]:
    """Columns u_c, each of the output's shape, with ``sum_c u_c u_c' = d2 loss_n / d output_n2`` for every example.

    Raises:
        ValueError: the loss is not convex in the output.
    """
    values, vectors = torch.linalg.eigh(output_hessian(loss, output, target))
    largest = values.abs().amax()
    if values.amin() < -TOLERANCE * largest:
        raise ValueError(
            "loss must be convex in the model's output for the Gauss-Newton matrix, got one that is not:"
            " take another diagonal ('exact', 'hutchinson')"
        )
    columns = vectors * values.clamp(min=0).sqrt().unsqueeze(1)
    for column in columns.unbind(-1):
        if column.any():  # one whose every example is flat costs no backward pass
            yield column.reshape(output.shape)
