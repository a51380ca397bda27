"""Collectives that a failing rank takes part in: what one rank raises, all ranks raise, and none is left waiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

MESSAGE_BYTES = 256


class Ranks:
    """The ranks of a process group, exchanging int64 numbers for one call of ``operation``.

    Every number travels in a collective that all ranks enter, also one whose local ``work`` has just raised: it sends
    zeros and a flag. Where a flag is up, that rank raises its own error and every other one an error that names it.

    Args:
        group: a process group that this rank belongs to; None is the default one.
        operation: what to call the work in error messages.

    Raises:
        ValueError: there is no default group, or this rank is not in ``group``.
    """

    def __init__(self, group: dist.ProcessGroup | None, operation: str) -> None:
        self.group = group
        self.operation = operation
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("group must contain this rank, got one without it")
        served = [pair.partition(":")[0] for pair in dist.get_backend_config(group).split(",")]
        # The host decides after every exchange, so numbers stay there where the group can carry them (gloo).
        self.device = torch.device("cpu" if "cpu" in served else served[0])

    def gather(self, what: str, size: int, work: Callable[[], Sequence[int] | Tensor]) -> Tensor:
        """int64 [ranks, size] on the CPU: the numbers that ``work()`` gives on every rank, in rank order."""
        row, error = self._attempt(work, size)
        rows = self._all_gather(what, row)
        self._raise_if_any(rows[:, 0], what, error)
        return rows[:, 1:]

    def sum(self, what: str, size: int, work: Callable[[], Sequence[int] | Tensor]) -> Tensor:
        """int64 [size] on the CPU: the sum over the ranks of what ``work()`` gives."""
        row, error = self._attempt(work, size)
        total = self._run(what, lambda: self._all_reduce(row))
        if total[0]:
            self._raise_if_any(self._all_gather(what, row[:1])[:, 0], what, error)
        return total[1:]

    def _attempt(self, work: Callable[[], Sequence[int] | Tensor], size: int) -> tuple[Tensor, BaseException | None]:
        row = torch.zeros(1 + size, dtype=torch.int64)
        try:
            row[1:] = torch.as_tensor(work(), dtype=torch.int64)
        except BaseException as error:  # also an interrupt: the others are about to wait for this rank
            row.zero_()
            row[0] = 1
            return row, error
        return row, None

    def _raise_if_any(self, failed: Tensor, what: str, error: BaseException | None) -> None:
        if not failed.any():
            return
        message = b"" if error is None else f"{type(error).__name__}: {error}".encode()[:MESSAGE_BYTES]
        text = torch.zeros(MESSAGE_BYTES, dtype=torch.int64)
        text[: len(message)] = torch.tensor(list(message), dtype=torch.int64)
        messages = self._all_gather(what, text)
        if error is not None:
            raise error
        rank = int(failed.nonzero()[0])
        said = bytes(messages[rank].tolist()).rstrip(b"\0").decode(errors="replace")
        kind = ValueError if said.startswith(("ValueError", "TypeError")) else RuntimeError
        raise kind(f"{self.operation} failed on rank {rank} with {said}")

    def _all_reduce(self, row: Tensor) -> Tensor:
        total = row.to(self.device, copy=True)
        dist.all_reduce(total, group=self.group)
        return total.cpu()

    def _all_gather(self, what: str, row: Tensor) -> Tensor:
        def run() -> Tensor:
            own = row.to(self.device)
            rows = [torch.zeros_like(own) for _ in range(self.size)]
            dist.all_gather(rows, own, group=self.group)
            return torch.stack(rows).cpu()

        return self._run(what, run)

    def _run(self, what: str, collective: Callable[[], Tensor]) -> Tensor:
        try:
            return collective()
        except RuntimeError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RuntimeError(f"{self.operation} lost its group while exchanging {what}: {reason}") from error
