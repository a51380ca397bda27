"""Recipe: a run as data, checked before anything starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from ..arguments import typed
from ..data import LOADERS
from ..files import write_atomically
from ..training.settings import OPTIMIZERS, Settings
from ..training.settings import SCHEDULES as RATES
from ..training.trainer import DEFAULT_LR
from .document import Node, RecipeError, read_yaml
from .methods import METHODS, read_method, read_penalty, texts
from .names import ALLOCATIONS, BN_MODES, CRITERIA, DTYPES, SCHEDULES, SCOPES

Value = TypeVar("Value")

AT_START = [name for name, choice in CRITERIA.items() if not choice.needs_initial]
TRAIN = [f.name for f in fields(Settings) if f.name != "seed"]


@dataclass(frozen=True)
class Recipe:
    """What to train on what and how, as plain values with all defaults written out.

        model: lenet_300_100                                  # or {name, options, init}
        data: digits                                          # or {name, dir, size}
        prune: {criterion: random, density: 0.05, scope: layer, allocation: erk}
        method: {name: rigl, every: 100, until: 75 %}         # changes masks while training
        penalty: {name: l1, strength: 1e-5}
        train: {epochs: 10, batch_size: 64, optimizer: sgd, lr: 0.1}
        seeds: [0, 1, 2]
        out: runs/rigl

    Only ``model``, ``data`` and ``train`` must be there. A length of training is a number of steps, ``N epochs`` or
    ``N %``.

    >>> recipe = Recipe.from_dict({"model": "lenet5", "data": "digits", "train": {"epochs": 3}})
    >>> recipe.train["lr"], recipe.seeds
    (0.1, [0])
    """

    model: dict[str, Any]
    data: dict[str, Any]
    train: dict[str, Any]
    prune: dict[str, Any] | None
    method: dict[str, Any] | None
    penalty: dict[str, Any] | None
    seeds: list[int]
    device: str
    dtype: str
    out: str | None
    node: Node = field(compare=False, repr=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Check a recipe that is a dictionary.

        Raises:
            ValueError: a key is unknown or missing, or a value is of the wrong kind; the message names it.
        """
        return cls._read(Node(values))

    @classmethod
    @typed
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Check a recipe that is a YAML file.

        Raises:
            ValueError: as for ``from_dict``, with the file and the line in the message; or this is no such file.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"recipe must be a file of text, got {str(path)!r}: {error}") from None
        return cls._read(read_yaml(text, str(path)))

    @classmethod
    def _read(cls, node: Node) -> Recipe:
        keys = [f.name for f in fields(cls) if f.name != "node"]
        given = node.entries(keys, required=("model", "data", "train"))
        read: dict[str, Callable[[Node], Any]] = {
            "model": _read_model,
            "data": _read_data,
            "train": _read_train,
            "prune": _read_prune,
            "method": read_method,
            "penalty": read_penalty,
            "seeds": lambda node: [item.integer() for item in node.several()],
            "device": Node.text,
            "dtype": lambda node: node.choice(DTYPES),
            "out": Node.text,
        }
        default = {"seeds": [0], "device": "auto", "dtype": "float32"}
        values = {key: read[key](given[key]) if key in given else default.get(key) for key in keys}
        if len(set(values["seeds"])) != len(values["seeds"]) or not values["seeds"]:
            raise given["seeds"].error(f"must be different integers, got {values['seeds']}")
        recipe = cls(**values, node=node)
        recipe._check_start()
        return recipe

    def _check_start(self) -> None:
        if self.method is None:
            return
        starts = METHODS[self.method["name"]].starts
        if starts == "sparse" and self.prune is None:
            raise self.node.child("method").error(f"must come with prune for {self.method['name']}, got none")
        if starts == "dense" and self.prune is not None:
            raise self.node.child("prune").error(f"must not come with method {self.method['name']}, got both")

    def to_dict(self) -> dict[str, Any]:
        """The recipe, all defaults written out; ``from_dict`` of it gives an equal one."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "node"}
        return {key: value for key, value in values.items() if value is not None}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``to_dict()`` as YAML, whole or not at all."""
        import yaml

        text = yaml.safe_dump(self.to_dict(), sort_keys=False)
        write_atomically(path, lambda file: file.write(text.encode()))

    def run(self, out: str | os.PathLike[str] | None = None, **options: Any) -> dict[str, Any]:
        """Train once a seed; see :func:`sparseprune.recipes.run.run`."""
        from .run import run  # not needed to check one

        return run(self, out, **options)

    def located(self, section: str, call: Callable[[], Value], names: Mapping[str, str] | None = None) -> Value:
        """``call()``, whose error about an argument is said of that key of the section, with its line.

        ``names``: what arguments are called in the recipe, where that differs.
        """
        try:
            return call()
        except RecipeError:
            raise
        except (TypeError, ValueError) as error:
            argument, _, rest = str(error).partition(" ")
            key = (names or {}).get(argument, argument)
            if rest and key in (getattr(self, section) or {}):
                raise RecipeError(f"{section}.{key} {rest}{self.node.source.where((section, key))}") from error
            if isinstance(error, TypeError):
                raise
            raise RecipeError(f"{section}: {error}{self.node.source.where((section,))}") from error


