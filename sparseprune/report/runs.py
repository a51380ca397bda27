"""What a run folder holds: run.json, masks.safetensors and, once trained, history.json; reading and writing it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_safetensors
from torch import nn

from ..files import write_atomically
from ..masks import Masks
from ..training.history import History

FORMAT = "sparseprune-run"
VERSION = 1
RUN_FILE = "run.json"
MASKS_FILE = "masks.safetensors"
HISTORY_FILE = "history.json"
INIT_FILE = "init.safetensors"
MODEL_FILE = "model.safetensors"
CHECKPOINT_FILE = "checkpoint.pt"


@dataclass(frozen=True)
class Layer:
    """One prunable weight: its name and how many of its entries are kept."""

    name: str
    kept: int
    total: int

    @property
    def density(self) -> float:
        """kept / total; 0 for an empty weight."""
        return self.kept / self.total if self.total else 0.0

    @property
    def dead(self) -> bool:
        """Whether nothing of it is left."""
        return self.kept == 0 and self.total > 0


@dataclass(frozen=True)
class Run:
    """One run: its layers, and its training epochs where it has been trained.

    Attributes:
        name: what to call it: the name of its folder.
        model: the model's specification, as given to ``sparseprune prune``.
        criterion: the criterion's name, or "dense" for a run without masks.
        layers: the prunable weights, in the model's order; empty for a dense run.
        history: the epochs; empty before training.
    """

    name: str
    model: str
    criterion: str
    layers: tuple[Layer, ...] = ()
    history: History = field(default_factory=History)

    @property
    def kept(self) -> int:
        """Weights kept, over all layers."""
        return sum(layer.kept for layer in self.layers)

    @property
    def total(self) -> int:
        """Prunable weights, over all layers."""
        return sum(layer.total for layer in self.layers)

    @property
    def density(self) -> float:
        """kept / total; 1 for a dense run."""
        return self.kept / self.total if self.total else 1.0

    @property
    def dead_layers(self) -> tuple[Layer, ...]:
        """Layers with nothing left."""
        return tuple(layer for layer in self.layers if layer.dead)

    @property
    def final_error(self) -> float | None:
        """Test error after the last epoch; None before training."""
        return self.history[-1].test_error if self.history else None

    @property
    def best_error(self) -> float | None:
        """Lowest test error of any epoch; None before training."""
        return self.history.best.test_error if self.history else None


def layers_of(masks: Masks) -> tuple[Layer, ...]:
    """The layers of ``masks``, in order."""
    return tuple(Layer(name, int(mask.count()), int(mask.numel())) for name, mask in masks.items())


def load_run(folder: str | os.PathLike[str]) -> Run:
    """Read a run folder.

    Args:
        folder: what ``sparseprune prune --out`` or ``sparseprune train --out`` wrote.

    Raises:
        ValueError: a file is missing, damaged or of another kind; the message names it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"folder must be the folder of a run, got {folder}, which is not a folder")
    info = _read_json(folder / RUN_FILE, dict)
    if info.get("format") != FORMAT or info.get("version") != VERSION:
        raise ValueError(
            f"folder must hold a {RUN_FILE} of format {FORMAT} version {VERSION}, got {folder / RUN_FILE} "
            f"with format {info.get('format')!r} version {info.get('version')!r}"
        )
    layers: tuple[Layer, ...] = ()
    if info.get("masks"):
        path = folder / MASKS_FILE
        if not path.is_file():
            raise ValueError(f"folder must hold {MASKS_FILE} (its {RUN_FILE} says so), got {folder} without it")
        layers = layers_of(Masks.load(path))
    return Run(
        name=folder.resolve().name,
        model=str(info.get("model", "?")),
        criterion=str(info.get("criterion") or "dense"),
        layers=layers,
        history=_read_history(folder / HISTORY_FILE),
    )


def write_json(path: Path, value: Any) -> None:
    """A JSON file, whole or not at all."""
    text = json.dumps(value, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def write_run(folder: Path, run: dict[str, Any]) -> None:
    """run.json with its format's name and version."""
    write_json(folder / RUN_FILE, {"format": FORMAT, "version": VERSION, **run})


def save_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """The model's state dict as safetensors, whole or not at all."""
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    state = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    write_atomically(path, lambda file: file.write(to_safetensors(state)))


def _read_history(path: Path) -> History:
    if not path.exists():
        return History()
    try:
        return History.from_list(_read_json(path, list))
    except (TypeError, ValueError) as error:
        raise ValueError(f"folder must hold whole files, got {path}: {error}") from error


def _read_json(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"folder must hold {path.name}, got {path.parent} without it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"folder must hold whole files, got {path}: not JSON ({error})") from error
    if not isinstance(value, kind):
        raise ValueError(f"folder must hold whole files, got {path}: a {type(value).__name__}, not a {kind.__name__}")
    return value
