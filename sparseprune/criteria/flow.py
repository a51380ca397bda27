"""The flow through a network: ``R = 1^T prod_l |theta_l| 1``, over all paths the product of their weights.

A model's activations become identities and its biases zero (linear_rules.py); then R is linear in each weight, and
``|theta| dR/d|theta|`` is the part of R that passes through it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..ops.bitmask import BitMask
from ..ops.products import Product
from ..ops.submask import keep_within
from ..ops.survivor_scores import SurvivorScores
from .base import Weights
from .cuts import cut_nodes
from .isolation import buffer_copies, full_precision, isolated
from .linear_run import Call, Recording, Replay
from .lowering.engine import LoweredNetwork
from .lowering.program import NotLoweredError

__all__ = ["Flow", "LinearNetwork", "Paths", "path_flow"]


PRECISIONS = ("tf32", "bfloat16")


class Flow(NamedTuple):
    """R as ``value * 2^exponent`` (0-D tensors; the exponent int64) and ``d value / d weight`` by name."""

    value: Tensor
    exponent: Tensor
    gradients: dict[str, Tensor]


class LinearNetwork:
    """A model made linear in its input; only functional calls on ``|w|``, so the model is never modified.

    Args:
        model: any model that, with identities for activations, is linear in its input.
        example_input: (N, ...) floating; its shape but for N is used, and its values never.
        dtype: float32 or float64 to compute in; None: the weights' own, float32 for narrower ones.
        scale: multiply by powers of two where every path passes, so that R stays in the dtype's range.
        structural: all weights one; which paths exist instead of how much flows.
        precision: one of ``PRECISIONS`` that values between layers are computed in, or None for ``dtype`` itself.

    Attributes:
        weights: name -> ``|w|`` of every floating parameter, biases zero.

    Raises:
        TypeError: ``example_input`` is not a floating tensor.
        ValueError: ``example_input`` has no batch dimension; ``dtype`` is another one; the model is not linear.
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: Tensor,
        *,
        dtype: torch.dtype | None = None,
        scale: bool = True,
        structural: bool = False,
        precision: str | None = None,
    ) -> None:
        check_example(example_input, dtype)
        self._model, self._structural, self._tf32 = model, structural, precision == "tf32"
        first = _first(model, example_input)
        self.dtype = flow_dtype(model, example_input, dtype)
        self._values = torch.bfloat16 if precision == "bfloat16" else self.dtype
        self.weights = {name: self._positive(name, p) for name, p in model.named_parameters()}
        shape = (1, *example_input.shape[1:])
        self._ones = torch.ones(shape, dtype=self._values, device=first.device)
        with self.entered():
            self._calls, self._outputs, self._cuts = self._record()
            with torch.no_grad():
                self._check_linear()
        if not scale:
            self._cuts = frozenset()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Within it :meth:`flow_within` may be called."""
        with isolated(self._model), full_precision(self._ones.device, tf32=self._tf32):
            yield

    def flow(self, weights: Weights, *, saturate: bool = False) -> Flow:
        """R of the model with ``weights`` (name -> non-negative tensor) in place of its own, and its gradients.

        With ``saturate`` every value and gradient is replaced by 1 where it is positive: only zero or not is told.
        """
        with self.entered():
            return self.flow_within(weights, saturate=saturate)

    def flow_within(self, weights: Weights, *, saturate: bool = False) -> Flow:
        """:meth:`flow` within :meth:`entered`. Nothing is read back from the device, and no state is set or put back."""
        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        run = self._replay(saturate=saturate)
        value = self._run(run, self._ones, leaves)
        if value.requires_grad:
            gradients = torch.autograd.grad(value, tuple(leaves.values()), materialize_grads=True)
        else:
            gradients = [torch.zeros_like(leaf) for leaf in leaves.values()]
        exponent = sum(run.exponents, torch.zeros((), dtype=torch.int64, device=value.device))
        return Flow(value.detach(), exponent, dict(zip(leaves, gradients, strict=True)))

    def _positive(self, name: str, parameter: Tensor) -> Tensor:
        value = parameter.detach()
        if not value.is_floating_point():
            return value
        # Rules drop the biases of torch's functions; this reaches those inside functions they do not see into.
        if "bias" in name.rpartition(".")[2]:
            return torch.zeros_like(value, dtype=self.dtype)
        return torch.ones_like(value, dtype=self.dtype) if self._structural else value.to(self.dtype).abs()

    def _replay(self, factors: list[Tensor] | None = None, **options: bool) -> Replay:
        cuts = frozenset() if options.get("saturate") else self._cuts
        return Replay(self._calls, cuts, factors, structural=self._structural, **options)

    def _run(self, run: Replay, inputs: Tensor, weights: Weights) -> Tensor:
        outputs = self._forward(run, inputs, weights)
        return sum(output.to(self.dtype).sum() for output, on in zip(outputs, self._outputs, strict=True) if on)

    def _forward(self, run: Recording | Replay, inputs: Tensor, weights: Weights) -> list[Tensor]:
        parameters = {**self.weights, **weights}
        if self._values != self.dtype:
            parameters = {n: p.to(self._values) if p.is_floating_point() else p for n, p in parameters.items()}
        run.nonnegative = frozenset(map(id, parameters.values()))
        state = {**buffer_copies(self._model, self._values), **parameters}
        with run:
            result = functional_call(self._model, state, (inputs,))
        return list(_tensors(result))

    def _record(self) -> tuple[list[Call], list[bool], frozenset[int]]:
        run = Recording(structural=self._structural)
        outputs = self._forward(run, self._ones.detach().requires_grad_(), {})
        on = [output.requires_grad for output in outputs]
        if not any(on):
            raise ValueError("model must return a floating tensor that depends on its input through torch's functions")
        nodes = cut_nodes([output.grad_fn for output in outputs if output.requires_grad])
        cuts = _before_weights(run.calls, nodes)
        for call in run.calls:
            call.node = None  # a node holds the tensors saved for its backward
        return run.calls, on, cuts

    def _check_linear(self) -> None:
        """A linear network's R is four times as large for an input of fours, exactly: only exponents differ."""
        first = self._replay()
        flow = self._run(first, self._ones, {})
        fourfold = self._run(self._replay(first.factors), 4 * self._ones, {})
        if not flow.isfinite() or torch.isclose(fourfold, 4 * flow, rtol=1e-5, atol=0):
            return
        peaks = []
        for inputs in (self._ones, 4 * self._ones):
            run = self._replay(first.factors, watch=True)
            self._run(run, inputs, {})
            peaks.append(run.peaks)
        culprit = self._culprit(*peaks)
        raise ValueError(f"model must be linear in its input once activations are identities, got {culprit}")

    def _culprit(self, once: dict[int, Tensor], fourfold: dict[int, Tensor]) -> str:
        for index, peak in once.items():
            if not any(torch.allclose(fourfold[index], factor * peak, rtol=1e-5, atol=0) for factor in (1, 4)):
                return f"torch's {self._calls[index].name}"
        return "a sum of terms that depend on it and terms that do not"


