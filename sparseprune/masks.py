"""Masks: which weights of a model are kept, one bit each, by parameter name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING

import safetensors
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from .arguments import typed
from .files import write_atomically
from .ops.bitmask import BitMask as BitMask

if TYPE_CHECKING:
    from .progress import TraceStep
    from .summary import Summary

FORMAT = "sparseprune-masks-1"


class Masks(Mapping[str, BitMask]):
    """The masks of a model's prunable weights: an immutable mapping from parameter name to :class:`BitMask`.

    Args:
        masks: parameter name (as in ``model.named_parameters()``) -> BitMask, or bool tensor of the weight's shape.
        metadata: strings kept with the masks and saved with them.

    Attributes:
        summary: the table that ``print`` shows, where ``prune`` made one.
        trace: every step of the run, where ``prune`` was asked for it.

    Raises:
        TypeError: a name is not a string, or a mask is neither a BitMask nor a bool tensor.

    >>> masks = Masks({"fc.weight": torch.tensor([[True, False]])})
    >>> masks["fc.weight"].count(), masks.density
    (1, 0.5)
    """

    @typed
    def __init__(self, masks: Mapping[str, BitMask | Tensor], metadata: Mapping[str, str] | None = None) -> None:
        for name in masks:
            if not isinstance(name, str):
                raise TypeError(f"masks must be keyed by parameter name, got a key of type {type(name).__name__}")
        self._masks = {n: m if isinstance(m, BitMask) else BitMask.from_bool(m) for n, m in masks.items()}
        self.metadata = dict(metadata or {})
        self.summary: Summary | None = None
        self.trace: tuple[TraceStep, ...] = ()

    @classmethod
    @typed
    def ones(cls, weights: Mapping[str, Tensor]) -> Masks:
        """Everything kept, for weights given by name."""
        return cls({name: BitMask.ones(weight.shape, weight.device) for name, weight in weights.items()})

    def __getitem__(self, name: str) -> BitMask:
        try:
            return self._masks[name]
        except KeyError:
            raise KeyError(f"no mask for {name!r}{_hint(name, self._masks)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def counts(self) -> dict[str, int]:
        """Name -> how many are kept."""
        return {name: mask.count() for name, mask in self.items()}

    def count(self) -> int:
        """How many are kept, over all."""
        return sum(self.counts().values())

    def numel(self) -> int:
        """How many there are, over all."""
        return sum(mask.numel() for mask in self.values())

    @property
    def density(self) -> float:
        """Kept / all."""
        return self.count() / self.numel() if self.numel() else 1.0

    @property
    def sparsity(self) -> float:
        """1 - density."""
        return 1.0 - self.density

    def digest(self) -> str:
        """SHA-256 of names, shapes and bits, in hexadecimal: equal masks, equal digests, on any rank and device."""
        content = hashlib.sha256()
        for name in sorted(self):
            content.update(f"{name} {tuple(self[name].shape)}\n".encode())
            content.update(self[name].words.cpu().contiguous().numpy().tobytes())
        return content.hexdigest()

    def to(self, device: torch.device | str) -> Masks:
        """These masks on another device."""
        return self._new({name: mask.to(device) for name, mask in self.items()})

    def __and__(self, other: Masks) -> Masks:
        return self._combine(other, lambda a, b: a & b)

    def __or__(self, other: Masks) -> Masks:
        return self._combine(other, lambda a, b: a | b)

    def __invert__(self) -> Masks:
        return self._new({name: ~mask for name, mask in self.items()})

    @typed
    def apply_(self, model: nn.Module) -> nn.Module:
        """Zero the pruned weights of ``model`` in place and return it. Masks move to the weights' devices.

        Raises:
            ValueError: a name is not a parameter of the model or a shape differs; nothing is changed then.
        """
        weights = self.weights_of(model)
        with torch.no_grad():
            for name, weight in weights.items():
                weight.masked_fill_(~self[name].to(weight.device).to_bool(), 0)
        return model

    def weights_of(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The model's parameters that these masks belong to, each of its mask's shape.

        Raises:
            ValueError: a name is not a parameter of the model, or a shape differs.
        """
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, mask in self.items():
            if name not in parameters:
                raise ValueError(
                    f"masks must name parameters of the model, got {name!r}, which {type(model).__name__} does not "
                    f"have{_hint(name, parameters)}"
                )
            if parameters[name].shape != mask.shape:
                raise ValueError(
                    f"mask {name!r} must have its weight's shape {tuple(parameters[name].shape)}, "
                    f"got {tuple(mask.shape)}"
                )
        return {name: parameters[name] for name in self}

    @typed
    def save(self, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
        """Write a safetensors file: the packed words by name, the shapes and the metadata in its header.

        The file appears whole or not at all. Equal masks and metadata give equal bytes.

        Args:
            path: where to.
            metadata: strings to keep with the masks, added to ``self.metadata``.
        """
        kept = {**self.metadata, **(metadata or {})}
        if bad := [k for k, v in kept.items() if not isinstance(k, str) or not isinstance(v, str)]:
            raise TypeError(f"metadata must map strings to strings, got another type at {bad}")
        shapes = {n: list(m.shape) for n, m in self.items()}
        # One entry only: safetensors writes several in a random order, and equal masks must give equal bytes.
        header = {FORMAT: json.dumps({"shapes": shapes, "metadata": kept})}
        content = to_safetensors({n: m.words.cpu().contiguous() for n, m in self.items()}, header)
        write_atomically(path, lambda file: file.write(content))

    @classmethod
    @typed
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Masks:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file is missing, damaged, or holds something else.
        """
        try:
            with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
                header = file.metadata() or {}
                if FORMAT not in header:
                    raise ValueError(f"its header has no {FORMAT!r}")
                content = json.loads(header[FORMAT])
                masks = {name: BitMask(file.get_tensor(name), shape) for name, shape in content["shapes"].items()}
        except (OSError, ValueError, TypeError, KeyError, safetensors.SafetensorError) as error:
            raise ValueError(f"{os.fspath(path)} is not a file of masks that can be read: {error}") from error
        return cls(masks, content["metadata"])

    def __str__(self) -> str:
        if self.summary is not None:
            return str(self.summary)
        width = max((len(name) for name in self), default=0)
        rows = [f"  {n:<{width}}  {m.count():>12,} of {m.numel():>12,}  {m.density:.4f}" for n, m in self.items()]
        return "\n".join([repr(self), *rows])

    def __repr__(self) -> str:
        return f"Masks({len(self)} weights, kept={self.count():,} of {self.numel():,}, density={self.density:.4g})"

    def _new(self, masks: Mapping[str, BitMask]) -> Masks:
        return Masks(masks, self.metadata)

    def _combine(self, other: Masks, operator: Callable[[BitMask, BitMask], BitMask]) -> Masks:
        if not isinstance(other, Masks):
            raise TypeError(f"the other operand must be Masks, got {type(other).__name__}")
        if set(other) != set(self):
            raise ValueError(f"masks must have the same names, only one side has {sorted(set(self) ^ set(other))}")
        return self._new({name: operator(mask, other[name]) for name, mask in self.items()})


def _hint(name: str, known: Mapping[str, object]) -> str:
    close = get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
