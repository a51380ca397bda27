"""to_semi_structured: refusals, the walk over a model, and the compressed weight that torch makes of ours.

The product needs a GPU. Elsewhere a tensor type of the tests compresses as torch's CUTLASS type does, by torch's own code
that runs anywhere, and multiplies what ``decoded`` reads in the compressed form by the definition of CUTLASS.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.sparse import SparseSemiStructuredTensorCUTLASS

import sparseprune as sp
from sparseprune.nn import semi_structured
from sparseprune.nn.semi_structured import crowded_groups

pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor is in prototype stage"),
    pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op"),
]


def decoded(packed, meta):
    """The dense weight of a compressed one, element by element.

    CUTLASS, tools/util/include/cutlass/util/host_reorder.h (reorder_meta) and ColumnMajorInterleaved<2>: where the 16
    bits of four groups of a row lie; each group has the indices of its first and second value in two bits each.
    """
    rows, width = packed.shape
    flat, dense = meta.flatten().tolist(), torch.zeros(rows, 2 * width, dtype=packed.dtype)
    for row in range(rows):
        for column in range(width // 8):
            to_row, to_column = row // 32 * 32 + row % 8 * 4 + row % 32 // 8, column
            if to_row % 2 == 0 and to_column % 2 == 1:
                to_row, to_column = to_row + 1, to_column - 1
            elif to_row % 2 == 1 and to_column % 2 == 0:
                to_row, to_column = to_row - 1, to_column + 1
            bits = flat[to_column // 2 * 2 * rows + to_row * 2 + to_column % 2]
            for group in range(4):
                for which in range(2):
                    index = bits >> (4 * group + 2 * which) & 3
                    dense[row, 16 * column + 4 * group + index] += packed[row, 8 * column + 2 * group + which]
    return dense


class Emulated(SparseSemiStructuredTensorCUTLASS):
    """torch's type on a CPU."""

    @classmethod
    def _validate_device_dim_dtype_shape(cls, original_tensor):
        assert original_tensor.is_contiguous()

    def _mm(self, B, *, bias=None, should_transpose_dense=False, **_):
        assert should_transpose_dense  # as F.linear calls it
        return F.linear(B, decoded(self.packed, self.meta), bias)


@pytest.fixture
def emulated(monkeypatch):
    monkeypatch.setattr(semi_structured, "_tensor_type", lambda: Emulated)
    monkeypatch.setattr(semi_structured, "_device_refusal", lambda device: None)


