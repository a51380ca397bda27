"""What a row of a benchmark is: one way to do one job, which can be checked, with the work that the job needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

OURS, DENSE, PEER = "ours", "dense", "peer"


class AbsentError(Exception):
    """This row cannot be taken here; the message says why. It becomes a skipped test, never a number."""


class WrongResultError(AssertionError):
    """What was to be timed computes something else. It becomes a failed test, never a number."""


@dataclass(frozen=True)
class Plan:
    """What is to be measured: on which device, and whether at toy size."""

    device: str
    quick: bool

    def pick(self, *, quick: Any, cpu: Any, cuda: Any) -> Any:
        return quick if self.quick else cuda if self.device == "cuda" else cpu

    @property
    def dtypes(self) -> tuple[str, ...]:
        return ("bfloat16", "float32") if self.device == "cuda" else ("float32",)


@dataclass(frozen=True)
class Timed:
    """A call ready to be timed.

    Attributes:
        run: the call.
        check: raises WrongResultError if the result it is given is wrong.
        flops: the operations of the job (a fused multiply-add is two): of all weights where a path computes with all,
            of the kept ones where it need not.
        bytes: the least that the job moves: every input read once, every result written once.
        limit: which measured limit of the machine the operations count against: "float32", "tf32", "bfloat16".
        capturable: whether a CUDA graph can hold the call.
    """

    run: Callable[[], Any]
    check: Callable[[Any], None]
    flops: float = 0.0
    bytes: float = 0.0
    limit: str = "float32"
    capturable: bool = False


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        op: what is computed; one figure an op.
        group: op and shape; ratios are read within one.
        side: who computes it.
        kind: "ours", "dense" (all weights, at full speed) or "peer" (somebody else's sparse or pruning code).
        build: makes the call; raises AbsentError if this machine cannot.
        density: None where the time does not depend on it.
        size: what grows along the x-axis of a figure of time against size.
    """

    op: str
    group: str
    side: str
    kind: str
    build: Callable[[], Timed]
    density: float | None = None
    dtype: str = "float32"
    size: int | None = None

    def __str__(self) -> str:
        density = "" if self.density is None else f", density {self.density:g}"
        return f"{self.group}: {self.side}, {self.dtype}{density}"


def unless_refused(run: Callable[[], Any]) -> Any:
    """The result of ``run``; a backend that says it cannot take the call makes the row absent, any other error red."""
    try:
        return run()
    except ValueError as error:
        if "refuses this call" not in str(error):
            raise
        raise AbsentError(str(error)) from error


def ours(implementations: Iterable[str], *, auto: bool = True) -> Iterator[str]:
    """The backends of an op's dictionary, and what "auto" makes of them."""
    yield from implementations
    if auto:
        yield "auto"
