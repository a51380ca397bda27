"""A callback for Lightning; needs ``lightning`` (or ``pytorch_lightning``) installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .callbacks import MakeMethod, MaskedTraining

try:
    from lightning.pytorch import Callback
except ModuleNotFoundError:
    from pytorch_lightning import Callback


class LightningMasks(Callback):
    """Hold masks in a ``LightningModule``, and let a method change them.

    The module's own checkpoints have the masks, this callback's state has the method's: ``trainer.fit(...,
    ckpt_path=...)`` resumes exactly as far as Lightning itself does (at the end of an epoch, with an order of the data
    that depends on the epoch alone). A step is an optimizer step, so accumulated batches count once.

    Args:
        masks: to hold from the start; None: those that the module holds, or everything kept.
        method: ``lambda module, optimizer: RigL(module, optimizer, until=900)``, or None.

    Raises:
        ValueError: when training starts: the module has more than one optimizer.
    """

    def __init__(self, masks: Mapping[str, Any] | None = None, method: MakeMethod | None = None) -> None:
        self.training = MaskedTraining(masks, method)
        self._state: dict[str, Any] | None = None
        self._steps = 0

    def setup(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        self.training.prepare(pl_module)

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        if len(trainer.optimizers) != 1:
            raise ValueError(f"pl_module must have one optimizer, got {len(trainer.optimizers)}")
        self.training.begin(pl_module, trainer.optimizers[0], self._state)
        self._state, self._steps = None, trainer.global_step

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step > self._steps:
            self._steps = trainer.global_step
            self.training.step()

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        self.training.end()

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        self.training.end()

    def state_dict(self) -> dict[str, Any]:
        return self.training.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict
