"""Where every path from input to output passes through one value: there a factor scales all paths alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["cut_nodes"]

Node = Any  # torch.autograd's graph nodes have no public type


def cut_nodes(outputs: Iterable[Node]) -> set[Node]:
    """The nodes of an autograd graph that every path from its leaf to the outputs crosses.

    In topological order, node i is one exactly when no edge leads from a node before it to a node after it: a path
    that avoids i would need such an edge.

    Args:
        outputs: ``grad_fn`` of each output; only the network's input may have required grad.
    """
    order = _inputs_first(outputs)
    position = {node: i for i, node in enumerate(order)}
    last = len(order)
    reach = [0] * last  # the furthest position an edge from here leads to
    for node, i in position.items():
        for parent in _parents(node):
            reach[position[parent]] = max(reach[position[parent]], i)
    for output in outputs:
        reach[position[output]] = last
    cuts, furthest = set(), 0
    for i, node in enumerate(order):
        if furthest <= i:
            cuts.add(node)
        furthest = max(furthest, reach[i])
    return cuts


def _parents(node: Node) -> list[Node]:
    return [parent for parent, _ in node.next_functions if parent is not None]


def _inputs_first(outputs: Iterable[Node]) -> list[Node]:
    """Topological order by depth-first search, iterative: a deep network would exhaust Python's stack."""
    order, entered, done = [], set(), set()
    stack = list(outputs)
    while stack:
        node = stack[-1]
        if node in done:
            stack.pop()
        elif node in entered:
            order.append(stack.pop())
            done.add(node)
        else:
            entered.add(node)
            stack.extend(parent for parent in _parents(node) if parent not in done)
    return order
