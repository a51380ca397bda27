"""prune(): the one loop. Score, keep the best, repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import typed
from .criteria.base import check_criterion
from .masks import Masks
from .nn.storage import dense_weights
from .ops.products import Product
from .ops.survivor_scores import SurvivorScores
from .patterns import Global, Pattern
from .progress import Progress
from .prunable import Exclude, check_model
from .prunable import prunable as prunable
from .runs import Run, with_same_masks
from .schedules import exponential
from .summary import summarize
from .unread import UnreadRuns

Formula = Product | SurvivorScores
FORMULAS = (Product, SurvivorScores)


@typed
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
    with dense_weights(model):
        params = check_model(model, exclude)
        start = _check_start(masks, params)
        run = Run.plan(start, sparsity, density, keep, steps, schedule, pattern, min_per_layer)
        _advance(model, params, criterion, [run], example_input, progress, trace)
        if apply:
            run.masks.apply_(model)
    return run.masks


@typed
def prune_many(
    model: nn.Module | Sequence[nn.Module],
    criterion: Callable[[nn.Module, dict[str, nn.Parameter]], Mapping[str, Tensor]],
    *,
    sparsity: float | Sequence[float] | None = None,
    density: float | Sequence[float] | None = None,
    keep: int | Sequence[int] | None = None,
    steps: int | Sequence[int] = 1,
    schedule: Callable[[float, float], float] | Sequence[Callable[[float, float], float]] = exponential,
    pattern: Pattern | Sequence[Pattern] = Global(),
    exclude: Exclude | Iterable[Exclude] = (),
    min_per_layer: int | float | Sequence[int | float] = 0,
    masks: Masks | Sequence[Masks] | None = None,
    example_input: Tensor | None = None,
    progress: Callable[[Progress], Any] | None = None,
    finished: Callable[[int, Masks], Any] | None = None,
    trace: bool = False,
) -> list[Masks]:
    """Several runs of :func:`prune` in one: a sweep over densities, over floors, over models.

    Each run ends with the masks that ``prune`` alone would give it, to the bit. A criterion with ``plan`` is planned
    once a model, and while runs have the same masks it is asked for their scores once: all of them in the first step,
    and those that differ in ``min_per_layer`` only until a floor holds. Runs to different densities part after the
    first step. A criterion without ``plan`` is called for one run after the other.

    Args:
        model, sparsity, density, keep, steps, schedule, pattern, min_per_layer, masks: as for ``prune``; or a sequence
            with an entry for each run. What is none holds for all of them.
        criterion, exclude, example_input, trace: as for ``prune``.
        progress: called with a :class:`Progress` after every step of every run; its ``run`` says of which.
        finished: called with a run's number, counted from 0, and its masks when it ends.

    Returns:
        The masks of each run, in order.

    Raises:
        TypeError, ValueError: lists are of different lengths; whatever ``prune`` raises of any run, for wrong
            arguments before the first begins.

    >>> found = prune_many(nn.Linear(10, 10), lambda model, params: {n: p.abs() for n, p in params.items()}, keep=[9, 3])
    >>> [masks.count() for masks in found]
    [9, 3]
    """
    given = {"sparsity": sparsity, "density": density, "keep": keep, "steps": steps, "schedule": schedule,
             "pattern": pattern, "min_per_layer": min_per_layer}  # fmt: skip
    check_criterion(criterion)
    rows = _rows({"model": model, "masks": masks, **given})
    with ExitStack() as stack:
        for each in {id(row["model"]): row["model"] for row in rows}.values():
            stack.enter_context(dense_weights(each))
        models = {id(row["model"]): (row["model"], check_model(row["model"], exclude)) for row in rows}
        runs: dict[int, list[Run]] = {key: [] for key in models}
        for number, row in enumerate(rows):
            key = id(row.pop("model"))
            runs[key].append(Run.plan(_check_start(row.pop("masks"), models[key][1]), **row, number=number))
        for key, (each, params) in models.items():
            _advance(each, params, criterion, runs[key], example_input, progress, trace, finished)
    return [run.masks for run in sorted((r for those in runs.values() for r in those), key=lambda r: r.number)]


def _rows(given: dict[str, Any]) -> list[dict[str, Any]]:
    """The arguments of each run."""
    lengths = {name: len(value) for name, value in given.items() if isinstance(value, Sequence)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"lists must have an entry for each run, got lengths {lengths}")
    count = next(iter(lengths.values()), 1)
    return [{name: value[i] if name in lengths else value for name, value in given.items()} for i in range(count)]


def _advance(
    model: nn.Module,
    params: dict[str, nn.Parameter],
    criterion: Any,
    runs: list[Run],
    example_input: Tensor | None,
    progress: Callable[[Progress], Any] | None,
    trace: bool,
    finished: Callable[[int, Masks], Any] | None = None,
) -> None:
    """Take all runs to their ends; those that have the same masks are scored together while they have."""
    if example_input is None:
        example_input = getattr(criterion, "example_input", None)

    def told(run: Run) -> None:
        if progress is not None:
            progress(Progress(run.done, run.steps, run.kept, run.total, run.number))

    def ended(run: Run, *notes: str) -> None:
        summary = summarize(model, run.masks, example_input)
        run.masks.summary = replace(summary, notes=(*summary.notes, *notes))
        run.masks.trace = tuple(run.traced)
        if finished is not None:
            finished(run.number, run.masks)

    with _unchanged(model):
        score = _scorer(criterion, model, params)
        step = getattr(score, "__self__", score)
        devices = {p.device.type for p in params.values()}
        if devices == {"cuda"} and getattr(step, "reads_late", False) and {type(r.pattern) for r in runs} == {Global}:
            floored = any(any(run.floors.values()) for run in runs)
            unread = UnreadRuns(step, runs[0].masks, floored, torch.cuda)
            for run in runs:
                unread.run(run, partial(told, run), trace)
                ended(run, *([f"no CUDA graph: {unread.reason}"] if unread.reason else []))
            return
        together = with_same_masks if hasattr(criterion, "plan") else lambda runs: [[run] for run in runs]
        pending = together(runs)
        while pending:
            group = pending.pop(0)
            scores = score(group[0].masks)
            checked = {t: _check_scores(scores, params, t) for t in {run.takes_products for run in group}}
            for run in group:
                run.advance(checked[run.takes_products])
                if trace:
                    run.trace(run.masks, run.done, getattr(step, "log2_flow", None))
                if run.done == run.steps:
                    ended(run)
                told(run)
            pending = together(run for run in group if run.done < run.steps) + pending


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
    # Of inference mode criteria cannot take gradients, and masks that are made in it cannot be trained with.
    normal = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
    with normal, torch.random.fork_rng(devices=sorted({d.index for d in cuda})):
        try:
            for p, _, _ in grads:
                p.grad = None
            yield
        finally:
            for p, grad, requires_grad in grads:
                p.grad = grad
                if p.requires_grad != requires_grad:
                    p.requires_grad_(requires_grad)
            for module, training in modes:
                module.training = training
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    if name in buffers:
                        buffer.copy_(buffers[name])


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
