"""Runs that never wait for the device: how many weights a step keeps is known up front, and what it found is read at the end.

On CUDA a step is recorded once as a graph and replayed: its masks, k and readings stay at one place in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from .masks import Masks
from .ops.products import Product
from .ops.topk_mask import topk_mask
from .runs import Run

__all__ = ["UnreadRuns", "UnreadStep", "captured"]


class UnreadStep(Protocol):
    """A planned criterion that computes scores without reading anything back from the device."""

    def entered(self) -> AbstractContextManager[None]:
        """Within it :meth:`unread` may be called; what it enters need not be captured."""
        ...

    def unread(self, masks: Masks) -> tuple[dict[str, Product], Tensor]:
        """The scores, and what :meth:`read` must see of them: a tensor of fixed shape on the device."""
        ...

    def read(self, readings: Tensor) -> list[float]:
        """Look at the readings of several steps, (steps, ...): log2 R of each; raises what ``products`` would have."""
        ...


class UnreadRuns:
    """One planned criterion and the global pattern, for runs one after the other.

    Args:
        step: the criterion.
        masks: any of the model; the shapes and the device are theirs.
        floored: whether layers keep a least number; then k is given by the host, and no step is captured.
        cuda: what captures: ``torch.cuda``; None where nothing is to be captured.

    Attributes:
        reason: why steps are not replayed from a graph; None where they are.
    """

    def __init__(self, step: UnreadStep, masks: Masks, floored: bool, cuda: Any = None) -> None:
        self._step = step
        self._held = Masks({name: mask.clone() for name, mask in masks.items()})
        device = next(iter(masks.values())).device
        self._k = torch.full((1,), masks.numel(), dtype=torch.int64, device=device)  # keeps all until it is set
        self._reading: Tensor | None = None
        self._replay, self.reason = self._one, "the masks are not on a CUDA device"
        if cuda is not None and floored:
            self.reason = "min_per_layer makes k an argument from the host"
        elif cuda is not None:
            with step.entered():
                self._replay, self.reason = captured(self._one, cuda)

    def run(self, run: Run, told: Callable[[], Any], trace: bool) -> None:
        """Take a run to its end.

        Args:
            run: with the global pattern.
            told: called after every step, which by then is only enqueued.
            trace: keep every step.

        Raises:
            ValueError: scores are out of range; after the last step.
        """
        for name, mask in self._held.items():
            mask.words.copy_(run.masks[name].words)
        floors = list(run.floors.values()) if any(run.floors.values()) else None
        readings, seen = [], []
        with self._step.entered():
            while run.done < run.steps:
                run.masks = self._held
                kept = run.next()
                if floors is None:
                    self._k.fill_(kept)
                    self._replay()
                else:
                    self._one(kept, floors)
                readings.append(self._reading.clone())
                if trace:
                    seen.append(self._snapshot())
                told()
        flows = self._step.read(torch.stack(readings))
        run.masks = self._snapshot()
        for number, (masks, flow) in enumerate(zip(seen, flows, strict=False), 1):
            run.trace(masks, number, flow)

    def _one(self, kept: int | None = None, floors: list[int] | None = None) -> None:
        scores, reading = self._step.unread(self._held)
        names = list(self._held)
        k = self._k if kept is None else kept
        masks = [self._held[name] for name in names]
        found = topk_mask([scores[name] for name in names], k, masks=masks, floors=floors, check=False)
        for mask, best in zip(masks, found.masks, strict=True):
            mask.words.copy_(best.words)
        self._reading = reading if self._reading is None else self._reading.copy_(reading)

    def _snapshot(self) -> Masks:
        return Masks({name: mask.clone() for name, mask in self._held.items()})


def captured(step: Callable[[], None], cuda: Any) -> tuple[Callable[[], Any], str | None]:
    """``step`` as a graph's replay and None; or ``step`` itself, and why it could not be captured.

    Args:
        step: it is called twice, once to load what is loaded at first use and once to be captured; so the second call of
            it must have changed nothing that the first had not.
        cuda: ``torch.cuda``.
    """
    side, current = cuda.Stream(), cuda.current_stream()
    side.wait_stream(current)
    with cuda.stream(side):
        step()
    current.wait_stream(side)
    graph = cuda.CUDAGraph()
    try:
        with cuda.graph(graph):
            step()
    except RuntimeError as error:
        return step, f"a step could not be captured: {str(error).strip().splitlines()[0]}"
    return graph.replay, None
