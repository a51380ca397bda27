"""What criteria are compared with: gradients of single examples by a loop, Hessians and saliencies by brute force."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call


def sample_gradients(model: nn.Module, params: dict[str, Tensor], batch, loss) -> dict[str, Tensor]:
    """The gradient of each example's loss, one backward pass each: (N, *weight.shape)."""
    model.eval()
    rows = []
    for x, y in zip(*batch, strict=True):
        rows.append(torch.autograd.grad(loss(model(x[None]), y[None]), list(params.values())))
    return {name: torch.stack(column) for name, column in zip(params, zip(*rows, strict=True), strict=True)}


def hessian(model: nn.Module, params: dict[str, Tensor], batch, loss) -> Tensor:
    """All second derivatives of the mean loss, over the weights of all layers in one vector."""
    model.eval()

    def value(vector: Tensor) -> Tensor:
        return loss(functional_call(model, unflattened(vector, params), (batch[0],)), batch[1])

    return torch.autograd.functional.hessian(value, flat(params))


def hessian_diagonal(model: nn.Module, params: dict[str, Tensor], batch, loss) -> dict[str, Tensor]:
    return unflattened(hessian(model, params, batch, loss).diagonal(), params)


def removal_changes(model: nn.Module, params: dict[str, Tensor], batch, loss) -> dict[str, Tensor]:
    """``L(w_j = 0) - L(w)`` by setting one weight after the other to zero."""
    model.eval()
    with torch.no_grad():
        before = loss(model(batch[0]), batch[1])
        changes = {}
        for name, weight in params.items():
            rows = []
            for j in range(weight.numel()):
                without = weight.detach().clone()
                without.view(-1)[j] = 0
                rows.append(loss(functional_call(model, {name: without}, (batch[0],)), batch[1]) - before)
            changes[name] = torch.stack(rows).reshape(weight.shape)
    return changes


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors.values()])


def unflattened(vector: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    parts = vector.split([tensor.numel() for tensor in like.values()])
    return {name: part.reshape(tensor.shape) for (name, tensor), part in zip(like.items(), parts, strict=True)}


def spearman(first: Tensor, second: Tensor) -> float:
    ranks = torch.stack([value.argsort().argsort().double() for value in (first, second)])
    return float(torch.corrcoef(ranks)[0, 1])


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert list(actual) == list(expected)
    for name, value in expected.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(actual[name], value, rtol=tolerance, atol=tolerance * scale)
