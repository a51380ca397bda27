"""What a criterion is: a question about a model, answered with one score per weight, ``score_ij = worth of w_ij``.

The words used everywhere: ``sparsity`` is zeros divided by prunable weights over the whole run, ``density`` is
``1 - sparsity``, a higher ``score`` means keep, and ``True`` in a ``mask`` means keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

__all__ = ["Criterion", "Scores", "Weights"]

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
