"""An infinite activation or gradient reaches what reads it and nothing else, in each product of the native layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import Backend, isa_levels

from sparseprune.ops import masked_conv2d as conv
from sparseprune.ops import masked_linear as linear
from sparseprune.ops import packed_conv2d, packed_linear
from sparseprune.ops.bitmask import BitMask
from sparseprune.ops.packed_values import pack_values, unpack_values

pytestmark = pytest.mark.skipif(not isa_levels(), reason="this installation was built without the CPU library")
LEVELS = isa_levels() or ["portable"]
levels = pytest.mark.parametrize("level", LEVELS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
storages = pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
# (N, in, H, W), (out, kh, kw), stride, padding, dilation, groups: gaps of one position and of many, none, windows of
# some images, of some rows and of a part of a row
GEOMETRIES = {
    "padded": ((3, 4, 7, 7), (6, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    "valid": ((3, 4, 7, 9), (6, 3, 3), (1, 1), (0, 0), (1, 1), 1),
    "strided": ((3, 4, 9, 8), (6, 3, 3), (2, 2), (1, 1), (1, 1), 1),
    "dilated groups": ((2, 4, 9, 10), (6, 3, 2), (1, 2), (2, 1), (2, 1), 2),
    "1x1, strided": ((2, 4, 7, 6), (6, 1, 1), (2, 2), (0, 0), (1, 1), 1),
    "rows": ((1, 3, 70, 80), (3, 3, 3), (1, 1), (0, 1), (1, 1), 1),
    "a line": ((1, 2, 1, 5000), (3, 1, 9), (1, 1), (0, 0), (1, 1), 1),
}
BATCHES = (1, 5, 8, 9, 40)


def plants(shape, count=6):
    """Some indices of a tensor: both corners and others."""
    inside = [tuple(int(torch.randint(size, ())) for size in shape) for _ in range(count)]
    return [(0,) * len(shape), tuple(size - 1 for size in shape), *inside]


@levels
@dtypes
@storages
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_convolutions(geometry, packed, dtype, level):
    (n, c, h, w), (out, *kernel), stride, padding, dilation, groups = geometry
    options = (list(stride), list(padding), list(dilation), groups)
    keep = torch.rand(out, c // groups, *kernel) < 0.6
    mask = BitMask.from_bool(keep)
    weight = torch.where(keep, torch.randn(keep.shape, dtype=dtype), 0)
    x = torch.randn(n, c, h, w, dtype=dtype)
    grad = torch.randn(F.conv2d(x, weight, None, stride, padding, dilation, groups).shape, dtype=dtype)

    def products():
        stored = pack_values(weight, mask) if packed else weight
        kinds = packed_conv2d if packed else conv
        shape = ([*kernel],) if packed else ()
        with Backend("native", level).forced():
            y = kinds.FORWARD["native"].run(x, stored, mask.words, None, *shape, *options)
            dx = kinds.INPUT_GRAD["native"].run(grad, stored, mask.words, list(x.shape), *shape, *options)
            if packed:
                values = kinds.VALUES_GRAD["native"].run(grad, x, mask.words, mask.count(), *shape, *options)
                return y, dx, unpack_values(values, mask)
            return y, dx, kinds.WEIGHT_GRAD["native"].run(grad, x, mask.words, list(weight.shape), *options)

    for tensor in (x, grad):
        for index in plants(tensor.shape):
            before = tensor[index].item()
            tensor[index] = float("inf")
            y, dx, dw = products()
            read = F.conv2d((~x.isfinite()).double(), keep.double(), None, stride, padding, dilation, groups) > 0
            assert torch.equal(~y.isfinite(), read)
            sources = torch.ops.aten.convolution_backward(
                (~grad.isfinite()).double(),
                x.double(),
                keep.double(),
                None,
                *options[:3],
                False,
                [0, 0],
                groups,
                [True, False, False],
            )[0]
            assert torch.equal(~dx.isfinite(), sources > 0)
            expected = torch.ops.aten.convolution_backward(
                grad.double(),
                x.double(),
                weight.double(),
                None,
                *options[:3],
                False,
                [0, 0],
                groups,
                [False, True, False],
            )[1]
            assert torch.equal(~dw.isfinite(), ~expected.isfinite() & keep)
            finite = expected.isfinite() & keep
            torch.testing.assert_close(dw[finite].double(), expected[finite], rtol=1e-4, atol=1e-4)
            tensor[index] = before


@levels
@dtypes
@storages
@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("batch", BATCHES)
def test_linear_layers(batch, density, packed, dtype, level):
    """Others' samples stay finite, and gradients of other inputs and outputs; a word of the mask may be read whole."""
    keep = torch.rand(37, 150) < density
    mask = BitMask.from_bool(keep)
    weight = torch.where(keep, torch.randn(keep.shape, dtype=dtype), 0)
    x, grad = torch.randn(batch, 150, dtype=dtype), torch.randn(batch, 37, dtype=dtype)

    def products():
        stored = pack_values(weight, mask) if packed else weight
        kinds = packed_linear if packed else linear
        with Backend("native", level).forced():
            y = kinds.FORWARD["native"].run(x, stored, mask.words, None)
            if packed:
                dx = kinds.INPUT_GRAD["native"].run(grad, stored, mask.words, 150)
                dw = unpack_values(kinds.VALUES_GRAD["native"].run(grad, x, mask.words, mask.count()), mask)
                return y, dx, dw
            dx = kinds.INPUT_GRAD["native"].run(grad, stored, mask.words)
            return y, dx, kinds.WEIGHT_GRAD["native"].run(grad, x, mask.words)

    for tensor in (x, grad):
        for index in plants(tensor.shape, 3):
            before = tensor[index].item()
            tensor[index] = float("inf")
            y, dx, dw = products()
            wrong_x, wrong_grad = (~x.isfinite()).double(), (~grad.isfinite()).double()
            must = wrong_x @ keep.double().t() > 0
            may = wrong_x.any(1, keepdim=True).expand_as(must)
            assert (~y.isfinite() & must).equal(must) and (y.isfinite() | may).all()
            must = wrong_grad @ keep.double() > 0
            may = wrong_grad.any(1, keepdim=True).expand_as(must)
            assert (~dx.isfinite() & must).equal(must) and (dx.isfinite() | may).all()
            assert torch.equal(~dw.isfinite(), (wrong_x.any(0)[None] | wrong_grad.any(0)[:, None]) & keep)
            tensor[index] = before
