"""What a pruned model costs: parameters and FLOPs, with the masks and without."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import Tensor, nn

from ..arguments import typed
from ..masks import Masks
from ..pruning import prunable
from ..summary import summarize

__all__ = ["Costs", "costs"]


@dataclass(frozen=True)
class Costs:
    """Of one example, with the masks and without.

    Attributes:
        parameters, dense_parameters: kept weights and all parameters that cannot be pruned (biases, norms, ...).
        flops, dense_flops: 2 * multiply-adds of linear and convolution layers.
    """

    parameters: int
    dense_parameters: int
    flops: int
    dense_flops: int

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


@typed
def costs(model: nn.Module, masks: Masks, example_input: Tensor) -> Costs:
    """Parameters and FLOPs that ``masks`` leave; give :func:`effective_masks` to leave dead paths out.

    Args:
        model: run once on the first example, not changed.
        masks: parameter name -> BitMask; weights without one count as kept.
        example_input: (N, ...).

    Raises:
        ValueError: a mask does not fit the model, or the model does not run on ``example_input``.

    >>> layer = nn.Linear(4, 2)
    >>> costs(layer, Masks({"weight": torch.eye(2, 4).bool()}), torch.ones(1, 4))
    Costs(parameters=4, dense_parameters=10, flops=4, dense_flops=16)
    """
    masks.weights_of(model)
    rest = {name: weight for name, weight in prunable(model).items() if name not in masks}
    total = summarize(model, Masks({**Masks.ones(rest), **masks}), example_input).total
    if total.flops is None:
        raise ValueError("example_input must be one that the model runs on, got one that it does not run on")
    parameters = sum(p.numel() for p in model.parameters())
    return Costs(parameters - total.total + total.kept, parameters, total.flops, total.dense_flops)
