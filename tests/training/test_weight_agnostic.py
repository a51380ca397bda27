"""Weight-agnostic graphs: values by hand, ranks by definition, and a search that reaches what all graphs can."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from sparseprune.training.weight_agnostic import (
    ACTIVATIONS,
    WEIGHTS,
    Graphs,
    pareto_ranks,
    possible_links,
    search_graphs,
)

XOR = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
LABELS = torch.tensor([0, 1, 1, 0]).bool()
FOUR = ("step", "abs", "gauss", "linear")


def accuracy(outputs):
    return ((outputs[..., 0] > 0.5) == LABELS).double().mean(-1)


def test_the_weights_are_the_papers():
    assert WEIGHTS == (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0) and len(ACTIVATIONS) == 10


def test_values_by_hand():
    """Node 2 = gauss(w (a + b)), node 3 = abs(w (a + node 2)), node 4 = w (b + node 3): linear."""
    links = torch.zeros(1, 5, 5, dtype=torch.bool)
    for i, j in ((0, 2), (1, 2), (0, 3), (2, 3), (1, 4), (3, 4)):
        links[0, i, j] = True
    graphs = Graphs(links, torch.tensor([[0, 0, 2, 1, 3]]), 2, 1, FOUR)
    x = torch.tensor([[0.3, -1.2], [2.0, 0.5]], dtype=torch.float64)
    got = graphs(x, (-2.0, 0.5))
    assert got.shape == (1, 2, 2, 1)
    for i, w in enumerate((-2.0, 0.5)):
        for e, (a, b) in enumerate(x.tolist()):
            second = abs(w * (a + math.exp(-((w * (a + b)) ** 2) / 2)))
            assert got[0, i, e, 0].item() == pytest.approx(w * (b + second))


def test_with_abs_everywhere_the_sign_of_the_weight_does_not_matter():
    links = possible_links(3, 2, 2)[None]
    graphs = Graphs(links, torch.ones(1, 7, dtype=torch.int64), 3, 2, FOUR)
    x = torch.randn(5, 3)
    assert torch.equal(graphs(x, (-2.0, -0.5)), graphs(x, (2.0, 0.5)))


def test_ranks_are_by_definition():
    points = torch.randint(0, 4, (60, 2)).double()

    def beats(a, b):
        return bool((points[a] >= points[b]).all() and (points[a] > points[b]).any())

    left, expected, rank = set(range(60)), [None] * 60, 0
    while left:
        front = {i for i in left if not any(beats(j, i) for j in left)}
        for i in front:
            expected[i] = rank
        left, rank = left - front, rank + 1
    assert pareto_ranks(points).tolist() == expected and rank > 3


def every_graph():
    """All 512 link sets of 2-2-1 with all 64 choices of activations."""
    places = possible_links(2, 2, 1).nonzero()
    links = torch.zeros(512, 5, 5, dtype=torch.bool)
    for number in range(512):
        for bit, (i, j) in enumerate(places.tolist()):
            links[number, i, j] = bool(number >> bit & 1)
    kinds = torch.zeros(64, 5, dtype=torch.int64)
    kinds[:, 2:] = torch.tensor(list(itertools.product(range(4), repeat=3)))
    return Graphs(links.repeat_interleave(64, 0), kinds.repeat(512, 1), 2, 1, FOUR)


def test_the_search_finds_what_exhaustive_search_finds():
    graphs = every_graph()
    best = accuracy(graphs(XOR)).mean(1)
    found, rewards = search_graphs(XOR, accuracy, outputs=1, hidden=2, activations=FOUR, population=64, generations=60)
    assert best.median() < 0.6 < best.max(), "chance is not enough"
    assert rewards[0].mean() == best.max()
    assert torch.equal(rewards, accuracy(found(XOR))) and (rewards.mean(1).diff() <= 0).all()
    fewest = graphs.counts()[best == best.max()].min()
    assert found.counts()[0] <= fewest + 1
    assert not (found.links & ~possible_links(2, 2, 1)).any()


def test_it_is_a_function_of_the_seed():
    options = {"outputs": 1, "hidden": 1, "population": 10, "generations": 4}
    runs = []
    for seed in (1, 1, 2):
        torch.rand(3)
        runs.append(search_graphs(XOR, accuracy, **options, seed=seed)[0])
    assert torch.equal(runs[0].links, runs[1].links) and torch.equal(runs[0].kinds, runs[1].kinds)
    assert not torch.equal(runs[0].kinds, runs[2].kinds)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="activations must be among linear, step, .* got 'stepp'"):
        search_graphs(XOR, accuracy, outputs=1, hidden=1, activations=("stepp",))
    with pytest.raises(ValueError, match="population must be an integer >= 10"):
        search_graphs(XOR, accuracy, outputs=1, hidden=1, population=3)
