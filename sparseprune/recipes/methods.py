"""Training methods and penalties by name: what each takes in a recipe, and how it is made of that."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .. import training as tr
from ..patterns import Global, LayerWise
from .document import Node, steps_in
from .names import ALLOCATIONS, SCHEDULES, SCOPES


@dataclass(frozen=True)
class MethodChoice:
    """A method and the keys of a recipe that it takes, as its arguments are called.

    Attributes:
        kind: its class.
        starts: "sparse" (the recipe must prune first), "dense" (it must not) or "any".
    """

    kind: type
    required: tuple[str, ...]
    optional: tuple[str, ...]
    starts: str

    @property
    def learned(self) -> bool:
        """Whether masks are parameters over weights that stay."""
        return issubclass(self.kind, tr.supermasks.MaskedModel)


def _choice(kind: type, required: str, optional: str, starts: str) -> MethodChoice:
    return MethodChoice(kind, tuple(required.split()), tuple(optional.split()), starts)


METHODS: dict[str, MethodChoice] = {
    "gradual": _choice(tr.GradualPruning, "density begin end", "every schedule scope allocation exclude", "any"),
    "tickets": _choice(tr.LotteryTickets, "rounds", "rate rates scope rewind rewind_to random exclude", "dense"),
    "set": _choice(tr.SET, "until", "every fraction", "sparse"),
    "rigl": _choice(tr.RigL, "until", "every fraction keep_regrown", "sparse"),
    "sparse-momentum": _choice(tr.SparseMomentum, "until", "every fraction decay", "sparse"),
    "dsr": _choice(tr.DSR, "until", "every fraction threshold", "sparse"),
    "deepr": _choice(tr.DeepR, "until", "l1 temperature", "sparse"),
    "nest": _choice(tr.NeST, "grow_until prune_until", "every growth rate", "sparse"),
    "gram-schmidt": _choice(tr.GramSchmidtTraining, "every", "tolerance prune_after exclude", "any"),
    "edge-popup": _choice(tr.EdgePopup, "density", "scope absolute exclude trained", "dense"),
    "piggyback": _choice(tr.Piggyback, "", "threshold start exclude trained", "dense"),
    "bernoulli": _choice(tr.BernoulliMasks, "", "gradient rescale momentum exclude trained", "dense"),
}
PENALTIES = {"l1": tr.L1, "l2": tr.L2, "weight-elimination": tr.WeightElimination, "two-scale": tr.TwoScale}


def _share(node: Node) -> Any:
    """A number, or {cosine: [start, end]} over the steps until ``until``."""
    if isinstance(node.value, Mapping):
        ends = node.entries(["cosine"], required=["cosine"])["cosine"]
        if len(ends.several()) != 2:
            raise ends.error(f"must be [start, end], got {ends.value!r}")
        return {"cosine": [end.number() for end in ends.several()]}
    return node.number()


def _rates(node: Node) -> dict[str, float]:
    return {name: node.child(name).number() for name in node.mapping()}


def texts(node: Node) -> list[str]:
    """Names: one, or a list."""
    return [item.text() for item in node.several()]


READERS: dict[str, Callable[[Node], Any]] = {
    **dict.fromkeys("every until begin end grow_until prune_until rewind_to".split(), Node.steps),
    **dict.fromkeys("tolerance density rate growth decay l1 temperature threshold start momentum".split(), Node.number),
    **dict.fromkeys("keep_regrown random absolute rescale".split(), Node.flag),
    **dict.fromkeys("exclude trained".split(), texts),
    **dict.fromkeys("rewind gradient".split(), Node.text),
    **dict.fromkeys("rounds prune_after".split(), lambda node: node.integer(1)),
    "fraction": _share,
    "rates": _rates,
    "scope": lambda node: node.choice(SCOPES),
    "allocation": lambda node: node.choice(ALLOCATIONS),
    "schedule": lambda node: node.choice(SCHEDULES),
}


def read_named(node: Node, choices: Mapping[str, Any]) -> tuple[str, Node]:
    """A name, or a mapping that has it under ``name``; the second is the mapping."""
    if isinstance(node.value, str):
        node = Node({"name": node.value}, node.path, node.source)
    if "name" not in node.mapping():
        raise node.error(f"must have the key 'name', got {', '.join(node.value) or 'no keys'}")
    return node.child("name").choice(choices), node


def read_method(node: Node) -> dict[str, Any]:
    """A checked method section, with the defaults that are plain values written out."""
    name, node = read_named(node, METHODS)
    chosen = METHODS[name]
    keys = (*chosen.required, *chosen.optional)
    entries = node.entries(("name", *keys), ("name", *chosen.required))
    given = {key: READERS[key](entries[key]) for key in keys if key in entries}
    defaults = {key: value for key, value in _defaults(chosen.kind).items() if key in chosen.optional}
    return {"name": name, **{key: given.get(key, defaults.get(key)) for key in keys if key in given or key in defaults}}


def read_penalty(node: Node) -> dict[str, Any]:
    """A checked penalty section."""
    name, node = read_named(node, PENALTIES)
    keys = list(inspect.signature(PENALTIES[name]).parameters)
    entries = node.entries(("name", *keys))
    values = {key: entry.number() for key, entry in entries.items() if key != "name"}
    return {"name": name, **_defaults(PENALTIES[name]), **values}


def _defaults(kind: type) -> dict[str, Any]:
    """The plain default values of a class's arguments, inherited ones too."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        parameters = inspect.signature(base.__init__).parameters.values() if "__init__" in vars(base) else ()
        found |= {p.name: p.default for p in parameters if isinstance(p.default, bool | int | float | str)}
    return found


def method_arguments(section: Mapping[str, Any], seed: int, epochs: int, steps_per_epoch: int) -> dict[str, Any]:
    """The keyword arguments of the class: lengths in steps, names as objects, the run's seed."""
    kind, arguments = METHODS[section["name"]].kind, {}
    for key, value in section.items():
        if READERS.get(key) is Node.steps:
            arguments[key] = steps_in(value, epochs, steps_per_epoch)
        elif key == "fraction" and isinstance(value, Mapping):
            arguments[key] = tr.cosine(*value["cosine"])
        elif key == "schedule":
            arguments[key] = SCHEDULES[value]
        elif key in ("exclude", "trained"):
            arguments[key] = tuple(value)
        elif key != "name":
            arguments[key] = value
    if kind is tr.GradualPruning:
        scope, allocation = arguments.pop("scope", "global"), arguments.pop("allocation", "uniform")
        arguments["pattern"] = Global() if scope == "global" else LayerWise(ALLOCATIONS[allocation])
    if kind is tr.LotteryTickets:
        arguments["steps_per_round"] = epochs * steps_per_epoch
    takes = {name for base in kind.__mro__ for name in inspect.signature(base.__init__).parameters}
    return {**arguments, "seed": seed} if "seed" in takes else arguments


def make_penalty(section: Mapping[str, Any] | None) -> tr.penalties.Penalty | None:
    """The penalty of a section."""
    if section is None:
        return None
    return PENALTIES[section["name"]](**{key: value for key, value in section.items() if key != "name"})
