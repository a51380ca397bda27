"""The gradients of ops that are linear in x and in the weight: one rule for all layers.

``y = A(x, w) + b`` comes with its two gradients, ``dx = B(g, w)`` and ``dw = C(g, x)``. Each is linear in both of its
arguments and the gradients of each are the other two, so the three can be differentiated any number of times (GraSP and
Hessian-vector products need two):

    A   dx = B(g, w)    dw = C(g, x)
    B   dg = A(h, w)    dw = C(g, h)     h the gradient at dx
    C   dg = A(x, h)    dx = B(g, h)     h the gradient at dw
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

Apply = Callable[..., Tensor]


class Watch(Protocol):
    """Wants the gradient at every slot, those that the mask prunes too; ``words`` are the mask that keeps all."""

    words: Tensor

    def add(self, gradient: Tensor) -> None:
        """Called with it in backward; ``gradient`` changes afterwards."""


def differentiable(
    forward: Callable[..., Tensor],
    input_grad: Callable[..., Tensor],
    weight_grad: Callable[..., Tensor],
    keep: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Apply:
    """``apply(x, w, words, bias, options, watch=None)`` with gradients, double gradients and vmap.

    Args:
        forward: ``(x, w, words, bias, *options) -> y``.
        input_grad: ``(grad, w, words, x_shape, *options) -> dx``; the shape is that of one sample.
        weight_grad: ``(grad, x, words, w_shape, *options) -> dw``.
        keep: ``(dw, words) -> dw``, in place, zero at pruned slots; for those that are watched.
    """

    class Forward(Function):
        @staticmethod
        def forward(x, weight, words, bias, options, watch):
            return forward(x, weight, words, bias, *options)

        @staticmethod
        def setup_context(ctx, inputs, output):
            x, weight, words, _, ctx.options, ctx.watch = inputs
            ctx.save_for_backward(x, weight, words)

        @staticmethod
        def backward(ctx, grad):
            x, weight, words = ctx.saved_tensors
            needs = ctx.needs_input_grad
            rest = ctx.options, ctx.watch
            dx = _apply(InputGrad, grad, weight, words, tuple(x.shape[1:]), *rest) if needs[0] else None
            dw = _apply(WeightGrad, grad, x, words, tuple(weight.shape), *rest) if needs[1] else None
            db = grad.sum([d for d in range(grad.dim()) if d != 1]) if needs[3] else None
            return dx, dw, None, db, None, None

        @staticmethod
        def vmap(info, in_dims, *args):
            return _vmap_by_batch(Forward, info, in_dims, *args)

    class InputGrad(Function):
        @staticmethod
        def forward(grad, weight, words, shape, options, watch):
            return input_grad(grad, weight, words, shape, *options)

        @staticmethod
        def setup_context(ctx, inputs, output):
            grad, weight, words, _, ctx.options, ctx.watch = inputs
            ctx.save_for_backward(grad, weight, words)

        @staticmethod
        def backward(ctx, grad_dx):
            grad, weight, words = ctx.saved_tensors
            needs = ctx.needs_input_grad
            rest = ctx.options, ctx.watch
            dgrad = _apply(Forward, grad_dx, weight, words, None, *rest) if needs[0] else None
            dw = _apply(WeightGrad, grad, grad_dx, words, tuple(weight.shape), *rest) if needs[1] else None
            return dgrad, dw, None, None, None, None

        @staticmethod
        def vmap(info, in_dims, *args):
            return _vmap_by_batch(InputGrad, info, in_dims, *args)

    class WeightGrad(Function):
        @staticmethod
        def forward(grad, x, words, shape, options, watch):
            if watch is None:
                return weight_grad(grad, x, words, shape, *options)
            everywhere = weight_grad(grad, x, watch.words, shape, *options)
            watch.add(everywhere)
            return keep(everywhere, words)

        @staticmethod
        def setup_context(ctx, inputs, output):
            grad, x, words, _, ctx.options, _ = inputs
            ctx.save_for_backward(grad, x, words)

        @staticmethod
        def backward(ctx, grad_dw):
            grad, x, words = ctx.saved_tensors
            needs = ctx.needs_input_grad
            rest = ctx.options, None  # here grad_dw is the weight
            dgrad = _apply(Forward, x, grad_dw, words, None, *rest) if needs[0] else None
            dx = _apply(InputGrad, grad, grad_dw, words, tuple(x.shape[1:]), *rest) if needs[1] else None
            return dgrad, dx, None, None, None, None

        @staticmethod
        def vmap(info, in_dims, *args):
            return _vmap_by_loop(WeightGrad, info, in_dims, *args)

    return lambda x, weight, words, bias, options, watch=None: _apply(Forward, x, weight, words, bias, options, watch)


def _apply(function: type[Function], *args: Any) -> Tensor:
    """``function.apply``, without what it takes 50 us for at every call, as much as a small layer.

    It binds its arguments to the signature of ``forward``, which has no defaults: only transforms and compilers, which
    look for ``Function.apply``, are given that. What nothing differentiates needs no node in a graph.
    """
    transformed = torch._C._are_functorch_transforms_active()
    if not torch.is_grad_enabled() and not transformed:
        return function.forward(*args)
    if transformed or torch.compiler.is_compiling():
        return function.apply(*args)
    return super(Function, function).apply(*args)


def _vmap_by_loop(function: Any, info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
    """The ``vmap`` of an ``autograd.Function`` whose batched arguments share no structure: one call a sample."""
    results = [
        function.apply(*(a.select(d, i) if _is_batched(a, d) else a for a, d in zip(args, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    return torch.stack(results), 0


def _vmap_by_batch(function: Any, info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
    """The same where the first argument has a batch dimension of its own: a batch of batches is a larger batch.

    Where anything else is batched too, it is one call a sample.
    """
    batched = [_is_batched(a, d) for a, d in zip(args, in_dims, strict=True)]
    if not batched[0] or any(batched[1:]):
        return _vmap_by_loop(function, info, in_dims, *args)
    batches = args[0].movedim(in_dims[0], 0)
    return function.apply(batches.flatten(0, 1), *args[1:]).unflatten(0, batches.shape[:2]), 0


def _is_batched(arg: Any, dim: Any) -> bool:
    return isinstance(arg, Tensor) and dim is not None
