"""Masks as parameters: the weights stay as they are, and what is learned is which of them to use.

All are wrappers around a model, whose own parameters are frozen. ``wrapper(x)`` runs it with masked weights,
``wrapper.parameters()`` that require gradients go to the optimizer, and ``wrapper.masks()`` is what was learned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..arguments import typed
from ..masks import Masks
from ..nn import sparsify
from ..ops.bitmask import BitMask
from ..ops.straight_through import straight_through_topk
from ..ops.topk_mask import topk_mask
from ..pruning import Exclude, prunable
from .method import check_count, check_share
from .random_state import derived_generator


class MaskedModel(nn.Module):
    """Base of the wrappers: a frozen model and one tensor of scores for each of its prunable weights.

    Args:
        model: any module; its parameters no longer require gradients, except those of ``trained``.
        exclude: what is used whole; see :func:`prunable`.
        trained: names of parameters that go on to be trained (a new task's head), with ``*`` as in ``exclude``.

    Attributes:
        scores: in the order of ``names``.
    """

    def __init__(
        self, model: nn.Module, exclude: Exclude | Collection[Exclude] = (), trained: Collection[str] = ()
    ) -> None:
        super().__init__()
        weights = prunable(model, exclude)
        parameters = dict(model.named_parameters())
        if unknown := sorted(set(trained) - set(parameters)):
            raise ValueError(f"trained must name parameters of the model, got {unknown}")
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in trained)
        self.model = model
        self.names = [name for name in weights if name not in trained]
        self.scores = nn.ParameterList(self._first_scores(weights[name]) for name in self.names)

    def _first_scores(self, weight: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define _first_scores")

    def _factors(self) -> list[Tensor]:
        raise TypeError(f"{type(self).__name__} must define _factors")

    def masks(self) -> Masks:
        """The masks of the present scores."""
        raise TypeError(f"{type(self).__name__} must define masks")

    @torch.no_grad()
    def hold(self) -> nn.Module:
        """End learning: the model with its weights multiplied by their factors in eval mode, and holding the masks."""
        self.eval()
        for name, factor in zip(self.names, self._factors(), strict=True):
            self.model.get_parameter(name).mul_(factor)
        return sparsify(self.model, self.masks())

    def backward(self, loss: Tensor) -> None:
        """The gradients of the scores, for the loss of the last forward."""
        loss.backward()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output with every weight multiplied by its factor."""
        weights = [self.model.get_parameter(name) for name in self.names]
        masked = {n: w * f.to(w.dtype) for n, w, f in zip(self.names, weights, self._factors(), strict=True)}
        return functional_call(self.model, masked, args, kwargs)


class EdgePopup(MaskedModel):
    """The k weights with the largest |score| are used; a score's gradient is dL/dw_eff w sign(score).

    Exactly round(density n) weights, in every layer or over all of them.

    Args:
        model: its weights should be large enough for few of them: Kaiming normal scaled by sqrt(1 / density), or
            signed constants.
        density: kept / all.
        scope: "layer" or "global".
        absolute: compare |score| as the published code does; False compares the scores themselves, as the paper says.
        exclude, trained: see :class:`MaskedModel`.

    Raises:
        ValueError: an argument is wrong.

    Source: Ramanujan et al. 2020, arXiv:1911.13299, section 3.

    >>> popup = EdgePopup(nn.Linear(4, 3), density=0.5)
    >>> popup(torch.ones(1, 4)).shape, popup.masks().counts()
    (torch.Size([1, 3]), {'weight': 6})
    """

    @typed
    def __init__(
        self,
        model: nn.Module,
        *,
        density: float,
        scope: str = "layer",
        absolute: bool = True,
        exclude: Exclude | Collection[Exclude] = (),
        trained: Collection[str] = (),
    ) -> None:
        if scope not in ("layer", "global"):
            raise ValueError(f"scope must be layer or global, got {scope!r}")
        self.density, self.scope, self.absolute = check_share("density", density), scope, absolute
        super().__init__(model, exclude, trained)

    def _first_scores(self, weight: Tensor) -> Tensor:
        return nn.init.kaiming_uniform_(torch.empty_like(weight), a=5**0.5)

    def _groups(self) -> list[list[int]]:
        everything = list(range(len(self.names)))
        return [everything] if self.scope == "global" else [[i] for i in everything]

    def _each_group(self, select: Callable[[list[Tensor], int], list[Any]]) -> list[Any]:
        found = []
        for group in self._groups():
            scores = [self.scores[i] for i in group]
            found += select(scores, round(self.density * sum(s.numel() for s in scores)))
        return found

    def _factors(self) -> list[Tensor]:
        return self._each_group(lambda scores, k: straight_through_topk(scores, k, abs=self.absolute))

    def masks(self) -> Masks:
        kept = self._each_group(lambda scores, k: topk_mask(scores, k, abs=self.absolute).masks)
        return Masks(dict(zip(self.names, kept, strict=True)))


class Piggyback(MaskedModel):
    """One mask a task over one backbone: a weight is used where its real mask r exceeds a threshold.

    dL/dr := dL/dw_eff w, straight through the comparison. Give the head of the task as ``trained``, and no weight
    decay to the scores, which would prune. ``masks()`` of each task is one bit a weight.

    Args:
        model: the backbone; its weights do not change.
        threshold: of r, which starts at ``start`` everywhere.
        start: above the threshold: everything is used at first.
        exclude, trained: see :class:`MaskedModel`.

    Raises:
        TypeError, ValueError: an argument is wrong; the model is as it was.

    Source: Mallya et al. 2018, arXiv:1801.06519, section 3.1.
    """

    @typed
    def __init__(
        self,
        model: nn.Module,
        *,
        threshold: float = 5e-3,
        start: float = 1e-2,
        exclude: Exclude | Collection[Exclude] = (),
        trained: Collection[str] = (),
    ) -> None:
        if not threshold < start < math.inf:
            raise ValueError(f"start must be a finite number above threshold {threshold}, got {start}")
        self.threshold, self.start = threshold, start
        super().__init__(model, exclude, trained)

    def _first_scores(self, weight: Tensor) -> Tensor:
        return torch.full_like(weight, self.start)

    def _factors(self) -> list[Tensor]:
        return [_StraightThrough.apply(score, (score > self.threshold).to(score.dtype)) for score in self.scores]

    def masks(self) -> Masks:
        kept = [BitMask.from_bool(score.detach() > self.threshold) for score in self.scores]
        return Masks(dict(zip(self.names, kept, strict=True)))


class BernoulliMasks(MaskedModel):
    """In training every weight is used with probability p = sigmoid(score), drawn anew at every forward.

    ``gradient="straight-through"``: dL/dscore := dL/dw_eff w p (1 - p), biased but of small variance; learning rates
    around 100 are right. ``gradient="reinforce"``: call :meth:`reinforce` with the loss of the last forward instead of
    ``backward``. In eval mode, and for ``masks()``, a weight is used where p > 1/2.

    Args:
        model: its weights do not change.
        gradient: one of the above.
        rescale: multiply the weights of a layer by n / (how many are used).
        momentum: of the moving average of losses that ``reinforce`` subtracts.
        seed: of the draws, which no other generator takes part in.
        exclude, trained: see :class:`MaskedModel`.

    Raises:
        ValueError: an argument is wrong.

    Sources: Zhou et al. 2019, arXiv:1905.01067, section 5; Williams 1992, Machine Learning 8 (REINFORCE).
    """

    @typed
    def __init__(
        self,
        model: nn.Module,
        *,
        gradient: str = "straight-through",
        rescale: bool = False,
        momentum: float = 0.9,
        seed: int = 0,
        exclude: Exclude | Collection[Exclude] = (),
        trained: Collection[str] = (),
    ) -> None:
        if gradient not in ("straight-through", "reinforce"):
            raise ValueError(f"gradient must be straight-through or reinforce, got {gradient!r}")
        self.gradient, self.rescale = gradient, rescale
        self.momentum = check_share("momentum", momentum)
        generator = derived_generator(check_count("seed", seed, 0))
        super().__init__(model, exclude, trained)
        self.generator = generator
        self.baseline: float | None = None
        self._drawn: list[Tensor] = []

    def _first_scores(self, weight: Tensor) -> Tensor:
        return torch.zeros_like(weight)

    def _factors(self) -> list[Tensor]:
        return [self._scaled(factor) for factor in (self._draw() if self.training else self._likely())]

    def _likely(self) -> list[Tensor]:
        return [(score.detach() > 0).to(score.dtype) for score in self.scores]

    def _draw(self) -> list[Tensor]:
        chances = [score.sigmoid() for score in self.scores]
        uniform = [torch.rand(p.shape, generator=self.generator).to(p.device) for p in chances]
        self._drawn = [(u < p.detach()).to(p.dtype) for u, p in zip(uniform, chances, strict=True)]
        if self.gradient == "reinforce":
            return self._drawn
        return [_StraightThrough.apply(p, drawn) for p, drawn in zip(chances, self._drawn, strict=True)]

    def _scaled(self, factor: Tensor) -> Tensor:
        return factor * (factor.numel() / factor.detach().sum().clamp(min=1)) if self.rescale else factor

    def backward(self, loss: Tensor) -> None:
        if self.gradient == "reinforce":
            self.reinforce(loss)
        else:
            loss.backward()

    @torch.no_grad()
    def reinforce(self, loss: Tensor) -> None:
        """Add (loss - baseline) (b - p) to the scores' gradients, b the draw of the last forward in training mode.

        Raises:
            ValueError: there was no such forward.
        """
        if not self._drawn:
            raise ValueError("reinforce must follow a forward in training mode, got none")
        value = float(loss)
        baseline = value if self.baseline is None else self.baseline
        for score, drawn in zip(self.scores, self._drawn, strict=True):
            gradient = (value - baseline) * (drawn - score.sigmoid())
            score.grad = gradient if score.grad is None else score.grad + gradient
        self.baseline = self.momentum * baseline + (1 - self.momentum) * value

    def masks(self) -> Masks:
        kept = [BitMask.from_bool(score.detach() > 0) for score in self.scores]
        return Masks(dict(zip(self.names, kept, strict=True)))

    def get_extra_state(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "baseline": self.baseline}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"].cpu())
        self.baseline = state["baseline"]


class _StraightThrough(torch.autograd.Function):
    """(score, value) -> the value, with the gradient going to the score."""

    @staticmethod
    def forward(score: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
