"""Which weights of a model are prunable: those of linear and convolution layers, whatever their storage."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from .arguments import typed
from .masks import BitMask, Masks
from .nn import SparseLayer

Exclude = str | type | Callable[[str, nn.Module], bool]

PRUNABLE = (nn.Linear, nn.modules.conv._ConvNd)


@typed
def prunable(model: nn.Module, exclude: Exclude | Iterable[Exclude] = ()) -> dict[str, nn.Parameter]:
    """The weights that ``prune`` may prune: those of linear and convolution layers, by parameter name, each once.

    Packed layers have no such Parameter: see :func:`prunable_layers`.

    Biases and norms are never among them. A weight shared by several layers stands under its first name. Subclasses
    count too, so a mask may be for a layer that ``sparsify`` has no twin of (attention's output projection); such a
    mask is for ``masks.apply_`` or left out with ``exclude``.

    Args:
        model: any module.
        exclude: what to leave out: a parameter name ("fc.weight"), a module name ("layer1", with all below it),
            a pattern of either with ``*`` ("*.downsample.*"), a module type, a predicate ``(name, module) -> bool``
            over the layers, or several of these.

    Raises:
        ValueError: an excluded name matches nothing (a typo must not prune what was to be spared), a layer is packed, or a
            weight that is not excluded is computed from other tensors.
    """
    layers = prunable_layers(model, exclude)
    if packed := [name for name, layer in layers.items() if "weight_values" in layer._parameters]:
        raise ValueError(f"model must have dense weights, got {packed[0]!r} packed; set_storage(model, 'owned') first")
    return {name: layer.weight for name, layer in layers.items()}


@typed
def prunable_layers(model: nn.Module, exclude: Exclude | Iterable[Exclude] = ()) -> dict[str, nn.Module]:
    """The layers of :func:`prunable` weights, of any storage, by the weight's name; of tied ones the first.

    Raises:
        ValueError: an excluded name matches nothing, or a weight that is not excluded is computed from other tensors.
    """
    rules = [exclude] if isinstance(exclude, (str, type)) or callable(exclude) else list(exclude)
    layers = [(n, m) for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, PRUNABLE)]
    computed = [n for n, m in layers if not {"weight", "weight_values"} & set(m._parameters)]
    if refused := [n for n in computed if not any(_matches(rule, n, model.get_submodule(n)) for rule in rules)]:
        raise ValueError(
            f"model must have weights of its own, got {refused[0]!r} whose weight is computed from other tensors (a "
            "parametrization, torch.nn.utils.prune, a norm); make it permanent first, or exclude it"
        )
    layers = [(n, m) for n, m in layers if n not in computed]
    spared = {id(_stored(m)) for n, m in layers if any(_matches(rule, n, m) for rule in rules)}
    known = [*dict(model.named_modules(remove_duplicate=False)), *dict(model.named_parameters(remove_duplicate=False))]
    for rule in rules:
        if isinstance(rule, str) and not any(fnmatchcase(name, rule) for name in known):
            raise ValueError(
                f"exclude must name modules or parameters of the model, got {rule!r}; layers: "
                f"{', '.join(n for n, _ in layers)}"
            )
    found: dict[str, nn.Module] = {}
    seen = set(spared)
    for name, module in layers:
        if id(_stored(module)) not in seen:
            seen.add(id(_stored(module)))
            found[f"{name}.weight" if name else "weight"] = module
    return found


def prunable_parameters(model: nn.Module, exclude: Exclude | Iterable[Exclude] = ()) -> list[nn.Parameter]:
    """The Parameters of :func:`prunable` weights; those of packed layers have the kept values alone."""
    return [_stored(layer) for layer in prunable_layers(model, exclude).values()]


def all_kept(model: nn.Module, exclude: Exclude | Iterable[Exclude] = ()) -> Masks:
    """Masks of all :func:`prunable` weights, packed ones too, that keep everything."""
    layers = prunable_layers(model, exclude)
    shapes = {n: m.dense_shape if isinstance(m, SparseLayer) else m.weight.shape for n, m in layers.items()}
    return Masks({name: BitMask.ones(shapes[name], _stored(layer).device) for name, layer in layers.items()})


def _stored(layer: nn.Module) -> Tensor:
    """The weight's Parameter, also of a packed layer."""
    return layer.parameter if isinstance(layer, SparseLayer) else layer.weight


def _matches(rule: Exclude, name: str, module: nn.Module) -> bool:
    if isinstance(rule, str):
        parts = name.split(".")
        above = [".".join(parts[:i]) for i in range(1, len(parts) + 1)]
        return any(fnmatchcase(n, rule) for n in (*above, f"{name}.weight" if name else "weight"))
    if isinstance(rule, type):
        return isinstance(module, rule)
    if callable(rule):
        return bool(rule(name, module))
    raise TypeError(f"exclude must be names, module types or predicates, got {type(rule).__name__}")


def check_model(model: nn.Module, exclude: Any) -> dict[str, nn.Parameter]:
    """Its :func:`prunable` weights; TypeError or ValueError where there is none, or one that cannot be pruned."""
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
