"""packed_linear and packed_conv2d as a user meets them, against plain PyTorch on the weight that they never make."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, jvp, vmap

import sparseprune as sp
from sparseprune.ops import native, packed_linear

BACKENDS = ("native", "reference")


def problem(shape, op, dense, x, dtype):
    """(function of x, values, bias), the same in plain PyTorch, and the arguments."""
    keep = torch.rand(shape) < 0.5
    slots = keep.flatten().nonzero().squeeze(1)

    def ours(x, values, bias, **options):
        return op(x, values, sp.BitMask.from_bool(keep), bias, **options)

    def theirs(x, values, bias):
        weight = torch.zeros(keep.numel(), dtype=values.dtype).index_put((slots,), values)
        return dense(x, weight.reshape(shape), bias)

    args = [x, torch.randn(len(slots)), torch.randn(shape[0])]
    return ours, theirs, [a.to(dtype) for a in args]


def linear_problem(dtype=torch.float64):
    return problem((5, 6), sp.packed_linear, F.linear, torch.randn(4, 6), dtype)


def conv_problem(dtype=torch.float64, **options):
    shape = (6, 4 // options.get("groups", 1), 3, 2)
    ours, dense = partial(sp.packed_conv2d, **options), partial(F.conv2d, **options)
    return problem(shape, ours, dense, torch.randn(2, 4, 6, 5), dtype)


PROBLEMS = {
    "linear": linear_problem,
    "conv": conv_problem,
    "strided": partial(conv_problem, stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2),
}
problems = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
on_backends = pytest.mark.parametrize("backend", BACKENDS)


@problems
@on_backends
def test_equals_the_dense_layer(problem, backend):
    ours, dense, args = problem()
    args = [a.requires_grad_() for a in args]
    y, expected = ours(*args, backend=backend), dense(*args)
    torch.testing.assert_close(y, expected)
    assert y.dtype == args[0].dtype
    cotangent = torch.randn_like(y)
    actual = torch.autograd.grad(y, args, cotangent)
    assert actual[1].shape == args[1].shape
    for a, e in zip(actual, torch.autograd.grad(expected, args, cotangent), strict=True):
        torch.testing.assert_close(a, e)


@problems
@on_backends
def test_first_and_second_derivatives(problem, backend):
    ours, _, args = problem()
    args = [a.requires_grad_() for a in args]
    function = partial(ours, backend=backend)
    assert torch.autograd.gradcheck(function, args)
    assert torch.autograd.gradgradcheck(function, args)


@problems
def test_torch_func(problem):
    ours, dense, (x, values, bias) = problem()

    def loss(function, values, x):
        return function(x, values, bias).square().sum()

    for transform in (
        lambda f: grad(partial(loss, f))(values, x),
        lambda f: vmap(grad(partial(loss, f)), (None, 0))(values, x),
        lambda f: vmap(lambda x: f(x, values, bias), in_dims=1)(torch.stack([x, 3 * x], 1)),
        lambda f: grad(lambda v: grad(partial(loss, f))(v, x).square().sum())(values),
    ):
        torch.testing.assert_close(transform(ours), transform(dense))
    several = torch.stack([values, 2 * values])
    each = [grad(partial(loss, dense))(v, x) for v in several]
    torch.testing.assert_close(vmap(grad(partial(loss, ours)), (0, None))(several, x), torch.stack(each))


@problems
def test_forward_mode_raises_and_does_not_lie(problem):
    ours, _, (x, values, bias) = problem()
    with pytest.raises(RuntimeError, match="jvp|forward"):
        jvp(lambda x: ours(x, values, bias), (x,), (torch.ones_like(x),))


@problems
def test_compiles_whole(problem):
    torch._dynamo.reset()  # the parameters of this test share one code object
    ours, dense, args = problem(torch.float32)

    grads = []
    for function in (torch.compile(ours, fullgraph=True, backend="aot_eager"), dense):
        leaves = [a.clone().requires_grad_() for a in args]
        function(*leaves).square().sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    for a, e in zip(*grads, strict=True):
        torch.testing.assert_close(a, e)


@problems
def test_autocast(problem):
    ours, dense, args = problem(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ours(*args)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y, dense(*args), rtol=0.02, atol=0.05)


def test_values_are_those_of_the_weight_in_its_order():
    keep = torch.rand(6, 4, 3, 2) < 0.3
    weight, mask = torch.randn(keep.shape, dtype=torch.float64, requires_grad=True), sp.BitMask.from_bool(keep)
    values = sp.pack_values(weight, mask)
    assert values.tolist() == [w for w, k in zip(weight.flatten().tolist(), keep.flatten().tolist(), strict=True) if k]
    assert torch.equal(sp.unpack_values(values, mask), torch.where(keep, weight, 0))
    assert torch.autograd.gradcheck(lambda w: sp.pack_values(w, mask), weight)
    assert torch.autograd.gradcheck(lambda v: sp.unpack_values(v, mask), values.detach().requires_grad_())
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    native = {"backend": "native"}
    assert torch.equal(sp.packed_conv2d(x, values, mask, **native), sp.masked_conv2d(x, weight, mask, **native))


def test_one_image_and_channels_last():
    keep = torch.rand(3, 4, 3, 3) < 0.5
    weight, x, mask = torch.randn(3, 4, 3, 3), torch.randn(2, 4, 6, 6), sp.BitMask.from_bool(keep)
    expected = F.conv2d(x, weight * keep, padding="same")
    torch.testing.assert_close(sp.packed_conv2d(x[0], weight[keep], mask, padding="same"), expected[0])
    y = sp.packed_conv2d(x.to(memory_format=torch.channels_last), weight[keep], mask, padding="same")
    assert y.is_contiguous(memory_format=torch.channels_last) and not y.is_contiguous()
    torch.testing.assert_close(y, expected)


MASK = sp.BitMask.from_bool(torch.tensor([[True, False, True], [False, True, True]]))
KERNEL = sp.BitMask.ones((6, 2, 3, 3))
X, VALUES = torch.zeros(2, 3), torch.zeros(4)
ERRORS = {
    "a bool mask": (TypeError, "mask must be a BitMask, got Tensor", (X, VALUES, MASK.to_bool())),
    "a mask of a convolution": (ValueError, "mask must have 2 dimensions", (X, VALUES, KERNEL)),
    "a dense weight": (ValueError, r"values must have shape \(kept,\), got \(2, 3\)", (X, torch.zeros(2, 3), MASK)),
    "x too wide": (ValueError, r"x must have shape \(..., 3\)", (torch.zeros(2, 4), VALUES, MASK)),
    "integers": (TypeError, "x must be a floating-point tensor", (X.int(), VALUES, MASK)),
    "two dtypes": (TypeError, "values must have x's dtype", (X, VALUES.double(), MASK)),
    "bias too long": (ValueError, r"bias must have shape \(2,\)", (X, VALUES, MASK, torch.zeros(3))),
    "mask elsewhere": (ValueError, "mask must be on x's device cpu, got meta", (X, VALUES, MASK.to("meta"))),
}


@pytest.mark.parametrize(("kind", "message", "args"), ERRORS.values(), ids=ERRORS)
def test_errors(kind, message, args):
    with pytest.raises(kind, match=message):
        sp.packed_linear(*args)


@on_backends
@pytest.mark.parametrize("count", [3, 5])
def test_as_many_values_as_slots_kept(count, backend):
    """Also where only the kernel counts them: it must not read beyond the values."""
    message = f"values.? must have as many elements as the mask keeps, 4, got {count}"
    with pytest.raises((ValueError, RuntimeError), match=message):
        sp.packed_linear(X, torch.zeros(count), MASK, backend=backend)
    with pytest.raises(ValueError, match=r"values must have shape \(4,\)"):
        sp.unpack_values(torch.zeros(count), MASK)


@pytest.mark.parametrize(
    ("density", "batch", "chosen"),
    [(0.1, 1, "native"), (0.1, 130, "native"), (0.1, 160, "reference"), (0.01, 600, "native"), (1.0, 16, "reference"),
     (1e-6, 900, "native"), (1e-6, 2000, "reference")],
)  # fmt: skip
def test_on_a_gpu_the_kernels_are_taken_for_few_multiply_adds(density, batch, chosen):
    """(density + 1 / 64) batch <= 16; tensors that have no values say on which device they would be."""
    if native.refusal({"cuda"}, {torch.float16}):
        pytest.skip("the CUDA library is not built")
    with FakeTensorMode():
        x, grad = (torch.empty(batch, n, dtype=torch.float16, device="cuda") for n in (256, 128))
        words, kept = torch.empty(128, 8, dtype=torch.int32, device="cuda"), int(128 * 256 * density)
        assert packed_linear._choose("masked_linear", x, words, 256, kept) == chosen
        assert packed_linear._choose("masked_linear_input_grad", grad, words, 256, kept) == chosen
        assert packed_linear._choose("masked_linear_weight_grad", grad, words, 256, kept) == chosen


def test_options_are_checked_as_by_the_masked_convolution():
    x, values = torch.zeros(1, 4, 5, 5), torch.zeros(108)
    for message, options in {
        r"x must have shape \(N, 2, H, W\)": {},
        "groups must divide the 6 output channels, got 4": {"groups": 4},
        "x must be at least as large as the kernel": {"groups": 2, "dilation": 3},
    }.items():
        with pytest.raises(ValueError, match=message):
            sp.packed_conv2d(x, values, KERNEL, **options)
