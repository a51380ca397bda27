"""The rows that linear and convolution share: one masked layer, forward alone or forward and backward, by everybody.

"dense" rows compute with all weights: eager ``W * M``, plain dense with zeros in place (what a layer costs that keeps
its pruned weights at zero; its weight gradient is not masked), ``torch.compile`` of ``W * M``, and the vendor's best.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import prune

import sparseprune as sp

from .precision import check_close
from .rows import DENSE, OURS, PEER, AbsentError, Plan, Row, Timed, WrongResultError, ours, unless_refused

Layer = Callable[[Tensor, Tensor], Tensor]
FORWARD, TRAINING = "forward", "forward + backward"
# Far enough apart to see the curve, close enough to place the crossover. From nothing pruned to SynFlow's 99 %.
DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)


@dataclass(frozen=True)
class Shape:
    """What makes one masked layer; small, so that a thousand rows can be planned before the first is built."""

    x_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    density: float
    dtype: str
    device: str
    phase: str
    dense: Layer
    two_of_four: bool = False  # the mask keeps two of every four columns, for hardware that knows this pattern alone


class Problem:
    """The tensors of a shape and its exact results, made when first asked for."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.dtype, self.device, self.phase, self.dense = shape.dtype, shape.device, shape.phase, shape.dense

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """x, weight (zero where pruned), keep (bool), grad."""
        r = torch.Generator(self.device).manual_seed(1)
        normal = partial(torch.randn, generator=r, device=self.device)
        dtype = getattr(torch, self.dtype)
        keep = torch.rand(self.shape.weight_shape, generator=r, device=self.device)
        if self.shape.two_of_four:
            keep = keep.unflatten(-1, (-1, 4)).argsort(-1).flatten(-2) < 2
        else:
            keep = keep < self.shape.density
        weight = (normal(self.shape.weight_shape) * keep).to(dtype).requires_grad_()
        x = normal(self.shape.x_shape).to(dtype).requires_grad_()
        with torch.no_grad():
            y = self.dense(x[:1], weight)
        grad = normal((x.shape[0], *y.shape[1:])).to(dtype)
        return {"x": x, "weight": weight, "keep": keep, "grad": grad}

    @cached_property
    def mask(self) -> sp.BitMask:
        return sp.BitMask.from_bool(self.tensors["keep"])

    @cached_property
    def factor(self) -> Tensor:
        """The mask as the factor of ``W * M``."""
        return self.tensors["keep"].to(self.tensors["weight"].dtype)

    @cached_property
    def exact(self) -> tuple[Tensor, ...]:
        """y, or y, dx and the masked dW, in float64."""
        t = self.tensors
        x, weight, grad = (t[name].detach().double().requires_grad_() for name in ("x", "weight", "grad"))
        keep = t["keep"].double()
        return tuple(r.detach() for r in run_layer(lambda x, w: self.dense(x, w * keep), x, weight, grad, self.phase))

    def check(self, results: tuple[Tensor, ...], kind: str | None = None, *, masked: bool = True) -> None:
        """Every result is close to float64's; what is masked has no gradient at all at pruned slots."""
        kind, keep = kind or self.dtype, self.tensors["keep"]
        names = ("y", "dx", "dW")[: len(self.exact)]
        for name, actual, exact in zip(names, results, self.exact, strict=True):
            if name == "dW" and masked and bool((actual[~keep] != 0).any()):
                raise WrongResultError("dW is not zero at pruned slots")
            check_close(name, torch.where(keep, actual, 0) if name == "dW" else actual, exact, kind)

    def timed(self, run: Callable[[], Any], share: float = 1.0, **options: Any) -> Timed:
        """``share``: of the weights that are computed with. The bytes are those of every input and result, once."""
        x, weight, grad = (self.tensors[name] for name in ("x", "weight", "grad"))
        products = len(self.exact)  # y alone, or y, dx and dW
        elements = x.numel() + grad.numel() + share * weight.numel()
        if products == 3:
            elements += x.numel() + grad.numel() + weight.numel()
        moved = elements * x.element_size() + (weight.numel() / 8 if share < 1 else 0)
        per_product = 2 * weight[0].numel() * grad.numel() * share
        options.setdefault("check", self.check)
        return Timed(run, flops=products * per_product, bytes=moved, **{"limit": self.dtype, **options})


@lru_cache(maxsize=1)
def prepared(shape: Shape) -> Problem:
    """The problem of a shape. Only the last is kept: a large one with its exact results is a gigabyte."""
    return Problem(shape)


def run_layer(layer: Layer, x: Tensor, weight: Tensor, grad: Tensor, phase: str) -> tuple[Tensor, ...]:
    if phase == FORWARD:
        with torch.no_grad():
            return (layer(x, weight),)
    y = layer(x, weight)
    return (y, *torch.autograd.grad(y, (x, weight), grad))


def _plain(p: Problem, layer: Layer, **options: Any) -> Timed:
    t = p.tensors
    return p.timed(lambda: run_layer(layer, t["x"], t["weight"], t["grad"], p.phase), **options)


def _eager(p: Problem) -> Timed:
    return _plain(p, lambda x, w: p.dense(x, w * p.factor))


