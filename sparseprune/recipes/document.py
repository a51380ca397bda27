"""YAML with the line of every key, and values that know where they stand when they are wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

Path = tuple[str | int, ...]


class RecipeError(ValueError):
    """What is wrong with a recipe, and where."""


@dataclass(frozen=True)
class Source:
    """Where values come from: a file's name and the line of each, or neither for a dictionary in Python."""

    name: str | None = None
    lines: Mapping[Path, int] = field(default_factory=dict)

    def where(self, path: Path) -> str:
        """ " (file, line n)", of the value or of the nearest one that holds it."""
        if self.name is None:
            return ""
        while path and path not in self.lines:
            path = path[:-1]
        return f" ({self.name}, line {self.lines.get(path, 1)})"


@dataclass(frozen=True)
class Node:
    """One value of a recipe; what it must be is asked for by a method, which returns it or raises ValueError."""

    value: Any
    path: Path = ()
    source: Source = field(default_factory=Source)

    def error(self, sentence: str) -> RecipeError:
        """``sentence`` said of this value, with its key and line."""
        return RecipeError(f"{self.title} {sentence}{self.source.where(self.path)}")

    @property
    def title(self) -> str:
        """ "train.milestones[1]" """
        parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path]
        return "".join(parts).removeprefix(".") or "recipe"

    def entries(self, keys: Collection[str], required: Collection[str] = ()) -> dict[str, Node]:
        """The entries of a mapping with keys among ``keys``."""
        if not isinstance(self.value, Mapping):
            raise self.error(f"must be a mapping with keys among {', '.join(keys)}, got {self.value!r}")
        for key in self.value:
            if key not in keys:
                close = get_close_matches(str(key), keys, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                sentence = f"{self.title} must have keys among {', '.join(keys)}, got {key!r}{hint}"
                raise RecipeError(sentence + self.source.where((*self.path, key)))
        for key in required:
            if key not in self.value:
                raise self.error(f"must have the key {key!r}, got {', '.join(self.value) or 'no keys'}")
        return {key: self.child(key) for key in self.value}

    def child(self, key: str | int) -> Node:
        """The value at a key or an index."""
        return Node(self.value[key], (*self.path, key), self.source)

    def mapping(self) -> dict[str, Any]:
        """Any keys."""
        if not isinstance(self.value, Mapping) or not all(isinstance(key, str) for key in self.value):
            raise self.error(f"must be a mapping, got {self.value!r}")
        return dict(self.value)

    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value:
            raise self.error(f"must be text, got {self.value!r}")
        return self.value

    def choice(self, choices: Collection[str]) -> str:
        """One of the names."""
        if self.value not in list(choices):
            close = get_close_matches(str(self.value), choices, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise self.error(f"must be one of {', '.join(choices)}, got {self.value!r}{hint}")
        return self.value

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            raise self.error(f"must be true or false, got {self.value!r}")
        return self.value

    def integer(self, least: int = 0) -> int:
        if isinstance(self.value, bool) or not isinstance(self.value, int) or self.value < least:
            raise self.error(f"must be an integer >= {least}, got {self.value!r}")
        return self.value

    def number(self) -> float:
        if isinstance(self.value, bool) or not isinstance(self.value, int | float) or not math.isfinite(self.value):
            raise self.error(f"must be a finite number, got {self.value!r}")
        return self.value

    def several(self) -> list[Node]:
        """The items of a list; one value stands for a list of it."""
        if not isinstance(self.value, list | tuple):
            return [self]
        return [self.child(index) for index in range(len(self.value))]

    def steps(self) -> int | str:
        """Optimizer steps, or a length of training as ``steps_in`` reads it."""
        if isinstance(self.value, str) and _LENGTH.fullmatch(self.value):
            return self.value
        if isinstance(self.value, bool) or not isinstance(self.value, int) or self.value < 0:
            raise self.error(f"must be steps, 'N epochs' or 'N %' of the training, got {self.value!r}")
        return self.value


_LENGTH = re.compile(r"(\d+(?:\.\d+)?) *(epochs?|%)")


def steps_in(length: int | str, epochs: int, steps_per_epoch: int) -> int:
    """Optimizer steps: ``length`` itself, or "2 epochs", or "75 %" of ``epochs``, rounded.

    >>> steps_in(7, 10, 100), steps_in("2 epochs", 10, 100), steps_in("75 %", 10, 100)
    (7, 200, 750)
    """
    if isinstance(length, int):
        return length
    number, unit = _LENGTH.fullmatch(length).groups()
    return round(float(number) * (epochs * steps_per_epoch / 100 if unit == "%" else steps_per_epoch))


def read_yaml(text: str, name: str) -> Node:
    """The document in ``text`` with the line of every value.

    Numbers such as 1e-4 are numbers. Keys must be text and stand once; aliases, tags of Python and several documents
    are refused.

    Raises:
        ValueError: the text is no such document; the message has file and line.
    """
    import yaml  # only who reads a file needs it

    class Loader(yaml.SafeLoader):
        """YAML 1.1 takes 1e-4 for text."""

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"), list("-+.0123456789")
    )
    lines: dict[Path, int] = {}
    seen: set[int] = set()

    def refuse(line: int, sentence: str) -> RecipeError:
        return RecipeError(f"recipe must {sentence} ({name}, line {line})")

    def value_of(loader: yaml.SafeLoader, node: yaml.Node, path: Path) -> Any:
        line = node.start_mark.line + 1
        lines.setdefault(path, line)
        if id(node) in seen:
            raise refuse(line, "spell every value out, got an alias")
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            return [value_of(loader, item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            try:
                return loader.construct_object(node)
            except ValueError as error:
                raise refuse(line, f"hold values of their tags, got {node.value!r}: {error}") from None
        result: dict[str, Any] = {}
        for key_node, item in node.value:
            line = key_node.start_mark.line + 1
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or not isinstance(key, str) or key_node.tag.endswith("merge"):
                raise refuse(line, "have names as keys, got another kind of key")
            if key in result:
                raise refuse(line, f"have every key once, got {key!r} again")
            lines[(*path, key)] = line
            result[key] = value_of(loader, item, (*path, key))
        return result

    try:
        loader = Loader(text)
        root = loader.get_single_node()
        value = None if root is None else value_of(loader, root, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise refuse(mark.line + 1 if mark else 1, f"be one YAML document, got {error.problem or error}") from None
    except yaml.YAMLError as error:
        raise refuse(1, f"be one YAML document, got {str(error).splitlines()[0]}") from None
    return Node(value, (), Source(name, lines))
