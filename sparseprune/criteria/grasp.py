"""GraSP: keep the weights whose removal would weaken the gradient flow, ``score = w * (H g)``.

Removing w_j changes ``g'g`` by ``-2 w_j (H g)_j`` to first order: where ``w_j (H g)_j`` is most negative, removal
strengthens the gradient most, so those go first. The score is signed.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..arguments import typed
from ..ops.products import Product
from .base import ProductCriterion, Weights
from .batches import Batches, Loss, batch_losses, check_data

__all__ = ["GraSP"]


@typed
@dataclass(frozen=True, eq=False)
class GraSP(ProductCriterion):
    """``score = w * (H g)``, g and H the gradient and Hessian of the mean loss over all batches, H exact.

    g is summed over all batches first, then the Hessian-vector product with that g over the same batches, one
    at a time: the chunks give what one large batch gives (with ``bn="eval"``), in the memory of one.

    Args:
        loss: ``loss(output, target)`` -> the mean over the batch, one number; twice differentiable.
        batches: any number of (input, target); moved to the weights' device and held in memory for the two
            passes over them. A one-shot iterator serves one call only.
        bn: batch norm uses its running statistics ("eval") or the batch's ("train"); the running ones stay.
        temperature: the model's output is divided by it.

    Raises:
        TypeError: ``loss`` not callable, ``batches`` not an iterable of pairs.
        ValueError: ``bn`` unknown, ``temperature`` not positive, no batch, a loss that is not one number.

    Source: Wang, Zhang, Grosse 2020, arXiv:2002.07376, eq. 8 (the score there is the negative of this one).
    """

    loss: Loss
    batches: Batches
    bn: str = "eval"
    temperature: float = 200.0

    def __post_init__(self) -> None:
        check_data(self.loss, self.batches, self.bn)
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")

    def products(self, model: nn.Module, params: Weights) -> dict[str, Product]:
        def softened(output: Tensor, target: Tensor) -> Tensor:
            return self.loss(output / self.temperature, target)

        # The fused attention kernels have no second derivative.
        with batch_losses(model, params, softened, self.bn) as loss, sdpa_kernel(SDPBackend.MATH):
            batches = list(self.batches)  # the second pass must see what the first saw, shuffled or not
            fixed = tuple(loss.mean(batches, loss.gradient).values())

            def hessian_vector(value: Tensor) -> tuple[Tensor, ...]:
                gradient = loss.gradient(value, create_graph=True)
                return loss.gradient(sum((g * f).sum() for g, f in zip(gradient, fixed, strict=True)))

            product = loss.mean(batches, hessian_vector)
        return {name: Product(weight.detach(), product[name], "w*g") for name, weight in params.items()}
