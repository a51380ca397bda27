"""The masked linear layer beside dense and sparse ones, by density; where the curves cross is the figure to read.

Expected, forward and backward at 4096 x 4096 in float32 on two AVX-512 cores (570 GF/s, 92 GB/s): dense is bound by
arithmetic from batch 16 on (batch 128: 12.9 GF, 23 ms, which oneDNN nearly reaches and oneMKL on AMD does not by 2x);
ours does ``density`` of that work at 25-35 % of the peak, one cache load a multiply-add, so it should cross oneDNN near a
density of 0.3 and win by 3x at 0.1 and 20x at 0.01. At batch 1 everything is bound by reading 64 MiB of weights and
writing as much gradient: 1.4 ms. On a GPU (not measured by its authors' machine): below batch 256 bytes decide and ours
may win from a density of one half; beyond, tensor cores win down to 2-8 %. Masks of the 2:4 pattern have rows of their
own, beside cuSPARSELt, which knows no other.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F

import sparseprune as sp
from sparseprune.ops.masked_linear import FORWARD as IMPLEMENTATIONS

from .layers import FORWARD, TRAINING, Shape, layer_rows
from .peers import cusparselt_linear, onednn_linear, sparseprop_linear, torch_csr
from .rows import Plan, Row


def rows(plan: Plan) -> Iterator[Row]:
    shapes = plan.pick(
        quick=((16, 96, 64, TRAINING), (1, 96, 64, FORWARD)),
        cpu=(
            *((batch, 4096, 4096, TRAINING) for batch in (1, 16, 128, 1024)),
            *((batch, 4096, 4096, FORWARD) for batch in (1, 16)),
        ),
        cuda=(
            (16, 4096, 4096, FORWARD),
            *((batch, 4096, 4096, TRAINING) for batch in (256, 4096)),
            (1, 4096, 4096, FORWARD),
        ),
    )
    for batch, n_in, n_out, phase in shapes:
        for dtype in plan.dtypes:
            base = Shape((batch, n_in), (n_out, n_in), 1.0, dtype, plan.device, phase, F.linear)
            yield from layer_rows(
                plan,
                base,
                "masked_linear",
                f"{n_in} to {n_out}, batch {batch}",
                IMPLEMENTATIONS,
                sp.masked_linear,
                sp.packed_linear,
                dense={"oneDNN": onednn_linear} if plan.device == "cpu" else {},
                peers={"torch.sparse CSR": torch_csr, "sparseprop": sparseprop_linear},
            )
    for batch, n_in, n_out in plan.pick(quick=((16, 96, 64),), cpu=(), cuda=((16, 4096, 4096), (4096, 4096, 4096))):
        base = Shape(
            (batch, n_in), (n_out, n_in), 0.5, plan.dtypes[0], plan.device, FORWARD, F.linear, two_of_four=True
        )
        yield from layer_rows(
            plan,
            base,
            "masked_linear",
            f"{n_in} to {n_out}, batch {batch}, 2:4",
            IMPLEMENTATIONS,
            sp.masked_linear,
            sp.packed_linear,
            dense={},
            peers={"cuSPARSELt": cusparselt_linear},
        )


def test_masked_linear(row, measure):
    measure(row)
