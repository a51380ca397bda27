"""As few positions as differ: the columns that each layer of a program must be given on an all-ones input.

Far from the borders every position sees the same, so its value is the same: such positions form a *class* and one
stands for all. And where all that is wanted of positions is their sum, as before an average over the map, they form a
*group* and only the sum is computed. Classes grow in number from the input on, groups from the output back, and each
value is stored by whichever are fewer. Both follow from the taps alone and hold for any weights, so R and all its
gradients are those of the full network: on a ResNet-50 at 224x224 with a third of its multiplications, on a VGG-16 at
32x32 with 71 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .program import Kind, Node

__all__ = ["Layout", "Map", "layouts", "map_between", "windows_of"]


@dataclass(frozen=True, eq=False)
class Layout:
    """How a value is stored.

    Attributes:
        of: [positions], the class or group of each.
        count: how many there are.
        sums: what is stored is the sum over a group, not the value of a class.
        first: [count], one position of each.
        exact: the width is the count; else what ``padded`` makes of it.
    """

    of: np.ndarray
    count: int
    sums: bool
    first: np.ndarray
    exact: bool = False

    @property
    def width(self) -> int:
        return self.count if self.exact else padded(self.count)


class Table(NamedTuple):
    """Sums over positions, as ``map_positions`` takes them."""

    starts: Tensor
    sources: Tensor
    factors: Tensor


class Map(NamedTuple):
    """From one layout to the columns of another, and its transpose: from a gradient there to that of the first."""

    forward: Table
    backward: Table


def padded(count: int) -> int:
    """The width that the kernels take this many positions in: 1, 4 or a multiple of 8."""
    return 1 if count == 1 else 4 if count <= 4 else -(-count // 8) * 8


def layouts(nodes: list[Node]) -> dict[Node, Layout]:
    """How each node's value is stored."""
    classes, groups = _classes(nodes), _groups(nodes)
    sums: dict[Node, bool] = {}
    for node in nodes:
        fewer = padded(_count(groups[node])) < padded(_count(classes[node]))
        sums[node] = fewer or any(sums[source] for source in node.inputs)
    if any(node.kind in (Kind.MAX, Kind.FLATTEN) and sums[node.inputs[0]] for node in nodes):
        sums = dict.fromkeys(nodes, False)  # they need every position by itself
    return {node: _layout(groups[node] if sums[node] else classes[node], sums[node]) for node in nodes}


def every_position(positions: int) -> Layout:
    """Each position by itself."""
    return Layout(np.arange(positions), positions, False, np.arange(positions), exact=True)


def map_between(
    source: Layout,
    target: Layout,
    taps: np.ndarray | None,
    factors: np.ndarray | None,
    apart: bool,
    dtype: torch.dtype,
) -> Map | None:
    """The columns of ``target``'s positions from what is stored of their inputs; None where it is those themselves.

    Args:
        source, target: the layouts.
        taps: [taps, positions of the target]; None reads each position itself.
        factors: [positions of the target], or None for ones.
        apart: each tap has columns of its own, one tap after the other; else taps are added up.
    """
    if taps is None:
        if target.sums == source.sums and np.array_equal(source.of, target.of) and source.width == target.width:
            return None
        taps = np.arange(len(target.of))[None]
    at = np.arange(len(target.of)) if target.sums else target.first
    reads = taps[:, at]
    to = np.broadcast_to(target.of[at], reads.shape)
    if apart:
        to = to + np.arange(len(taps))[:, None] * target.width
    factor = np.broadcast_to(np.ones(len(at)) if factors is None else factors[at], reads.shape)
    used = reads >= 0
    if source.sums:  # a group is read as a whole, so once: at its first position
        used &= source.first[source.of[reads]] == reads
    to, reads, factor = to[used], source.of[reads[used]], factor[used]
    pairs, inverse = np.unique(to * np.int64(source.width) + reads, return_inverse=True)
    total = np.bincount(inverse, weights=factor, minlength=len(pairs))
    to, reads = pairs // source.width, pairs % source.width
    width = target.width * (len(taps) if apart else 1)
    return Map(_table(to, reads, total, width, dtype), _table(reads, to, total, source.width, dtype))


