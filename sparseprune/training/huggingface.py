"""A callback for the Hugging Face ``Trainer``; needs ``transformers`` and ``accelerate`` installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..files import write_atomically
from .callbacks import MakeMethod, MaskedTraining

STATE_FILE = "sparseprune.pt"


class TrainerMasks(TrainerCallback):
    """Hold masks in a ``Trainer``'s model, and let a method change them.

    Every checkpoint folder gets the method's state beside the model, whose weights have the masks;
    ``trainer.train(resume_from_checkpoint=True)`` goes on exactly. A step is an optimizer step, so accumulated batches
    count once.

    Args:
        masks: to hold from the start; None: those that the model holds, or everything kept.
        method: ``lambda model, optimizer: RigL(model, optimizer, until=900)``, or None.

    Raises:
        ValueError: when training resumes: the checkpoint in ``output_dir`` has no state of this callback.
    """

    def __init__(self, masks: Mapping[str, Any] | None = None, method: MakeMethod | None = None) -> None:
        self.training = MaskedTraining(masks, method)

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **rest: Any
    ) -> None:
        self.training.prepare(model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **rest: Any
    ) -> None:
        optimizer = rest["optimizer"]
        saved = self._saved(args, state) if state.global_step and self.training.make is not None else None
        # Accelerate's wrapper is an optimizer by type alone: hooks on it never run.
        self.training.begin(model, getattr(optimizer, "optimizer", optimizer), saved)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        self.training.step()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        if state.is_world_process_zero:
            write_atomically(self._path(args, state), lambda file: torch.save(self.training.state_dict(), file))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        self.training.end()

    def _path(self, args: TrainingArguments, state: TrainerState) -> Path:
        return Path(args.output_dir, f"checkpoint-{state.global_step}", STATE_FILE)

    def _saved(self, args: TrainingArguments, state: TrainerState) -> dict[str, Any]:
        path = self._path(args, state)
        if not path.is_file():
            raise ValueError(f"output_dir must hold the checkpoint to resume from with its {STATE_FILE}, got no {path}")
        return torch.load(path, map_location="cpu", weights_only=True)
