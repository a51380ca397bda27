"""Each torch function as a linear map with non-negative coefficients, so that a network counts weighted paths.

What a function of input-dependent tensors becomes (constants are tensors that do not depend on the input):

    activation, log-softmax, dropout  identity
    linear, conv, matmul, addmm       |weight|, no bias
    batch norm                        |gamma| / sqrt(var + eps), no mean, no shift, running statistics
    layer, group, instance, RMS norm  |gamma|: their division by the input's spread is left out
    x + y, x - y, cat                 sum, cat; constants count as zero
    x * c, x / c, -x                  x * |c|, x / |c|, x
    x * y                             sqrt(x y), both input-dependent (a gate): each gets half the flow
    attention                         every query attends evenly to the keys it may see; queries, keys get no flow

Everything else (pooling, padding, views, sums, interpolation) runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["IDENTITIES", "RULES", "WEIGHTED", "Context"]


class Context(Protocol):
    """What a rule may ask about the run it is part of."""

    structural: bool
    nonnegative: frozenset[int]

    def depends(self, value: object) -> bool:
        """Whether ``value`` depends on the network's input."""
        ...


Function = Callable[..., Any]
Rule = Callable[[Context, Function, tuple, dict], Any]

RULES: dict[Function, Rule] = {}
WEIGHTED: set[Rule] = set()


