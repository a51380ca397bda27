"""Saved runs, read back: rows with their ratios within the run, and where ours crosses dense."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .rows import DENSE, OURS, PEER

# A row whose middle half of rounds spreads wider than this has met something else on the machine.
UNSTEADY = 0.15


@dataclass(frozen=True)
class Taken:
    """One measured row; its fields are those of ``Row`` and what ``Measure`` noted beside it."""

    op: str
    group: str
    side: str
    kind: str
    density: float | None
    dtype: str
    size: int | None
    ms: float
    spread: float
    notes: dict[str, Any]

    @property
    def unsteady(self) -> bool:
        return self.spread > UNSTEADY


@dataclass(frozen=True)
class Run:
    """The rows of one or several saved files of one machine, in the order they were taken."""

    machine: dict[str, Any]
    rows: list[Taken]

    def group(self, name: str) -> list[Taken]:
        return [row for row in self.rows if row.group == name]

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(row.group for row in self.rows))

    @property
    def ops(self) -> list[str]:
        return list(dict.fromkeys(row.op for row in self.rows))

    def best(self, row: Taken, kind: str) -> Taken | None:
        """The fastest row of ``kind`` that does the same job: same group and dtype, same density or independent of it."""
        rivals = [
            other
            for other in self.group(row.group)
            if other.kind == kind and other.dtype == row.dtype and other.density in (None, row.density)
        ]
        return min(rivals, key=lambda other: other.ms, default=None)

    def ratio(self, row: Taken, kind: str) -> float | None:
        """How many times faster ``row`` is than the best of ``kind``; below 1 it loses."""
        best = self.best(row, kind)
        return None if best is None or best is row else best.ms / row.ms

    def losses(self) -> list[tuple[Taken, Taken]]:
        """(ours, the faster rival): what a user gets ("auto", or the one way there is) where somebody else is faster."""
        found = []
        for row in self.rows:
            for kind in (DENSE, PEER):
                if self.chosen(row) and (ratio := self.ratio(row, kind)) is not None and ratio < 1:
                    found.append((row, self.best(row, kind)))
        return found

    def chosen(self, row: Taken) -> bool:
        """Whether the row is what a user gets: "auto" where it was taken, else our fastest."""
        ours = [r for r in self.group(row.group) if r.kind == OURS and (r.dtype, r.density) == (row.dtype, row.density)]
        if row.kind != OURS or (
            row.density is None and any(r.density for r in self.group(row.group) if r.kind == OURS)
        ):
            return False
        automatic = [r for r in ours if r.side == "auto"]
        return row is (automatic or [min(ours, key=lambda r: r.ms)])[0]

    def speedups(self, group: str, dtype: str) -> list[tuple[float, float]]:
        """(density, ratio to the best dense) of what a user gets, the densest first."""
        rows = [row for row in self.group(group) if row.density and row.dtype == dtype and self.chosen(row)]
        pairs = [(row.density, self.ratio(row, DENSE)) for row in rows]
        return sorted(((d, r) for d, r in pairs if r is not None), reverse=True)


def crossover(speedups: Iterable[tuple[float, float]]) -> float | None:
    """The density below which ours beats the best dense: where the ratio passes 1, between two points by logarithms.

    None where it never passes; the highest such density where it passes more than once would flatter, so the lowest.
    """
    points = sorted(speedups)
    for (low, fast), (high, slow) in zip(points, points[1:], strict=False):
        if fast >= 1 > slow:
            share = math.log(fast) / (math.log(fast) - math.log(slow))
            return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return None


def load(paths: Iterable[Path]) -> Run:
    """Reads what pytest-benchmark saved.

    Raises:
        ValueError: a file is not a saved run of these benchmarks, or the files are of different machines.
    """
    machine: dict[str, Any] | None = None
    rows: list[Taken] = []
    for path in paths:
        saved = _read(path)
        if machine is None:
            machine = saved["machine_info"]
        elif any(
            machine.get(k) != saved["machine_info"].get(k) for k in ("device", "processor", "gpu", "tuned", "quick")
        ):
            raise ValueError(f"the saved runs must be of one machine and one mode, got another in {path}")
        # A row that was cut off while it was timed has rounds, but not what is noted when they are done.
        rows += [_taken(bench) for bench in saved["benchmarks"] if "op" in bench["extra_info"]]
    if machine is None:
        raise ValueError("the saved runs must be at least one file, got none")
    return Run(machine, rows)


def _read(path: Path) -> dict[str, Any]:
    try:
        saved = json.loads(path.read_text())
        saved["machine_info"]["device"], saved["benchmarks"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be a saved run of these benchmarks: {error!r}") from error
    return saved


def _taken(bench: dict[str, Any]) -> Taken:
    notes, stats = dict(bench["extra_info"]), bench["stats"]
    fields = {key: notes.pop(key) for key in ("op", "side", "kind", "density", "dtype", "size", "ms")}
    return Taken(group=bench["group"], spread=stats["iqr"] / stats["median"], notes=notes, **fields)
