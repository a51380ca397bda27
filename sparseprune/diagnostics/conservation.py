"""Conservation of synaptic saliency ``S(theta) = theta dR/dtheta``: what flows into a unit flows out of it.

For a hidden unit with a homogeneous activation (ReLU, leaky ReLU, identity, pooling) and any function R of the output,
``sum of S over its incoming weights and bias = sum of S over its outgoing weights``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import typed
from ..criteria.cuts import cut_nodes
from ..masks import Masks
from .trace import INPUT, OUTPUT, Call, Stream, Trace, traced

__all__ = ["Conservation", "LayerFlow", "StreamFlow", "conservation"]


@dataclass(frozen=True, eq=False)
class StreamFlow:
    """Saliency into and out of the units between layers.

    Attributes:
        writers, readers: the layers that write to the units and those that read them; "input" and "output" stand for
            the network's own, whose part is ``x dR/dx`` and ``y dR/dy``.
        incoming: [units] S summed over each unit's incoming weights and biases; [1], over all units together, where
            writers and readers do not have the same units (a concatenation, attention).
        biases: [units] the part of ``incoming`` that is due to biases and to the shifts of batch norm.
        outgoing: like ``incoming``, of the outgoing weights.
    """

    writers: tuple[str, ...]
    readers: tuple[str, ...]
    incoming: Tensor
    biases: Tensor
    outgoing: Tensor

    @property
    def residuals(self) -> Tensor:
        """``incoming - outgoing``, 0 where saliency is conserved."""
        return self.incoming - self.outgoing

    @property
    def relative(self) -> float:
        """Largest residual in units of the largest flow; 0 where nothing flows."""
        scale = torch.maximum(self.incoming.abs().max(), self.outgoing.abs().max())
        return (self.residuals.abs().max() / scale).item() if scale > 0 else 0.0


@dataclass(frozen=True)
class LayerFlow:
    """One layer call.

    Attributes:
        name: the layer.
        flow: S summed over its weights, biases not included.
        residual: ``flow - sum y dR/dy``, 0 in a homogeneous network without biases; None if paths lead around the
            layer, which then need not carry the whole flow.
    """

    name: str
    flow: float
    residual: float | None


@dataclass(frozen=True)
class Conservation:
    """Flows of all streams and layers, and ``output = sum y dR/dy``."""

    streams: tuple[StreamFlow, ...]
    layers: tuple[LayerFlow, ...]
    output: float

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and None only; of each stream the largest residual and flow."""
        streams = [
            {
                "writers": list(s.writers),
                "readers": list(s.readers),
                "units": len(s.incoming),
                "largest_flow": s.incoming.abs().max().item(),
                "largest_residual": s.residuals.abs().max().item(),
                "relative": s.relative,
            }
            for s in self.streams
        ]
        layers = [{"name": row.name, "flow": row.flow, "residual": row.residual} for row in self.layers]
        return {"streams": streams, "layers": layers, "output": self.output}


@typed
def conservation(
    model: nn.Module,
    x: Tensor,
    objective: Callable[[Tensor], Tensor] = torch.sum,
    *,
    masks: Masks | None = None,
) -> Conservation:
    """How far saliency is conserved, per unit and per layer, in float64.

    Units that meet without weights in between are one stream and conserved together: all that residual blocks write to
    a channel of their shortcut equals all that is read from it. Batch norm in evaluation mode is a scale, through which
    saliency passes, and a shift, which counts as a bias. What is left over tells how far the network is from
    homogeneous: a tanh, a positional embedding, a bias that belongs to no layer.

    Args:
        model: any model that returns one tensor; run in evaluation mode, not changed.
        x: (N, ...) floating.
        objective: R, any scalar function of the output, for example a loss with its targets.
        masks: pruned weights count as zero.

    Returns:
        Streams in the order in which they are read, those with the network's input or output included, and one row for
        each layer call.

    Raises:
        TypeError, ValueError: wrong arguments; an output that is not one tensor or does not depend on ``x``; an
            objective that is not one number.

    Source: Tanaka, Kunin, Yamins, Ganguli 2020, arXiv:2006.05467, theorems 1 and 2.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> max(stream.relative for stream in conservation(net, torch.rand(5, 3)).streams) < 1e-12
    True
    """
    with traced(model, x, masks) as trace:
        value = objective(trace.output)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"objective must return one number that depends on the output, got {got}")
        cuts = cut_nodes([trace.output.grad_fn])
        flows = _Flows(trace, value)
        output = flows.total(OUTPUT)
        layers = tuple(
            LayerFlow(c.name, f := flows.total(c), f - output if c.input.grad_fn in cuts else None)
            for c in trace.layers
        )
        return Conservation(tuple(flows.stream(s) for s in trace.streams()), layers, output)


