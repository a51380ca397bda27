"""One run of a model with the input and output of every layer in hand, and which layer feeds which."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from ..criteria.isolation import buffer_copies, isolated
from ..masks import Masks
from ..prunable import PRUNABLE

INPUT, OUTPUT = "input", "output"


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module on values that depend on the network's input.

    Attributes:
        name, module: which one; its name in the model.
        input: a copy made for this call, so that a gradient with respect to it is that of the paths through it alone.
        output: what the module returned, before anything could change it in place.
    """

    name: str
    module: nn.Module
    input: Tensor
    output: Tensor

    @property
    def unit_dim(self) -> int:
        """The dimension of units or channels, of input and output alike."""
        return -1 if isinstance(self.module, nn.Linear) else 1


@dataclass(frozen=True, eq=False)
class Stream:
    """Values that meet with no weights in between: what writes them, what reads them.

    In a chain it is what lies between two layers; in a residual network all blocks on one shortcut share one.

    Attributes:
        writers: layer calls; INPUT where the network's input is part of the stream.
        readers: layer calls; OUTPUT where the network's output is.
        norms: batch norms inside.
        others: modules with parameters of another kind inside.
    """

    writers: tuple[Call | str, ...]
    readers: tuple[Call | str, ...]
    norms: tuple[Call, ...]
    others: tuple[Call, ...]


@dataclass(frozen=True, eq=False)
class Trace:
    """A run: the network's input and output, and the calls of its layers, batch norms and other parameter holders."""

    input: Tensor
    output: Tensor
    layers: tuple[Call, ...]
    norms: tuple[Call, ...]
    others: tuple[Call, ...]
    entry: object  # the autograd node of the input

    def readers(self, call: Call) -> list[Call | str]:
        """The layers, in call order, that read what ``call`` wrote with no weights in between; OUTPUT comes last."""
        return [reader for reader in (*self.layers, OUTPUT) if call in self.writers(reader)]

    def writers(self, reader: Call | str) -> set[Call | str]:
        """The layers, or INPUT, that ``reader`` (a call, or OUTPUT) reads with no weights in between."""
        return self._sources((self.output if reader == OUTPUT else reader.input).grad_fn)

    def streams(self) -> list[Stream]:
        """All of them, in the order of their first reader."""
        groups: list[tuple[list, list]] = []
        for reader in (*self.layers, OUTPUT):
            writers, readers = self.writers(reader), [reader]
            for group in [g for g in groups if not writers.isdisjoint(g[0])]:
                writers, readers = writers | set(group[0]), group[1] + readers
                groups.remove(group)
            groups.append((writers, readers))
        return [self._stream(writers, readers) for writers, readers in groups]

    def _stream(self, writers: set, readers: Sequence[Call | str]) -> Stream:
        def inside(calls: Iterable[Call]) -> tuple[Call, ...]:
            return tuple(call for call in calls if not writers.isdisjoint(self._sources(call.input.grad_fn)))

        ordered = [INPUT] * (INPUT in writers) + [call for call in self.layers if call in writers]
        return Stream(tuple(ordered), tuple(readers), inside(self.norms), inside(self.others))

    def _sources(self, node: object) -> set[Call | str]:
        written = {call.output.grad_fn: call for call in self.layers}
        found, seen, stack = set(), set(), [node]
        while stack:
            node = stack.pop()
            if node in written:
                found.add(written[node])
            elif node is self.entry:
                found.add(INPUT)
            elif node not in seen:
                seen.add(node)
                stack += [parent for parent, _ in node.next_functions if parent is not None]
        return found


@contextmanager
def traced(
    model: nn.Module, x: Tensor, masks: Masks | None = None, dtype: torch.dtype | None = torch.float64
) -> Iterator[Trace]:
    """Run the model once in evaluation mode on copies of its state, pruned weights zero; gradients are on inside.

    Only the input requires grad, so that autograd's graph is the graph of dependence on it.

    Args:
        x: (N, ...) floating; moved to the model's device.
        masks: weights without one are kept whole.
        dtype: to compute in; None: the model's own.

    Raises:
        TypeError: ``x`` is not a floating tensor, or the model does not return one tensor.
        ValueError: a mask does not fit the model, or the output does not depend on ``x``.
    """
    state = masked_state(model, masks, dtype)
    with isolated(model):
        leaf = on_model(x, model, dtype).requires_grad_()
        entry = leaf.clone()
        node = entry.grad_fn
        recorder = _Recorder(model)
        with recorder:
            output = functional_call(model, state, (entry,))
        if not isinstance(output, Tensor):
            raise TypeError(f"model must return one tensor, got {type(output).__name__}")
        if not output.requires_grad:
            raise ValueError("model must return a tensor that depends on its input, got one that does not")
        yield Trace(leaf, output, *map(tuple, recorder.calls), node)


def masked_state(model: nn.Module, masks: Masks | None, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Parameters and buffers for a functional call: pruned weights zero, floating ones in ``dtype``, buffers copied."""
    state = {name: p.detach() for name, p in model.named_parameters()}
    names = {id(p): name for name, p in model.named_parameters()}
    for name, weight in (masks.weights_of(model) if masks is not None else {}).items():
        # Tied weights stand under their first name only; each of their masks prunes them.
        state[names[id(weight)]] = masks[name].to(weight.device).apply(state[names[id(weight)]])
    converted = {name: p.to(dtype) if dtype and p.is_floating_point() else p for name, p in state.items()}
    return converted | buffer_copies(model, dtype)


def on_model(x: Tensor, model: nn.Module, dtype: torch.dtype | None) -> Tensor:
    """``x`` detached, on the model's device, in ``dtype`` or the model's own.

    Raises:
        TypeError: it is not a floating tensor.
        ValueError: it has no batch dimension, or no example.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x must be a floating tensor, got {x.dtype if isinstance(x, Tensor) else type(x).__name__}")
    if x.dim() < 2 or len(x) == 0:
        raise ValueError(f"x must have shape (batch, ...) with at least one example, got {tuple(x.shape)}")
    first = next((p for p in model.parameters() if p.is_floating_point()), x)
    return x.detach().to(first.device, dtype or first.dtype)


class _Recorder:
    """Hooks on every batch norm and every module with parameters, for as long as it is entered."""

    def __init__(self, model: nn.Module) -> None:
        self.calls: tuple[list[Call], list[Call], list[Call]] = ([], [], [])
        self._modules = [
            (name, module)
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) or next(module.parameters(recurse=False), None) is not None
        ]
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> None:
        for name, module in self._modules:
            entered: list[Tensor] = []
            kind = 0 if isinstance(module, PRUNABLE) else 1 if isinstance(module, _BatchNorm) else 2
            self._handles += [
                module.register_forward_pre_hook(self._before(entered)),
                module.register_forward_hook(self._after(entered, name, self.calls[kind])),
            ]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, entered: list[Tensor]):
        def hook(module: nn.Module, args: tuple):
            if not args or not isinstance(args[0], Tensor) or not args[0].requires_grad:
                return None
            entered.append(args[0].clone())
            return entered[-1], *args[1:]

        return hook

    def _after(self, entered: list[Tensor], name: str, calls: list[Call]):
        def hook(module: nn.Module, args: tuple, output: object):
            if not entered:
                return None
            before = entered.pop()
            if not isinstance(output, Tensor):
                calls.append(Call(name, module, before, before))
                return None
            calls.append(Call(name, module, before, output))
            return output.clone()  # an activation in place would change the recorded one

        return hook
