"""The masked convolution at ResNet-50's shapes, forward and backward, beside dense and sparse ones.

Expected on two AVX-512 cores at batch 16: dense is oneDNN at 80-90 % of the peak already (3x3, 256 to 256 at 14 x 14:
11.1 GF, 22 ms), masking costs it 0-6 %; so ours has no slow baseline to shine against and must cross it near a
density of 0.25 for 3x3, less for 1x1, where converting layouts weighs as much as the products. SparseProp crosses at
0.1. On a GPU, tensor cores should win at every density shown in bfloat16.
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

# (batch, in, out, kernel, size, stride)
LAYERS = (
    (16, 64, 64, 3, 56, 1),
    (16, 256, 256, 3, 14, 1),
    (16, 256, 256, 3, 28, 2),
    (16, 256, 1024, 1, 14, 1),
    (1, 256, 256, 3, 14, 1),
)


def rows(plan: Plan) -> Iterator[Row]:
    layers = plan.pick(quick=((2, 8, 12, 3, 7, 1),), cpu=LAYERS, cuda=[(64, *layer[1:]) for layer in LAYERS[:-1]])
    for batch, n_in, n_out, kernel, size, stride in layers:
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
                dense={"dense, channels_last": channels_last},
                peers={"sparseprop": sparseprop_conv(stride, padding)},
            )


def _masked(x, weight, mask, *, backend, stride, padding):
    return sp.masked_conv2d(x, weight, mask, stride=stride, padding=padding, backend=backend)


def test_masked_conv2d(row, measure):
    measure(row)