def _as_mapping(node: Node) -> Node:
    return Node({"name": node.value}, node.path, node.source) if isinstance(node.value, str) else node


def _read_model(node: Node) -> dict[str, Any]:
    entries = _as_mapping(node).entries(("name", "options", "init"), required=("name",))
    return {
        "name": entries["name"].text(),
        "options": entries["options"].mapping() if "options" in entries else {},
        **({"init": entries["init"].text()} if "init" in entries else {}),
    }


def _read_data(node: Node) -> dict[str, Any]:
    entries = _as_mapping(node).entries(("name", "dir", "size"), required=("name",))
    values: dict[str, Any] = {"name": entries["name"].choice(LOADERS)}
    if "dir" in entries:
        values["dir"] = entries["dir"].text()
    if "size" in entries:
        values["size"] = entries["size"].integer(1)
    return values


def _read_train(node: Node) -> dict[str, Any]:
    entries = node.entries(TRAIN, required=("epochs",))
    readers: dict[str, Callable[[Node], Any]] = {
        "epochs": lambda node: node.integer(1),
        "batch_size": lambda node: node.integer(1),
        "optimizer": lambda node: node.choice(OPTIMIZERS),
        "schedule": lambda node: node.choice(RATES),
        "milestones": lambda node: [item.integer(1) for item in node.several()],
    }
    given = {key: readers.get(key, Node.number)(entry) for key, entry in entries.items()}
    default = {"batch_size": 64, "optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine"}
    values = {**default, "lr": DEFAULT_LR[given.get("optimizer", "sgd")], "milestones": [], "gamma": 0.1, **given}
    try:
        Settings(**{**values, "milestones": tuple(values["milestones"])}, seed=0)
    except ValueError as error:
        key = str(error).partition(" ")[0]
        raise RecipeError(f"train.{error}{node.source.where((*node.path, key))}") from None
    return {key: values[key] for key in TRAIN}


def _read_prune(node: Node) -> dict[str, Any]:
    readers: dict[str, Callable[[Node], Any]] = {
        "criterion": lambda node: node.choice(AT_START),
        "sparsity": Node.number,
        "density": Node.number,
        "keep": lambda node: node.integer(1),
        "steps": lambda node: node.integer(1),
        "schedule": lambda node: node.choice(SCHEDULES),
        "scope": lambda node: node.choice(SCOPES),
        "allocation": lambda node: node.choice(ALLOCATIONS),
        "exclude": texts,
        "min_per_layer": Node.number,
        "bn": lambda node: node.choice(BN_MODES),
        "samples_per_class": lambda node: node.integer(1),
        "batches": lambda node: node.integer(1),
    }
    if isinstance(node.value, Mapping) and "masks" in node.value:
        return {"masks": node.entries(("masks",))["masks"].text()}
    entries = node.entries(("masks", *readers), required=("criterion",))
    given = {key: readers[key](entry) for key, entry in entries.items()}
    amounts = [key for key in ("sparsity", "density", "keep") if key in given]
    if len(amounts) != 1:
        raise node.error(f"must have exactly one of sparsity, density and keep, got {' and '.join(amounts) or 'none'}")
    chosen, scope = CRITERIA[given["criterion"]], given.get("scope", "global")
    if "allocation" in given and scope != "layer":
        raise entries["allocation"].error(f"must come with scope layer, got scope {scope}")
    for key in ("samples_per_class", "batches"):
        if key in given and not chosen.needs_data:
            raise entries[key].error(f"must come with a criterion that takes data, got {given['criterion']}")
    if {"samples_per_class", "batches"} <= set(given):
        raise entries["batches"].error("must not come with samples_per_class, got both")
    if given.get("bn") == "train" and not chosen.trains_bn:
        raise entries["bn"].error(f"must be eval for {given['criterion']}, got 'train'")
    default = {"steps": chosen.steps, "schedule": "exponential", "scope": scope, "exclude": [], "min_per_layer": 0}
    default |= {"allocation": "uniform"} if scope == "layer" else {}
    default |= {"bn": "train" if chosen.trains_bn else "eval"}
    values = {**default, **given}
    return {key: values[key] for key in readers if key in values}
