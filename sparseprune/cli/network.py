"""The network and the data of a command, as its arguments describe them."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file
from torch import nn

from .. import data, models
from ..data import Dataset
from ..recipes.names import DTYPES
from ..report.runs import save_weights as save_weights
from ..training.random_state import seeded
from .options import choose, choose_device, parse_model_options, parse_shape


@dataclass(frozen=True)
class Network:
    """A model on its device, the data set if there is one, and the shape of one image."""

    model: nn.Module
    dataset: Dataset | None
    shape: tuple[int, ...] | None


def load_data(name: str | None, data_dir: Path | None, image: str | None) -> Dataset | None:
    """The data set of --data, --data-dir and --input.

    Raises:
        ValueError: unknown, missing or damaged data, or images of another shape than --input.
    """
    shape = parse_shape(image) if image else None
    if name is None:
        if data_dir is not None:
            raise ValueError(f"--data-dir must come with --data, got {str(data_dir)!r} alone")
        return None
    size = None
    if name == "folder" and shape:
        if shape[0] != 3 or shape[1] != shape[2]:
            raise ValueError(f"--input must be 3xSxS for --data folder, got {image!r}")
        size = shape[1]
    dataset = data.load(name, data_dir, size=size)
    if shape and shape != dataset.input_shape:
        raise ValueError(f"--input must be {'x'.join(map(str, dataset.input_shape))} for --data {name}, got {image!r}")
    return dataset


def build(
    spec: str,
    dataset: Dataset | None,
    *,
    image: str | None,
    model_options: list[str] | None,
    init: str | None,
    weights: Path | None,
    seed: int,
    device: str,
    dtype: str,
) -> Network:
    """Create the model for the data, with its initial weights or those of a file.

    Raises:
        ValueError: an unknown name, a file of weights that is damaged or does not fit.
    """
    target, kind = choose_device(device), choose("--dtype", dtype, DTYPES)
    shape = dataset.input_shape if dataset else parse_shape(image) if image else None
    fitting = models.fitting_options(spec, shape, len(dataset.classes) if dataset else None)
    options = fitting | parse_model_options(model_options)
    with seeded(seed):
        model = models.create(spec, **options)
        if init is not None:
            models.initialize_(model, init, torch.Generator().manual_seed(seed))
    if weights is not None:
        load_weights(model, weights)
    return Network(model.to(target, kind), dataset, shape or models.input_shape(model))


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict from a file of tensors, strictly; no code in the file is run.

    Raises:
        ValueError: the file is missing, damaged, of another kind, or does not fit the model.
    """
    state = read_weights(path, "--weights")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise ValueError(f"--weights must fit the model, got {str(path)!r}: {reason}") from error


def read_weights(path: Path, option: str) -> dict[str, torch.Tensor]:
    """A state dict from a file of tensors, given by ``option``; no code in the file is run.

    Raises:
        ValueError: the file is missing, damaged or of another kind.
    """
    if not path.is_file():
        raise ValueError(f"{option} must be a file, got {str(path)!r}")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (
        safetensors.SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        KeyError,
        ValueError,
    ) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{option} must be an intact file of tensors, got {str(path)!r}: {reason}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{option} must be a state dict, got {str(path)!r} with something else")
    return state
