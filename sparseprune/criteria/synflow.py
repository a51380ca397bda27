"""SynFlow: keep the weights that carry the flow, ``score = |w| dR/d|w|`` with ``R = 1^T prod_l |theta_l| 1``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..ops.products import Product
from .base import Scores, Weights, tensors_of
from .flow import LinearNetwork, check_example

if TYPE_CHECKING:
    from ..masks import Masks

__all__ = ["SynFlow", "SynFlowStep"]


@dataclass(frozen=True, eq=False)
class SynFlow:
    """``score = |w| dR/d|w|``, R the flow through the model's linear form; data-free.

    Prune by it in many steps (the paper takes 100, exponential): in one step it empties layers like any other.

    R overflows float32 from a ResNet-34 on. So at values that every path from input to output crosses (between
    layers, between residual blocks; found in the model's own graph) the run is multiplied by a power of two. All
    scores then share one power of two, their order is exact, and a ResNet-152 stays in float32's range.

    What becomes of which layer is stated in ``linear_rules.py``: batch norm keeps ``|gamma| / sqrt(var + eps)``,
    biases are zero, activations and dropout identities.

    Args:
        example_input: (N, ...) floating; a batch of one all-ones input of its per-example shape is used.
        dtype: float32 or float64 to compute in; None: the weights' own, float32 for narrower ones.
        scale: multiply by powers of two.

    Raises:
        TypeError, ValueError: wrong arguments; a model that is not linear in its input once activations are
            identities; a flow beyond the dtype's range.

    Source: Tanaka, Kunin, Yamins, Ganguli 2020, arXiv:2006.05467, algorithm 1.
    """

    example_input: Tensor
    dtype: torch.dtype | None = None
    scale: bool = True

    def __post_init__(self) -> None:
        check_example(self.example_input, self.dtype)

    def __call__(self, model: nn.Module, params: Weights) -> Scores:
        return self.plan(model, params)()

    def plan(self, model: nn.Module, params: Weights) -> SynFlowStep:
        """Read the model's graph and ``|w|`` once, for all steps of an iterative run."""
        network = LinearNetwork(model, self.example_input, dtype=self.dtype, scale=self.scale)
        return SynFlowStep(network, tuple(params))


class SynFlowStep:
    """Scores under any masks, from one forward and one backward pass each.

    Attributes:
        log2_flow: log2 R of the last call, -inf where nothing flows.
    """

    def __init__(self, network: LinearNetwork, names: tuple[str, ...]) -> None:
        self._network, self._names = network, names
        self.log2_flow = float("nan")

    def __call__(self, masks: Masks | None = None) -> Scores:
        """The scores of :meth:`products` as tensors."""
        return tensors_of(self.products(masks))

    def products(self, masks: Masks | None = None) -> dict[str, Product]:
        """``|w . m| dR/d|w . m|`` divided by a power of two, the same for all; zero everywhere if nothing flows.

        Args:
            masks: weights without one are kept whole.

        Raises:
            ValueError: R or a gradient is beyond the dtype's range.
        """
        weights = {name: self._masked(name, masks) for name in self._names}
        flow = self._network.flow(weights)
        self._check_range(flow.value, flow.gradients)
        self.log2_flow = float(flow.value.double().log2() + flow.exponent)
        return {name: Product(weight, flow.gradients[name], "w*g") for name, weight in weights.items()}

    def _masked(self, name: str, masks: Masks | None) -> Tensor:
        weight = self._network.weights[name]
        if masks is None or name not in masks:
            return weight
        return torch.where(masks[name].to_bool().to(weight.device), weight, 0)

    def _check_range(self, flow: Tensor, gradients: Mapping[str, Tensor]) -> None:
        peaks = [gradient.amax() for gradient in gradients.values() if gradient.numel()]
        if not torch.stack([flow, *peaks]).isfinite().all():
            raise ValueError(
                f"dtype must hold the flow R of this model, got {self._network.dtype}, beyond its range: use"
                " SynFlow(..., dtype=torch.float64) and leave scale on"
            )
