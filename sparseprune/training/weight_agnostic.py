"""Weight-agnostic search: graphs that work whatever one weight all their connections share. Small ones.

A graph has inputs, hidden nodes and outputs, in this order; a connection goes from an earlier node to a later one, and a
node applies an activation to (weight times the sum of what its connections bring). Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .method import check_count
from .random_state import derived_generator

WEIGHTS = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "step": lambda x: (x > 0).to(x.dtype),
    "sin": lambda x: torch.sin(torch.pi * x),
    "gauss": lambda x: torch.exp(-x.square() / 2),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "inverse": torch.neg,
    "abs": torch.abs,
    "relu": torch.relu,
    "cosine": lambda x: torch.cos(torch.pi * x),
}


@dataclass(frozen=True)
class Graphs:
    """Graphs of n nodes each.

    Attributes:
        links: bool [graphs, n, n], from the first node to the second; above the diagonal, none into an input or from an
            output.
        kinds: int64 [graphs, n], which of the activations.
        inputs, outputs: how many nodes are.
        activations: their names.
    """

    links: Tensor
    kinds: Tensor
    inputs: int
    outputs: int
    activations: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.links)

    def __getitem__(self, chosen: Tensor) -> Graphs:
        return Graphs(self.links[chosen], self.kinds[chosen], self.inputs, self.outputs, self.activations)

    def __call__(self, x: Tensor, weights: Sequence[float] = WEIGHTS) -> Tensor:
        """Outputs [graphs, weights, examples, outputs] for x [examples, inputs]: every graph with every weight."""
        nodes = self.links.shape[1]
        shared = torch.tensor(weights, dtype=x.dtype)[None, :, None]
        values = x.new_zeros(len(self), len(weights), len(x), nodes)
        values[..., : self.inputs] = x
        for node in range(self.inputs, nodes):
            sums = shared * torch.einsum("gwei,gi->gwe", values[..., :node], self.links[:, :node, node].to(x.dtype))
            for kind, name in enumerate(self.activations):
                rows = self.kinds[:, node] == kind
                values[rows, :, :, node] = ACTIVATIONS[name](sums[rows])
        return values[..., nodes - self.outputs :]

    def counts(self) -> Tensor:
        """Connections of each."""
        return self.links.sum((1, 2))


def possible_links(inputs: int, hidden: int, outputs: int) -> Tensor:
    """bool [n, n]: the connections that a graph may have.

    >>> int(possible_links(2, 2, 1).sum())
    9
    """
    n = inputs + hidden + outputs
    allowed = torch.ones(n, n, dtype=torch.bool).triu(1)
    allowed[:, :inputs] = False
    allowed[n - outputs :] = False
    return allowed


def pareto_ranks(objectives: Tensor) -> Tensor:
    """Rank 0 is what nothing else dominates, rank 1 what only rank 0 does, and so on; objectives [n, k], larger is better.

    >>> pareto_ranks(torch.tensor([[1, 0.5], [0.9, 1], [0.8, 0.4]])).tolist()
    [0, 0, 1]
    """
    at_least = (objectives[:, None] >= objectives[None]).all(-1)
    dominates = at_least & ~at_least.T
    ranks = torch.full((len(objectives),), -1)
    rank = 0
    while (left := ranks < 0).any():
        ranks[left & ~(dominates & left[:, None]).any(0)] = rank
        rank += 1
    return ranks


def search_graphs(
    x: Tensor,
    reward: Callable[[Tensor], Tensor],
    *,
    outputs: int,
    hidden: int,
    activations: Sequence[str] = tuple(ACTIVATIONS),
    population: int = 128,
    generations: int = 100,
    weights: Sequence[float] = WEIGHTS,
    seed: int = 0,
) -> tuple[Graphs, Tensor]:
    """Evolve graphs by their mean reward over shared weights, and by how few connections they have.

    Ranked by Pareto fronts of (mean reward, 1 / connections) in four generations of five, of (mean, best reward) in the
    others; a fifth is culled, a fifth goes on unchanged, the others are children of winners of tournaments of eight.

    Args:
        x: [examples, inputs]; a column of ones serves as bias.
        reward: outputs [graphs, weights, examples, outputs] -> [graphs, weights], larger is better.
        outputs, hidden: nodes; hidden ones are taken up as links are split.
        activations: names among ``ACTIVATIONS``.
        population, generations, weights: of the search.
        seed: of everything random.

    Returns:
        (the last generation, best mean reward first and then fewest connections; its rewards [graphs, weights]).

    Raises:
        ValueError: an argument is out of range.

    Source: Gaier and Ha 2019, arXiv:1906.04358, section 3. A fixed number of hidden nodes, one mutation or more a child,
    and copies that go last are ours.
    """
    for name, value, least in (("outputs", outputs, 1), ("hidden", hidden, 0), ("population", population, 10)):
        check_count(name, value, least)
    check_count("generations", generations)
    if unknown := [name for name in activations if name not in ACTIVATIONS]:
        raise ValueError(f"activations must be among {', '.join(ACTIVATIONS)}, got {unknown[0]!r}")
    generator = derived_generator(check_count("seed", seed, 0))
    inputs = x.shape[1]
    allowed = possible_links(inputs, hidden, outputs)
    direct = allowed.clone()
    direct[inputs : inputs + hidden] = direct[:, inputs : inputs + hidden] = False
    n = len(allowed)
    links = direct & (torch.rand(population, n, n, generator=generator) < 0.5)
    kinds = torch.randint(len(activations), (population, n), generator=generator)
    graphs = Graphs(links, kinds, inputs, outputs, tuple(activations))
    best = _Best(x, reward, weights)
    for _ in range(generations):
        means, maxima = best.of(graphs)
        simple = float(torch.rand((), generator=generator)) < 0.8
        second = 1 / graphs.counts().clamp(min=1) if simple else maxima
        ranks = pareto_ranks(torch.stack([means, second.to(means)], 1))
        order = torch.argsort((ranks + len(graphs) * _repeated(graphs)) * 2.0 - _unit(means), stable=True)
        graphs = _next_generation(graphs, order, allowed, generator)
    means, _ = best.of(graphs)
    order = sorted(range(len(graphs)), key=lambda i: (-means[i].item(), graphs.counts()[i].item(), i))
    graphs = graphs[torch.tensor(order)]
    return graphs, reward(graphs(x, weights))


@dataclass
class _Best:
    x: Tensor
    reward: Callable[[Tensor], Tensor]
    weights: Sequence[float]

    def of(self, graphs: Graphs) -> tuple[Tensor, Tensor]:
        """Mean and largest reward over the weights."""
        rewards = self.reward(graphs(self.x, self.weights))
        return rewards.mean(1), rewards.amax(1)


def _unit(values: Tensor) -> Tensor:
    """In [0, 1]: decides within a rank, never between two."""
    spread = values.max() - values.min()
    return (values - values.min()) / spread if spread > 0 else torch.zeros_like(values)


def _repeated(graphs: Graphs) -> Tensor:
    """Which graphs are like an earlier one: they go last, or copies of one would be all that survives."""
    seen: set[bytes] = set()
    repeated = torch.zeros(len(graphs), dtype=torch.int64)
    for i in range(len(graphs)):
        used = graphs.links[i].any(0)
        key = graphs.links[i].numpy().tobytes() + torch.where(used, graphs.kinds[i], 0).numpy().tobytes()
        repeated[i] = key in seen
        seen.add(key)
    return repeated


def _next_generation(graphs: Graphs, order: Tensor, allowed: Tensor, generator: torch.Generator) -> Graphs:
    size = len(graphs)
    elite, survivors = size // 5, size - size // 5
    entrants = torch.randint(survivors, (size - elite, 8), generator=generator)
    parents = torch.cat([order[:elite], order[entrants.amin(1)]])
    links, kinds = graphs.links[parents].clone(), graphs.kinds[parents].clone()
    for i in range(elite, size):
        _mutate(links[i], kinds[i], graphs, allowed, generator)
        while float(torch.rand((), generator=generator)) < 0.5:
            _mutate(links[i], kinds[i], graphs, allowed, generator)
    return Graphs(links, kinds, graphs.inputs, graphs.outputs, graphs.activations)


def _mutate(links: Tensor, kinds: Tensor, graphs: Graphs, allowed: Tensor, generator: torch.Generator) -> None:
    """In place: another activation (1/2), a node in a link (1/4), a link more (1/5), a link less (1/20)."""
    chance = float(torch.rand((), generator=generator))

    def one_of(choices: Tensor) -> Tensor:
        return choices[torch.randint(len(choices), (), generator=generator)]

    hidden = slice(graphs.inputs, len(kinds) - graphs.outputs)
    used = links.any(0) | links.any(1)
    if chance < 0.5:
        node = torch.randint(graphs.inputs, len(kinds), (), generator=generator)
        kinds[node] = torch.randint(len(graphs.activations), (), generator=generator)
    elif chance < 0.75:
        free = (~used[hidden]).nonzero().flatten() + graphs.inputs
        if len(free) and links.any():
            node = one_of(free)
            around = links.clone()
            around[node:], around[:, : node + 1] = False, False
            if around.any():
                start, end = one_of(around.nonzero())
                links[start, end] = False
                links[start, node] = links[node, end] = True
    else:
        reached = torch.ones_like(used)
        reached[hidden] = used[hidden]
        candidates = allowed & ~links & reached & reached[:, None] if chance < 0.95 else links.clone()
        if candidates.any():
            start, end = one_of(candidates.nonzero())
            links[start, end] = ~links[start, end]
