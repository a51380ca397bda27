"""masked_linear and masked_conv2d as a user meets them: gradients of any order, torch.func, compile, autocast, errors."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, jvp, vmap

import sparseprune as sp

BACKENDS = ("native", "reference")
CONV = {
    "plain": {},
    "strided": {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2},
}


def linear_problem(dtype=torch.float64):
    """(function of x, weight, bias), the same in plain PyTorch, and the arguments; NaN sits in pruned slots."""
    keep = torch.rand(5, 6) < 0.5
    weight = torch.where(keep, torch.randn(5, 6), float("nan")).to(dtype)
    mask = sp.BitMask.from_bool(keep)

    def dense(x, weight, bias):
        return F.linear(x, torch.where(keep, weight, 0), bias)

    return (
        partial(_swap, sp.masked_linear, mask),
        dense,
        [torch.randn(4, 6, dtype=dtype), weight, torch.randn(5, dtype=dtype)],
    )


def conv_problem(dtype=torch.float64, **options):
    keep = torch.rand(6, 4 // options.get("groups", 1), 3, 2) < 0.5
    weight = torch.where(keep, torch.randn(keep.shape), float("nan")).to(dtype)
    mask = sp.BitMask.from_bool(keep)

    def dense(x, weight, bias):
        return F.conv2d(x, torch.where(keep, weight, 0), bias, **options)

    x = torch.randn(2, 4, 6, 5, dtype=dtype)
    return partial(_swap, sp.masked_conv2d, mask, **options), dense, [x, weight, torch.randn(6, dtype=dtype)]


def _swap(op, mask, x, weight, bias, **options):
    return op(x, weight, mask, bias, **options)


PROBLEMS = {
    "linear": linear_problem,
    **{f"conv {name}": partial(conv_problem, **options) for name, options in CONV.items()},
}
problems = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
on_backends = pytest.mark.parametrize("backend", BACKENDS)


@problems
@on_backends
def test_first_and_second_derivatives(problem, backend):
    ours, _, (x, weight, bias) = problem()
    # Finite differences move every slot, pruned ones too, so they start from a number here.
    args = [t.nan_to_num(0.5).requires_grad_() for t in (x, weight, bias)]
    function = partial(ours, backend=backend)
    assert torch.autograd.gradcheck(function, args)
    assert torch.autograd.gradgradcheck(function, args)


@problems
@on_backends
def test_pruned_slots_are_never_read(problem, backend):
    ours, dense, args = problem()
    args = [a.requires_grad_() for a in args]
    y = ours(*args, backend=backend)
    assert torch.isfinite(y).all()
    torch.testing.assert_close(y, dense(*args))
    actual = torch.autograd.grad(y.square().sum(), args, create_graph=True)
    expected = torch.autograd.grad(dense(*args).square().sum(), args)
    for a, e in zip(actual, expected, strict=True):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a, e)
    pruned = args[1].isnan()
    assert pruned.any() and (actual[1][pruned] == 0).all()
    second = torch.autograd.grad(sum(a.square().sum() for a in actual), args)
    assert all(torch.isfinite(s).all() for s in second)


@problems
def test_torch_func(problem):
    ours, dense, (x, weight, bias) = problem()
    weight = weight.nan_to_num(0.5)

    def loss(function, weight, x):
        return function(x, weight, bias).square().sum()

    for transform in (
        lambda f: grad(partial(loss, f))(weight, x),
        lambda f: vmap(grad(partial(loss, f)), (None, 0))(weight, x),
        lambda f: vmap(grad(partial(loss, f)), (0, None))(torch.stack([weight, 2 * weight]), x),
        lambda f: vmap(lambda x: f(x, weight, bias), in_dims=1)(torch.stack([x, 3 * x], 1)),
        lambda f: grad(lambda w: grad(partial(loss, f))(w, x).square().sum())(weight),
    ):
        torch.testing.assert_close(transform(ours), transform(dense))


@problems
def test_forward_mode_raises_and_does_not_lie(problem):
    ours, _, (x, weight, bias) = problem()
    with pytest.raises(RuntimeError, match="jvp|forward"):
        jvp(lambda x: ours(x, weight, bias), (x,), (torch.ones_like(x),))


@problems
def test_compiles_whole_and_does_not_recompile_for_another_mask(problem):
    torch._dynamo.reset()  # the parameters of this test share one code object
    ours, _, args = problem(torch.float32)
    op, words = ours.args[0], ours.args[1].words.clone()

    def loss(x, weight, bias, words):
        return op(x, weight, words, bias, **ours.keywords).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            grads = []
            for function in (compiled, loss):
                leaves = [a.clone().requires_grad_() for a in args]
                function(*leaves, words).backward()
                grads.append([leaf.grad for leaf in leaves])
            for a, e in zip(*grads, strict=True):
                torch.testing.assert_close(a, e)
            words[0] = 0  # another mask in the same tensor


@problems
def test_autocast(problem):
    ours, dense, args = problem(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ours(*args)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y, dense(*args), rtol=0.02, atol=0.05)


def test_linear_takes_any_leading_dimensions():
    keep = torch.rand(3, 4) < 0.5
    weight = torch.randn(3, 4)
    for shape in ((4,), (2, 4), (2, 5, 4), (0, 4), (2, 0, 4)):
        x = torch.randn(shape)
        y = sp.masked_linear(x, weight, keep)
        assert y.shape == (*shape[:-1], 3)
        torch.testing.assert_close(y, F.linear(x, weight * keep))


def test_conv_takes_one_image_and_keeps_channels_last():
    keep = torch.rand(3, 4, 3, 3) < 0.5
    weight, x = torch.randn(3, 4, 3, 3), torch.randn(2, 4, 6, 6)
    expected = F.conv2d(x, weight * keep, padding=1)
    torch.testing.assert_close(sp.masked_conv2d(x[0], weight, keep, padding=1), expected[0])
    last = torch.channels_last
    y = sp.masked_conv2d(x.to(memory_format=last), weight.to(memory_format=last), keep, padding=1)
    assert y.is_contiguous(memory_format=last) and not y.is_contiguous()
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("kernel", [(3, 3), (2, 4), (1, 1)])
@pytest.mark.parametrize("dilation", [1, (2, 3)])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_named_paddings(kernel, dilation, padding):
    keep = torch.rand(3, 2, *kernel) < 0.7
    weight, x = torch.randn(3, 2, *kernel), torch.randn(1, 2, 12, 13)
    expected = F.conv2d(x, weight * keep, padding=padding, dilation=dilation)
    torch.testing.assert_close(sp.masked_conv2d(x, weight, keep, padding=padding, dilation=dilation), expected)


MASK, X, W = torch.ones(3, 4, dtype=torch.bool), torch.zeros(2, 4), torch.zeros(3, 4)
LINEAR_ERRORS = {
    "mask of another shape": (ValueError, r"mask must have shape \(3, 4\)", (X, W, MASK[:2])),
    "words of another shape": (
        ValueError,
        r"mask must have shape \(3, 2\)",
        (X, W, torch.zeros(3, 1, dtype=torch.int32)),
    ),
    "float mask": (TypeError, "mask must be a BitMask, a bool tensor or packed int32 words", (X, W, MASK.float())),
    "x too narrow": (ValueError, r"x must have shape \(..., 4\)", (X[:, :3], W, MASK)),
    "scalar x": (ValueError, r"x must have shape \(..., 4\)", (X[0, 0], W, MASK)),
    "weight not 2-D": (ValueError, r"weight must have shape \(out, in\)", (X, W[0], MASK)),
    "integers": (TypeError, "x must be a floating-point tensor", (X.int(), W, MASK)),
    "two dtypes": (TypeError, "weight must have x's dtype", (X, W.double(), MASK)),
    "bias too long": (ValueError, r"bias must have shape \(3,\)", (X, W, MASK, torch.zeros(4))),
    "another device": (ValueError, "weight must be on x's device cpu, got meta", (X, W.to("meta"), MASK)),
    "mask elsewhere": (ValueError, "mask must be on the weight's device cpu, got meta", (X, W, MASK.to("meta"))),
}


@pytest.mark.parametrize(("kind", "message", "args"), LINEAR_ERRORS.values(), ids=LINEAR_ERRORS)
def test_linear_errors(kind, message, args):
    with pytest.raises(kind, match=message):
        sp.masked_linear(*args)


IMAGE, KERNEL = torch.zeros(1, 4, 5, 5), torch.zeros(6, 2, 3, 3)
CONV_ERRORS = {
    "channels": (ValueError, r"x must have shape \(N, 2, H, W\)", {}),
    "groups": (ValueError, "groups must divide the 6 output channels, got 4", {"groups": 4}),
    "padding name": (
        ValueError,
        'padding must be integers, "same" or "valid", got \'full\'',
        {"groups": 2, "padding": "full"},
    ),
    "same with stride": (
        ValueError,
        'stride must be 1 where padding is "same"',
        {"groups": 2, "padding": "same", "stride": 2},
    ),
    "stride 0": (ValueError, "stride must be at least 1, got 0", {"groups": 2, "stride": 0}),
    "triple": (TypeError, "dilation must be an integer or a pair", {"groups": 2, "dilation": (1, 1, 1)}),
    "kernel too large": (ValueError, "x must be at least as large as the kernel", {"groups": 2, "dilation": 3}),
}


@pytest.mark.parametrize(("kind", "message", "options"), CONV_ERRORS.values(), ids=CONV_ERRORS)
def test_conv_errors(kind, message, options):
    with pytest.raises(kind, match=message):
        sp.masked_conv2d(IMAGE, KERNEL, torch.ones(6, 2, 3, 3, dtype=torch.bool), **options)


def test_shapes_are_known_without_values():
    """On the meta device, where models are planned before they exist."""
    x, weight = torch.empty(2, 4, device="meta"), torch.empty(3, 4, device="meta")
    assert sp.masked_linear(x, weight, torch.empty(3, 2, dtype=torch.int32, device="meta")).shape == (2, 3)
