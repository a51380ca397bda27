"""Read a model's program from one run on meta tensors: shapes only, nothing is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode, resolve_name

from ..isolation import isolated
from ..linear_rules import IDENTITIES
from .program import Kind, Node, NotLoweredError, consumers

__all__ = ["trace"]


def trace(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> list[Node]:
    """The program of ``model`` on one example, the last node its output; norms merged into the layers before them.

    Args:
        model: its parameters and buffers are replaced for the run, and never changed.
        shape: of one example, without the batch dimension.
        dtype: of the run.

    Raises:
        NotLoweredError: the model does something that programs have no node for.
    """
    tracer = _Tracer(model, dtype)
    inputs = torch.empty(1, *shape, dtype=dtype, device="meta")
    tracer.begin(inputs)
    with isolated(model), torch.no_grad(), tracer:
        try:
            result = functional_call(model, tracer.state, (inputs,))
        except NotLoweredError:
            raise
        except Exception as error:  # whatever a model does with the values of tensors that have none
            raise NotLoweredError(f"the model cannot run on shapes alone: {error}") from error
    if not isinstance(result, Tensor) or id(result) not in tracer.nodes:
        raise NotLoweredError("the model returns something else than one tensor that depends on its input")
    return _merged(_reachable(tracer.nodes[id(result)]))


class _Tracer(TorchFunctionMode):
    """Gives every tensor that depends on the input its node."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.nodes: dict[int, Node] = {}
        self.known = dict(model.named_parameters()) | dict(model.named_buffers())
        self.state = {
            name: torch.empty_like(t, device="meta", dtype=dtype if t.is_floating_point() else None)
            for name, t in self.known.items()
        }
        self.names = {id(t): name for name, t in self.state.items()}
        self.alive: list[Tensor] = []  # an id is one tensor's for as long as it lives
        self.viewed: set[int] = set()

    def begin(self, inputs: Tensor) -> None:
        channels, positions = _extent(inputs)
        self._set(inputs, Node(Kind.INPUT, (), channels, positions))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        on = [a for a in _flat((args, kwargs)) if isinstance(a, Tensor) and id(a) in self.nodes]
        if not on:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        handler = _identity if func in IDENTITIES else HANDLERS.get(name)
        if handler is None:
            result = func(*args, **kwargs)
            if any(isinstance(r, Tensor) for r in _flat(result)):
                raise NotLoweredError(f"no program for torch's {name or resolve_name(func)}")
            return result
        node = handler(self, args, kwargs)
        result = _result(name, node, args, kwargs)
        result = func(*args, **kwargs) if result is None else result
        if not isinstance(result, Tensor) or _extent(result) != (node.channels, node.positions):
            raise NotLoweredError(f"no program for torch's {name} of these shapes")
        source = on[0]
        if result is source and node is not self.nodes[id(source)] and (result._is_view() or id(result) in self.viewed):
            raise NotLoweredError(f"torch's {name} changes a tensor in place of which there are views")
        if result is not source and result._is_view():
            self.viewed.add(id(source))
        self._set(result, node)
        return result

    def node(self, tensor: Any) -> Node:
        return self.nodes[id(tensor)]

    def named(self, tensor: Tensor | None) -> str | None:
        """The name of a parameter or buffer."""
        if tensor is None:
            return None
        if id(tensor) not in self.names:
            raise NotLoweredError("a weight is computed from others")
        return self.names[id(tensor)]

    def value(self, tensor: Tensor | None) -> Tensor | None:
        name = self.named(tensor)
        return None if name is None else self.known[name].detach()

    def _set(self, tensor: Tensor, node: Node) -> None:
        self.alive.append(tensor)
        self.nodes[id(tensor)] = node


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = tuple(value.values())
    return [leaf for item in value for leaf in _flat(item)] if isinstance(value, (tuple, list)) else [value]


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Channels and positions of one example."""
    if tensor.dim() < 2 or tensor.shape[0] != 1:
        raise NotLoweredError(f"no program for tensors of shape {tuple(tensor.shape)}")
    return tensor.shape[1], int(np.prod(tensor.shape[2:], dtype=np.int64))


def _result(name: str, node: Node, args: tuple, kwargs: dict) -> Tensor | None:
    """What a function returns, where its shape is plain; None where torch has to run it.

    For these torch runs Python on meta tensors, which takes most of a trace, and at the first time imports its compiler:
    0.7 s.
    """
    tensors = [value for value in _flat((args, kwargs)) if isinstance(value, Tensor)]
    first = tensors[0]
    if name in ("add_", "__iadd__", "sub_", "__isub__"):
        return first if first is args[0] and all(t.shape == first.shape for t in tensors) else None
    if name in ("add", "__add__", "__radd__", "sub", "__sub__"):
        return torch.empty_like(first) if all(t.shape == first.shape for t in tensors) else None
    if name == "batch_norm" or (name == "relu" and not any(a is True for a in (*args[1:], *kwargs.values()))):
        return torch.empty_like(first)
    if name == "linear":
        weight = _arguments("input weight bias", args, kwargs)["weight"]
        return first.new_empty(1, node.channels) if first.shape[-1] == weight.shape[-1] else None
    if name in ("cat", "concat", "concatenate"):
        return first.new_empty(1, node.channels, *first.shape[2:])
    if name == "mean":
        kept = _arguments("input dim keepdim", args, kwargs).get("keepdim")
        return first.new_empty(1, node.channels, *((1, 1) if kept else ()))
    if name == "adaptive_avg_pool2d":
        wanted = _pair(_arguments("input output_size", args, kwargs)["output_size"])
        return first.new_empty(1, node.channels, *(_image(first)[i] if n is None else n for i, n in enumerate(wanted)))
    return None


def _arguments(names: str, args: tuple, kwargs: dict) -> dict[str, Any]:
    return dict(zip(names.split(), args)) | kwargs


def _identity(run: _Tracer, args: tuple, kwargs: dict) -> Node:
    return run.node(args[0] if args else kwargs["input"])


def _image(tensor: Tensor) -> tuple[int, int]:
    if tensor.dim() != 4:
        raise NotLoweredError(f"no program for a window over {tensor.dim()} dimensions")
    return tensor.shape[2], tensor.shape[3]


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[-1])


def _axis(size: int, kernel: int, stride: int, before: int, after: int, dilation: int) -> np.ndarray:
    """[taps, positions] along one axis, -1 beyond the border."""
    count = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
    at = np.arange(count)[None] * stride - before + np.arange(kernel)[:, None] * dilation
    return np.where((at >= 0) & (at < size), at, -1)


def _grid(rows: np.ndarray, columns: np.ndarray, width: int) -> np.ndarray:
    """[taps, positions] of an image from those of its two axes."""
    at = rows[:, None, :, None] * width + columns[None, :, None, :]
    inside = (rows >= 0)[:, None, :, None] & (columns >= 0)[None, :, None, :]
    return np.where(inside, at, -1).reshape(rows.shape[0] * columns.shape[0], -1)


def _conv(run: _Tracer, args: tuple, kwargs: dict) -> Node:
    given = _arguments("input weight bias stride padding dilation groups", args, kwargs)
    x, weight = given["input"], given["weight"]
    size, kernel = _image(x), weight.shape[2:]
    stride, dilation = _pair(given.get("stride", 1)), _pair(given.get("dilation", 1))
    padding = given.get("padding", 0)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if isinstance(padding, str):
        before = [r // 2 if padding == "same" else 0 for r in reach]
        after = [r - b if padding == "same" else 0 for r, b in zip(reach, before, strict=True)]
    else:
        before = after = list(_pair(padding))
    rows, columns = (_axis(size[i], kernel[i], stride[i], before[i], after[i], dilation[i]) for i in range(2))
    plain = max(kernel) == 1 and stride == (1, 1) and not any(before)
    taps = None if plain else _grid(rows, columns, size[1])
    positions = rows.shape[1] * columns.shape[1]
    name, groups = run.named(weight), given.get("groups", 1)
    return Node(Kind.LAYER, (run.node(x),), weight.shape[0], positions, taps, weight=name, groups=groups)


def _linear(run: _Tracer, args: tuple, kwargs: dict) -> Node:
    given = _arguments("input weight bias", args, kwargs)
    x, weight = given["input"], given["weight"]
    if x.dim() != 2:
        raise NotLoweredError(f"no program for a linear layer over {x.dim()} dimensions")
    return Node(Kind.LAYER, (run.node(x),), weight.shape[0], 1, weight=run.named(weight))


def _batch_norm(run: _Tracer, args: tuple, kwargs: dict) -> Node:
    given = _arguments("input running_mean running_var weight bias training momentum eps", args, kwargs)
    x = run.node(given["input"])
    variance, weight = run.value(given.get("running_var")), run.value(given.get("weight"))
    scale = torch.ones(x.channels) if variance is None else (variance.double() + given.get("eps", 1e-5)).rsqrt()
    scale = scale if weight is None else scale * weight.double().abs()
    return Node(Kind.SCALE, (x,), x.channels, x.positions, scale=scale)


def _add(run: _Tracer, args: tuple, kwargs: dict) -> Node:
    a, b = [*args, *(kwargs[name] for name in ("input", "other") if name in kwargs)][:2]
    if abs(kwargs.get("alpha", 1)) != 1:
        raise NotLoweredError("no program for torch's add with alpha")
    on = [t for t in (a, b) if id(t) in run.nodes]
    if len(on) == 1:  # constants count as zero
        return run.node(on[0])
    if a.shape != b.shape:
        raise NotLoweredError("no program for torch's add of different shapes")
    return Node(Kind.ADD, (run.node(a), run.node(b)), run.node(a).channels, run.node(a).positions)


def _cat(run: _Tracer, args: tuple, kwargs: dict) -> Node:
    given = _arguments("tensors dim", args, kwargs)
    parts = given["tensors"]
    if given.get("dim", 0) not in (1, 1 - parts[0].dim()) or any(id(part) not in run.nodes for part in parts):
        raise NotLoweredError("no program for torch's cat but of channels that depend on the input")
    nodes = tuple(run.node(part) for part in parts)
    return Node(Kind.CAT, nodes, sum(n.channels for n in nodes), nodes[0].positions)


def _flatten(run: _Tracer, args: tuple, kwargs: dict) -> Node:
    """Any view of one example as a vector; the shape is checked by the caller."""
    x = run.node(args[0] if args else kwargs["input"])
    return x if x.positions == 1 else Node(Kind.FLATTEN, (x,), x.channels * x.positions, 1)


def _pool(run: _Tracer, given: dict[str, Any], kind: Kind) -> Node:
    x = given["input"]
    size, kernel = _image(x), _pair(given["kernel_size"])
    stride = _pair(given.get("stride") or kernel)
    padding, dilation = _pair(given.get("padding", 0)), _pair(given.get("dilation", 1))
    if given.get("ceil_mode") or given.get("return_indices") or given.get("divisor_override"):
        raise NotLoweredError("no program for pooling with ceil_mode, return_indices or divisor_override")
    axes = (_axis(size[i], kernel[i], stride[i], padding[i], padding[i], dilation[i]) for i in range(2))
    taps = _grid(*axes, size[1])
    factors = None
    if kind is Kind.POOL:
        whole = given.get("count_include_pad", True)
        factors = 1 / (np.full(taps.shape[1], len(taps)) if whole else (taps >= 0).sum(0))
    node = run.node(x)
    return Node(kind, (node,), node.channels, taps.shape[1], taps, factors)


def _avg_pool(run: _Tracer, args: tuple, kwargs: dict) -> Node:
    names = "input kernel_size stride padding ceil_mode count_include_pad divisor_override"
    return _pool(run, _arguments(names, args, kwargs), Kind.POOL)


def _max_pool(run: _Tracer, args: tuple, kwargs: dict) -> Node:
    names = "input kernel_size stride padding dilation ceil_mode return_indices"
    return _pool(run, _arguments(names, args, kwargs), Kind.MAX)


def _adaptive(run: _Tracer, args: tuple, kwargs: dict) -> Node:
    given = _arguments("input output_size", args, kwargs)
    size, wanted = _image(given["input"]), given["output_size"]
    target = [size[i] if n is None else n for i, n in enumerate(_pair(wanted))]
    axes = []
    for length, count in zip(size, target, strict=True):
        if count > length:
            raise NotLoweredError("no program for adaptive pooling to more positions than there are")
        first = np.arange(count) * length // count
        last = -(-(np.arange(count) + 1) * length // count)
        at = first[None] + np.arange((last - first).max())[:, None]
        axes.append(np.where(at < last, at, -1))
    taps = _grid(*axes, size[1])
    node = run.node(given["input"])
    return Node(Kind.POOL, (node,), node.channels, taps.shape[1], taps, 1 / (taps >= 0).sum(0))


def _mean(run: _Tracer, args: tuple, kwargs: dict) -> Node:
    given = _arguments("input dim keepdim", args, kwargs)
    x = given["input"]
    _image(x)
    dims = given.get("dim")
    if not isinstance(dims, (tuple, list)) or {d % 4 for d in dims} != {2, 3}:
        raise NotLoweredError("no program for torch's mean but over all positions")
    node = run.node(x)
    taps = np.arange(node.positions)[:, None]
    return Node(Kind.POOL, (node,), node.channels, 1, taps, np.full(1, 1 / node.positions))


HANDLERS: dict[str, Callable[[_Tracer, tuple, dict], Node]] = {
    "conv2d": _conv,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool2d": _adaptive,
    "mean": _mean,
    **dict.fromkeys("add add_ __add__ __iadd__ __radd__ sub sub_ __sub__ __isub__".split(), _add),
    **dict.fromkeys("cat concat concatenate".split(), _cat),
    **dict.fromkeys("flatten view reshape squeeze".split(), _flatten),
    "contiguous": _identity,
}


def _reachable(output: Node) -> list[Node]:
    """The nodes that the output depends on, inputs first."""
    order: list[Node] = []
    done: set[Node] = set()
    stack = [output]
    while stack:
        node = stack[-1]
        waiting = [source for source in node.inputs if source not in done]
        if node in done or not waiting:
            stack.pop()
            if node not in done:
                done.add(node)
                order.append(node)
        else:
            stack.extend(waiting)
    return order


def _merged(nodes: list[Node]) -> list[Node]:
    """Scales that alone read a layer become part of it."""
    consumers(nodes)
    for node in nodes:
        source = node.inputs[0] if node.inputs else None
        if node.kind is Kind.SCALE and source.kind is Kind.LAYER and source.scale is None and len(source.read_by) == 1:
            node.kind, node.inputs = Kind.LAYER, source.inputs
            node.taps, node.weight, node.groups = source.taps, source.weight, source.groups
    nodes = _reachable(nodes[-1])
    consumers(nodes)
    return nodes
