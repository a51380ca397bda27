"""Schedules start dense and end at the density; allocations average to it and give whole numbers that sum to k."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparseprune as sp
from sparseprune.allocation import counts

SCHEDULES = [sp.one_shot, sp.linear, sp.exponential, sp.cubic]
LENET = {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}
CAFFE = {"conv1": (20, 1, 5, 5), "conv2": (50, 20, 5, 5), "fc1": (500, 800), "fc2": (10, 500)}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("density", [1.0, 0.5, 0.01, 1e-6])
def test_ends_and_never_rises(schedule, density):
    path = [schedule(density, i / 20) for i in range(21)]
    assert path[0] == 1.0 and path[-1] == pytest.approx(density, rel=1e-12)
    assert all(a >= b - 1e-15 for a, b in zip(path, path[1:], strict=False))


def test_formulas():
    assert sp.exponential(0.01, 0.5) == pytest.approx(0.1)
    assert sp.linear(0.2, 0.25) == pytest.approx(0.8)
    assert 1 - sp.cubic(0.1, 0.5) == pytest.approx(0.9 * (1 - 0.5**3))
    assert sp.one_shot(0.3, 0.01) == 0.3


def test_uniform():
    assert sp.uniform(LENET, 0.3) == {"fc1": 0.3, "fc2": 0.3, "fc3": 0.3}


def test_erk_of_the_lenets():
    d = sp.erk(LENET, 0.1)
    assert [round(v, 4) for v in d.values()] == [0.0796, 0.2302, 1.0]
    assert [round(v, 4) for v in sp.erk(LENET, 0.02).values()] == [0.0154, 0.0445, 0.3674]
    assert [round(v, 4) for v in sp.erk(CAFFE, 0.1).values()] == [1.0, 0.0871, 0.0884, 1.0]


@pytest.mark.parametrize("density", [1.0, 0.5, 0.1, 0.01])
@pytest.mark.parametrize("shapes", [LENET, CAFFE], ids=["LeNet-300-100", "LeNet-5-Caffe"])
def test_erk_averages_to_the_density(shapes, density):
    d = sp.erk(shapes, density)
    total = sum(math.prod(s) for s in shapes.values())
    assert sum(d[n] * math.prod(s) for n, s in shapes.items()) == pytest.approx(density * total)
    assert all(0 <= v <= 1 for v in d.values())


def test_erk_with_an_empty_layer():
    assert sp.erk({"a": (0, 4), "b": (3, 3)}, 0.5)["b"] == pytest.approx(0.5)


@given(st.data())
def test_counts_are_whole_within_bounds_and_sum_to_k(data):
    n = data.draw(st.integers(1, 6))
    names = [str(i) for i in range(n)]
    sizes = {i: data.draw(st.integers(0, 50)) for i in names}
    limits = {i: data.draw(st.integers(0, sizes[i])) for i in names}
    floors = {i: data.draw(st.integers(0, limits[i])) for i in names}
    densities = {i: data.draw(st.floats(0, 1)) for i in names}
    k = data.draw(st.integers(sum(floors.values()), sum(limits.values())))
    result = counts(densities, sizes, k, floors, limits)
    assert sum(result.values()) == k
    assert all(floors[i] <= result[i] <= limits[i] for i in names)


def test_counts_round_by_largest_remainder():
    sizes = {"a": 10, "b": 10, "c": 10}
    free = dict(floors=dict.fromkeys(sizes, 0), limits=sizes)
    assert counts({"a": 0.26, "b": 0.35, "c": 0.39}, sizes, 10, **free) == {"a": 3, "b": 3, "c": 4}
    assert counts(dict.fromkeys(sizes, 0.1), sizes, 4, **free) == {"a": 2, "b": 1, "c": 1}
