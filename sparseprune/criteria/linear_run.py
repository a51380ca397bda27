"""One forward run of a model as a linear network: recorded once, then repeated with powers of two at its cuts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .linear_rules import RULES, WEIGHTED

__all__ = ["Call", "LinearRun", "Recording", "Replay", "power_of_two"]


@dataclass
class Call:
    """A call of a torch function that returned a tensor, or that a rule replaced."""

    function: Any
    answers: list[bool] = field(default_factory=list)  # which arguments depend on the input, in the order asked
    node: Any = None  # the result's place in the autograd graph, where it is one tensor

    @property
    def weighted(self) -> bool:
        """Whether input-dependent values met weights here, for all that is known of an op from outside torch."""
        outside = getattr(self.function, "namespace", "aten") != "aten"
        return outside or (self.linear and RULES[self.function] in WEIGHTED)

    @property
    def linear(self) -> bool:
        """Whether a rule took the place of the function."""
        return self.function in RULES and any(self.answers)

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))


class LinearRun(TorchFunctionMode, ABC):
    """Applies the rules; subclasses know which tensors depend on the input and see every call's result."""

    structural = False
    nonnegative: frozenset[int] = frozenset()  # ids of tensors known to be so

    def depends(self, value: object) -> bool:
        return isinstance(value, Tensor) and self._answer(value)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        rule = RULES.get(func)
        if rule is not None:
            self._enter(func)
            return self._leave(rule(self, func, args, kwargs), args)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.is_floating_point():
            self._enter(func)
            return self._leave(result, args)
        return result

    @abstractmethod
    def _answer(self, value: Tensor) -> bool:
        """Whether ``value``, an argument of the call entered last, depends on the input."""

    @abstractmethod
    def _enter(self, function: Any) -> None:
        """Another call begins."""

    @abstractmethod
    def _leave(self, result: Any, args: tuple) -> Any:
        """What the call returns to the model instead of ``result``."""


class Recording(LinearRun):
    """The first run. Only the input requires grad, so autograd's graph is the graph of dependence on it."""

    def __init__(self, *, structural: bool) -> None:
        super().__init__()
        self.structural = structural
        self.calls: list[Call] = []

    def _answer(self, value: Tensor) -> bool:
        self.calls[-1].answers.append(value.requires_grad)
        return value.requires_grad

    def _enter(self, function: Any) -> None:
        self.calls.append(Call(function))

    def _leave(self, result: Any, args: tuple) -> Any:
        if isinstance(result, Tensor):
            self.calls[-1].node = result.grad_fn
        return result


class Replay(LinearRun):
    """A later run, where the weights require grad and dependence on the input is as recorded.

    Args:
        calls: of the recording.
        cuts: indices of the calls whose results are multiplied by 2^-floor(log2 max).
        factors: those of an earlier run, used again instead of new ones.
        saturate: replace the rules' results, and the gradients there, by 1 where they are positive.
        watch: keep every result's largest entry in ``peaks``.
    """

    def __init__(
        self,
        calls: list[Call],
        cuts: frozenset[int],
        factors: list[Tensor] | None = None,
        *,
        structural: bool = False,
        saturate: bool = False,
        watch: bool = False,
    ) -> None:
        super().__init__()
        self.structural = structural
        self.factors: list[Tensor] = []
        self.exponents: list[Tensor] = []
        self.peaks: dict[int, Tensor] = {}
        self._calls, self._cuts, self._saturate, self._watch = calls, cuts, saturate, watch
        self._given = iter(factors) if factors is not None else None
        self._index = -1
        self._answers: Iterator[bool] = iter(())

    def _answer(self, value: Tensor) -> bool:
        return next(self._answers)

    def _enter(self, function: Any) -> None:
        self._index += 1
        if self._index >= len(self._calls) or self._calls[self._index].function != function:
            raise ValueError(
                "model must call the same functions each time it runs on the same input, got another one: "
                + getattr(function, "__name__", repr(function))
            )
        self._answers = iter(self._calls[self._index].answers)

    def _leave(self, result: Any, args: tuple) -> Any:
        if self._watch and isinstance(result, Tensor) and result.numel():
            self.peaks[self._index] = result.detach().amax()
        if self._saturate and self._calls[self._index].linear and isinstance(result, Tensor):
            return _Saturate.apply(result)
        if self._index not in self._cuts:
            return result
        factor = self._factor(result)
        # A function that worked in place has other names for its result, which must see the factor too.
        return result.mul_(factor) if any(result is arg for arg in args) else result * factor

    def _factor(self, value: Tensor) -> Tensor:
        if self._given is not None:
            return next(self._given)
        factor, exponent = power_of_two(value.detach().amax())
        self.factors.append(factor)
        self.exponents.append(exponent)
        return factor


def power_of_two(largest: Tensor) -> tuple[Tensor, Tensor]:
    """``2^-e`` with ``e = floor(log2 largest)``, and e; from the bits, so exact and without waiting for a device.

    Args:
        largest: 0-D bfloat16, float32 or float64, not negative. Where 2^-e is no normal number, the nearest one that is.

    Returns:
        2^-e of the same dtype, and e as int64; 1 and 0 for zero, which no factor brings nearer to one.
    """
    if largest.dtype == torch.bfloat16:  # float32's exponents
        factor, exponent = power_of_two(largest.float())
        return factor.to(torch.bfloat16), exponent
    integer, fraction, bias = (torch.int32, 23, 127) if largest.dtype == torch.float32 else (torch.int64, 52, 1023)
    exponent = ((largest.view(integer) >> fraction) - bias).clamp(1 - bias, bias - 1)
    exponent = exponent * (largest > 0)
    return ((bias - exponent) << fraction).view(largest.dtype), exponent.long()


class _Saturate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.sign()
