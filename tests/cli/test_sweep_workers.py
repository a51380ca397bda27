"""A sweep's runs in several processes, on Ray, interrupted and taken up again: always those of one process."""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time

import pytest
import torch
from cli.commands import invoke, refused

from sparseprune.cli import sweep_runs
from sparseprune.cli.workers import in_processes, on_ray

SWEEP = ["sweep", "lenet_300_100", "--input", "1x8x8", "--criterion", "synflow", "--criterion", "random"]
GRID = ["--density", "0.1", "--density", "0.01", "--steps", "3"]


def found(out):
    return json.loads((out / "sweep.json").read_text())


@pytest.fixture
def counted(monkeypatch):
    """The densities of each call of prune_many in this process."""
    calls, prune_many = [], sweep_runs.prune_many

    def counting(*args, **kwargs):
        calls.append(list(kwargs["density"]))
        return prune_many(*args, **kwargs)

    monkeypatch.setattr(sweep_runs, "prune_many", counting)
    return calls


def test_processes_make_the_runs_of_one(tmp_path, counted):
    torch.set_num_threads(1)
    one = json.loads(invoke(*SWEEP, *GRID, "--json", "--out", tmp_path / "one").stdout)
    assert counted == [[0.1, 0.01], [0.1], [0.01]]  # random draws anew for each run
    many = json.loads(invoke(*SWEEP, *GRID, "--workers", 2, "--json", "--out", tmp_path / "many").stdout)
    assert len(counted) == 3 and many["runs"] == one["runs"]
    assert found(tmp_path / "many") == found(tmp_path / "one")
    assert (tmp_path / "many" / "collapse.png").exists()


def test_runs_that_are_there_are_not_made_again(tmp_path, counted):
    invoke(*SWEEP, *GRID, "--out", tmp_path)
    before = found(tmp_path)["runs"]
    counted.clear()
    result = invoke(*SWEEP, *GRID, "--out", tmp_path)
    assert counted == [] and found(tmp_path)["runs"] == before and result.stdout.count("\n") == len(before)
    invoke(*SWEEP[:6], *GRID, "--density", "0.03", "--seed", 0, "--seed", 1, "--out", tmp_path)
    assert counted == [[0.03], [0.1, 0.01, 0.03]]
    after = found(tmp_path)["runs"]
    assert all(row in after for row in before) and len(after) == len(before) + 4
    for other in (["--steps", "2"], ["--min-per-layer", "3"], ["--init", "xavier_normal"]):  # of other settings
        counted.clear()
        invoke(*SWEEP[:6], *GRID, *other, "--out", tmp_path)
        assert counted == [[0.1, 0.01]] and len(found(tmp_path)["runs"]) == 2
    (tmp_path / "sweep.json").write_text("{")
    invoke(*SWEEP[:6], *GRID, "--out", tmp_path)
    assert len(found(tmp_path)["runs"]) == 2


def test_what_is_finished_stays_after_an_interruption(tmp_path, monkeypatch):
    expected = json.loads(invoke(*SWEEP, *GRID, "--json", "--out", tmp_path / "whole").stdout)
    prune_many = sweep_runs.prune_many

    def interrupted(*args, finished, **kwargs):
        def then_stop(number, masks):
            finished(number, masks)
            raise KeyboardInterrupt

        return prune_many(*args, finished=then_stop, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(sweep_runs, "prune_many", interrupted)
        for made in (1, 2):  # from each start another run
            result = invoke(*SWEEP, *GRID, "--out", tmp_path / "part", code=130)
            assert f"{made} of 4 runs are in" in result.stderr.replace("\n", " ")
            assert len(found(tmp_path / "part")["runs"]) == made
        assert not (tmp_path / "part" / "collapse.png").exists()
    invoke(*SWEEP, *GRID, "--out", tmp_path / "part")
    assert found(tmp_path / "part")["runs"] == expected["runs"]


def test_a_workers_error_is_the_sweeps_and_ends_the_others():
    start = time.monotonic()
    with pytest.raises(ValueError, match="sleep length must be non-negative"):
        list(in_processes(time.sleep, [(600,), (-1,)], 2))
    assert time.monotonic() - start < 120 and not multiprocessing.active_children()


def test_refuses(tmp_path, monkeypatch):
    assert "--ray must come without --workers" in refused(*SWEEP, "--ray", "auto", "--workers", 2, "--out", tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert "pip install 'sparseprune[ray]'" in refused(*SWEEP, *GRID, "--ray", "local", "--out", tmp_path)
    assert not list(tmp_path.iterdir())


def test_ray_makes_the_runs_of_one_process(tmp_path):
    pytest.importorskip("ray")
    torch.set_num_threads(1)
    one = json.loads(invoke(*SWEEP, *GRID, "--json", "--out", tmp_path / "one").stdout)
    many = json.loads(invoke(*SWEEP, *GRID, "--ray", "local", "--json", "--out", tmp_path / "many").stdout)
    assert many["runs"] == one["runs"]
    with pytest.raises(statistics.StatisticsError, match="at least one data point"):
        list(on_ray(statistics.mean, [([1],), ([],)], "local", 0))
