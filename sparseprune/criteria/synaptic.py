"""Synaptic saliency in general: ``score = w dR/dw`` for any scalar R of the model's output."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .base import Scores, Weights
from .batches import Batches, Loss, batch_losses, check_data

__all__ = ["SynapticSaliency"]

FORMS = ("signed", "absolute", "squared")


@dataclass(frozen=True, eq=False)
class SynapticSaliency:
    """``S = w dR/dw``; SNIP is its absolute value with R the loss, SynFlow R the flow of a linear network.

    Where units are ReLU, leaky ReLU or linear, the signed scores are conserved: those of the weights and the bias
    that come into a hidden unit add up to those of the weights that leave it.

    Args:
        objective: R: ``objective(output, target)`` -> the mean over the batch, one number.
        batches: any number of (input, target), read once a call.
        form: "signed" (S), "absolute" (|S|) or "squared" (S^2).
        bn: batch norm uses its running statistics ("eval") or the batch's ("train"); the running ones stay.

    Raises:
        TypeError: ``objective`` not callable, ``batches`` not an iterable of pairs.
        ValueError: ``form`` or ``bn`` unknown, no batch, an objective that is not one number.

    Source: Tanaka, Kunin, Yamins, Ganguli 2020, arXiv:2006.05467, eq. 2 and theorems 1 and 2.
    """

    objective: Loss
    batches: Batches
    form: str = "signed"
    bn: str = "eval"

    def __post_init__(self) -> None:
        check_data(self.objective, self.batches, self.bn)
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(map(repr, FORMS))}, got {self.form!r}")

    def __call__(self, model: nn.Module, params: Weights) -> Scores:
        with batch_losses(model, params, self.objective, self.bn) as objective:
            gradient = objective.mean(self.batches, objective.gradient)
        signed = {name: weight.detach() * gradient[name] for name, weight in params.items()}
        if self.form == "signed":
            return signed
        return {name: s.abs() if self.form == "absolute" else s.square() for name, s in signed.items()}
