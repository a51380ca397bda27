"""The diagonal of the loss's Hessian with respect to the weights, ``h_j = d2L / dw_j2``, by four ways.

"ggn"         diag(J' H_out J) with the Hessian H_out of the loss in the model's output; one backward pass for each
              output. Equal to h where the output is piecewise linear in each single weight: ReLU, leaky ReLU, pooling,
              batch norm in evaluation mode. Never negative. Equal to the true Fisher for log-likelihoods.
"exact"       h itself, one Hessian-vector product for each weight: for small networks.
"hutchinson"  mean over random signs z of z * (H z): unbiased; one Hessian-vector product for each sample.
"recursion"   second derivatives passed back layer by layer without their mixed terms (recursion.py): one backward pass.
"recursion_gn"  the same without the activations' own curvature f'': never negative.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .base import Scores
from .batches import Batches, BatchLoss, check_examples
from .outputs import output_factors
from .per_sample import PowerSums
from .recursion import recursion
from .taps import Tapped

__all__ = ["DIAGONALS", "check_diagonal", "ggn_diagonal", "hessian_diagonal"]

DIAGONALS = ("ggn", "exact", "hutchinson", "recursion", "recursion_gn")


def check_diagonal(diagonal: str, samples: int, seed: int, extra: tuple[str, ...] = ()) -> None:
    """Raise ValueError unless these name an estimate of the diagonal, or one of ``extra``."""
    choices = (*extra, *DIAGONALS)
    if diagonal not in choices:
        raise ValueError(f"diagonal must be one of {', '.join(map(repr, choices))}, got {diagonal!r}")
    for name, value, least in (("samples", samples, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def hessian_diagonal(loss: BatchLoss, batches: Batches, diagonal: str, samples: int = 100, seed: int = 0) -> Scores:
    """``d2 L / dw2`` of the mean loss over all batches, of each weight's shape; see the module's docstring.

    Raises:
        ValueError: no example; for "ggn" a loss that is not convex in the output; for "recursion" a function in the
            model that has no rule.
    """
    if diagonal == "ggn":
        return ggn_diagonal(loss, batches)
    if diagonal.startswith("recursion"):
        return recursion(loss, batches, curved=diagonal == "recursion")
    products = _basis_products if diagonal == "exact" else _random_products(samples, seed)
    # The fused attention kernels have no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        return loss.mean(batches, lambda value: products(loss, value))


def ggn_diagonal(loss: BatchLoss, batches: Batches) -> Scores:
    """``(1/N) sum_n diag(J_n' H_n J_n)``, H_n the Hessian of example n's loss in its own output."""
    sums, examples = PowerSums(loss, 2), 0
    for batch in batches:
        inputs, target = loss.split(batch)
        run = Tapped(loss, inputs)
        sums.add(run, output_factors(loss, run.output, target))
        examples += len(inputs)
    check_examples(examples)
    return sums.mean(examples)


Products = Callable[[BatchLoss, Tensor], tuple[Tensor, ...]]


def _random_products(samples: int, seed: int) -> Products:
    """The mean of ``z * (H z)`` over ``samples`` vectors of random signs, drawn anew for every batch."""
    stream = torch.Generator().manual_seed(seed)

    def products(loss: BatchLoss, value: Tensor) -> tuple[Tensor, ...]:
        gradient = loss.gradient(value, create_graph=True)
        totals = [torch.zeros_like(part) for part in gradient]
        for _ in range(samples):
            signs = [_signs(part, stream) for part in gradient]
            for total, sign, product in zip(totals, signs, _product(loss, gradient, signs), strict=True):
                total.addcmul_(sign, product, value=1 / samples)
        return tuple(totals)

    return products


def _basis_products(loss: BatchLoss, value: Tensor) -> tuple[Tensor, ...]:
    """``e_j' H e_j`` for every weight j, one at a time."""
    gradient = loss.gradient(value, create_graph=True)
    weights = tuple(loss.weights.values())
    results = []
    for part, weight in zip(gradient, weights, strict=True):
        entries = []
        for entry in part.flatten():
            row = (
                torch.autograd.grad(entry, weight, retain_graph=True, allow_unused=True)
                if entry.requires_grad
                else [None]
            )
            entries.append(row[0].flatten()[len(entries)] if row[0] is not None else entry.detach() * 0)
        results.append(torch.stack(entries).reshape(weight.shape))
    return tuple(results)


def _product(loss: BatchLoss, gradient: tuple[Tensor, ...], vector: list[Tensor]) -> tuple[Tensor, ...]:
    value = sum((g * v).sum() for g, v in zip(gradient, vector, strict=True))
    if not value.requires_grad:
        return tuple(torch.zeros_like(g) for g in gradient)
    weights = tuple(loss.weights.values())
    return torch.autograd.grad(value, weights, retain_graph=True, materialize_grads=True)


def _signs(like: Tensor, stream: torch.Generator) -> Tensor:
    return (torch.randint(0, 2, like.shape, generator=stream) * 2 - 1).to(like)
