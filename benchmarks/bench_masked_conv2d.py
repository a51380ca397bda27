"""The masked convolution at ResNet-50's shapes, forward and backward, beside dense and sparse ones.

Expected on a CPU: dense is oneDNN at 70-90 % of the peak already, masking costs it 0-6 %. Ours loads every operand of a
multiply-add from a cache, half of them across two cache lines, so at most 1.1 of 2 a cycle with AVX2: it should reach
half the dense rate on ``density`` of the work, and win by 3x at 0.1. Below a density of 0.05 what is left are bytes: 3x3,
64 to 64 at 56 x 56, batch 16, has 13 MB a tensor, read three times and written twice; 1x1, 64 to 256, has 51 MB of
output, of which the pages alone cost as much as the products. On a GPU, tensor cores should win at every density shown in
bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch.nn.functional as F

import sparseprune as sp
from sparseprune.ops.masked_conv2d import FORWARD as IMPLEMENTATIONS

from .layers import TRAINING, Shape, layer_rows
from .peers import channels_last, sparseprop_conv
from .rows import Plan, Row

# (in, out, kernel, size, stride)
LAYERS = (
    (64, 64, 3, 56, 1),
    (128, 128, 3, 28, 1),
    (256, 256, 3, 14, 1),
    (512, 512, 3, 7, 1),
    (64, 256, 1, 56, 1),
    (256, 64, 1, 56, 1),
    (1024, 256, 1, 14, 1),
    (512, 2048, 1, 7, 1),
    (256, 256, 3, 28, 2),
    (3, 64, 7, 224, 2),
)


def rows(plan: Plan) -> Iterator[Row]:
    at_batch = [(batch, *layer) for batch in plan.pick(quick=(), cpu=(16, 1), cuda=(64,)) for layer in LAYERS]
    for batch, n_in, n_out, kernel, size, stride in plan.pick(
        quick=((2, 8, 12, 3, 7, 1),), cpu=at_batch, cuda=at_batch
    ):
        padding = kernel // 2
        for dtype in plan.dtypes:
            base = Shape(
                (batch, n_in, size, size),
                (n_out, n_in, kernel, kernel),
                1.0,
                dtype,
                plan.device,
                TRAINING,
                partial(F.conv2d, stride=stride, padding=padding),
            )
            yield from layer_rows(
                plan,
                base,
                "masked_conv2d",
                f"{kernel}x{kernel}, {n_in} to {n_out}, {size}x{size}, stride {stride}, batch {batch}",
                IMPLEMENTATIONS,
                partial(_masked, stride=stride, padding=padding),
                partial(sp.packed_conv2d, stride=stride, padding=padding),
                dense={"dense, channels_last": channels_last},
                peers={"sparseprop": sparseprop_conv(stride, padding)},
                densities=(0.2, 0.1, 0.05, 0.01),
            )


def _masked(x, weight, mask, *, backend, stride, padding):
    return sp.masked_conv2d(x, weight, mask, stride=stride, padding=padding, backend=backend)


def test_masked_conv2d(row, measure):
    measure(row)
