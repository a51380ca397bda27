"""The k largest scores of tensors that are spread over ranks, exactly, as packed masks of what each rank holds.

A radix selection over integer keys. What travels is a header, a few numbers a tensor and one histogram a digit (64 KB;
three digits, five where a tensor is float64), however many scores there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from . import backends
from .bitmask import BitMask
from .products import DTYPES
from .ranks import Ranks
from .shard import Shard, is_dtensor, shard_of
from .topk_mask import TopK, _check_masks
from .topk_shards import ALL, Order, digit_histogram, digits, threshold_mask, tie_histogram

# What all ranks must be given alike, and how to show it.
HEADER = {"k": int, "the number of shards": int, "largest": bool, "abs": bool, "the use of DTensors": bool}
# What each rank tells of each tensor.
RECORD = ("dtype", "size", "elements", "competing", "NaN", "consecutive", "start")


def distributed_topk_mask(
    shards: Sequence[Tensor],
    k: int,
    *,
    group: dist.ProcessGroup | None = None,
    masks: Sequence[BitMask] | None = None,
    largest: bool = True,
    abs: bool = False,
    names: Sequence[str] | None = None,
    backend: str = backends.DEFAULT,
) -> TopK:
    """Keep the ``k`` largest of all the scores of all ranks: what ``topk_mask`` keeps of the whole tensors, bit for bit.

    Every rank of ``group`` calls it. What one rank raises all raise, and none is left waiting; where a rank dies the
    others raise as soon as the group notices (at the latest after its timeout).

    Args:
        shards: this rank's part of each global tensor, float16, bfloat16, float32 or float64. Either plain tensors:
            consecutive pieces along dimension 0 in rank order, which may be empty. Or DTensors, placed by ``Shard`` of
            any dimension and ``Replicate``; ranks that hold the same part must hold the same values.
        k: how many to keep over all tensors and ranks.
        group: the ranks that take part; the default group where it is None. Its collectives run on the CPU where it
            serves the CPU (gloo), else on the current device (NCCL).
        masks: the slots that compete, one mask of the local shape for each shard; the scores of the others are never
            looked at. All compete where it is None.
        largest: keep the largest, or else the smallest.
        abs: compare absolute values.
        names: what to call the tensors in error messages.
        backend: "auto", "native" or "reference", of the work on this rank.

    Returns:
        ``masks`` of this rank's shards, in their local shapes; and, on the CPU and alike on all ranks, ``threshold``,
        the last score kept (float64, NaN where ``k`` is 0), and ``counts``, how many of each global tensor are kept
        (int64). Among equal scores the lowest (tensor, global flat index) is kept.

    Raises:
        TypeError: a shard is not a floating-point tensor, or ``k`` is not an integer.
        ValueError: a competing score is NaN (tensor and rank are named), ``k`` is negative or more than compete, ranks
            disagree on ``k``, the options, the number of tensors or a dtype, or another rank was refused; a DTensor is
            placed otherwise or lies outside ``group``.
        RuntimeError: a rank is lost, or failed on its own.
    """
    selection = _Selection(Ranks(group, "distributed_topk_mask"), backend)
    selection.agree(shards, k, masks, largest, abs, names)
    selection.survey()
    return selection.keep(*selection.find_threshold()) if selection.k else selection.keep_none()


class _Selection:
    """One call, step by step. All ranks enter every method together and learn the same from it."""

    def __init__(self, ranks: Ranks, backend: str) -> None:
        self.ranks = ranks
        self.backend = backend

    def agree(self, shards: Any, k: Any, masks: Any, largest: bool, abs: bool, names: Any) -> None:
        """Check this rank's arguments, and that all ranks were given the same."""

        def check() -> list[int]:
            self.k = _check_k(k)
            self.shards, self.names = _check_shards(shards, names)
            local = [s.local for s in self.shards]
            self.candidates = [None] * len(local) if masks is None else [m.words for m in _check_masks(masks, local)]
            self.competing = [t.numel() for t in local] if masks is None else [m.count() for m in masks]
            self.order = Order(any(t.dtype == torch.float64 for t in local), bool(largest), bool(abs))
            return [self.k, len(local), self.order.largest, self.order.abs, any(map(is_dtensor, shards))]

        headers = self.ranks.gather("arguments", len(HEADER), check)
        for i, (what, show) in enumerate(HEADER.items()):
            _check_same(what, headers[:, i].tolist(), show)

    def survey(self) -> None:
        """Learn what the others hold. Refuse what differs, NaN, and a ``k`` larger than what competes."""
        n = len(self.shards)

        def look() -> list[int]:
            shift, width = next(digits(self.order.bits))
            self.first, nan = self._count_digits(self.order.lowest, shift, width)
            return [number for i in range(n) for number in self._record(i, nan[i])]

        records = self.ranks.gather("tensors", n * len(RECORD), look).reshape(-1, n, len(RECORD))
        fields = [dict(zip(RECORD, records[:, i].T.tolist(), strict=True)) for i in range(n)]
        for name, shard, field in zip(self.names, self.shards, fields, strict=True):
            _check_record(name, shard, field)
        self.total = sum(sum(field["competing"]) for field in fields)
        if self.k > self.total:
            raise ValueError(f"k must be between 0 and the {self.total} competing scores, got {self.k}")
        self.consecutive = [all(field["consecutive"]) for field in fields]
        self.starts = [field["start"] for field in fields]

    def _record(self, i: int, nan: int) -> list[int]:
        shard = self.shards[i]
        if shard.shape is None:
            size, start = math.prod(shard.local.shape[1:]) if shard.local.numel() else -1, self.ranks.rank
        else:
            size, start = math.prod(shard.shape), shard.start()
        elements, competing = shard.counted * shard.local.numel(), shard.counted * self.competing[i]
        return [DTYPES.index(shard.local.dtype), size, elements, competing, nan > 0, shard.consecutive(), start]

    def _count_digits(self, low: int, shift: int, width: int) -> tuple[Tensor, list[int]]:
        """The digits of what this rank counts, and the number of NaNs in each of its tensors."""
        total, nan = torch.zeros(1 << width, dtype=torch.int64), []
        for shard, candidates in zip(self.shards, self.candidates, strict=True):
            counts = digit_histogram(shard.local, candidates, self.order, low, shift, width, self.backend).cpu()
            if shard.counted:
                total += counts[:-1]
            nan.append(int(counts[-1]))
        return total, nan

    def find_threshold(self) -> tuple[int, int, int]:
        """The key of the last score kept, how many scores with this key are kept, and how many there are."""
        low, need, ties = self.order.lowest, self.k, self.total
        for shift, width in digits(self.order.bits):
            highest = shift + width == self.order.bits
            work = (lambda: self.first) if highest else partial(self._histogram, low, shift, width)
            counts = self.ranks.sum("histograms", 1 << width, work).flip(0)
            position, before = _locate(counts, need)
            low += (len(counts) - 1 - position) << shift
            need, ties = need - before, int(counts[position])
        return low, need, ties

    def _histogram(self, low: int, shift: int, width: int) -> Tensor:
        return self._count_digits(low, shift, width)[0]

    def keep_none(self) -> TopK:
        masks = [BitMask.zeros(s.local.shape, s.local.device) for s in self.shards]
        return TopK(masks, torch.tensor(math.nan, dtype=torch.float64), torch.zeros(len(masks), dtype=torch.int64))

    def keep(self, threshold: int, need: int, ties: int) -> TopK:
        """Keep all scores above the threshold, and the first ``need`` of the ``ties`` equal to it."""
        n = len(self.shards)

        def write() -> Tensor:
            self.written = [self._write(i, threshold, ALL if need == ties else 0) for i in range(n)]
            return torch.cat([s.counted * c.cpu() for s, (_, c) in zip(self.shards, self.written, strict=True)])

        counts = self.ranks.gather("counts", 2 * n, write).reshape(-1, n, 2)
        above, equal = counts.sum(0).T
        # Of each tensor's ties those that the tensors before it leave to keep.
        quotas = torch.minimum((need + equal - equal.cumsum(0)).clamp(min=0), equal)
        if need < ties:
            own = [self._own_quota(i, threshold, int(quotas[i]), counts[:, i, 1]) for i in range(n)]

            def add_ties() -> list[int]:
                self.written = [self._write(i, threshold, q) if q else self.written[i] for i, q in enumerate(own)]
                return []

            self.ranks.sum("masks", 0, add_ties)
        masks = [
            BitMask._trusted(words, s.local.shape) for s, (words, _) in zip(self.shards, self.written, strict=True)
        ]
        return TopK(masks, torch.tensor(self.order.value(threshold), dtype=torch.float64), above + quotas)

    def _write(self, i: int, threshold: int, quota: int) -> tuple[Tensor, Tensor]:
        return threshold_mask(self.shards[i].local, self.candidates[i], self.order, threshold, quota, self.backend)

    def _own_quota(self, i: int, threshold: int, quota: int, ties: Tensor) -> int:
        """How many ties of this rank are among the first ``quota`` of tensor ``i``; ``ties`` are those of each rank."""
        own, starts = int(self.written[i][1][1]), self.starts[i]
        if quota in (0, int(ties.sum())):
            return min(own, quota)
        if not self.consecutive[i]:
            return self._quota_by_index(i, threshold, quota)
        before = sum(t for t, start in zip(ties.tolist(), starts, strict=True) if start < starts[self.ranks.rank])
        return min(max(quota - before, 0), own)

    def _quota_by_index(self, i: int, threshold: int, quota: int) -> int:
        """The same where parts of several ranks interleave: a radix selection over the ties' global flat indices."""
        shard, low, own = self.shards[i], 0, 0
        for shift, width in digits((math.prod(shard.shape) - 1).bit_length()):
            local: list[Tensor] = []
            count = partial(self._tie_histogram, i, threshold, low, shift, width, local)
            counts = self.ranks.sum("positions of ties", 1 << width, count)
            position, before = _locate(counts, quota)
            own += int(local[0][:position].sum())
            low, quota = low + (position << shift), quota - before
        return own + int(local[0][position])

    def _tie_histogram(self, i: int, threshold: int, low: int, shift: int, width: int, local: list[Tensor]) -> Tensor:
        shard = self.shards[i]
        local.append(
            tie_histogram(
                shard.local, self.candidates[i], self.order, threshold, shard.global_index, low, shift, width
            ).cpu()
        )
        return shard.counted * local[0]


