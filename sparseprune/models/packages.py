"""Models of the packages torchvision, timm and transformers, built from their names without downloading."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn


class Logits(nn.Module):
    """A Hugging Face model that returns its logits as one tensor; the model itself is ``.model``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The wrapped model's arguments to its logits."""
        return self.model(*args, **kwargs).logits


def call(spec: str, factory: Callable[..., Any], options: dict[str, Any]) -> nn.Module:
    """Calls a factory that takes the options; raises TypeError unless a model comes back."""
    try:
        signature = inspect.signature(factory)
    except ValueError:
        signature = None  # Some built-in callables have none; they check their arguments themselves.
    if signature is not None:
        try:
            signature.bind(**options)
        except TypeError as error:
            takes = ", ".join(signature.parameters) or "nothing"
            raise ValueError(f"options must fit {spec!r}, which takes {takes}, got: {error}") from None
    model = factory(**options)
    if not isinstance(model, nn.Module):
        raise TypeError(f"spec must name a factory of models, got {type(model).__name__} from {spec!r}")
    return model


def close_matches(name: str, known: Iterable[str], show: Callable[[str], Any] = str) -> str:
    """Returns "; close: a, b" for the known names like ``name``, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=5, cutoff=0.5)
    return f"; close: {', '.join(show(match) for match in close)}" if close else ""


def _package(spec: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        missing = error.name or package
        raise ValueError(
            f"spec must name an installed package, got {spec!r} without {missing} (pip install {missing})"
        ) from error
    except Exception as error:
        # For one, torchvision raises RuntimeError when it was built for another torch.
        raise ValueError(f"spec must name a package that loads, got {spec!r}: {error}") from error


def _torchvision(spec: str, name: str, options: dict[str, Any]) -> nn.Module:
    models = _package(spec, "torchvision").models
    known = models.list_models()
    if name not in known:
        raise ValueError(f"spec must name a torchvision model, got {spec!r}{close_matches(name, known)}")
    builder = models.get_model_builder(name)
    # Detection and segmentation models fetch the weights of their backbone by default.
    parameters = inspect.signature(builder).parameters
    offline = {key: None for key in ("weights", "weights_backbone") if key in parameters}
    return call(spec, builder, {**offline, **options})


def _timm(spec: str, name: str, options: dict[str, Any]) -> nn.Module:
    timm = _package(spec, "timm")
    if not timm.is_model(name):
        close = close_matches(name, timm.list_models())
        raise ValueError(f"spec must name a timm model, got {spec!r}{close}")
    return call(spec, timm.create_model, {"model_name": name, "pretrained": False, **options})


def _hugging_face(spec: str, name: str, options: dict[str, Any]) -> nn.Module:
    transformers = _package(spec, "transformers")
    folder = Path(name)
    local = (folder / "config.json").is_file()
    if not local and name not in transformers.CONFIG_MAPPING:
        raise ValueError(
            "spec must be hf:FOLDER with a config.json in the folder, or hf:TYPE with a model type of "
            f"transformers, got {spec!r}{close_matches(name, transformers.CONFIG_MAPPING)}"
        )

    def configure(**changes: Any) -> Any:
        if local:
            return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **changes)
        return transformers.AutoConfig.for_model(name, **changes)

    plain = configure()
    for option in options:
        if not hasattr(plain, option):
            close = close_matches(option, plain.to_dict())
            raise ValueError(f"options must be entries of the configuration, got {option!r}{close}")
    config = configure(**options)
    weights = local and [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    for head in _heads(config, "num_labels" in options):
        auto = getattr(transformers, f"AutoModelFor{head}")
        if type(config) in auto._model_mapping:
            if weights:
                return Logits(auto.from_pretrained(folder, config=config, local_files_only=True))
            return Logits(auto.from_config(config))
    raise ValueError(f"spec must be a classifier or a language model, got {spec!r}")


def _heads(config: Any, labelled: bool) -> list[str]:
    saved = [name.rpartition("For")[2] for name in config.architectures or () if "For" in name]
    guesses = ["ImageClassification", "MaskedLM", "CausalLM", "SequenceClassification"]
    if labelled:
        guesses.insert(1, "SequenceClassification")
    return [head for head in saved if head in guesses] or guesses


SOURCES: dict[str, Callable[[str, str, dict[str, Any]], nn.Module]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "hf": _hugging_face,
}
