"""Weight initialisation by name for every Linear, convolution and norm layer of a model.

normal: w ~ N(0, gain^2 / fan)
uniform: w ~ U(-b, b) with b = gain sqrt(3 / fan)
orthogonal: W W^T = gain^2 I, or W^T W for a tall matrix
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor, nn

from ..arguments import typed

Model = TypeVar("Model", bound=nn.Module)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LAYERS = (nn.Linear, *_CONVOLUTIONS)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class _Scheme:
    fill: Callable[[Tensor, float, int, Generator | None], object]
    gain: float


def _fan_in(weight: Tensor) -> float:
    return weight[0].numel()


def _fan_out(weight: Tensor) -> float:
    return weight.shape[0] * weight[0, 0].numel()


def _fan_mean(weight: Tensor) -> float:
    return (_fan_in(weight) + _fan_out(weight)) / 2


def _normal(fan: Callable[[Tensor], float], gain: float) -> _Scheme:
    return _Scheme(lambda w, g, groups, rng: w.normal_(0, g / math.sqrt(fan(w)), generator=rng), gain)


def _uniform(fan: Callable[[Tensor], float], gain: float) -> _Scheme:
    def fill(weight: Tensor, gain: float, groups: int, generator: Generator | None) -> None:
        bound = gain * math.sqrt(3 / fan(weight))
        weight.uniform_(-bound, bound, generator=generator)

    return _Scheme(fill, gain)


def _orthogonal(weight: Tensor, gain: float, groups: int, generator: Generator | None) -> None:
    for block in weight.flatten(1).chunk(groups):
        nn.init.orthogonal_(block, gain, generator)


def _delta_orthogonal(weight: Tensor, gain: float, groups: int, generator: Generator | None) -> None:
    if weight.dim() == 2:
        return _orthogonal(weight, gain, groups, generator)
    centre = (slice(None), slice(None), *(size // 2 for size in weight.shape[2:]))
    matrix = torch.empty_like(weight[centre], memory_format=torch.contiguous_format)
    _orthogonal(matrix, gain, groups, generator)
    weight.zero_()
    weight[centre] = matrix


SCHEMES: dict[str, _Scheme] = {
    "kaiming_normal": _normal(_fan_in, math.sqrt(2)),
    "kaiming_uniform": _uniform(_fan_in, math.sqrt(2)),
    "kaiming_normal_fan_out": _normal(_fan_out, math.sqrt(2)),
    "lecun_normal": _normal(_fan_in, 1.0),
    "xavier_normal": _normal(_fan_mean, 1.0),
    "xavier_uniform": _uniform(_fan_mean, 1.0),
    "orthogonal": _Scheme(_orthogonal, 1.0),
    "delta_orthogonal": _Scheme(_delta_orthogonal, 1.0),
    "pytorch": _uniform(_fan_in, math.sqrt(1 / 3)),
}


@typed
@torch.no_grad()
def initialize_(model: Model, scheme: str, generator: Generator | None = None, *, gain: float | None = None) -> Model:
    """Draws every weight of a model anew, in module order, so one seed gives one network.

    Weights of Linear and convolution layers follow ``scheme``:

    - ``kaiming_normal``, ``kaiming_uniform``: variance gain^2 / fan_in, gain sqrt(2)
    - ``kaiming_normal_fan_out``: variance gain^2 / fan_out, gain sqrt(2)
    - ``lecun_normal``: variance gain^2 / fan_in, gain 1
    - ``xavier_normal``, ``xavier_uniform``: variance 2 gain^2 / (fan_in + fan_out), gain 1
    - ``orthogonal``: each group's matrix [O/groups, C/groups * kernel] has orthonormal rows or columns, gain 1
    - ``delta_orthogonal``: such a matrix [O, C] at the kernel's centre, zeros around it: norms are kept, gain 1
    - ``pytorch``: what torch's constructors draw, uniform of variance gain^2 / fan_in, gain sqrt(1/3)

    Biases become 0 (in ``pytorch`` uniform within 1 / sqrt(fan_in)), norm layers weight 1, bias 0 and fresh
    running statistics. Other parameters (embeddings, attention projections, ...) stay as they are.

    Args:
        model: changed in place; parameters of any floating dtype, on any device.
        scheme: one of the names above.
        generator: the source of randomness, of any device; None is torch's global generator.
        gain: replaces the scheme's own gain.

    Returns:
        The same model.

    Raises:
        ValueError: unknown scheme; gain not positive and finite; a layer that holds a pruning mask;
            ``delta_orthogonal`` on a convolution with more input than output channels. Nothing changes then.

    Source:
        He et al. 2015 (1502.01852) eq. 10 and 14; Glorot and Bengio 2010 eq. 16; LeCun et al. 1998, Efficient
        BackProp, eq. 16; Saxe et al. 2014 (1312.6120); Xiao et al. 2018 (1806.05393) algorithm 1.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    if gain is not None and not 0 < gain < math.inf:
        raise ValueError(f"gain must be positive and finite, got {gain!r}")
    for name, layer in model.named_modules():
        _refuse(name, layer, scheme)
    for layer in model.modules():
        if isinstance(layer, _NORMS):
            layer.reset_parameters()
        elif isinstance(layer, _LAYERS) and layer.weight.numel():
            _initialize_layer_(layer, scheme, SCHEMES[scheme].gain if gain is None else gain, generator)
    return model


def construct(constructor: Callable[..., Model], *args: Any, **kwargs: Any) -> Model:
    """Builds a model without drawing weights or using up random numbers; initialize_ must fill it next."""
    device = torch.get_default_device()
    with torch.device("meta"):
        model = constructor(*args, **kwargs)
    return model.to_empty(device=device)


def _refuse(name: str, layer: nn.Module, scheme: str) -> None:
    if "weight_mask" in dict(layer.named_buffers(recurse=False)):
        raise ValueError(f"model must be dense, got a pruned layer {name!r}: initialise before pruning")
    if scheme == "delta_orthogonal" and isinstance(layer, _CONVOLUTIONS):
        inputs, outputs = layer.in_channels, layer.out_channels
        if inputs > outputs:
            raise ValueError(
                "scheme must suit every layer: delta_orthogonal needs convolutions with at least as many "
                f"output as input channels, got {name!r} with {inputs} inputs and {outputs} outputs"
            )


def _initialize_layer_(layer: Any, scheme: str, gain: float, generator: Generator | None) -> None:
    weight: Tensor = layer.weight
    # Drawn where the generator lives and in float32 or better: the same network on every device.
    device = weight.device if generator is None else generator.device
    dtype = torch.promote_types(weight.dtype, torch.float32)
    drawn = torch.empty(weight.shape, device=device, dtype=dtype)
    SCHEMES[scheme].fill(drawn, gain, getattr(layer, "groups", 1), generator)
    weight.copy_(drawn)
    if layer.bias is not None:
        bias = torch.zeros(layer.bias.shape, device=device, dtype=dtype)
        if scheme == "pytorch":
            bound = 1 / math.sqrt(_fan_in(weight))
            bias.uniform_(-bound, bound, generator=generator)
        layer.bias.copy_(bias)