def _locate(counts: Tensor, nth: int) -> tuple[int, int]:
    """Where the nth (from 1) of the things counted falls, and how many come before that place."""
    sums = counts.cumsum(0)
    position = int((sums < nth).sum())
    return position, int(sums[position] - counts[position])


def _check_k(k: Any) -> int:
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k must be an integer, got {type(k).__name__}")
    if not 0 <= k <= ALL:
        raise ValueError(f"k must be between 0 and the competing scores, got {k}")
    return k


def _check_shards(shards: Any, names: Sequence[str] | None) -> tuple[list[Shard], list[str]]:
    if isinstance(shards, Tensor) or not isinstance(shards, Sequence):
        raise TypeError(f"shards must be a list of tensors, got {type(shards).__name__}")
    if names is not None and len(names) != len(shards):
        raise ValueError(f"names must have one entry a tensor, got {len(names)} for {len(shards)}")
    names = [f"shards[{i}]" for i in range(len(shards))] if names is None else list(names)
    for name, shard in zip(names, shards, strict=True):
        if not isinstance(shard, Tensor) or shard.dtype not in DTYPES:
            kind = f"a {shard.dtype} tensor" if isinstance(shard, Tensor) else type(shard).__name__
            allowed = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
            raise TypeError(f"{name} must be a tensor of {allowed}, got {kind}")
        if is_dtensor(shard) != is_dtensor(shards[0]):
            raise ValueError(
                f"shards must be DTensors or plain tensors, got both; {names[0]} and {name} differ (a tensor that "
                f"every rank has whole is DTensor.from_local(tensor, mesh, [Replicate()]))"
            )
    return [shard_of(shard, name) for name, shard in zip(names, shards, strict=True)], names


