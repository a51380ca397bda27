"""Models by name: ours, ``torchvision:NAME``, ``timm:NAME``, ``hf:NAME`` or ``package.module:factory``."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any

from torch import nn

from sparseprune.models import cifar_resnet, lenet, packages, resnet, vgg, wide_resnet
from sparseprune.models.packages import call, close_matches

FACTORIES: dict[str, Callable[..., nn.Module]] = {
    "lenet_300_100": lenet.lenet_300_100,
    "lenet5": lenet.lenet5,
    "lenet5_caffe": lenet.lenet5_caffe,
    "vgg11_bn": vgg.vgg11_bn,
    "vgg16_bn": vgg.vgg16_bn,
    "vgg19_bn": vgg.vgg19_bn,
    "resnet20": cifar_resnet.resnet20,
    "resnet32": cifar_resnet.resnet32,
    "resnet56": cifar_resnet.resnet56,
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet101": resnet.resnet101,
    "resnet152": resnet.resnet152,
    "wide_resnet": wide_resnet.wide_resnet,
    "wrn_16_8": wide_resnet.wrn_16_8,
    "wrn_22_8": wide_resnet.wrn_22_8,
    "wrn_28_10": wide_resnet.wrn_28_10,
}
_FORMS = "torchvision:NAME, timm:NAME, hf:NAME or package.module:factory"


def create(spec: str, **options: Any) -> nn.Module:
    """Builds a model by name without downloading; its weights are initial unless the options say otherwise.

    Args:
        spec: one of
            - ours, e.g. ``resnet50`` or ``LeNet-300-100`` (case, '-' and '_' do not matter);
            - ``torchvision:NAME`` or ``timm:NAME``, without weights unless ``weights=`` or ``pretrained=`` is given;
            - ``hf:FOLDER`` (with config.json, and weights if there are any; read from disk only) or ``hf:TYPE``
              (e.g. ``hf:vit``, that type's default configuration), wrapped so that the output is the logits: of
              the saved architecture, else of an image classifier or a masked or causal language model (of a
              sequence classifier if num_labels is given);
            - ``package.module:factory``, any importable callable that returns a model.
        options: passed to the factory; for ``hf:``, changes to the configuration, e.g. num_labels=10.

    Returns:
        The model; ``input_shape(model)`` tells the images it is built for.

    Raises:
        ValueError: a name that is not known (the message has the close ones), an option that the factory does
            not take, a package that is not installed.
        TypeError: ``spec`` is not a string, or names something that does not return a model.
    """
    if not isinstance(spec, str):
        raise TypeError(f"spec must be a string, got {type(spec).__name__}")
    prefix, colon, name = spec.partition(":")
    if not colon:
        return call(spec, FACTORIES[_ours(spec)], options)
    if prefix in packages.SOURCES:
        return packages.SOURCES[prefix](spec, name, options)
    return call(spec, _imported(spec, prefix, name), options)


def fitting_options(spec: str, shape: tuple[int, ...] | None, classes: int | None) -> dict[str, Any]:
    """What each source calls the image's shape and the number of classes; other factories decide alone."""
    names = {
        "ours": {"input_shape": shape, "num_classes": classes},
        "torchvision": {"num_classes": classes},
        "timm": {"num_classes": classes, "in_chans": shape[0] if shape else None},
        "hf": {"num_labels": classes},
    }
    known = names.get(spec.partition(":")[0] if ":" in spec else "ours", {})
    return {name: value for name, value in known.items() if value is not None}


def input_shape(model: nn.Module) -> tuple[int, int, int] | None:
    """Returns the (C, H, W) of one image that a model is built for, or None where the model does not say.

    Read from ``model.input_shape`` (ours), a timm model's ``default_cfg`` or a Hugging Face model's ``config``.
    """
    if hasattr(model, "input_shape"):
        return tuple(model.input_shape)
    if "input_size" in (getattr(model, "default_cfg", None) or {}):
        return tuple(model.default_cfg["input_size"])
    config = getattr(getattr(model, "model", None), "config", None)
    side = getattr(config, "image_size", None)
    return (getattr(config, "num_channels", 3), side, side) if isinstance(side, int) else None


def _ours(spec: str) -> str:
    plain = {_plain(name): name for name in FACTORIES}
    if _plain(spec) not in plain:
        close = close_matches(_plain(spec), plain, plain.get)
        raise ValueError(f"spec must be one of {', '.join(FACTORIES)}, or {_FORMS}, got {spec!r}{close}")
    return plain[_plain(spec)]


def _plain(name: str) -> str:
    return re.sub("[-_]", "", name.lower())


def _imported(spec: str, module_name: str, factory: str) -> Callable[..., Any]:
    if not all(part.isidentifier() for part in (*module_name.split("."), *factory.split("."))):
        raise ValueError(f"spec must be one of ours, {_FORMS}, got {spec!r}")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A missing import inside the user's module is the user's own error and must be seen as such.
        if error.name != module_name and not module_name.startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"spec must be one of ours, {_FORMS}, got {spec!r}: there is no module {error.name}"
        ) from error
    for part in factory.split("."):
        if not hasattr(found, part):
            raise ValueError(
                f"spec must name a factory in {module_name}, got {spec!r}{close_matches(part, dir(found))}"
            )
        found = getattr(found, part)
    if isinstance(found, nn.Module) or not callable(found):
        raise TypeError(f"spec must name a factory of models, got {type(found).__name__} from {spec!r}")
    return found
