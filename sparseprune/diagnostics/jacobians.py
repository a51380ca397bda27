"""Singular values of Jacobians: how a network, and each layer of it, stretches a small change of its input.

``J^l = d x^l / d x^(l-1) = D^l W^l`` with D^l the derivative of what follows the weights; ``J = d y / d x`` is their
product. Isometry is all singular values near 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import typed
from ..masks import Masks
from ..pruning import prune
from .trace import OUTPUT, traced

__all__ = ["Spectrum", "jacobian_spectrum", "layer_spectra", "spectra_by_sparsity"]

_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of one Jacobian for each of N inputs.

    Attributes:
        values: [N, k] float64, largest first.
        complete: whether these are all min(outputs, inputs) of them, or the k largest.
    """

    values: Tensor
    complete: bool

    @property
    def mean(self) -> float:
        """Over all values of all inputs."""
        return self.values.mean().item()

    @property
    def std(self) -> float:
        """Over all values of all inputs; of the population."""
        return self.values.std(correction=0).item()

    @property
    def max(self) -> float:
        return self.values.max().item()

    @property
    def min(self) -> float:
        return self.values.min().item()

    @property
    def condition_numbers(self) -> Tensor | None:
        """[N] largest / smallest, inf where the Jacobian has lost rank; None if the smallest is not known."""
        if not self.complete:
            return None
        largest, smallest = self.values[:, 0], self.values[:, -1]
        lost = smallest <= largest * self.values.shape[1] * torch.finfo(torch.float64).eps
        return torch.where(lost, torch.inf, largest / smallest)

    def to_dict(self) -> dict[str, Any]:
        """Numbers and None only; ``condition`` is the median over the inputs, None also where it is infinite."""
        numbers = self.condition_numbers
        condition = None if numbers is None else numbers.median().item()
        return {
            "mean": self.mean,
            "std": self.std,
            "max": self.max,
            "min": self.min,
            "condition": condition if condition is not None and condition < float("inf") else None,
            "full_rank": None if condition is None else condition < float("inf"),
            "complete": self.complete,
        }


@typed
def jacobian_spectrum(model: nn.Module, x: Tensor, *, masks: Masks | None = None, count: int | None = None) -> Spectrum:
    """Singular values of the input-output Jacobian ``d model(x) / d x`` at each input, in float64.

    All of them are taken from min(outputs, inputs) vector products in either direction, each for all inputs at once.
    The ``count`` largest come from Golub-Kahan bidiagonalisation, which multiplies by J and J^T and never forms J; their
    error is below 1e-4 of the largest, and one that occurs several times may be told once.

    Args:
        model: any model that returns one tensor; run in evaluation mode, not changed. Its output for one input must
            not depend on the others.
        x: (N, ...) floating.
        masks: pruned weights count as zero.
        count: how many; None: all, which holds N * outputs * inputs numbers.

    Raises:
        TypeError, ValueError: wrong arguments; an output that is not one tensor or does not depend on ``x``.

    Source: Saxe, McClelland, Ganguli 2014, arXiv:1312.6120; Pennington, Schoenholz, Ganguli 2017, arXiv:1711.04735.

    >>> jacobian_spectrum(nn.Linear(3, 2), torch.ones(1, 3)).values.shape
    torch.Size([1, 2])
    """
    _check_count(count)
    with traced(model, x, masks) as trace:
        return _spectrum(trace.output, trace.input, count)


@typed
def layer_spectra(
    model: nn.Module, x: Tensor, *, masks: Masks | None = None, count: int | None = None, whole_up_to: int = 0
) -> dict[str, Spectrum]:
    """Singular values of every layer's Jacobian, from its input to the input of the next layer that reads it.

    Activation, batch norm and pooling after a layer belong to it. Only paths through the layer itself count: a
    shortcut around it is no part of its Jacobian. The last layer goes to the model's output.

    Args:
        model, x, masks, count: as for :func:`jacobian_spectrum`.
        whole_up_to: Jacobians of at most this rank are taken whole, whatever ``count``.

    Returns:
        Layer name -> Spectrum, in call order; of a layer that is called several times, the first call.

    Raises:
        TypeError, ValueError: as :func:`jacobian_spectrum`.

    Source: Lee, Ajanthan, Gould, Torr 2020, arXiv:1906.06307, eq. 3 (layerwise dynamical isometry).
    """
    _check_count(count)
    spectra: dict[str, Spectrum] = {}
    with traced(model, x, masks) as trace:
        for call in trace.layers:
            readers = trace.readers(call)
            if call.name not in spectra and readers:
                target = trace.output if readers[0] == OUTPUT else readers[0].input
                small = min(target[0].numel(), call.input[0].numel()) <= whole_up_to
                spectra[call.name] = _spectrum(target, call.input, None if small else count)
    return spectra


@typed
def spectra_by_sparsity(
    model: nn.Module,
    criterion: Callable[[nn.Module, dict[str, nn.Parameter]], Mapping[str, Tensor]],
    x: Tensor,
    sparsities: Iterable[float],
    *,
    count: int | None = None,
    **options: Any,
) -> dict[float, Spectrum]:
    """The input-output Jacobian's singular values after pruning to each sparsity.

    Args:
        model, x, count: as for :func:`jacobian_spectrum`.
        criterion, options: as for :func:`sparseprune.prune`.
        sparsities: in [0, 1).

    Returns:
        Sparsity -> Spectrum.

    Raises:
        TypeError, ValueError: as :func:`jacobian_spectrum` and ``prune``.
    """
    return {
        sparsity: jacobian_spectrum(model, x, masks=prune(model, criterion, sparsity=sparsity, **options), count=count)
        for sparsity in sparsities
    }