def _zeros_in_place(p: Problem) -> Timed:
    return _plain(p, p.dense, check=partial(p.check, masked=False), capturable=True)


def _tf32(p: Problem) -> Timed:
    if p.dtype != "float32":
        raise AbsentError("TF32 computes float32 products")
    return _plain(p, p.dense, check=partial(p.check, kind="tf32", masked=False), limit="tf32", capturable=True)


def _compiled(p: Problem) -> Timed:
    # A graph holds neither p nor its cached properties: the mask is an argument.
    torch.compiler.reset()
    dense = p.dense
    layer = torch.compile(lambda x, w, factor: dense(x, w * factor), dynamic=False)
    t = p.tensors
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's advice on how to be less exact
            run_layer(lambda x, w: layer(x, w, p.factor), t["x"], t["weight"], t["grad"], p.phase)
    except (RuntimeError, OSError) as error:
        raise AbsentError(f"torch.compile does not work here: {str(error).splitlines()[0]}") from error
    return _plain(p, lambda x, w: layer(x, w, p.factor))


def _torch_prune(p: Problem) -> Timed:
    """A layer pruned by ``torch.nn.utils.prune``: the product is formed by a hook before every forward."""
    t, module = p.tensors, torch.nn.Module()
    module.register_parameter("weight", torch.nn.Parameter(t["weight"].detach()))
    module.forward = lambda x: p.dense(x, module.weight)
    prune.custom_from_mask(module, "weight", t["keep"])
    return p.timed(lambda: run_layer(lambda x, _: module(x), t["x"], module.weight_orig, t["grad"], p.phase))


def _ours(p: Problem, backend: str, masked: Callable[..., Tensor]) -> Timed:
    t, mask = p.tensors, p.mask

    def run() -> tuple[Tensor, ...]:
        layer = lambda x, w: masked(x, w, mask, backend=backend)  # noqa: E731
        return run_layer(layer, t["x"], t["weight"], t["grad"], p.phase)

    unless_refused(run)
    # The reference computes with all weights, so that is the work it is measured by.
    return p.timed(run, 1.0 if backend == "reference" else p.shape.density, capturable=backend != "reference")


def _packed(p: Problem, packed: Callable[..., Tensor], backend: str) -> Timed:
    """The same layer on its survivors' values alone, whose gradient is as long."""
    t, mask = p.tensors, p.mask
    values = sp.pack_values(t["weight"].detach(), mask).requires_grad_()

    def check(results: tuple[Tensor, ...]) -> None:
        p.check(tuple(sp.unpack_values(r, mask) if r.shape == values.shape else r for r in results))

    def run() -> tuple[Tensor, ...]:
        return run_layer(lambda x, v: packed(x, v, mask, backend=backend), t["x"], values, t["grad"], p.phase)

    unless_refused(run)
    return p.timed(run, p.shape.density, check=check)


def layer_rows(
    plan: Plan,
    base: Shape,
    op: str,
    name: str,
    implementations: Mapping[str, Any],
    masked: Callable[..., Tensor],
    packed: Callable[..., Tensor],
    dense: Mapping[str, Callable[[Problem], Timed]],
    peers: Mapping[str, Callable[[Problem], Timed]],
    densities: Sequence[float] = DENSITIES,
) -> Iterator[Row]:
    """All rows of one shape: whoever does not depend on density once, the others at every density.

    Args:
        dense: the vendor's paths of this op, beside those every layer has.
        peers: sparse peers of this op, which depend on the density.
    """
    group = f"{op}, {base.phase}, {name}"
    row = partial(Row, op, group, dtype=base.dtype)
    middle = replace(base, density=0.5 if base.two_of_four else 0.1)
    common = {"eager W*M": _eager, "dense, zeros in place": _zeros_in_place, **dense}
    if plan.device == "cuda":
        common["dense, TF32"] = _tf32
    if not plan.quick:  # seconds of compilation for a toy
        common["torch.compile W*M"] = _compiled
    for side, build in common.items():
        yield row(side, DENSE, partial(_build, middle, build))
    yield row("torch.nn.utils.prune", PEER, partial(_build, middle, _torch_prune))
    yield row("reference", OURS, partial(_build, middle, partial(_ours, backend="reference", masked=masked)))
    densities = plan.pick(quick=(0.5, 0.1), cpu=densities, cuda=densities)
    for density in (0.5,) if base.two_of_four else densities:
        shape = replace(base, density=density)
        for backend in ours(b for b in implementations if b != "reference"):
            run = partial(_ours, backend=backend, masked=masked)
            yield row(backend, OURS, partial(_build, shape, run), density=density)
        # On a GPU "auto" goes by an estimate, so there both of the ways that it takes have rows of their own.
        named = {"packed, native": "native", "packed, reference": "reference"} if plan.device == "cuda" else {}
        for side, backend in {"packed": "auto", **named}.items():
            run = partial(_packed, packed=packed, backend=backend)
            yield row(side, OURS, partial(_build, shape, run), density=density)
        for side, build in peers.items():
            yield row(side, PEER, partial(_build, shape, build), density=density)


def _build(shape: Shape, build: Callable[[Problem], Timed]) -> Timed:
    return build(prepared(shape))
