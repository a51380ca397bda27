"""train(): a plain loop that can be killed at any moment and goes on with the same bits."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import typed
from ..data import Dataset
from .batches import read_batches, training_order
from .checkpoint import load_checkpoint, save_checkpoint
from .evaluation import evaluate, to_model
from .history import Epoch, History
from .interrupt import TrainingInterrupted, deferred_interrupt
from .method import Method
from .penalties import Penalty
from .random_state import seeded
from .resumption import Position, check_config, identity, restore, snapshot
from .settings import Settings
from .supermasks import MaskedModel
from .tickets import LotteryTickets

DEFAULT_LR = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}


@dataclass(frozen=True)
class Progress:
    """What ``train`` tells its progress callback after every batch and every evaluation.

    Attributes:
        epoch, epochs: the epoch being trained, from 1, and how many there are.
        step, steps: batches done in this epoch, of how many.
        record: the epoch's result after its evaluation, else None.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    record: Epoch | None = None


@typed
def train(
    model: nn.Module,
    dataset: Dataset,
    *,
    epochs: int,
    batch_size: int = 64,
    lr: float | None = None,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    optimizer: str = "sgd",
    schedule: str = "cosine",
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
    seed: int = 0,
    device: torch.device | str | None = None,
    method: Callable[[nn.Module, torch.optim.Optimizer], Method] | None = None,
    penalty: Penalty | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    checkpoint_seconds: float = 60.0,
    progress: Callable[[Progress], Any] | None = None,
) -> History:
    """Train a classifier by cross entropy; sparse layers hold their masks by themselves.

    The order of the data is a function of (seed, epoch) and the learning rate one of (epoch, step), so a run
    that goes on from a checkpoint gives the same bits as one that was never interrupted (same machine, same
    number of threads). The caller's random generators are as before, afterwards. With a checkpoint, the first
    Ctrl-C finishes the batch and saves.

    Args:
        model: returns logits (N, classes); changed in place and left in eval mode. Also masks as parameters
            (``EdgePopup`` and its like): their scores are trained.
        dataset: what to train and test on, see ``sparseprune.data.load``.
        epochs: passes over the training set.
        batch_size: samples of a step; the last batch of an epoch has the rest.
        lr: learning rate at the start; None: 0.1 for SGD, 1e-3 for Adam and AdamW.
        momentum: of SGD; the others have their own.
        weight_decay: of all parameters.
        optimizer: "sgd", "adam" or "adamw".
        schedule: "cosine", "step" or "constant"; see ``settings.py`` for the formulas.
        milestones, gamma: for "step": the epochs after which the rate is multiplied by gamma.
        seed: of the data order and of every random layer.
        device: where to train; None: where the model is.
        method: makes what changes the masks, for example ``lambda model, optimizer: RigL(model, optimizer, until=900)``;
            its ``step`` follows every optimizer step. ``LotteryTickets`` of all the training's steps (and no
            scheduler) go back in the order of the data and the learning rate, too: every round ends with a test, and
            the history has the epochs of all rounds.
        penalty: whose gradient is added to that of the loss; the losses of the history are without it.
        checkpoint: file to save to after every epoch, every ``checkpoint_seconds`` and on Ctrl-C.
        resume: go on from ``checkpoint`` if that file exists.
        checkpoint_seconds: at most this much work, or one batch, is lost when the process is killed.
        progress: called with a ``Progress``.

    Returns:
        The history of all epochs, those before a resumption included.

    Raises:
        ValueError: an argument is out of range; the checkpoint is damaged, or was made by a run with another
            setting, model, mask or data set (the message names the field): nothing is changed then. Or the
            loss became infinite or NaN.
        TrainingInterrupted: Ctrl-C; the checkpoint has been written.
    """
    rate = DEFAULT_LR.get(optimizer, 0.1) if lr is None else lr
    settings = Settings(
        epochs, batch_size, rate, momentum, weight_decay, optimizer, schedule, tuple(milestones), gamma, seed
    )
    if resume and checkpoint is None:
        raise ValueError("checkpoint must be given to resume from, got None")
    for split in ("train", "test"):
        if dataset.count(split) == 0:
            raise ValueError(f"dataset must have samples to {split} on, got {dataset.name} without any")
    config = {
        **asdict(settings),
        **identity(model, dataset),
        "method": "none" if method is None else "given",
        "penalty": repr(penalty),
    }
    saved = None
    if resume and os.path.exists(checkpoint):
        saved = load_checkpoint(checkpoint)
        check_config(saved["config"], config, checkpoint)
    if device is not None:
        model.to(device)
    run = _Run(model, dataset, settings, config, method, penalty, checkpoint, checkpoint_seconds, progress)
    with (
        run.method or nullcontext(),
        seeded(seed),
        _deterministic_cudnn(),
        deferred_interrupt(checkpoint is not None) as interrupted,
    ):
        if saved is not None:
            run.position = restore(saved, model, run.optimizer, run.method)
        while run.position.epoch < epochs:
            finished = run.epoch(interrupted)
            run.save()
            if not finished or (interrupted() and run.position.epoch < epochs):
                raise TrainingInterrupted(
                    f"stopped after {len(run.position.history)} of {run.epochs} epochs and {run.position.step} batches; "
                    f"the state is in {checkpoint}"
                )
    model.eval()
    return run.position.history


