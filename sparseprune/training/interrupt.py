"""Ctrl-C that waits for the current batch."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C after its state had been saved; the message says where it stands."""


@contextmanager
def deferred_interrupt(enabled: bool = True) -> Iterator[Callable[[], bool]]:
    """Within the block the first SIGINT only sets a flag; a second one raises KeyboardInterrupt at once.

    Python lets only the main thread handle signals; elsewhere, and with ``enabled`` false, nothing changes.

    Yields:
        A function that says whether SIGINT has come.
    """
    received = False

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal received
        if received:
            raise KeyboardInterrupt
        received = True

    if not enabled or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: received
    finally:
        signal.signal(signal.SIGINT, previous)
