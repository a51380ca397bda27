"""Growth of hidden units (NeST): a unit where a direct connection past the layer would lower the loss most."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..arguments import typed
from ..nn import SparseLinear
from ..nn.storage import set_masks, write_weight
from ..ops.bitmask import BitMask
from .method import check_count

Loss = Callable[[Any, Tensor], Tensor]


class Birth(NamedTuple):
    """A unit that was grown, the input and the output that it joins, and their bridging gradient."""

    unit: int
    input: int
    output: int
    gradient: float


@typed
def bridging_gradients(
    model: nn.Module, layer: nn.Linear, following: nn.Linear, loss: Loss, batches: Iterable[tuple[Tensor, Tensor]]
) -> Tensor:
    """G_mn = mean over examples of dL/du_m x_n, [outputs of ``following``, inputs of ``layer``].

    It is the gradient that a connection from input n of ``layer`` straight to output m of ``following`` would have.

    Args:
        model: has both layers; its parameters' gradients are as before, afterwards.
        loss: of (output, y), a mean over the batch.
        batches: (x, y).

    Raises:
        ValueError: no batch, or the model does not run both layers.

    Source: Dai et al. 2019, arXiv:1711.02017, algorithm 2.
    """
    total, count = None, 0
    for x, y in batches:
        seen: dict[str, Tensor] = {}

        def note(_: nn.Module, args: tuple[Tensor, ...], seen: dict[str, Tensor] = seen) -> None:
            seen["input"] = args[0].detach()

        def keep(_: nn.Module, args: Any, output: Tensor, seen: dict[str, Tensor] = seen) -> None:
            seen["output"] = output

        hooks = [layer.register_forward_pre_hook(note), following.register_forward_hook(keep)]
        try:
            value = loss(model(x), y)
        finally:
            for hook in hooks:
                hook.remove()
        if len(seen) < 2:
            raise ValueError("layer and following must be layers that model runs, got one that it does not")
        [gradient] = torch.autograd.grad(value, seen["output"])
        part = len(x) * torch.einsum("...m,...n->mn", gradient, seen["input"])
        total = part if total is None else total + part
        count += len(x)
    if total is None:
        raise ValueError("batches must have at least one batch, got none")
    return total / count


@typed
def free_units(layer: SparseLinear, following: SparseLinear) -> list[int]:
    """The units in between that have no connection, neither in nor out."""
    return (~layer.mask.to_bool().any(1) & ~following.mask.to_bool().any(0)).nonzero().flatten().tolist()


@typed
@torch.no_grad()
def grow_neurons(
    layer: SparseLinear,
    following: SparseLinear,
    gradients: Tensor,
    *,
    count: int,
    rate: float,
    optimizer: torch.optim.Optimizer | None = None,
) -> list[Birth]:
    """Give units without any connection one input and one output each: the pairs (m, n) of largest \\|G_mn\\|.

    The new weights are w_in = sqrt(rate \\|G\\|) and w_out = -sign(G) sqrt(rate \\|G\\|), so that w_in w_out = -rate G: with
    ReLU in between and inputs that are not negative, the loss falls by rate G^2 a unit, to first order. The unit's bias
    becomes 0. Layers keep their sizes: a layer is made as wide as it may become, and units without connections cost
    nothing in sparse layers.

    Args:
        layer, following: sparse layers, one into the other.
        gradients: of :func:`bridging_gradients`.
        count: how many units, at most as many as there are free ones.
        rate: of the step, above 0.
        optimizer: whose state of the new weights starts at zero.

    Returns:
        What was grown, largest gradient first.

    Raises:
        ValueError: the layers or the gradients do not fit, or fewer units are free.

    Source: Dai et al. 2019, arXiv:1711.02017, algorithm 2; one pair a unit, and ``rate``, are ours.
    """
    if following.in_features != layer.out_features:
        raise ValueError(f"following must take {layer.out_features} units, got {following.in_features}")
    if gradients.shape != (following.out_features, layer.in_features):
        raise ValueError(
            f"gradients must have shape ({following.out_features}, {layer.in_features}), got {tuple(gradients.shape)}"
        )
    if not rate > 0:
        raise ValueError(f"rate must be above 0, got {rate!r}")
    free = free_units(layer, following)
    incoming, outgoing = layer.mask.to_bool(), following.mask.to_bool()
    if not check_count("count", count) <= min(len(free), gradients.numel()):
        raise ValueError(f"count must be at most {len(free)}, the units without connections, got {count}")
    order = gradients.abs().flatten().sort(descending=True, stable=True).indices[:count].tolist()
    births = []
    for unit, place in zip(free, order, strict=False):
        m, n = divmod(place, layer.in_features)
        incoming[unit, n], outgoing[m, unit] = True, True
        births.append(Birth(unit, n, m, gradients[m, n].item()))
    for sparse, live in ((layer, incoming), (following, outgoing)):
        set_masks([sparse], BitMask.from_bool(live), optimizer)
    w_in, w_out = layer.weight.clone(), following.weight.clone()
    for birth in births:
        size = (rate * abs(birth.gradient)) ** 0.5
        w_in[birth.unit, birth.input] = size
        w_out[birth.output, birth.unit] = -size if birth.gradient > 0 else size
        if layer.bias is not None:
            layer.bias[birth.unit] = 0
    write_weight(layer, w_in)
    write_weight(following, w_out)
    return births