class _Run:
    """A run in progress: what ``train`` was given, the optimizer, and the position."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        settings: Settings,
        config: dict[str, Any],
        method: Callable[[nn.Module, torch.optim.Optimizer], Method] | None,
        penalty: Penalty | None,
        checkpoint: str | os.PathLike[str] | None,
        checkpoint_seconds: float,
        progress: Callable[[Progress], Any] | None,
    ) -> None:
        self.model, self.dataset, self.settings, self.config, self.penalty = model, dataset, settings, config, penalty
        self.checkpoint, self.checkpoint_seconds = checkpoint, checkpoint_seconds
        self.tell = progress or (lambda event: None)
        self.parameter = next(model.parameters())
        self.optimizer = settings.make_optimizer(model.parameters())
        self.method = None if method is None else method(model, self.optimizer)
        self.tickets = self.method if isinstance(self.method, LotteryTickets) else None
        self.epochs = settings.epochs  # of all rounds
        self.position = Position()
        if self.tickets is not None:
            per_epoch = len(training_order(dataset, settings.batch_size, settings.seed, 0))
            self.tickets.check_steps(settings.epochs * per_epoch)
            self.epochs += (self.tickets.rounds - 1) * (settings.epochs - self.tickets.rewind_to // per_epoch)

    def save(self) -> None:
        if self.checkpoint is not None:
            save_checkpoint(
                self.checkpoint, snapshot(self.config, self.position, self.model, self.optimizer, self.method)
            )

    def epoch(self, interrupted: Callable[[], bool]) -> bool:
        """Finish the epoch that the position is in; False when stopped before its end."""
        settings, position = self.settings, self.position
        number, earlier, started = len(position.history) + 1, position.seconds, time.monotonic()
        order = training_order(self.dataset, settings.batch_size, settings.seed, position.epoch)
        first = self._first_batch(len(order))
        position.loss_sum = position.loss_sum.to(self.parameter.device)
        last_save = started
        self.model.train()
        for x, y in read_batches(self.dataset.train, order[position.step :]):
            position.loss_sum += self._step(x, y, self._learning_rate(position.step, len(order)))
            position.step += 1
            now = time.monotonic()
            position.seconds = earlier + now - started
            self.tell(Progress(number, self.epochs, position.step, len(order)))
            if interrupted():
                return False
            if now - last_save >= self.checkpoint_seconds:
                self.save()
                last_save = now
        train_loss = position.loss_sum.item() / sum(map(len, order[first:]))
        if not math.isfinite(train_loss):
            raise ValueError(
                f"lr must be low enough to train, got {settings.lr}: the loss of epoch {number} is {train_loss}"
            )
        tested = evaluate(self.model, self.dataset, stop=interrupted)
        if tested is None:
            return False
        rate = self._learning_rate(len(order) - 1, len(order))
        record = Epoch(number, train_loss, *tested, rate, earlier + time.monotonic() - started)
        self.position = Position(position.epoch + 1, history=History([*position.history, record]))
        if self._ends_round():
            self.tickets.step()
            self.position.epoch, self.position.step = divmod(self.tickets.position, len(order))
        self.tell(Progress(number, self.epochs, len(order), len(order), record))
        return True

    def _ends_round(self) -> bool:
        return self.tickets is not None and self.tickets.ends_round

    def _first_batch(self, per_epoch: int) -> int:
        """Where this epoch began: in a later round's first one at the step that tickets went back to."""
        if self.tickets is None or self.tickets.round == 0:
            return 0
        epoch, step = divmod(self.tickets.rewind_to, per_epoch)
        return step if epoch == self.position.epoch else 0

    def _learning_rate(self, step: int, per_epoch: int) -> float:
        epochs = self.position.epoch + step / per_epoch
        if self.tickets is not None and self.tickets.rewind == "nothing" and self.tickets.round:
            epochs = self.settings.epochs - 1 / per_epoch  # the last one of the first round
        return self.settings.learning_rate(epochs)

    def _step(self, x: Tensor, y: Tensor, lr: float) -> Tensor:
        """One step; returns the batch's summed loss as a tensor, so that nothing waits for the device."""
        x, y = to_model(x, y, self.parameter)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.model(x), y)
        if isinstance(self.model, MaskedModel):
            self.model.backward(loss)
        else:
            loss.backward()
        if self.penalty is not None:
            self.penalty.add_gradients_(self.model)
        self.optimizer.step()
        if self.method is not None and not self._ends_round():  # what a round has reached is tested first
            self.method.step()
        return loss.detach().double() * len(y)


@contextmanager
def _deterministic_cudnn() -> Iterator[None]:
    # Resumption promises the same bits; cuDNN's fastest convolutions add in an order of their own.
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before
