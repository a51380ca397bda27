"""The batches of a split in a given order, starting anywhere."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ..data import Dataset
from ..data.dataset import Split
from .random_state import derived_generator

MOST_WORKERS = 8


def training_order(dataset: Dataset, batch_size: int, seed: int, epoch: int) -> list[Tensor]:
    """The indices of every batch of an epoch: a function of seed and epoch alone.

    A last batch of a single sample is left out, since batch normalisation cannot normalise it.
    """
    order = torch.randperm(dataset.count("train"), generator=derived_generator(seed, epoch))
    batches = list(order.split(batch_size))
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) == 1 < batch_size else batches


def read_batches(split: Split, indices: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches (x, y) at ``indices``; images on disk are decoded by worker processes, ahead of time."""
    if isinstance(split, tuple):
        for chosen in indices:
            yield split[0][chosen], split[1][chosen]
        return
    loader = DataLoader(
        Subset(split, torch.cat(indices).tolist()) if indices else Subset(split, []),
        batch_size=len(indices[0]) if indices else 1,
        num_workers=min(MOST_WORKERS, _processors()),
        worker_init_fn=_ignore_interrupt,
        # Without one the loader draws from the global stream, and once more when a run is resumed.
        generator=torch.Generator().manual_seed(0),
    )
    yield from loader


def _processors() -> int:
    # Only some systems can say what this process may use, which is less than all in a container.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ignore_interrupt(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal; the main one finishes its batch, then stops them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