def windows_of(source: Layout, target: Layout, taps: np.ndarray) -> Tensor:
    """[count, taps]: where a maximum over classes looks, in the order of the taps."""
    reads = taps[:, target.first].T
    return torch.from_numpy(np.where(reads >= 0, source.of[reads], -1).astype(np.int32)).contiguous()


def _table(to: np.ndarray, sources: np.ndarray, factors: np.ndarray, width: int, dtype: torch.dtype) -> Table:
    order = np.lexsort((sources, to))
    starts = np.searchsorted(to[order], np.arange(width + 1))
    integers = (torch.from_numpy(each.astype(np.int32)) for each in (starts, sources[order]))
    return Table(*integers, torch.from_numpy(factors[order]).to(dtype))


def _classes(nodes: list[Node]) -> dict[Node, np.ndarray]:
    found: dict[Node, np.ndarray] = {}
    for node in nodes:
        if not node.inputs or node.kind is Kind.FLATTEN:
            found[node] = np.zeros(node.positions, np.int64)
        elif node.taps is None:
            found[node] = _joined([found[source] for source in node.inputs])
        else:
            of = found[node.inputs[0]]
            columns = [np.where(tap >= 0, of[tap], -1) for tap in node.taps]
            found[node] = _partition(columns + _numbered(node.factors))
    return found


def _groups(nodes: list[Node]) -> dict[Node, np.ndarray]:
    found: dict[Node, np.ndarray] = {}
    for node in reversed(nodes):
        whole, columns = [], []
        for reader in node.read_by:
            if reader.kind in (Kind.MAX, Kind.FLATTEN):
                whole.append(np.arange(node.positions))
            elif reader.taps is None:
                whole.append(found[reader])
            elif reader.kind is Kind.POOL:
                columns += _readers(
                    reader.taps, _partition([found[reader], *_numbered(reader.factors)]), node.positions
                )
            else:
                for tap in reader.taps:
                    column = np.full(node.positions, -1)
                    column[tap[tap >= 0]] = found[reader][tap >= 0]
                    columns.append(column)
        if not node.read_by:
            found[node] = np.zeros(node.positions, np.int64)
        else:
            found[node] = _partition(whole + columns) if columns else _joined(whole)
    return found


def _readers(taps: np.ndarray, of: np.ndarray, positions: int) -> list[np.ndarray]:
    """For each position the groups of all windows that it is in, in order; whichever tap of theirs it is."""
    used = taps >= 0
    at, group = taps[used], np.broadcast_to(of, taps.shape)[used]
    order = np.lexsort((group, at))
    at, group = at[order], group[order]
    slot = np.arange(len(at)) - np.searchsorted(at, at)
    columns = np.full((int(slot.max(initial=0)) + 1, positions), -1)
    columns[slot, at] = group
    return list(columns)


def _numbered(factors: np.ndarray | None) -> list[np.ndarray]:
    return [] if factors is None else [np.unique(factors, return_inverse=True)[1]]


def _joined(partitions: list[np.ndarray]) -> np.ndarray:
    """Positions are together where they are in all partitions."""
    return partitions[0] if all(p is partitions[0] for p in partitions) else _partition(partitions)


def _partition(columns: list[np.ndarray]) -> np.ndarray:
    """Positions are together where all columns agree; numbered in the order of their first positions."""
    table = np.stack(columns)
    odd = np.random.default_rng(0).integers(1, 2**62, len(table)) * 2 + 1
    keys = (table * odd[:, None]).sum(0)
    _, first, of = np.unique(keys, return_index=True, return_inverse=True)
    if not np.array_equal(table[:, first][:, of], table):  # two rows with one hash
        _, first, of = np.unique(table, axis=1, return_index=True, return_inverse=True)
    rank = np.empty_like(first)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[of.reshape(-1)]


def _count(of: np.ndarray) -> int:
    return int(of.max(initial=-1)) + 1


def _layout(of: np.ndarray, sums: bool) -> Layout:
    return Layout(of, _count(of), sums, np.unique(of, return_index=True)[1])
