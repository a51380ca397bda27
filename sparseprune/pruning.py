"""prune(): the one loop. Score, keep the best, repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .criteria.base import check_criterion
from .masks import Masks
from .nn.storage import dense_weights
from .ops.products import Product
from .ops.survivor_scores import SurvivorScores
from .patterns import Global, Pattern
from .progress import Progress, TraceStep
from .prunable import Exclude as Exclude
from .prunable import prunable as prunable
from .schedules import exponential
from .summary import summarize

Formula = Product | SurvivorScores
FORMULAS = (Product, SurvivorScores)


def prune(
    model: nn.Module,
    criterion: Callable[[nn.Module, dict[str, nn.Parameter]], Mapping[str, Tensor]],
    *,
    sparsity: float | None = None,
    density: float | None = None,
    keep: int | None = None,
    steps: int = 1,
    schedule: Callable[[float, float], float] = exponential,
    pattern: Pattern = Global(),
    exclude: Exclude | Iterable[Exclude] = (),
    min_per_layer: int | float = 0,
    masks: Masks | None = None,
    example_input: Tensor | None = None,
    progress: Callable[[Progress], Any] | None = None,
    trace: bool = False,
    apply: bool = False,
) -> Masks:
    """Choose which weights to keep, and change nothing else.

    At each of ``steps`` steps the criterion scores the weights that are still kept and the pattern keeps the best of
    them, as many as the schedule says. Exactly k = round(density * n) survive, or ``keep``.

    Args:
        model: any module; its linear and convolution weights are prunable. Packed ones are dense while this runs.
        criterion: ``(model, params) -> {name: scores}``, higher = keep, each score tensor of its weight's shape. It is
            called with pruned weights set to zero in the model. One that has ``plan(model, params)`` is planned once
            and its result called with the current masks at each step instead.
        sparsity, density, keep: exactly one of them: zeros / prunable weights in [0, 1), kept / prunable weights in
            (0, 1], or the number of weights to keep. All are absolute, over the whole run.
        steps: how many times to score.
        schedule: ``(density, progress) -> density``: ``one_shot``, ``linear``, ``exponential``, ``cubic`` or yours.
        pattern: ``Global()``, ``LayerWise(allocation)``, ``NM(n, m)`` or yours.
        exclude: what to spare; see :func:`prunable`.
        min_per_layer: keep at least this many weights in every layer, or this share of it where it is a float
            below 1. Global criteria otherwise may empty a layer, shortcuts first.
        masks: where to start from: weights pruned there stay pruned. Default: all kept.
        example_input: a batch for the table's FLOPs and paths; default: the criterion's ``example_input``, if any.
        progress: called with a :class:`Progress` after every step.
        trace: keep a :class:`TraceStep` of every step in the result's ``trace``: the layers' densities, which have
            collapsed, and SynFlow's flow.
        apply: also set the pruned weights of the model to zero.

    Returns:
        Masks by parameter name; ``print`` shows them as a table.

    Raises:
        TypeError, ValueError: an argument is wrong, the scores have other names or shapes than the weights, or a score
            is NaN (the parameter is named). Parameters, buffers, gradients, modes and the random state are as before,
            then as after success.

    >>> masks = prune(nn.Linear(10, 10), lambda model, params: {n: p.abs() for n, p in params.items()}, sparsity=0.9)
    >>> masks.count()
    10
    """
    _check_module(model)
    with dense_weights(model):
        params = _check_model(model, exclude)
        total = sum(p.numel() for p in params.values())
        current = _check_start(masks, params)
        start = current.count()
        final = _target(sparsity, density, keep, total, start)
        # As it was asked for, not final / start: rounding that first may move a step between by one weight.
        asked = density if density is not None else None if sparsity is None else 1 - sparsity
        wanted = 1.0 if start == 0 else final / start if asked is None else asked * (total / start)
        floors = _floors(min_per_layer, current, final)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps must be a positive integer, got {steps!r}")

        with _unchanged(model):
            score = _scorer(criterion, model, params)
            traced: list[TraceStep] = []
            for step in range(1, steps + 1):
                share = schedule(wanted, step / steps)
                k = final if step == steps else min(max(round(share * start), final), current.count())
                scores = _check_scores(score(current), params, getattr(pattern, "takes_products", False))
                current = pattern.select(scores, current, k, floors)
                if trace:
                    flow = getattr(getattr(score, "__self__", score), "log2_flow", None)
                    totals = {name: p.numel() for name, p in params.items()}
                    traced.append(TraceStep(step, current.counts(), totals, flow))
                if progress is not None:
                    progress(Progress(step, steps, k, total))
            if example_input is None:
                example_input = getattr(criterion, "example_input", None)
            current.summary = summarize(model, current, example_input)
            current.trace = tuple(traced)
        if apply:
            current.apply_(model)
    return current


def _scorer(criterion: Any, model: nn.Module, params: dict[str, nn.Parameter]) -> Callable[[Masks], Any]:
    check_criterion(criterion)
    if hasattr(criterion, "plan"):
        step = criterion.plan(model, params)
        return getattr(step, "products", step)
    scores = getattr(criterion, "products", criterion)

    def score(masks: Masks) -> Any:
        with _pruned_weights(params, masks):
            return scores(model, params)

    return score


@contextmanager
def _pruned_weights(params: dict[str, nn.Parameter], masks: Masks) -> Iterator[None]:
    """The parameters with pruned weights set to zero. The original tensors are set aside and never written to."""
    originals = {name: p.data for name, p in params.items()}
    try:
        for name, p in params.items():
            if masks[name].count() < p.numel():
                p.data = masks[name].apply(p.data)
        yield
    finally:
        for name, p in params.items():
            p.data = originals[name]


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Whatever runs inside, the model's buffers, gradients and modes and torch's random state are as before after it.

    This is what makes any callable a safe criterion: one may call ``backward()`` and run the model in training mode.
    """
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    grads = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    modes = [(m, m.training) for m in model.modules()]
    cuda = [p.device for p in model.parameters() if p.device.type == "cuda"]
    with torch.random.fork_rng(devices=sorted({d.index for d in cuda})):
        try:
            for p, _, _ in grads:
                p.grad = None
            yield
        finally:
            for p, grad, requires_grad in grads:
                p.grad = grad
                p.requires_grad_(requires_grad)
            for module, training in modes:
                module.training = training
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    if name in buffers:
                        buffer.copy_(buffers[name])