def _check_same(what: str, values: list[int], show: Callable[[int], Any]) -> None:
    other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
    if other is not None:
        raise ValueError(
            f"{what} must be the same on every rank, got {show(values[0])} on rank 0 and {show(values[other])} on "
            f"rank {other}"
        )


def _check_record(name: str, shard: Shard, field: dict[str, list[int]]) -> None:
    _check_same(f"the dtype of {name}", field["dtype"], lambda code: str(DTYPES[code]).removeprefix("torch."))
    if any(field["NaN"]):
        raise ValueError(f"scores must not be NaN, got NaN in {name} on rank {field['NaN'].index(1)}")
    sizes, elements = field["size"], sum(field["elements"])
    if shard.shape is None:
        held = [(size, rank) for rank, size in enumerate(sizes) if size >= 0]
        other = next((h for h in held if h[0] != held[0][0]), None)
        if other is not None:
            raise ValueError(
                f"{name} must have rows of one size on every rank, got {held[0][0]} elements on rank {held[0][1]} and "
                f"{other[0]} on rank {other[1]}"
            )
    else:
        _check_same(f"the size of {name}", sizes, int)
        if elements != sizes[0]:
            raise ValueError(
                f"{name} must lie on ranks of the group, got {elements} of its {sizes[0]} elements on them"
            )
