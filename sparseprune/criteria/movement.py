"""Movement since initialisation: ``score = |w - w0|`` and ``|w| - |w0|``; and signs kept, ``score = w sign(w0)``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from .base import Scores, Weights

__all__ = ["Movement", "SignPreserved"]

FORMS = ("distance", "increase")


@dataclass(frozen=True, eq=False)
class Movement:
    """How far training took a weight from its initial value w0.

        form="distance"   score = |w - w0|
        form="increase"   score = |w| - |w0|

    Args:
        initial: w0 by parameter name, for example a ``state_dict()`` copied before training; more names may be in it.
        form: "distance" or "increase".

    Raises:
        TypeError: ``initial`` is not a mapping.
        ValueError: ``form`` unknown; a weight's w0 is missing or of another shape.

    Source: Zhou, Lan, Liu, Yosinski 2019, arXiv:1905.01067, section 3: "movement" and "magnitude increase".
    """

    initial: Mapping[str, Tensor]
    form: str = "distance"

    def __post_init__(self) -> None:
        _check_mapping(self.initial)
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(map(repr, FORMS))}, got {self.form!r}")

    def __call__(self, model: nn.Module, params: Weights) -> Scores:
        pairs = _with_initial(params, self.initial)
        if self.form == "distance":
            return {name: (weight - start).abs() for name, (weight, start) in pairs.items()}
        return {name: weight.abs() - start.abs() for name, (weight, start) in pairs.items()}


@dataclass(frozen=True, eq=False)
class SignPreserved:
    """``score = w sign(w0)``: the magnitude of weights that kept their sign; those that changed it go first.

    Args:
        initial: w0 by parameter name, as for :class:`Movement`.

    Raises:
        TypeError: ``initial`` is not a mapping.
        ValueError: a weight's w0 is missing or of another shape.

    Source: Zhou, Lan, Liu, Yosinski 2019, arXiv:1905.01067, section 3: "large final, same sign".
    """

    initial: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        _check_mapping(self.initial)

    def __call__(self, model: nn.Module, params: Weights) -> Scores:
        pairs = _with_initial(params, self.initial)
        return {name: weight * start.sign() for name, (weight, start) in pairs.items()}


def _check_mapping(initial: object) -> None:
    if not isinstance(initial, Mapping):
        raise TypeError(f"initial must be a mapping from parameter name to tensor, got {type(initial).__name__}")


def _with_initial(params: Weights, initial: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    pairs = {}
    for name, weight in params.items():
        start = initial.get(name)
        if not isinstance(start, Tensor) or start.shape != weight.shape:
            got = f"shape {tuple(start.shape)}" if isinstance(start, Tensor) else "none"
            raise ValueError(f"initial must hold {name!r} of shape {tuple(weight.shape)}, got {got}")
        pairs[name] = (weight.detach(), start.detach().to(weight))
    return pairs
