"""Trains the small network in a process of its own, slowly enough to be killed: CHECKPOINT [RESULT]."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from sparseprune.training import train

sys.path.insert(0, str(Path(__file__).parent))
import small


def main(checkpoint: str, result: str | None = None) -> None:
    torch.set_num_threads(1)
    model = small.network()
    history = train(
        model, small.dataset(), epochs=6, batch_size=8, lr=0.05, seed=3, checkpoint=checkpoint, resume=True,
        checkpoint_seconds=0.05, progress=None if result else lambda event: time.sleep(0.02),
    )  # fmt: skip
    if result:
        torch.save({"model": model.state_dict(), "history": history.to_list()}, result)


if __name__ == "__main__":
    main(*sys.argv[1:])
