"""One run of a model in which every layer's input is kept and every layer's output gradient is handed out.

For a layer ``y = W x`` the gradient of a loss with respect to W is ``sum_n g_n x_n^T`` over the examples n. Autograd
computes the sum; here whoever needs the terms gets x when the layer runs and g when the backward pass reaches it, one
layer at a time. The layers are found by their weights at ``F.linear`` and the convolutions, so nothing is hung on the
model, and the gradients of the weights themselves are never computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .batches import BatchLoss

__all__ = ["LAYERS", "LayerCall", "Tapped"]

CONVOLUTIONS = {
    function: ("stride", "padding", "dilation", "groups")
    for function in (F.conv1d, F.conv2d, F.conv3d)
} | {
    function: ("stride", "padding", "output_padding", "groups", "dilation")
    for function in (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
}  # fmt: skip
LAYERS = {F.linear: (), **CONVOLUTIONS}
# What belongs to the unit whose layer it follows: the gate of a unit sits behind these.
FOLLOWING = {
    function
    for name in (
        "batch_norm relu relu_ relu6 leaky_relu leaky_relu_ elu elu_ selu selu_ celu celu_ gelu silu mish hardswish"
        " hardtanh hardtanh_ hardsigmoid sigmoid sigmoid_ tanh tanh_ softplus softsign prelu"
    ).split()
    for home in (torch, Tensor, F)
    if (function := getattr(home, name, None)) is not None
}


@dataclass(eq=False)
class LayerCall:
    """One use of a weight: ``function(input, weight, bias, **options)``.

    Attributes:
        name: the weight's.
        input: x, detached; (N, ..., in) or (N, C, ...).
        weight: detached.
        output: y, or with ``units`` what the activation behind the layer makes of it, detached.
    """

    name: str
    function: Callable[..., Tensor]
    input: Tensor
    weight: Tensor
    options: dict[str, Any]
    version: int
    output: Tensor | None = None

    def check(self, examples: int) -> None:
        """Raise ValueError where the gradient of a single example cannot be told."""
        if self.input._version != self.version:
            raise ValueError(f"model must not change the input of {self.name!r} in place, got one that does")
        if self.input.dim() < 2 or len(self.input) != examples:
            raise ValueError(
                f"model must keep the {examples} examples in the first dimension at {self.name!r}, got an input of"
                f" shape {tuple(self.input.shape)}; exclude that layer"
            )


Consumer = Callable[[LayerCall, Tensor], None]


class Tapped(TorchFunctionMode):
    """One forward run; ``backward`` may be called many times.

    Args:
        loss: whose model and weights these are.
        inputs: of one batch, examples in the first dimension.
        units: hand out the values and gradients behind each layer's batch norm and activation, not before them.

    Attributes:
        output: the model's, detached.
        calls: the layers in the order they ran.
    """

    def __init__(self, loss: BatchLoss, inputs: Tensor, *, units: bool = False) -> None:
        super().__init__()
        self._weights, self._units, self._examples = loss.weights, units, len(inputs)
        self._names = {id(weight): name for name, weight in loss.weights.items()}
        self._ends: dict[int, tuple[LayerCall, Tensor, int, Any]] = {}
        self._goals: list[Tensor] = []
        self._consume: Consumer | None = None
        self.calls: list[LayerCall] = []
        with self:
            self._output = loss.output(inputs)
        if not isinstance(self._output, Tensor):
            raise TypeError(f"model must return one tensor, got {type(self._output).__name__}")
        self.output = self._output.detach()
        self._ends.clear()

    def backward(self, cotangent: Tensor, consume: Consumer) -> None:
        """Call ``consume(layer call, gradient of <cotangent, output> at its output)`` for every layer, last first.

        Raises:
            ValueError: a weight is also used where it cannot be seen, so that what was handed out is not all.
        """
        if not self._output.requires_grad:
            return
        self._consume = consume
        goals = (*self._goals, *self._weights.values())
        found = torch.autograd.grad(self._output, goals, cotangent, retain_graph=True, allow_unused=True)
        for name, gradient in zip(self._weights, found[len(self._goals) :], strict=True):
            if gradient is not None:
                raise ValueError(
                    f"weight {name!r} must be used by linear or convolution layers alone for gradients of single"
                    " examples, got another use (attention, a sparse layer, a penalty): exclude it, or densify first"
                )

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in LAYERS:
            given = dict(zip(("input", "weight", "bias", *LAYERS[func]), args)) | kwargs
            if name := self._names.get(id(given["weight"])):
                return self._tap(name, func, given)
        follows = self._ends.get(id(args[0])) if self._units and func in FOLLOWING and args else None
        if follows is None or follows[1]._version != follows[2]:
            return func(*args, **kwargs)
        call, _, _, hook = self._ends.pop(id(args[0]))
        if hook is not None:
            hook.remove()
        return self._end(call, func(*args, **kwargs))

    def _tap(self, name: str, function: Callable[..., Tensor], given: dict[str, Any]) -> Tensor:
        x, weight, bias = given.pop("input"), given.pop("weight").detach(), given.pop("bias", None)
        call = LayerCall(name, function, x.detach(), weight, given, x._version)
        call.check(self._examples)
        if not x.requires_grad:
            # The backward pass must come here although nothing before needs it: the bias is its goal.
            transposed = "output_padding" in LAYERS[function]
            outputs = weight.shape[1] * given.get("groups", 1) if transposed else len(weight)
            bias = (weight.new_zeros(outputs) if bias is None else bias.detach()).requires_grad_()
            self._goals.append(bias)
        self.calls.append(call)
        output = function(x, weight, bias, **given)
        # A view that is changed in place forgets its hooks: F.linear returns one for more than two dimensions.
        return self._end(call, output.clone() if output._is_view() else output)

    def _end(self, call: LayerCall, output: Tensor) -> Tensor:
        """Hand out the gradient at ``output``, as it is at this moment: what changes it in place comes after."""
        # Under no_grad the run is for the calls alone.
        hook = output.register_hook(lambda gradient: self._hand_out(call, gradient)) if output.requires_grad else None
        if self._units:
            call.output = output.detach().clone()
            self._ends[id(output)] = (call, output, output._version, hook)
        return output

    def _hand_out(self, call: LayerCall, gradient: Tensor) -> None:
        if self._consume is not None:
            call.check(self._examples)
            self._consume(call, gradient)
