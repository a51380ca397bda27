"""What a criterion is: a question about a model, answered with one score per weight, ``score_ij = worth of w_ij``.

The words used everywhere: ``sparsity`` is zeros divided by prunable weights over the whole run, ``density`` is
``1 - sparsity``, a higher ``score`` means keep, and ``True`` in a ``mask`` means keep.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from ..ops.products import Product

__all__ = ["Criterion", "ProductCriterion", "Scores", "Weights", "check_criterion", "tensors_of"]

Weights = Mapping[str, Tensor]
Scores = dict[str, Tensor]


@runtime_checkable
class Criterion(Protocol):
    """Anything callable as ``criterion(model, params) -> scores``; no base class is needed.

    Scores are compared with each other over all weights, so only their order matters; a score may be negative
    or infinite, never NaN. A criterion leaves the model and its caller as it found them: parameters, buffers,
    ``.grad``, train/eval mode and the random number generators, also when it raises.

    A criterion that can reuse work between the steps of an iterative run also offers
    ``plan(model, params) -> step`` with ``step(masks) -> scores``. Then the weights are not masked beforehand:
    the step applies the masks itself.

    A criterion, or such a step, whose score is a formula of the weight and one other tensor also offers ``products``
    with the same arguments, which returns :class:`sparseprune.Product` formulas: ``prune`` then compares them where it
    reads them, and no scores are stored.
    """

    def __call__(self, model: nn.Module, params: Weights) -> Scores:
        """Score every weight of ``params``.

        Args:
            model: the network the weights belong to.
            params: name to weight, the model's own parameters; slots that are already pruned hold zero.

        Returns:
            For every name of ``params`` a floating tensor of the same shape; higher = keep. What a pruned slot
            gets is never looked at.
        """
        ...


def check_criterion(criterion: object) -> None:
    """Raise TypeError unless ``criterion`` can be asked for scores; a class is not asked, its instances are."""
    if isinstance(criterion, type):
        raise TypeError(
            f"criterion must be an instance, got the class {criterion.__name__}: write {criterion.__name__}(...)"
        )
    if not callable(criterion):
        raise TypeError(f"criterion must be callable with (model, params), got {type(criterion).__name__}")


class ProductCriterion(ABC):
    """A criterion whose score is a formula of the weight: it defines ``products``, and the scores follow."""

    @abstractmethod
    def products(self, model: nn.Module, params: Weights) -> dict[str, Product]:
        """The score of every weight of ``params``, as a formula."""

    def __call__(self, model: nn.Module, params: Weights) -> Scores:
        return tensors_of(self.products(model, params))


def tensors_of(products: Mapping[str, Product]) -> Scores:
    """The scores themselves."""
    return {name: product.tensor() for name, product in products.items()}
