"""Data for the criteria that need it: mean-loss gradients over any number of batches, as if they were one.

``g = sum_b n_b g_b / sum_b n_b`` with ``g_b`` the gradient of the mean loss of batch b, which has n_b examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from .base import Weights
from .isolation import buffer_copies, isolated

__all__ = ["Batches", "BatchLoss", "Loss", "accumulator", "batch_losses", "check_data", "check_examples"]

Loss = Callable[[Tensor, Tensor], Tensor]
Batches = Iterable[tuple[Tensor, Tensor]]

_BN_MODES = ("eval", "train")


def check_data(loss: Loss, batches: Batches, bn: str = "eval") -> None:
    """Raise TypeError or ValueError unless the fields of a data criterion can be used."""
    if not callable(loss):
        raise TypeError(f"loss must be callable as loss(output, target), got {type(loss).__name__}")
    if not isinstance(batches, Iterable) or isinstance(batches, (Tensor, str)):
        raise TypeError(f"batches must be an iterable of (input, target) pairs, got {type(batches).__name__}")
    if bn not in _BN_MODES:
        raise ValueError(f"bn must be one of {', '.join(map(repr, _BN_MODES))}, got {bn!r}")


class BatchLoss:
    """The loss of one batch as a function of the weights; the model's own tensors are never touched.

    With a ``dtype`` all parameters, buffers and inputs that are floating are converted to it.
    """

    def __init__(self, model: nn.Module, params: Weights, loss: Loss, dtype: torch.dtype | None = None) -> None:
        self._model, self._loss, self._dtype = model, loss, dtype
        self._device = next((weight.device for weight in params.values()), torch.device("cpu"))
        # New leaves on the same storage: gradients for frozen weights too, and no ``.grad`` of the model is involved.
        self.weights = {name: self._cast(weight.detach()).requires_grad_() for name, weight in params.items()}
        others = {name: self._cast(p.detach()) for name, p in model.named_parameters()}
        self._state = others | self.weights | buffer_copies(model, dtype)

    def __call__(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        """The mean loss of ``batch`` and its number of examples."""
        inputs, target = self.split(batch)
        return self.value(self.output(inputs), target), len(inputs)

    def split(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The input and the target of ``batch``, on the weights' device."""
        inputs, target = (
            self._cast(part.to(self._device)) if isinstance(part, Tensor) else part for part in _pair(batch)
        )
        return inputs, target

    def output(self, inputs: Tensor, weights: Weights | None = None) -> Tensor:
        """What the model makes of ``inputs``, with ``weights`` in place of some of its own."""
        return functional_call(self._model, {**self._state, **(weights or {})}, (inputs,))

    def value(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean loss of an output, 0-D."""
        value = self._loss(output, target)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"loss must return one number, the mean over the batch, got {got}")
        return value.reshape(())

    def _cast(self, value: Tensor) -> Tensor:
        return value.to(self._dtype) if self._dtype is not None and value.is_floating_point() else value

    def gradient(self, value: Tensor, *, create_graph: bool = False) -> tuple[Tensor, ...]:
        """d value / d weights, zeros where there is no dependence."""
        weights = tuple(self.weights.values())
        if not value.requires_grad:
            return tuple(torch.zeros_like(weight) for weight in weights)
        return torch.autograd.grad(value, weights, create_graph=create_graph, materialize_grads=True)

    def mean(self, batches: Batches, gradient: Callable[[Tensor], tuple[Tensor, ...]]) -> dict[str, Tensor]:
        """``sum_b n_b gradient(loss_b) / sum_b n_b``, accumulated signed and at least in float32."""
        total, examples = None, 0
        for batch in batches:
            value, count = self(batch)
            parts = [part.detach().to(accumulator(part.dtype)) * count for part in gradient(value)]
            total = parts if total is None else [old.add_(new) for old, new in zip(total, parts, strict=True)]
            examples += count
        check_examples(examples)
        return {name: part.div_(examples) for name, part in zip(self.weights, total, strict=True)}


def check_examples(count: int) -> None:
    """Raise ValueError if the batches held no example."""
    if count == 0:
        raise ValueError(
            "batches must yield at least one (input, target) pair, got none; an iterator can be read only once:"
            " give a list or a DataLoader where the criterion is called several times"
        )


@contextmanager
def batch_losses(
    model: nn.Module, params: Weights, loss: Loss, bn: str = "eval", dtype: torch.dtype | None = None
) -> Iterator[BatchLoss]:
    """The model isolated, dropout off, batch norm in the given mode (its running statistics on copies)."""
    in_training = (lambda module: isinstance(module, _BatchNorm)) if bn == "train" else None
    with isolated(model, in_training):
        yield BatchLoss(model, params, loss, dtype)


def _pair(batch: object) -> tuple[object, object]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        got = f"{len(batch)} items" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise TypeError(f"batches must yield (input, target) pairs, got {got}")
    return batch[0], batch[1]


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What sums of values of ``dtype`` are kept in."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