class _Flows:
    """``value * gradient`` of everything traced, summed over all but the units."""

    def __init__(self, trace: Trace, value: Tensor) -> None:
        calls = (*trace.layers, *trace.norms)
        ends = [trace.input, trace.output, *(c.input for c in calls), *(c.output for c in calls)]
        gradients = torch.autograd.grad(value, ends, materialize_grads=True)
        self._gradients = {id(end): g for end, g in zip(ends, gradients, strict=True)}
        self._ends = {INPUT: trace.input, OUTPUT: trace.output}

    def total(self, reader: Call | str) -> float:
        return self._read(reader).sum().item()

    def stream(self, stream: Stream) -> StreamFlow:
        writers, readers = [_name(w) for w in stream.writers], [_name(r) for r in stream.readers]
        incoming = [self._written(w) for w in stream.writers]
        biases = [self._bias(w) for w in stream.writers]
        shifts = [self._written(norm) - self._read(norm) for norm in stream.norms]
        outgoing = [self._read(r) for r in stream.readers]
        units = min(map(len, incoming))
        shift = _summed(shifts, units)
        aligned = [_summed(parts, units) for parts in (incoming, biases, outgoing)]
        if shift is None or any(part is None for part in aligned):
            shift, *aligned = (
                sum((p.sum() for p in ps), torch.zeros(1)) for ps in (shifts, incoming, biases, outgoing)
            )
        into, bias, out = aligned
        return StreamFlow(tuple(writers), tuple(readers), into + shift, bias + shift, out)

    def _written(self, writer: Call | str) -> Tensor:
        """Of a layer S of its incoming weights and its bias: together they are ``z dR/dz``."""
        return self._flow(self._ends[writer], 1) if writer == INPUT else self._flow(writer.output, writer.unit_dim)

    def _read(self, reader: Call | str) -> Tensor:
        """Of a layer S of the weights that read each unit: ``a dR/da`` over the paths through the layer."""
        return self._flow(self._ends[reader], 1) if reader == OUTPUT else self._flow(reader.input, reader.unit_dim)

    def _bias(self, writer: Call | str) -> Tensor:
        if writer == INPUT or writer.module.bias is None:
            return torch.zeros_like(self._written(writer))
        gradient = _per_unit(self._gradients[id(writer.output)], writer.unit_dim)
        return writer.module.bias.detach().to(gradient) * gradient

    def _flow(self, value: Tensor, dim: int) -> Tensor:
        return _per_unit(value.detach() * self._gradients[id(value)], dim)


def _name(end: Call | str) -> str:
    return end if isinstance(end, str) else end.name


def _per_unit(values: Tensor, dim: int) -> Tensor:
    return values.movedim(dim, 0).flatten(1).sum(1).cpu()


def _summed(parts: Sequence[Tensor], units: int) -> Tensor | None:
    """The sum over all parts by unit; a part with several entries a unit has been flattened. None if they do not fit."""
    if any(len(part) % units for part in parts):
        return None
    return sum((part.reshape(units, -1).sum(1) for part in parts), torch.zeros(units, dtype=torch.float64))
