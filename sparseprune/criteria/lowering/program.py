"""The program that a model is lowered to: nodes in the order of their execution.

A node's value is a feature map of one example, channels by positions. What is linear in the positions is the same for
every channel and stands as ``taps``: which position of the input the t-th tap of an output position reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import torch
from torch import Tensor

__all__ = ["Kind", "NotLoweredError", "Node", "consumers"]


class NotLoweredError(Exception):
    """The model has something that the program has no node for; the message says what."""


class Kind(Enum):
    INPUT = "input"
    LAYER = "layer"  # convolution or linear: a matrix times the columns of all taps
    POOL = "pool"  # average: a sum over taps
    MAX = "max"
    ADD = "add"
    CAT = "cat"  # of channels
    SCALE = "scale"  # of each channel
    FLATTEN = "flatten"  # positions become channels


@dataclass(eq=False)
class Node:
    """One value of the program.

    Attributes:
        channels, positions: of the value.
        taps: [taps, positions] of the input's positions, -1 beyond the border; None reads each position itself.
        factors: of a POOL, for each position.
        weight, groups: of a LAYER, the parameter's name.
        scale: [channels], of a SCALE; of a LAYER with which one was merged.
    """

    kind: Kind
    inputs: tuple[Node, ...]
    channels: int
    positions: int
    taps: np.ndarray | None = None
    factors: np.ndarray | None = None
    weight: str = ""
    groups: int = 1
    scale: Tensor | None = None
    read_by: list[Node] = field(default_factory=list)

    def count_paths(self) -> None:
        """Let every entry of a window pass, not only the largest, and every scale be one."""
        if self.kind is Kind.MAX:
            self.kind, self.factors = Kind.POOL, np.ones(self.positions)
        if self.scale is not None:
            self.scale = torch.ones_like(self.scale)

    @property
    def next_functions(self) -> tuple[tuple[Node, int], ...]:
        """The inputs, named as autograd's nodes name them, for ``cut_nodes``."""
        return tuple((node, 0) for node in self.inputs)


def consumers(nodes: list[Node]) -> None:
    """Fill ``read_by``."""
    for node in nodes:
        node.read_by.clear()
    for node in nodes:
        for source in node.inputs:
            source.read_by.append(node)