class Paths(NamedTuple):
    """What of a pruned network still connects its input to its output.

    Attributes:
        connected: whether any path is left.
        weights: name -> bool, the kept weights on one.
        positions: name -> how often each weight is multiplied for one example, of those that the output depends on; None
            where the model ran as it is.
    """

    connected: bool
    weights: dict[str, Tensor]
    positions: dict[str, int] | None = None


def path_flow(model: nn.Module, masks: Mapping[str, Tensor], example_input: Tensor) -> Paths:
    """Which kept weights lie on a path from input to output, all others of the model counted as kept.

    One forward and one backward pass in which every value is 0 or 1, so nothing overflows or vanishes. On a CPU it
    runs as a program (``lowering/``) where the model can be lowered to one.

    Args:
        model: as for LinearNetwork.
        masks: parameter name -> bool, of the parameter's shape.
        example_input: (N, ...) floating.

    Raises:
        TypeError, ValueError: as LinearNetwork.
    """
    try:
        lowered = LoweredNetwork(model, example_input, torch.float32, scale=False, structural=True)
    except NotLoweredError:
        network = LinearNetwork(model, example_input, structural=True)
        flow = network.flow({name: mask.to(network.weights[name]) for name, mask in masks.items()}, saturate=True)
        found = {name: mask & (flow.gradients[name] > 0) for name, mask in masks.items()}
        return Paths(bool(flow.value > 0), found)
    packed = {name: BitMask.from_bool(mask) for name, mask in masks.items()}
    whole = {name: BitMask.ones(weight.shape) for name, weight in lowered.weights.items()}
    scores = lowered.scores({name: packed.get(name, whole[name]) for name in whole})
    found = {name: _positive(scores[name]) if name in scores else mask & False for name, mask in masks.items()}
    return Paths(lowered.flow[0] > 0, found, lowered.positions())


def _positive(scores: Product | SurvivorScores) -> Tensor:
    if isinstance(scores, Product):
        return scores.tensor() > 0
    return keep_within(scores.mask, BitMask.from_bool(scores.values > 0)).to_bool()


def flow_dtype(model: nn.Module, example_input: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype to compute in: as given, or the weights' own where it is float64, else float32."""
    return dtype or (torch.float64 if _first(model, example_input).dtype == torch.float64 else torch.float32)


def _first(model: nn.Module, example_input: Tensor) -> Tensor:
    return next((p for p in model.parameters() if p.is_floating_point()), example_input)


def check_example(example_input: Tensor, dtype: torch.dtype | None = None) -> None:
    """Raise TypeError or ValueError unless the flow of a model can be measured with these."""
    if not isinstance(example_input, Tensor) or not example_input.is_floating_point():
        got = example_input.dtype if isinstance(example_input, Tensor) else type(example_input).__name__
        raise TypeError(f"example_input must be a floating-point tensor, got {got}")
    if example_input.dim() < 2:
        raise ValueError(f"example_input must have shape (batch, ...), got {tuple(example_input.shape)}")
    if dtype not in (None, torch.float32, torch.float64):
        raise ValueError(f"dtype must be None, torch.float32 or torch.float64, got {dtype}")


def _before_weights(calls: list[Call], nodes: set[object]) -> frozenset[int]:
    """Of the calls that made cut nodes, the last before each call with weights: once a layer or block is enough."""
    cuts, pending, seen = set(), None, set()
    for index, call in enumerate(calls):
        if call.weighted and pending is not None:
            cuts.add(pending)
            pending = None
        if call.node is not None and call.node not in seen:
            seen.add(call.node)
            if call.node in nodes:
                pending = index
    return frozenset(cuts)


def _tensors(output: object) -> Iterator[Tensor]:
    """The floating tensors of a model's output: a tensor, or sequences and mappings of them."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)
