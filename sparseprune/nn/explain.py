"""explain(): which implementation runs each product of each sparse layer, what it was chosen from, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import typed
from ..ops import costs
from ..ops.calibration import described, measure
from .base import SparseLayer

PRODUCTS = {"": "forward", "_input_grad": "input gradient", "_weight_grad": "weight gradient"}


@dataclass(frozen=True)
class Explanation:
    """One product of one layer.

    Attributes:
        layer: its name in the model; "" for a layer alone.
        product: forward, input gradient or weight gradient.
        density: kept / all.
        chosen: the implementation that "auto" takes.
        reason: why.
        predicted, measured: seconds of each candidate; ``measured`` is None unless asked for.
    """

    layer: str
    product: str
    density: float
    chosen: str
    reason: str
    predicted: Mapping[str, float]
    measured: Mapping[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@typed
def explain(model: nn.Module, input: Tensor | Sequence[int], *, measured: bool = False) -> list[Explanation]:
    """What "auto" does in each sparse layer for this input.

    The model runs once, in evaluation mode and without gradients, to see each layer's input. On another device than
    a CPU nothing is predicted: the vendor's dense product is taken there.

    Args:
        model: any module; a single sparse layer, too.
        input: a batch, or its shape (ones of the first parameter's dtype and device). A tensor in
            channels_last is explained as that.
        measured: also time the candidates: a few milliseconds each, on random inputs.

    Raises:
        ValueError: the model has no sparse layer.

    >>> layer = sp.sparsify(nn.Linear(256, 256), {"weight": torch.eye(256).bool()})
    >>> [(e.product, e.chosen) for e in explain(layer, (64, 256))][0]
    ('forward', 'native')
    """
    names = {layer: name for name, layer in model.named_modules() if isinstance(layer, SparseLayer)}
    if not names:
        raise ValueError("model must have a sparse layer, got none; hold masks in it with sparsify() first")
    if not isinstance(input, Tensor):
        first = next(model.parameters())
        input = torch.ones(tuple(input), dtype=first.dtype, device=first.device)
    found: list[Explanation] = []

    def hook(layer: SparseLayer, args: tuple[Tensor, ...]) -> None:
        found.extend(_products_of(names[layer], layer, args[0], measured))

    handles = [layer.register_forward_pre_hook(hook) for layer in names]
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(input)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return found


def _products_of(name: str, layer: SparseLayer, x: Tensor, measured: bool) -> list[Explanation]:
    rows = []
    for call in layer._products(x):
        product = PRODUCTS[call.op.removeprefix("masked_linear").removeprefix("masked_conv2d")]
        if x.device.type != "cpu" or not x.numel():
            reason = f"on {x.device.type} nothing was measured" if x.numel() else "the batch is empty"
            rows.append(Explanation(name, product, layer.density, "dense", reason, {}))
            continue
        work, ways = described(call)
        choice = costs.choose(work)
        seconds = measure(ways) if measured else None
        rows.append(Explanation(name, product, layer.density, *choice, seconds))
    return rows
