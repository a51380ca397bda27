"""The implementation that "auto" takes in each masked and packed op: the size of the call, given to the cost model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import costs
from .costs import Work
from .known import count_kept

SMALL_BATCH = 8  # up to here the linear kernels go by rows
LARGE = 1 << 22  # slots from which on a weight is read from memory, which is all that a small batch waits for
FEW_CHANNELS = 16  # up to here vectors of channels, as the vendor's convolutions use, are short
FEW_POSITIONS = 64  # up to here the vendor's convolutions take several times as long for each product
LARGE_ON_FEW = 1 << 19  # slots from which on such a convolution waits for its weights
# Seconds a slot to spread packed values over a dense weight: 16.8 M slots at density 0.1, one Zen 3 core.
SPREAD = 1.8e-8


def choose(op: str) -> Callable[..., str]:
    """The choice for calls of a masked op; nothing was measured on a GPU, so there it is the vendor's product."""

    def chosen(first: Tensor, other: Tensor, words: Tensor, *rest: Any) -> str:
        if first.device.type != "cpu" or not first.numel() or not other.numel():
            return "dense"
        return costs.choose(describe(op, first, other, words, *rest)).name

    return chosen


def describe(op: str, first: Tensor, other: Tensor, words: Tensor, *rest: Any) -> Work:
    """What a call of a masked op is to the cost model; ``first`` is x or the gradient of y, ``other`` W or x."""
    kept = count_kept(words)
    if op.startswith("masked_linear"):
        return linear_work(op, first, (words.shape[0], other.shape[1]), kept)
    size, *geometry = rest  # x's or the weight's, if neither argument has it; else the bias
    x = other.shape if op == "masked_conv2d_weight_grad" else size if op == "masked_conv2d_input_grad" else first.shape
    weight = size if op == "masked_conv2d_weight_grad" else other.shape
    return conv_work(op, first, x, weight, geometry, kept)


def linear_work(op: str, rows: Tensor, weight: Sequence[int], kept: int) -> Work:
    """One product of a linear layer on a batch of ``rows``."""
    batch, slots = rows.shape[0], math.prod(weight)
    kind = "batch 1" if batch == 1 else f"batch {'<=' if batch <= SMALL_BATCH else '>'} {SMALL_BATCH}"
    if batch <= SMALL_BATCH and slots >= LARGE:
        kind += ", large"
    return Work(op, kind, slots, kept, batch, batch * sum(weight), rows.dtype)


def conv_work(
    op: str, image: Tensor, x: Sequence[int], weight: Sequence[int], geometry: Sequence[Any], kept: int
) -> Work:
    """One product of a convolution; ``image`` is x or the gradient of y, whose layout counts."""
    stride, padding, dilation, groups = geometry
    positions = math.prod(output_size(x[2:], weight[2:], stride, padding, dilation))
    if groups > 1:
        kind = "grouped"
    else:
        few = min(weight[:2]) <= FEW_CHANNELS
        kind = "few channels" if few else "1x1" if math.prod(weight[2:]) == 1 else "larger kernel"
        kind += f", {'few' if positions <= FEW_POSITIONS else 'many'} positions"
        if not few and positions <= FEW_POSITIONS and math.prod(weight) >= LARGE_ON_FEW:
            kind += ", large"
    if layout_of(image) == torch.channels_last:
        kind += ", channels_last"
    vectors = x[0] * positions
    return Work(op, kind, math.prod(weight), kept, vectors, math.prod(x) + vectors * weight[0], image.dtype)


def choose_packed(work: Work) -> str:
    """ "reference", which spreads the values over a dense weight, only where even so it is predicted to be faster."""
    choice = costs.choose(work)
    if "native" not in choice.predicted:
        return "reference"
    dense = choice.predicted["dense"] + SPREAD * work.slots
    return "reference" if dense < choice.predicted["native"] else "native"


def layout_of(x: Tensor) -> torch.memory_format:
    """channels_last where x is that and not contiguous as well."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def output_size(size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> list[int]:
    return [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    ]
