"""A layer most of whose weights are left: matrix products by the vendor's library, pruned weights held at zero."""

from __future__ import annotations

from torch import Tensor

from ...ops.bitmask import BitMask, as_rows
from ...ops.products import Product
from ...ops.submask import zero_pruned_

__all__ = ["DENSE_ABOVE", "DenseLayer"]

# Density from which a layer is this and not SparseColumns. Forward, both gradients and selection together, one thread
# of an AVX2 CPU, [256, 2304] on 200 positions: 6.4 ms at any density against 7.5 at 0.5 and 3.4 at 0.2; and much the
# same for [512, 4608] on 1 to 32 positions.
DENSE_ABOVE = 0.35


class DenseLayer:
    """``y = s * (W x)`` and its gradients, as ``SparseColumns`` has them.

    Args:
        weight: (O, ...), non-negative.
        mask: of its shape.
        backend: of the ops.
    """

    def __init__(self, weight: Tensor, mask: BitMask, backend: str) -> None:
        self._shape, self._backend = weight.shape, backend
        self._matrix = mask.apply(weight).reshape(as_rows(weight.shape)).contiguous()

    def narrow(self, mask: BitMask) -> None:
        """Hold to zero what ``mask``, a part of the present one, does not keep."""
        zero_pruned_(self._matrix, mask, backend=self._backend)

    def product(self, x: Tensor, scale: Tensor | None) -> Tensor:
        y = _product(self._matrix, x)
        return y if scale is None else y.mul_(scale[:, None])

    def gradients(self, grad: Tensor, x: Tensor, scale: Tensor | None, input_grad: bool) -> tuple[Tensor, Product]:
        """The gradient of x (empty unless wanted), and the scores of all weights, those pruned included."""
        grad = grad if scale is None else grad * scale[:, None]
        inner = _product(self._matrix.t(), grad) if input_grad else x.new_empty(0)
        return inner, Product(self._matrix.view(self._shape), (grad @ x.t()).view(self._shape), "w*g")


def _product(matrix: Tensor, x: Tensor) -> Tensor:
    # [512, 4608] on 4 positions, one thread: 3.3 ms and 5.0 transposed; the other way round 1.5 and 0.9.
    return (x.t() @ matrix.t()).t().contiguous() if 1 < x.shape[1] <= 8 else matrix @ x