def _check_module(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")


def _check_model(model: nn.Module, exclude: Any) -> dict[str, nn.Parameter]:
    _check_module(model)
    params = prunable(model, exclude)
    if not params:
        raise ValueError(
            f"model must have a linear or convolution layer that is not excluded, got {type(model).__name__} without one"
        )
    for name, p in params.items():
        if not p.dtype.is_floating_point:
            raise TypeError(f"parameter {name!r} must be real floating-point, got {p.dtype}")
        if p.is_meta or isinstance(p, nn.parameter.UninitializedParameter):
            raise ValueError(f"parameter {name!r} must have values, got one that is not initialised yet")
    return params


def _check_start(masks: Masks | None, params: dict[str, nn.Parameter]) -> Masks:
    if masks is None:
        return Masks.ones(params)
    if not isinstance(masks, Masks):
        raise TypeError(f"masks must be Masks, got {type(masks).__name__}")
    if set(masks) != set(params):
        raise ValueError(f"masks must cover the prunable weights, only one side has {sorted(set(masks) ^ set(params))}")
    for name, p in params.items():
        if masks[name].shape != p.shape:
            raise ValueError(f"mask {name!r} must have shape {tuple(p.shape)}, got {tuple(masks[name].shape)}")
    return Masks({name: masks[name].to(p.device) for name, p in params.items()})


def _target(sparsity: float | None, density: float | None, keep: int | None, total: int, start: int) -> int:
    given = {n: v for n, v in {"sparsity": sparsity, "density": density, "keep": keep}.items() if v is not None}
    if len(given) != 1:
        raise ValueError(f"exactly one of sparsity, density and keep must be given, got {given or 'none'}")
    [(name, value)] = given.items()
    if isinstance(value, bool) or not isinstance(value, int if name == "keep" else (int, float)):
        raise TypeError(f"{name} must be a number{' of weights' if name == 'keep' else ''}, got {value!r}")
    if name == "sparsity" and not 0 <= value < 1:
        raise ValueError(f"sparsity must be in [0, 1), got {value}")
    if name == "density" and not 0 < value <= 1:
        raise ValueError(f"density must be in (0, 1], got {value}")
    k = value if name == "keep" else round((1 - value if name == "sparsity" else value) * total)
    if not 0 <= k <= start:
        raise ValueError(
            f"{name} must keep between 0 and the {start:,} weights that are there, got {value}, that is {k:,}"
        )
    return k


def _floors(min_per_layer: int | float, masks: Masks, k: int) -> dict[str, int]:
    if isinstance(min_per_layer, bool) or not isinstance(min_per_layer, (int, float)):
        raise TypeError(f"min_per_layer must be a number, got {type(min_per_layer).__name__}")
    if min_per_layer < 0 or (isinstance(min_per_layer, float) and min_per_layer >= 1):
        raise ValueError(f"min_per_layer must be a count or a share below 1, got {min_per_layer}")
    floors = {}
    for name, mask in masks.items():
        share = isinstance(min_per_layer, float)
        floors[name] = min(round(min_per_layer * mask.numel()) if share else min_per_layer, mask.count())
    if sum(floors.values()) > k:
        raise ValueError(
            f"min_per_layer must fit in the {k:,} weights kept, got {sum(floors.values()):,} over all layers"
        )
    return floors


def _check_scores(scores: Any, params: dict[str, nn.Parameter], formulas: bool) -> dict[str, Tensor | Formula]:
    if not isinstance(scores, Mapping) or set(scores) != set(params):
        got = sorted(map(str, scores)) if isinstance(scores, Mapping) else type(scores).__name__
        raise ValueError(f"criterion must return scores for {sorted(params)}, got {got}")
    for name, p in params.items():
        score = scores[name]
        if not isinstance(score, (Tensor, *FORMULAS)) or score.shape != p.shape:
            got = tuple(score.shape) if isinstance(score, (Tensor, *FORMULAS)) else type(score).__name__
            raise ValueError(f"scores of {name!r} must be a tensor of shape {tuple(p.shape)}, got {got}")
        if score.device != p.device:
            raise ValueError(f"scores of {name!r} must be on {p.device}, got {score.device}")
    return {n: s.tensor() if isinstance(s, FORMULAS) and not formulas else s for n, s in scores.items()}
