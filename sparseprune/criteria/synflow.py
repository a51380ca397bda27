"""SynFlow: keep the weights that carry the flow, ``score = |w| dR/d|w|`` with ``R = 1^T prod_l |theta_l| 1``."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..arguments import typed
from ..ops.bitmask import BitMask
from ..ops.products import Product
from ..ops.survivor_scores import SurvivorScores
from .base import Scores, Weights, tensors_of
from .flow import PRECISIONS, LinearNetwork, check_example, flow_dtype
from .lowering.engine import LoweredNetwork
from .lowering.program import NotLoweredError

if TYPE_CHECKING:
    from ..masks import Masks

__all__ = ["SynFlow", "SynFlowStep"]


@typed
@dataclass(frozen=True, eq=False)
class SynFlow:
    """``score = |w| dR/d|w|``, R the flow through the model's linear form; data-free.

    Prune by it in many steps (the paper takes 100, exponential): in one step it empties layers like any other.

    R overflows float32 from a ResNet-34 on. So at values that every path from input to output crosses (between
    layers, between residual blocks; found in the model's own graph) the run is multiplied by a power of two. All
    scores then share one power of two, their order is exact, and a ResNet-152 stays in float32's range.

    What becomes of which layer is stated in ``linear_rules.py``: batch norm keeps ``|gamma| / sqrt(var + eps)``,
    biases are zero, activations and dropout identities.

    A plan reads the model's graph once. That a model calls other functions at a later step is an error where the model
    runs as it is; where it was lowered to a program (float32 on a CPU) it is not noticed, the first graph holds.

    Args:
        example_input: (N, ...) floating; a batch of one all-ones input of its per-example shape is used.
        dtype: float32 or float64 to compute in; None: the weights' own, float32 for narrower ones.
        scale: multiply by powers of two.
        precision: inexact, for speed on a GPU; the model runs as it is, and ``dtype`` is float32. "tf32": float32, but
            products and convolutions round their factors to 10 bits where the device does so. "bfloat16": ``|w|``, the
            values between layers and their gradients have 8 bits, sums within a layer as the device has them; weights,
            scores (float32 ``|w|`` times the gradient), the powers of two and the selection keep float32. Its exponents are
            float32's, so scaling holds it in range as well. None is exact to the dtype's rounding.

    Raises:
        TypeError, ValueError: wrong arguments; a model that is not linear in its input once activations are
            identities; a flow beyond the dtype's range.

    Source: Tanaka, Kunin, Yamins, Ganguli 2020, arXiv:2006.05467, algorithm 1.
    """

    example_input: Tensor
    dtype: torch.dtype | None = None
    scale: bool = True
    precision: str | None = None

    def __post_init__(self) -> None:
        check_example(self.example_input, self.dtype)
        if self.precision not in (None, *PRECISIONS):
            raise ValueError(f"precision must be None, {' or '.join(map(repr, PRECISIONS))}, got {self.precision!r}")
        if self.precision is not None and self.dtype == torch.float64:
            raise ValueError(f"precision must be None where dtype is torch.float64, got {self.precision!r}")

    def __call__(self, model: nn.Module, params: Weights) -> Scores:
        return self.plan(model, params)()

    def plan(self, model: nn.Module, params: Weights) -> SynFlowStep:
        """Read the model's graph and ``|w|`` once, for all steps of an iterative run."""
        return SynFlowStep(model, tuple(params), self)


class SynFlowStep:
    """Scores under any masks, from one forward and one backward pass each.

    In float32 on a CPU, convolutional networks are lowered to a program whose cost falls with the number of weights
    left (``lowering/``). Other models run as they are, their functions replaced by linear ones. Scores of the two
    differ by rounding. In float64 it is always the latter: torch's own functions in the model's order, so that masks
    are those of the published algorithm to the bit.

    Attributes:
        log2_flow: log2 R of the last call, -inf where nothing flows.
        reason: why the model was not lowered; None where it was.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...], criterion: SynFlow) -> None:
        self._names, self.log2_flow = names, math.nan
        self._whole: dict[str, BitMask] = {}
        self._shapes = {name: p.shape for name, p in model.named_parameters()}
        example = criterion.example_input
        self.reason: str | None = None
        self._lowered: LoweredNetwork | None = None
        precision = criterion.precision
        self._dtype = torch.float32 if precision else flow_dtype(model, example, criterion.dtype)
        try:
            if precision:
                raise NotLoweredError(f"precision {precision!r} is for the model as it is")
            if self._dtype == torch.float64:
                raise NotLoweredError("float64 follows the published algorithm to the bit")
            self._lowered = LoweredNetwork(model, example, self._dtype, criterion.scale)
        except NotLoweredError as error:
            self.reason = str(error)
            self._network = LinearNetwork(model, example, dtype=self._dtype, scale=criterion.scale, precision=precision)

    @property
    def operations(self) -> int | None:
        """What the weights left at the last call needed (a fused multiply-add is two); None if not lowered."""
        return None if self._lowered is None else self._lowered.operations()

    def __call__(self, masks: Masks | None = None) -> Scores:
        """The scores of :meth:`products` as tensors."""
        return {name: score.clone() for name, score in tensors_of(self.products(masks)).items()}

    def products(self, masks: Masks | None = None) -> dict[str, Product | SurvivorScores]:
        """``|w . m| dR/d|w . m|`` divided by a power of two, the same for all; zero everywhere if nothing flows.

        They hold until the next call, which writes over them.

        Args:
            masks: weights without one are kept whole.

        Raises:
            ValueError: R or a gradient is beyond the dtype's range.
        """
        return self._by_network(masks) if self._lowered is None else self._by_program(self._lowered, masks)

    def _by_program(self, lowered: LoweredNetwork, masks: Masks | None) -> dict[str, Product | SurvivorScores]:
        kept = {name: self._mask(name, masks) for name in {*lowered.weights, *self._names}}
        scores = lowered.scores({name: kept[name] for name in lowered.weights})
        value, exponent = lowered.flow
        self._check_range([value, lowered.peak])
        self.log2_flow = math.log2(value) + exponent if value > 0 else -math.inf
        unread = [name for name in self._names if name not in scores]
        scores |= {name: SurvivorScores(torch.zeros(kept[name].count()), kept[name]) for name in unread}
        return {name: scores[name] for name in self._names}

    def _mask(self, name: str, masks: Masks | None) -> BitMask:
        if masks is not None and name in masks:
            return masks[name]
        return self._whole.setdefault(name, BitMask.ones(self._shapes[name]))

    def _by_network(self, masks: Masks | None) -> dict[str, Product]:
        with self.entered():
            scores, reading = self.unread(masks)
        self.read(reading[None])
        return scores

    @property
    def reads_late(self) -> bool:
        """Whether :meth:`unread` may be called: the model runs as it is."""
        return self._lowered is None

    def entered(self) -> AbstractContextManager[None]:
        """Within it :meth:`unread` may be called."""
        return self._network.entered()

    def unread(self, masks: Masks | None) -> tuple[dict[str, Product], Tensor]:
        """:meth:`products`, and float64 [2] for :meth:`read`. Nothing waits for the device, so it can be captured in a graph."""
        weights = {name: self._masked(name, masks) for name in self._names}
        flow = self._network.flow_within(weights)
        peaks = [gradient.amax() for gradient in flow.gradients.values() if gradient.numel()]
        largest = torch.stack([flow.value, *peaks]).amax()
        reading = torch.stack([largest.double(), flow.value.double().log2() + flow.exponent])
        return {name: Product(weight, flow.gradients[name], "w*g") for name, weight in weights.items()}, reading

    def read(self, readings: Tensor) -> list[float]:
        """log2 R of steps from what :meth:`unread` gave of them, [steps, 2]; the last becomes ``log2_flow``.

        Raises:
            ValueError: R or a gradient was beyond the dtype's range.
        """
        largest, flows = readings.t().tolist()
        self._check_range(largest)
        self.log2_flow = flows[-1]
        return flows

    def _masked(self, name: str, masks: Masks | None) -> Tensor:
        weight = self._network.weights[name]
        if masks is None or name not in masks:
            return weight
        return torch.where(masks[name].to_bool().to(weight.device), weight, 0)

    def _check_range(self, values: list[float]) -> None:
        if not all(map(math.isfinite, values)):
            raise ValueError(
                f"dtype must hold the flow R of this model, got {self._dtype}, beyond its range: use"
                " SynFlow(..., dtype=torch.float64) and leave scale on"
            )
