"""Dynamic sparse training: drop, redistribute, grow, at every so many steps, with the budget exact after each.

A rule is a small function, and a method is three of them:

    SET             smallest_per_sign   in_place       at_random
    RigL            smallest            in_place       by_gradient (of the step)
    SparseMomentum  smallest            by_momentum    by_gradient (moving average)
    DSR             Threshold           by_survivors   at_random
    DeepR           crossed_zero        in_place       at_random
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..arguments import typed
from ..masks import Masks
from ..nn.dense_gradients import sparse_weights, unwatch_gradients, watch_gradients
from .drop import Threshold, Topology, smallest, smallest_per_sign
from .grow import at_random, by_gradient
from .method import Method, check_count, check_share
from .random_state import derived_generator
from .redistribute import by_momentum, by_survivors, in_place

Drop = Callable[[Topology, float], Masks]
Redistribute = Callable[[Topology, Masks], Mapping[str, int]]
Grow = Callable[[Topology, Masks, Mapping[str, int]], Masks]


def cosine(start: float, end: float = 0.0) -> Callable[[float], float]:
    """end + (start - end) / 2 (1 + cos(pi t)), for the share t of the training that is done.

    >>> [round(cosine(0.3)(t), 6) for t in (0, 0.25, 0.5, 1)]
    [0.3, 0.256066, 0.15, 0.0]
    """
    check_share("start", start), check_share("end", end)
    return lambda t: end + (start - end) / 2 * (1 + math.cos(math.pi * t))


class DynamicSparseTraining(Method):
    """A fixed number of weights that move: after every ``every`` steps some are dropped and as many grown.

    Grown weights and their optimizer state start at 0. The number of live weights is the same after every step. Call
    ``step()`` after ``optimizer.step()``, also under DDP, where all ranks choose alike: dense gradients are averaged
    over the ranks and random numbers depend on ``seed`` alone. Under a ``GradScaler`` an update whose gradients
    overflowed waits for the next step.

    Args:
        model, optimizer: see :class:`Method`; start with an ``erk`` or ``uniform`` topology.
        drop, redistribute, grow: the rules.
        fraction: the share of live weights to drop, a number or a function of progress (steps / until).
        every: steps between updates.
        until: no update at this step or later.
        gradients: "none", "step" (the dense gradient, asked for only in steps that grow) or "average" (an
            exponential moving average over all steps).
        decay: of the average.
        keep_regrown: a weight that is dropped and grown in one update keeps its value and state, since it never left.
        seed: of all that is random.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """

    @typed
    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        *,
        drop: Drop,
        grow: Grow,
        redistribute: Redistribute = in_place,
        fraction: float | Callable[[float], float] = 0.3,
        every: int = 100,
        until: int,
        gradients: str = "none",
        decay: float = 0.9,
        keep_regrown: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(model, optimizer)
        if gradients not in ("none", "step", "average"):
            raise ValueError(f"gradients must be none, step or average, got {gradients!r}")
        share = fraction if callable(fraction) else check_share("fraction", fraction)
        self.fraction = share if callable(share) else lambda t: share
        self.drop, self.grow, self.redistribute = drop, grow, redistribute
        self.every, self.until = check_count("every", every), check_count("until", until)
        self.gradients, self.decay = gradients, check_share("decay", decay)
        self.keep_regrown = keep_regrown
        # A stream of its own: the plain seed may well be the one that drew the weights and the first masks.
        self.generator = derived_generator(check_count("seed", seed, 0))
        self.average: dict[str, Tensor] = {}
        self._pending = False
        self._watched: dict[str, Tensor] = {}
        self._watch()

    def _advance(self) -> bool:
        gradients = self._observe()
        due = self.steps < self.until and (self._pending or self.steps % self.every == 0)
        if due:
            gradients = {name: averaged_over_ranks(g) for name, g in gradients.items()}
            self._pending = not all(is_finite(gradient) for gradient in gradients.values())
        changed = due and not self._pending
        if changed:
            self._update(gradients)
        self._watch()
        return changed

    def _update(self, gradients: dict[str, Tensor]) -> None:
        topology = Topology(self._weights(), self.masks, gradients, self.generator, self._rates())
        kept = self.drop(topology, self.fraction(self.steps / self.until))
        counts = self.redistribute(topology, kept)
        grown = self.grow(topology, kept, counts)
        self._hold(grown, None if self.keep_regrown else kept)

    def _watch(self) -> None:
        """Ask for the dense gradient of the next step, if that is one that looks at it."""
        following = self.steps + 1
        due = self._pending or following % self.every == 0
        grows = self.gradients == "step" and following < self.until and due
        if grows:
            self._watched = watch_gradients(self.model)
        elif following < self.until and self.gradients == "average":
            self._watched = watch_gradients(self.model, again=self._watched)
        elif self._watched:
            unwatch_gradients(self.model)
            self._watched = {}

    def _observe(self) -> dict[str, Tensor]:
        if self.gradients != "average":
            return self._watched
        for name, gradient in self._watched.items():
            if name not in self.average:
                self.average[name] = torch.zeros_like(gradient)
            # A step that a GradScaler skips has no gradient to remember.
            average = self.average[name]
            if not gradient.is_cpu:  # nothing waits for a GPU
                finite = gradient.sum(dtype=torch.float64).isfinite()
                average.lerp_(torch.where(finite, gradient, average, out=gradient), 1 - self.decay)
            elif is_finite(gradient):
                average.lerp_(gradient, 1 - self.decay)
        return self.average

    def _rates(self) -> dict[str, float]:
        """Name -> learning rate."""
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        rates = {id(p): float(group["lr"]) for group in groups for p in group["params"]}
        return {n: rates.get(id(layers[0].parameter), 0.0) for n, layers in sparse_weights(self.model).items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "pending": self._pending,
            "generator": self.generator.get_state(),
            "average": {name: tensor.clone() for name, tensor in self.average.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._pending = state["pending"]
        self.generator.set_state(state["generator"].cpu())
        masks = self.masks
        self.average = {name: tensor.to(masks[name].device, copy=True) for name, tensor in state["average"].items()}
        unwatch_gradients(self.model)
        self._watched = {}
        self._watch()


class NamedMethod(DynamicSparseTraining):
    """Base of the published combinations: their rules, and how much they drop unless told.

    Args:
        model, optimizer, every, until, fraction, seed: see :class:`DynamicSparseTraining`.
        options: what the method has of its own.
    """

    rules: ClassVar[Mapping[str, Any]]
    default_fraction: ClassVar[Callable[[float], float]]

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        *,
        every: int = 100,
        until: int,
        fraction: float | Callable[[float], float] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        share = type(self).default_fraction if fraction is None else fraction
        settings = {"fraction": share, "every": every, "until": until, "seed": seed}
        super().__init__(model, optimizer, **{**self.rules, **settings, **options})


class SET(NamedMethod):
    """Sparse evolutionary training: the smallest of either sign go, random ones come.

    ``every`` should be an epoch's steps; 0.3 of the weights move unless ``fraction`` says otherwise.

    Source: Mocanu et al. 2018, arXiv:1707.04780.
    """

    rules: ClassVar = {"drop": smallest_per_sign, "grow": at_random}
    default_fraction = staticmethod(cosine(0.3, 0.3))


class RigL(NamedMethod):
    """The smallest go, those with the largest gradient come; the share falls as a cosine from 0.3 to 0 at ``until``.

    The paper leaves out the optimizer step of an update; here every step is made, and the update follows it. Choose
    ``until`` as three quarters of the training. ``keep_regrown`` is True unless told.

    Source: Evci et al. 2020, arXiv:1911.11134, algorithm 1.
    """

    rules: ClassVar = {"drop": smallest, "grow": by_gradient, "gradients": "step"}
    default_fraction = staticmethod(cosine(0.3))

    @typed
    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None, *, keep_regrown: bool = True, **options: Any
    ) -> None:
        super().__init__(model, optimizer, keep_regrown=keep_regrown, **options)


class SparseMomentum(NamedMethod):
    """Sparse networks from scratch: layers with much momentum per weight grow, where momentum is largest.

    Momentum is an exponential moving average of the dense gradient, so every step until ``until`` computes that; the
    share falls as a cosine from 0.5 to 0.005. ``every`` should be an epoch's steps.

    Source: Dettmers and Zettlemoyer 2019, arXiv:1907.04840.
    """

    rules: ClassVar = {"drop": smallest, "redistribute": by_momentum, "grow": by_gradient, "gradients": "average"}
    default_fraction = staticmethod(cosine(0.5, 0.005))

    @typed
    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None, *, decay: float = 0.9, **options: Any
    ) -> None:
        super().__init__(model, optimizer, decay=decay, **options)


class DSR(NamedMethod):
    """Dynamic sparse reparameterization: one threshold for all layers that steers itself to drop 0.01, or ``fraction``.

    Source: Mostafa and Wang 2019, arXiv:1902.05967.
    """

    rules: ClassVar = {"redistribute": by_survivors, "grow": at_random}
    default_fraction = staticmethod(cosine(0.01, 0.01))

    @typed
    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None, *, threshold: float = 1e-3, **options: Any
    ) -> None:
        if not 0 < threshold < math.inf:
            raise ValueError(f"threshold must be a finite number above 0, got {threshold}")
        self.threshold = Threshold(threshold)
        super().__init__(model, optimizer, drop=self.threshold, **options)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "threshold": self.threshold.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.threshold.value = state["threshold"]


def is_finite(tensor: Tensor) -> bool:
    """Is every element? A finite sum says so, five times as fast; another may come from a range that is too small."""
    return math.isfinite(tensor.sum()) or bool(tensor.isfinite().all())


def averaged_over_ranks(tensor: Tensor) -> Tensor:
    """The mean over the ranks of the default process group, where there is one."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return tensor
    total = tensor.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()