def _rule(names: str, *, weighted: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule for every torch function, functional and Tensor method of these names."""

    def register(rule: Rule) -> Rule:
        for name in names.split():
            for home in (torch, Tensor, F):
                if function := getattr(home, name, None):
                    RULES[function] = rule
        if weighted:
            WEIGHTED.add(rule)
        return rule

    return register


def _first(args: tuple, kwargs: dict) -> Any:
    return args[0] if args else kwargs.get("input")


def _pair(args: tuple, kwargs: dict) -> tuple[Any, Any]:
    given = (*args, *(kwargs[name] for name in ("input", "other", "mat2") if name in kwargs))
    return given[0], given[1]


def _changes_input(function: Function) -> bool:
    name = function.__name__
    return name.endswith("_") and not name.endswith("__")


def _zero(value: Any) -> Any:
    return torch.zeros_like(value) if isinstance(value, Tensor) else 0


def _positive(context: Context, value: Any) -> Any:
    """Constants by magnitude: a weight computed from parameters may have any sign, the parameters given have not.

    abs() is not free: with its gradient it passes five times over every weight.
    """
    return value if context.depends(value) or id(value) in context.nonnegative else abs(value)


@_rule(
    "relu relu_ relu6 leaky_relu leaky_relu_ elu elu_ selu selu_ celu celu_ gelu silu mish hardswish hardtanh"
    " hardtanh_ hardsigmoid logsigmoid sigmoid sigmoid_ tanh tanh_ softplus softsign tanhshrink prelu rrelu rrelu_ threshold"
    " threshold_ hardshrink softshrink log_softmax abs abs_ neg neg_ negative clamp clamp_ clip clip_"
    " normalize local_response_norm"
)
def _activation(context: Context, function: Function, args: tuple, kwargs: dict) -> Any:
    x = _first(args, kwargs)
    if not context.depends(x):
        return function(*args, **kwargs)
    in_place = _changes_input(function) or kwargs.get("inplace") is True or args[1:][-1:] == (True,)
    # A copy where the function would make one: what changes its result in place must not change x.
    return x if in_place else x.clone()


@_rule("dropout dropout_ dropout1d dropout2d dropout3d alpha_dropout alpha_dropout_ feature_alpha_dropout")
def _dropout(context: Context, function: Function, args: tuple, kwargs: dict) -> Any:
    x = _first(args, kwargs)
    return x if context.depends(x) else function(*args, **kwargs)


@_rule("softmax")
def _softmax(context: Context, function: Function, args: tuple, kwargs: dict) -> Any:
    """Over the last of three or more dimensions it is attention: even, but zero where masked. Else the identity."""
    x = _first(args, kwargs)
    if not context.depends(x):
        return function(*args, **kwargs)
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    if x.dim() < 3 or dim not in (-1, x.dim() - 1):
        return x.clone()
    fixed = x.detach()
    return torch.where(fixed == -torch.inf, fixed, torch.zeros_like(fixed)).softmax(-1)


@_rule("add add_ sub sub_ subtract subtract_ rsub __rsub__")
def _add(context: Context, function: Function, args: tuple, kwargs: dict) -> Any:
    a, b = _pair(args, kwargs)
    on_a, on_b = context.depends(a), context.depends(b)
    if not (on_a or on_b):
        return function(*args, **kwargs)
    if not isinstance(a, Tensor):
        return b + 0
    in_place = _changes_input(function)
    if on_a and not on_b and in_place:
        return a
    a, b = a if on_a or in_place else _zero(a), b if on_b else _zero(b)
    if not on_a and in_place:
        a.zero_()
    alpha = abs(kwargs.get("alpha", 1))
    return a.add_(b, alpha=alpha) if in_place else torch.add(a, b, alpha=alpha)


@_rule("mul mul_ multiply multiply_")
def _mul(context: Context, function: Function, args: tuple, kwargs: dict) -> Any:
    a, b = _pair(args, kwargs)
    on_a, on_b = context.depends(a), context.depends(b)
    if on_a and on_b:
        return _root(a) * _root(b)
    if not (on_a or on_b):
        return function(*args, **kwargs)
    if _changes_input(function) and on_a:
        return a.mul_(abs(b))
    return a * abs(b) if on_a else abs(a) * b


def _root(x: Tensor) -> Tensor:
    """sqrt, with derivative 0 at 0: no path there."""
    alive = x > 0
    return torch.where(alive, torch.where(alive, x, 1).sqrt(), 0)


@_rule("div div_ divide divide_ true_divide true_divide_")
def _div(context: Context, function: Function, args: tuple, kwargs: dict) -> Any:
    a, b = _pair(args, kwargs)
    if not context.depends(a) or context.depends(b):
        return function(*args, **kwargs)
    return a.div_(abs(b)) if _changes_input(function) else a / abs(b)


@_rule("glu")
def _glu(context: Context, function: Function, args: tuple, kwargs: dict) -> Any:
    x = _first(args, kwargs)
    if not context.depends(x):
        return function(*args, **kwargs)
    values, gates = x.chunk(2, args[1] if len(args) > 1 else kwargs.get("dim", -1))
    return _root(values) * _root(gates)


@_rule("linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d", weighted=True)
def _layer(context: Context, function: Function, args: tuple, kwargs: dict) -> Any:
    x = _first(args, kwargs)
    if not context.depends(x):
        return function(*args, **kwargs)
    given = dict(zip(("input", "weight", "bias"), args[:3])) | kwargs
    given["bias"] = None
    weight = _positive(context, given.pop("weight"))
    return function(given.pop("input"), weight, given.pop("bias"), *args[3:], **given)


@_rule("matmul __matmul__ __rmatmul__ mm bmm mv tensordot", weighted=True)
def _matmul(context: Context, function: Function, args: tuple, kwargs: dict) -> Any:
    a, b = _pair(args, kwargs)
    on_a, on_b = context.depends(a), context.depends(b)
    if on_a == on_b:
        return function(*args, **kwargs)
    return function(a if on_a else abs(a), b if on_b else abs(b), *args[2:], **_without(kwargs, "input other mat2"))


@_rule("addmm baddbmm", weighted=True)
def _addmm(context: Context, function: Function, args: tuple, kwargs: dict) -> Any:
    bias, a, b = args[:3]
    on_a, on_b = context.depends(a), context.depends(b)
    if on_a == on_b or context.depends(bias):
        return function(*args, **kwargs)
    return torch.matmul(a if on_a else abs(a), b if on_b else abs(b)) * abs(kwargs.get("alpha", 1))


@_rule("einsum", weighted=True)
def _einsum(context: Context, function: Function, args: tuple, kwargs: dict) -> Any:
    operands = args[1] if len(args) == 2 and isinstance(args[1], (list, tuple)) else args[1:]
    if sum(map(context.depends, operands)) != 1:
        return function(*args, **kwargs)
    return function(args[0], *(_positive(context, operand) for operand in operands))


@_rule("cat concat concatenate stack hstack vstack")
def _cat(context: Context, function: Function, args: tuple, kwargs: dict) -> Any:
    parts = args[0] if args else kwargs["tensors"]
    on = [context.depends(part) for part in parts]
    if not any(on):
        return function(*args, **kwargs)
    kept = [part if is_on else _zero(part) for part, is_on in zip(parts, on, strict=True)]
    return function(kept, *args[1:], **_without(kwargs, "tensors"))


@_rule("batch_norm")
def _batch_norm(context: Context, function: Function, args: tuple, kwargs: dict) -> Any:
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = dict(zip(names, args)) | kwargs
    x, var, weight = given["input"], given.get("running_var"), given.get("weight")
    if not context.depends(x):
        return function(*args, **kwargs)
    if var is None:
        var = x.new_ones(x.shape[1])
    weight = None if weight is None else _positive(context, weight)
    # The native function, not a product: the scores of the published algorithm to the bit.
    return F.batch_norm(x, torch.zeros_like(var), var, weight, None, False, 0.0, given.get("eps", 1e-5))


@_rule("layer_norm rms_norm")
def _last_norm(context: Context, function: Function, args: tuple, kwargs: dict) -> Any:
    return _scaled(context, function, args, kwargs, ("input", "normalized_shape", "weight"), channels=False)


@_rule("group_norm")
def _group_norm(context: Context, function: Function, args: tuple, kwargs: dict) -> Any:
    return _scaled(context, function, args, kwargs, ("input", "num_groups", "weight"), channels=True)


@_rule("instance_norm")
def _instance_norm(context: Context, function: Function, args: tuple, kwargs: dict) -> Any:
    names = ("input", "running_mean", "running_var", "weight")
    return _scaled(context, function, args, kwargs, names, channels=True)


def _scaled(
    context: Context, function: Function, args: tuple, kwargs: dict, names: Iterable[str], *, channels: bool
) -> Any:
    given = dict(zip(names, args)) | kwargs
    x, weight = given["input"], given.get("weight")
    if not context.depends(x):
        return function(*args, **kwargs)
    if weight is None:
        return x.clone()
    weight = _positive(context, weight)
    return x * (weight.reshape(-1, *[1] * (x.dim() - 2)) if channels else weight)


@_rule("scaled_dot_product_attention")
def _attention(context: Context, function: Function, args: tuple, kwargs: dict) -> Any:
    names = ("query", "key", "value", "attn_mask", "dropout_p")
    given = dict(zip(names, args)) | kwargs
    if not context.depends(given["value"]):
        return function(*args, **kwargs)
    given |= {"query": torch.zeros_like(given["query"]), "key": torch.zeros_like(given["key"]), "dropout_p": 0.0}
    return function(*(given.pop(name, None) for name in names[:4]), given.pop("dropout_p"), *args[5:], **given)


@_rule("multi_head_attention_forward", weighted=True)
def _multi_head(context: Context, function: Function, args: tuple, kwargs: dict) -> Any:
    """nn.MultiheadAttention on (length, ...): the value and output projections around even attention."""
    names = ("query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias")
    names += ("bias_k", "bias_v", "add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias")
    given = dict(zip(names, args)) | kwargs
    query, value = given["query"], given["value"]
    if not context.depends(value):
        return function(*args, **kwargs)
    if given.get("attn_mask") is not None or given.get("key_padding_mask") is not None or given.get("is_causal"):
        raise ValueError("model must use nn.MultiheadAttention without masks for paths to be followed through it")
    if given.get("use_separate_proj_weight"):
        weight = given["v_proj_weight"]
    else:
        weight = given["in_proj_weight"].chunk(3)[2]
    even = F.linear(value, _positive(context, weight)).mean(0, keepdim=True)
    out = F.linear(even, _positive(context, given["out_proj_weight"]))
    return out.expand(query.shape[:-1] + out.shape[-1:]), None


@_rule("max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d")
def _max_pool(context: Context, function: Function, args: tuple, kwargs: dict) -> Any:
    """Which paths exist does not depend on which of a window's entries is largest: the mean joins them all."""
    x = _first(args, kwargs)
    if not (context.structural and context.depends(x)):
        return function(*args, **kwargs)
    names = ("input", "output_size") if "adaptive" in function.__name__ else _POOL_ARGUMENTS
    given = dict(zip(names, args)) | kwargs
    if given.pop("dilation", 1) not in (1, (1, 1), (1, 1, 1), (1,)) or given.pop("return_indices", False):
        return function(*args, **kwargs)
    return getattr(F, function.__name__.replace("max", "avg"))(**given)


_POOL_ARGUMENTS = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")


def _without(kwargs: dict, names: str) -> dict:
    return {name: value for name, value in kwargs.items() if name not in names.split()}


IDENTITIES = frozenset(function for function, rule in RULES.items() if rule in (_activation, _dropout))
