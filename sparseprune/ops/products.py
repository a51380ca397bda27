"""Product: a score that is a formula of a weight and its gradient, evaluated where it is compared and never stored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .bitmask import as_rows

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST_DIMENSIONS = 8  # that a kernel walks; what has more is copied

# In the order of the kernels' numbers.
FORMULAS = ("w", "|w|", "w*g", "|w*g|", "|w|*g")


@dataclass(frozen=True, eq=False)
class Product:
    """A score by formula: ``w``, ``|w|``, ``w*g``, ``|w*g|`` or ``|w|*g``.

    ``topk_mask`` takes it where it takes a tensor, reads ``weight`` and ``gradient`` once and stores no scores.

    Args:
        weight: float16, bfloat16, float32 or float64, any shape and strides.
        gradient: of the same shape and device, for the formulas with ``g``; None for the others.
        formula: one of the above. It is computed in float32, or in float64 where an operand, or another score that it
            is compared with, is.

    Raises:
        TypeError: an operand is not a floating-point tensor.
        ValueError: the formula is unknown, a gradient is missing or not wanted, or shapes or devices differ.

    >>> Product(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 1.0]), "|w*g|").tensor()
    tensor([3., 2.])
    """

    weight: Tensor
    gradient: Tensor | None = None
    formula: str = "|w*g|"

    def __post_init__(self) -> None:
        if self.formula not in FORMULAS:
            raise ValueError(f"formula must be one of {', '.join(FORMULAS)}, got {self.formula!r}")
        if ("g" in self.formula) != (self.gradient is not None):
            raise ValueError(
                f"gradient must be {'given' if 'g' in self.formula else 'None'} for {self.formula}, "
                f"got {'None' if self.gradient is None else 'a tensor'}"
            )
        for name, operand in self._operands().items():
            if not isinstance(operand, Tensor) or not operand.dtype.is_floating_point:
                kind = f"a {operand.dtype} tensor" if isinstance(operand, Tensor) else type(operand).__name__
                raise TypeError(f"{name} must be a floating-point tensor, got {kind}")
            if operand.shape != self.weight.shape or operand.device != self.weight.device:
                raise ValueError(
                    f"{name} must have the weight's shape {tuple(self.shape)} on {self.device}, "
                    f"got {tuple(operand.shape)} on {operand.device}"
                )

    def _operands(self) -> dict[str, Tensor]:
        return {"weight": self.weight} | ({} if self.gradient is None else {"gradient": self.gradient})

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape

    @property
    def device(self) -> torch.device:
        return self.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The wider of the operands' dtypes."""
        return (
            self.weight.dtype if self.gradient is None else torch.promote_types(self.weight.dtype, self.gradient.dtype)
        )

    def numel(self) -> int:
        return self.weight.numel()

    def tensor(self) -> Tensor:
        """The scores themselves."""
        dtype = torch.promote_types(self.dtype, torch.float32)
        weight = self.weight.detach().to(dtype)
        gradient = weight if self.gradient is None else self.gradient.detach().to(dtype)
        return evaluate(self.formula, weight, gradient)


def evaluate(formula: str, weight: Tensor, gradient: Tensor) -> Tensor:
    """The formula, of tensors of one dtype."""
    if formula == "w":
        return weight
    if formula == "|w|":
        return weight.abs()
    if formula == "|w|*g":
        return weight.abs() * gradient
    product = weight * gradient
    return product.abs() if formula == "|w*g|" else product


def as_product(scores: Tensor | Product, absolute: bool, name: str) -> Product:
    """What an op is given, as a formula.

    Raises:
        TypeError: it is neither a Product nor a tensor of a dtype that can be selected from.
        ValueError: absolute values of a Product are wanted.
    """
    if not isinstance(scores, (Tensor, Product)) or scores.dtype not in DTYPES:
        kind = type(scores).__name__ if not isinstance(scores, Tensor) else f"a {scores.dtype} tensor"
        allowed = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        raise TypeError(f"{name} must be a tensor of {allowed}, got {kind}")
    if not isinstance(scores, Product):
        return Product(scores, None, "|w|" if absolute else "w")
    if absolute:
        raise ValueError(f"abs must be False for a Product, whose formula says it, got True for {scores.formula}")
    return scores


def as_operand(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """As the op takes it: at least two dimensions; in rows unless the kernel walks strides, as that of the CPU does."""
    tensor = tensor.detach().to(dtype)
    if tensor.device.type == "cpu" and 2 <= tensor.dim() <= MOST_DIMENSIONS:
        return tensor
    return tensor.reshape(as_rows(tensor.shape)).contiguous()


def values_in_rows(weight: Tensor, gradient: Tensor, formula: int, largest: bool) -> Tensor:
    """[R, C]: what the larger is the better of, for a formula by its number."""
    values = evaluate(FORMULAS[formula], weight, gradient).reshape(as_rows(weight.shape))
    return values if largest else -values