def _check_count(count: int | None) -> None:
    if count is not None and count < 1:
        raise ValueError(f"count must be a positive integer or None, got {count}")


def _spectrum(output: Tensor, leaf: Tensor, count: int | None) -> Spectrum:
    if len(output) != len(leaf):
        raise ValueError(f"model must return one row for each input, got {len(output)} rows for {len(leaf)} inputs")
    product = _Products(output, leaf)
    if count is None or count >= product.rank:
        return Spectrum(torch.linalg.svdvals(product.matrix()).cpu(), complete=True)
    return Spectrum(_largest(product, count).cpu(), complete=False)


class _Products:
    """J v and J^T u for the Jacobian J [N, outputs, inputs] between two values of one graph.

    J^T u is a backward pass. J v is the backward pass of that, J^T u being linear in u: this needs no forward-mode
    rules, which some layers have not.
    """

    def __init__(self, output: Tensor, leaf: Tensor) -> None:
        self._output, self.leaf = output, leaf
        self.outputs, self.inputs = output[0].numel(), leaf[0].numel()
        self.rank = min(self.outputs, self.inputs)
        self._cotangent = torch.zeros_like(output, requires_grad=True)
        self._pulled = self._gradient(output, leaf, self._cotangent, create_graph=True)

    def pull(self, cotangent: Tensor) -> Tensor:
        """J^T u: [N, outputs] -> [N, inputs]."""
        return self._gradient(self._output, self.leaf, cotangent.view_as(self._output)).flatten(1)

    def push(self, tangent: Tensor) -> Tensor:
        """J v: [N, inputs] -> [N, outputs]."""
        return self._gradient(self._pulled, self._cotangent, tangent.view_as(self.leaf)).flatten(1)

    def matrix(self) -> Tensor:
        """J, or its transpose where that takes fewer products."""
        product = self.pull if self.outputs <= self.inputs else self.push
        eye = torch.eye(self.rank, dtype=self._output.dtype, device=self._output.device)
        return torch.stack([product(row.expand(len(self._output), -1).contiguous()) for row in eye], 1).double()

    @staticmethod
    def _gradient(output: Tensor, leaf: Tensor, cotangent: Tensor, create_graph: bool = False) -> Tensor:
        if not output.requires_grad:
            return torch.zeros_like(leaf)
        (gradient,) = torch.autograd.grad(
            output, leaf, cotangent, retain_graph=True, create_graph=create_graph, materialize_grads=True
        )
        return gradient


def _largest(product: _Products, count: int) -> Tensor:
    """The ``count`` largest singular values, by Golub-Kahan bidiagonalisation with full reorthogonalisation.

    After s steps ``J V = U B`` and ``J^T U = V B^T + beta v e_s^T``: the values of B are J's to within
    ``beta |p_s|``, p the left singular vectors of B. After the last possible step those of [B, beta e_s] are exact.
    """
    stream = torch.Generator().manual_seed(0)
    us, vs = _Basis(product.leaf, product.outputs), _Basis(product.leaf, product.inputs)
    scale = product.leaf.new_zeros(len(product.leaf))
    vs.extend(product.leaf.new_zeros(len(product.leaf), product.inputs), scale, stream)
    alphas, betas = [], []
    while True:
        u = product.push(vs.last)
        scale = torch.maximum(scale, u.norm(dim=1))
        alphas.append(us.extend(u, scale, stream))
        b = torch.diag_embed(torch.stack(alphas, 1))
        if betas:
            b = b + torch.diag_embed(torch.stack(betas, 1), offset=1)
        v = vs.new_part(product.pull(us.last))
        beta = v.norm(dim=1)
        steps = len(alphas)
        if steps == product.rank:
            tail = torch.nn.functional.one_hot(torch.tensor([steps - 1], device=b.device), steps)
            return torch.linalg.svdvals(torch.cat([b, beta[:, None, None] * tail.mT.to(b)], 2))[:, :count].double()
        if steps >= count and steps % 5 == 0:
            left, values, _ = torch.linalg.svd(b)
            if (beta[:, None] * left[:, -1, :count].abs() <= _TOLERANCE * values[:, :1]).all():
                return values[:, :count].double()
        betas.append(vs.extend(v, torch.maximum(scale, beta), stream))


class _Basis:
    """Orthonormal vectors [N, count, n] that grow by one at a time."""

    def __init__(self, like: Tensor, size: int) -> None:
        self._room = like.new_zeros(len(like), 16, size)
        self._count = 0

    @property
    def last(self) -> Tensor:
        return self._room[:, self._count - 1]

    def new_part(self, vector: Tensor) -> Tensor:
        """``vector`` [N, n] without its part in the span of the basis; twice is enough (Kahan)."""
        basis = self._room[:, : self._count]
        for _ in range(2):
            vector = vector - torch.einsum("nsi,ns->ni", basis, torch.einsum("nsi,ni->ns", basis, vector))
        return vector

    def extend(self, vector: Tensor, scale: Tensor, stream: torch.Generator) -> Tensor:
        """Add the direction of what is new in ``vector`` and return the length of that.

        Where nothing is new (equal singular values: the Krylov space of an isometry has one dimension), a random
        direction is added and the length is 0.
        """
        vector = self.new_part(vector)
        length = vector.norm(dim=1)
        exhausted = length <= 1e-12 * scale
        random = torch.randn(vector.shape, generator=stream, dtype=torch.float64).to(vector)
        vector = self.new_part(torch.where(exhausted[:, None], random, vector))
        if self._count == self._room.shape[1]:
            self._room = torch.cat([self._room, torch.zeros_like(self._room)], 1)
        self._room[:, self._count] = vector / vector.norm(dim=1, keepdim=True)
        self._count += 1
        return torch.where(exhausted, 0, length)
