"""analyze(): all diagnostics of one pruned network in one object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor, nn

from ..arguments import typed
from ..masks import Masks
from ..pruning import prunable
from ..summary import Summary, summarize
from .conservation import Conservation, conservation
from .costs import Costs, costs
from .isometry import isometry_residuals
from .jacobians import Spectrum, jacobian_spectrum, layer_spectra
from .paths import Collapse, collapse, maximal_compression
from .remaining import Distribution, RemainingRow, kernel_positions, remaining_table, weight_distributions
from .trace import traced

__all__ = ["Analysis", "Pair", "analyze"]

LARGEST = 1
WHOLE_UP_TO = 1024

Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class Pair:
    """The singular values without masks and with them."""

    dense: Spectrum
    pruned: Spectrum

    def to_dict(self) -> dict[str, Any]:
        return {"dense": self.dense.to_dict(), "pruned": self.pruned.to_dict()}


@dataclass(frozen=True, eq=False)
class Analysis:
    """What :func:`analyze` found; None or empty where it could not, and ``notes`` says why.

    Attributes:
        summary: the table of layers, with paths and FLOPs.
        remaining: kept, pruned and shares by layer.
        maximal_compression: prunable weights / layers.
        collapse, costs: as of the functions of these names.
        network: singular values of the input-output Jacobian.
        layers: of every layer's Jacobian.
        isometry: name -> ``||G - I||_F`` of the masked weight.
        conservation: residuals of synaptic saliency, R = sum of the outputs.
        distributions: values of all and of the kept weights.
        kernels: name -> share kept at each kernel position, of convolutions with more than one.
        notes: what could not be found out, and why.
    """

    masks: Masks
    summary: Summary
    remaining: list[RemainingRow]
    maximal_compression: float
    collapse: Collapse | None
    costs: Costs | None
    network: Pair | None
    layers: dict[str, Pair]
    isometry: dict[str, float]
    conservation: Conservation | None
    distributions: dict[str, Distribution]
    kernels: dict[str, Tensor]
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, booleans, lists, dictionaries and None only."""

        def told(part: Any) -> Any:
            return None if part is None else part.to_dict()

        return {
            "summary": self.summary.to_dict(),
            "remaining": [row.to_dict() for row in self.remaining],
            "maximal_compression": self.maximal_compression,
            "collapse": told(self.collapse),
            "costs": told(self.costs),
            "network": told(self.network),
            "layers": {name: pair.to_dict() for name, pair in self.layers.items()},
            "isometry": self.isometry,
            "conservation": told(self.conservation),
            "distributions": {name: part.to_dict() for name, part in self.distributions.items()},
            "kernels": {name: kernel.tolist() for name, kernel in self.kernels.items()},
            "notes": list(self.notes),
        }


@typed
def analyze(model: nn.Module, masks: Masks, x: Tensor, *, signal: bool = True) -> Analysis:
    """All diagnostics of a pruned network. What a model does not allow becomes a note.

    Args:
        model: with the weights to look at; pruned ones may hold values or zeros. Not changed.
        masks: parameter name -> BitMask.
        x: (N, ...) floating: inputs at which Jacobians and saliency are taken. A few suffice.
        signal: also compute Jacobians and conservation, the only parts that take long on a large network. Jacobians
            of a rank above 1,024 are told by their largest singular value.

    Raises:
        TypeError, ValueError: a mask does not fit the model, or a kept weight is not finite.
    """
    masks.weights_of(model)
    notes: list[str] = []

    def attempt(what: str, compute: Callable[[], Value], otherwise: Value) -> Value:
        # One model in a hundred has something that one of these cannot follow: that must not cost the others.
        try:
            return compute()
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            notes.append(f"{what}: {reason}")
            return otherwise

    def network() -> Pair:
        rank = min(x[0].numel(), _outputs(model, x))
        count = None if rank <= WHOLE_UP_TO else LARGEST
        return Pair(*(jacobian_spectrum(model, x, masks=m, count=count) for m in (None, masks)))

    def layers() -> dict[str, Pair]:
        dense, pruned = (
            layer_spectra(model, x, masks=m, count=LARGEST, whole_up_to=WHOLE_UP_TO) for m in (None, masks)
        )
        return {name: Pair(dense[name], pruned[name]) for name in dense}

    known = prunable(model)
    kernels = {name: mask for name, mask in masks.items() if len(mask.shape) > 2 and max(mask.shape[2:]) > 1}
    return Analysis(
        masks=masks,
        summary=summarize(model, masks, x),
        remaining=remaining_table(masks),
        maximal_compression=maximal_compression(model) if known else 1.0,
        collapse=attempt("collapse", lambda: collapse(model, masks, x), None),
        costs=attempt("costs", lambda: costs(model, masks, x), None),
        network=attempt("Jacobian of the network", network, None) if signal else None,
        layers=attempt("Jacobians of layers", layers, {}) if signal else {},
        isometry=isometry_residuals(model, masks),
        conservation=attempt("conservation", lambda: conservation(model, x, masks=masks), None) if signal else None,
        distributions=weight_distributions(model, masks),
        kernels={name: kernel_positions(mask).cpu() for name, mask in kernels.items()},
        notes=tuple(notes),
    )


def _outputs(model: nn.Module, x: Tensor) -> int:
    with traced(model, x[:1], dtype=None) as trace:
        return trace.output.numel()
