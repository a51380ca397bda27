"""A layer most of whose weights are left: products over all of them, those that are pruned held at zero."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops.bitmask import BitMask, as_rows
from ...ops.costs import has_onednn, onednn_linear
from ...ops.dense_scores import dense_scores
from ...ops.products import Product
from ...ops.submask import zero_pruned_

__all__ = ["DENSE_ABOVE", "DenseLayer"]

# Density from which a layer is this and not SparseRows. Forward, both gradients and selection together, one thread of a
# Zen 5 core: [512, 4608] on 16 positions 2.6 ms at any density, against 3.4 at 0.5 and 2.4 at 0.35; [256, 2304] on 64
# positions 1.7 against 2.3 and 1.6.
DENSE_ABOVE = 0.4


class DenseLayer:
    """``y = s * (W x)`` and its gradients, as ``SparseRows`` has them.

    Args:
        weight: (O, ...), non-negative.
        mask: of its shape.
        backend: of the ops.
    """

    def __init__(self, weight: Tensor, mask: BitMask, backend: str) -> None:
        self._shape, self._backend = weight.shape, backend
        self._matrix = mask.apply(weight).reshape(as_rows(weight.shape)).contiguous()
        self._scores = torch.empty_like(self._matrix)  # once: fresh memory of this size costs as much as the products

    def narrow(self, before: BitMask, mask: BitMask) -> None:
        """Hold to zero what ``mask``, a part of ``before``, does not keep of it."""
        zero_pruned_(self._matrix, mask | ~before, backend=self._backend)

    def product(self, x: Tensor, scale: Tensor | None) -> Tensor:
        # [512, 4608] on 16 positions, two Zen 5 cores: torch's product takes 0.43 ms, oneDNN's 0.20.
        direct = x.dtype == torch.float32 and has_onednn()
        y = onednn_linear(self._matrix, x.t()) if direct else self._matrix @ x
        return y if scale is None else y.mul_(scale[:, None])

    def gradients(
        self, grad: Tensor, x: Tensor, scale: Tensor | None, input_grad: bool
    ) -> tuple[Tensor, Product, Tensor]:
        """The gradient of x (empty unless wanted), the scores of all weights, those pruned included, and the largest
        gradient of a weight. The scores hold until this is called again."""
        grad = grad if scale is None else grad * scale[:, None]
        inner, peak = dense_scores(self._matrix, grad, x, self._scores, input_grad, backend=self._backend)
        return inner, Product(self._scores.view(self._shape), None, "w"), peak