def two_of_four(rows, columns, most=2):
    """At most ``most`` of four, at random places."""
    ranks = torch.rand(rows, columns // 4, 4).argsort(-1)
    return (ranks < torch.randint(most + 1, (rows, columns // 4, 1))).flatten(1)


def model_of(dtype=torch.float16, storage="owned"):
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 128, bias=False), nn.Linear(128, 5)).to(dtype)
    masks = {"0.weight": two_of_four(32, 64), "2.weight": two_of_four(128, 32), "3.weight": torch.rand(5, 128) < 0.5}
    with torch.no_grad():
        model[0].weight[~masks["0.weight"]] = float("nan")  # nobody may read it
    return sp.sparsify(model, masks, storage=storage)


def test_crowded_groups_are_those_counted_one_by_one():
    keep = torch.rand(9, 36) < 0.5
    expected = [[r, c] for r in range(9) for c in range(0, 36, 4) if sum(keep[r, c : c + 4].tolist()) > 2]
    assert expected and crowded_groups(sp.BitMask.from_bool(keep)).tolist() == expected
    assert not len(crowded_groups(sp.BitMask.from_bool(two_of_four(9, 36))))


@pytest.mark.parametrize("storage", ["owned", "overlay", "packed"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_computes_as_before(emulated, dtype, storage):
    model, x = model_of(dtype, storage).eval(), torch.randn(2, 3, 64, dtype=dtype)
    model[0].register_forward_hook(lambda *_: None)
    dense = sp.densify(copy.deepcopy(model))
    bias, parameters = model[0].bias, [name for name, _ in dense.named_parameters()]
    # 32 inputs are not a multiple of CUTLASS's 64 in the second, the third has another mask.
    with pytest.raises(ValueError, match="got '2.weight' has shape .*; '3.weight' keeps more than two"):
        sp.to_semi_structured(model)
    assert all(isinstance(model[i], sp.SparseLinear) and model[i].storage == storage for i in (0, 2, 3))
    assert sp.to_semi_structured(model, exclude=["2.weight", "3.weight"]) is model
    assert type(model[0]) is nn.Linear and isinstance(model[2], sp.SparseLinear)
    assert model[0].bias is bias and len(model[0]._forward_hooks) == 1 and "weight_mask" not in model[0]._buffers
    weight = model[0].weight
    assert isinstance(weight, nn.Parameter) and not weight.requires_grad and weight.shape == (32, 64)
    assert weight.packed.shape == (32, 32) and weight.meta.shape == (32, 4)
    assert torch.equal(decoded(weight.packed, weight.meta), dense[0].weight)
    with torch.no_grad():
        torch.testing.assert_close(model[0](x), dense[0](x), rtol=0, atol=0)
        torch.testing.assert_close(model(x), dense(x))
    if storage != "packed":
        assert [name for name, _ in model.named_parameters()] == parameters


def test_tied_weights_stay_tied(emulated):
    first, second = nn.Linear(64, 64).half(), nn.Linear(64, 64).half()
    second.weight = first.weight
    model = sp.sparsify(nn.Sequential(first, second), {"0.weight": two_of_four(64, 64)})
    sp.to_semi_structured(model)
    assert model[0].weight is model[1].weight and len(list(model.parameters())) == 3


def sparse(rows, columns, keep=None, dtype=torch.float16):
    return sp.SparseLinear(columns, rows, dtype=dtype, mask=two_of_four(rows, columns) if keep is None else keep)


class Own(sp.SparseLinear):
    pass


CROWDED = torch.zeros(32, 64, dtype=torch.bool)
CROWDED[7, 20:23] = True
REFUSED = {
    "three of four": (
        lambda: sparse(32, 64, CROWDED),
        r"keeps more than two of four .* in 1 of 512 groups, first in row 7, columns 20 to 23",
    ),
    "odd inputs": (lambda: sparse(32, 63, torch.zeros(32, 63).bool()), "has 63 inputs, not a multiple of 4"),
    "float32": (lambda: sparse(32, 64, dtype=torch.float32), "is torch.float32, not float16 or bfloat16"),
    "few rows": (
        lambda: sparse(16 + 8, 64),
        r"has shape \(24, 64\), not multiples of \(\d+, \d+\), which c\w+ asks for",
    ),
    "no rows": (lambda: sparse(0, 64, torch.zeros(0, 64).bool()), r"has shape \(0, 64\), not multiples"),
    "on a CPU": (lambda: sparse(32, 64), "is on cpu, not on a CUDA device"),
    "a subclass": (lambda: Own(64, 32, mask=two_of_four(32, 64)), "is held by a subclass of the sparse layers, Own"),
}


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_handed_over_is_refused_with_a_reason(make, reason):
    model = nn.Sequential(make())
    before = model.state_dict()
    with pytest.raises(ValueError, match=f"'0.weight' {reason}.*exclude=.'0.weight'.") as error:
        sp.to_semi_structured(model)
    assert "got '0.weight'" in str(error.value)
    assert isinstance(model[0], sp.SparseLinear) and all(
        torch.equal(v, before[k]) for k, v in model.state_dict().items()
    )


def test_what_there_is_to_hand_over_is_checked():
    with pytest.raises(ValueError, match="model must have a sparse linear layer that is not excluded, got none"):
        sp.to_semi_structured(nn.Linear(64, 32))
    model = nn.Sequential(sparse(32, 64))
    with pytest.raises(ValueError, match="not excluded, got none"):
        sp.to_semi_structured(model, exclude=["0.weight"])
    with pytest.raises(ValueError, match=r"exclude must name weights of sparse linear layers, \['0.weight'\], got"):
        sp.to_semi_structured(model, exclude=["0"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the product needs a GPU")
@pytest.mark.parametrize("batch", [1, 16, 100])
def test_on_a_gpu_the_product_is_that_of_the_dense_weight(batch):
    layer = sparse(128, 256, dtype=torch.float16).cuda()
    x, weight = torch.randn(batch, 256, dtype=torch.float16, device="cuda"), layer.weight.detach().clone()
    with torch.no_grad():
        y = sp.to_semi_structured(layer)(x)
    exact = F.linear(x.double(), weight.double(), layer.bias.double())
    theirs = (F.linear(x, weight, layer.bias).double() - exact).abs().max()
    assert (y.double() - exact).abs().max() <= 2 * theirs + 4 * torch.finfo(torch.float16).eps * exact.abs().max()
