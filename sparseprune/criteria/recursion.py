"""Second derivatives passed back through a network, their mixed terms dropped (LeCun, Denker, Solla 1990).

With ``a = W z`` and ``z = f(a')``, for every example, q the second derivative with respect to a value:

    h_w = sum_t q_a z^2        q_z = W^2' q_a        q_a' = f'(a')^2 q_z + f''(a') dL/dz

Exact for one hidden layer under a loss whose Hessian in the output is diagonal; an approximation beyond. A convolution's
weight gets the sum over its positions. The batch runs twice through the model, as one batch of twice the size: in the
backward pass the first half carries dL/da and the second q, so autograd's own bookkeeping does the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .base import Scores
from .batches import Batches, BatchLoss, accumulator, check_examples
from .outputs import loss_gradient, output_hessian
from .taps import LAYERS

__all__ = ["NoRuleError", "recursion"]


def _functions(names: str) -> set[Callable[..., Any]]:
    homes = (torch, Tensor, F)
    return {f for name in names.split() for home in homes if (f := getattr(home, name, None)) is not None}


# y_i = f(x_i), with constants: f' and f'' are taken by autograd.
ELEMENTWISE = _functions(
    "tanh sigmoid elu selu celu gelu silu mish softplus softsign hardswish logsigmoid leaky_relu prelu batch_norm"
    " mul __mul__ __rmul__ div true_divide __truediv__ sub subtract __sub__ rsub __rsub__ neg negative exp log square"
)
# Sums, choices and moves: every coefficient is 0 or 1, its own square, so autograd's backward serves both halves.
MOVES = _functions(
    "relu relu_ relu6 hardtanh hardtanh_ dropout dropout1d dropout2d dropout3d alpha_dropout max_pool1d max_pool2d"
    " max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d flatten reshape view unflatten squeeze"
    " unsqueeze permute transpose contiguous clone cat pad add add_ __add__ __radd__ __iadd__ sum chunk split"
)
MEANS = _functions("avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d mean")


class NoRuleError(ValueError):
    """The model calls a function that second derivatives cannot be passed back through here."""


def recursion(loss: BatchLoss, batches: Batches, *, curved: bool = True) -> Scores:
    """The diagonal of the Hessian of the mean loss by the recursion above, by weight.

    Args:
        curved: with the term in f''.

    Raises:
        NoRuleError: a function in the model has no rule.
        ValueError: no example.
    """
    totals = {n: torch.zeros_like(w, dtype=accumulator(w.dtype), requires_grad=False) for n, w in loss.weights.items()}
    leaves, examples = tuple(loss.weights.values()), 0
    for batch in batches:
        inputs, target = loss.split(batch)
        with _DoubleRun(curved):
            output = loss.output(torch.cat([inputs, inputs]))
        examples += len(inputs)
        if not output.requires_grad:
            continue
        half = output[: len(inputs)]
        curvature = output_hessian(loss, half, target).diagonal(dim1=1, dim2=2).reshape(half.shape)
        seed = torch.cat([loss_gradient(loss, half, target), curvature])
        found = torch.autograd.grad(output, leaves, seed, materialize_grads=True)
        for total, part in zip(totals.values(), found, strict=True):
            total += part
    check_examples(examples)
    return {name: total / examples for name, total in totals.items()}


class _DoubleRun(TorchFunctionMode):
    """Gives every function of values that depend on the weights the backward pass of the recursion."""

    def __init__(self, curved: bool) -> None:
        super().__init__()
        self._curved = curved

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in LAYERS:
            given = dict(zip(("input", "weight", "bias", *LAYERS[func]), args)) | kwargs
            x, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias", None)
            return _Layer.apply(x, weight, bias, func, given)
        depending = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.requires_grad]
        if func in ELEMENTWISE and len(depending) == 1:
            x = depending[0]

            def apply(value: Tensor) -> Tensor:
                # A copy: what works in place must not change x.
                return func(*(value.clone() if a is x else a for a in args),
                            **{k: value.clone() if a is x else a for k, a in kwargs.items()})  # fmt: skip

            return _Elementwise.apply(x, apply, self._curved)
        result = func(*args, **kwargs)
        if func in MEANS and depending:
            return _Scaled.apply(result, 1 / _averaged(func, args, kwargs, result))
        known = func in MOVES and "alpha" not in kwargs
        if isinstance(result, Tensor) and result.requires_grad and not known:
            name = getattr(func, "__name__", repr(func))
            raise NoRuleError(
                f"model must be built of layers that second derivatives can be passed back through, got {name}:"
                " take another diagonal ('ggn', 'hutchinson')"
            )
        return result


def _averaged(function: Callable[..., Any], args: tuple, kwargs: dict, result: Tensor) -> int:
    """How many values each entry of the result is the mean of; all must be means of as many."""
    x = args[0] if args else kwargs["input"]
    name = function.__name__
    if not name.startswith("avg_pool"):
        if any(size % out for size, out in zip(x.shape[2:], result.shape[2:])) and name != "mean":
            raise NoRuleError(f"{name} must divide its input of shape {tuple(x.shape)} evenly for second derivatives")
        return x.numel() // result.numel()
    given = dict(zip(("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"), args)) | kwargs
    if given.get("ceil_mode") or given.get("count_include_pad") is False or given.get("divisor_override"):
        raise NoRuleError(f"{name} must average as many values everywhere for second derivatives")
    kernel = given["kernel_size"]
    sides = int(name[-2])
    return math.prod((kernel,) * sides if isinstance(kernel, int) else tuple(kernel) * (sides // len(kernel)))


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, function: Any, options: dict) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.function, ctx.options = function, options
        return function(x, weight, bias, **options)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (x, _), (g, q) = x.chunk(2), gradient.chunk(2)

        def layer(x: Tensor, weight: Tensor) -> Tensor:
            return ctx.function(x, weight, None, **ctx.options)

        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            to_x = torch.cat(
                [_pulled(lambda x: layer(x, weight), x, g), _pulled(lambda x: layer(x, weight.square()), x, q)]
            )
        if ctx.needs_input_grad[1]:
            to_weight = _pulled(lambda weight: layer(x.square(), weight), weight, q)
        return to_x, to_weight, None, None, None


def _pulled(function: Callable[[Tensor], Tensor], value: Tensor, cotangent: Tensor) -> Tensor:
    """J' cotangent of a function at ``value``; ``torch.func.vjp`` would first load for seconds."""
    leaf = value.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(function(leaf), leaf, cotangent)[0]


class _Elementwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor], curved: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.function, ctx.curved = function, curved
        return function(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            [slope] = torch.autograd.grad(ctx.function(x).sum(), x, create_graph=True)
            curved = ctx.curved and slope.requires_grad
            bend = torch.autograd.grad(slope.sum(), x, materialize_grads=True)[0] if curved else None
        slope = slope.detach()
        g, q = gradient.chunk(2)
        first, second = slope.chunk(2)
        to_q = second.square() * q
        return torch.cat([first * g, to_q if bend is None else to_q + bend.chunk(2)[1] * g]), None, None


class _Scaled(torch.autograd.Function):
    """The identity; on the way back q is multiplied by ``factor``."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        g, q = gradient.chunk(2)
        return torch.cat([g, q * ctx.factor]), None
