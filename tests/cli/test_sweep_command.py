"""`sparseprune sweep`: the runs are those of the library, and layers that collapse are said."""

from __future__ import annotations

import json

from cli.commands import invoke, refused

import sparseprune as sp

SWEEP = ["sweep", "lenet_300_100", "--input", "1x8x8", "--criterion", "synflow", "--criterion", "magnitude"]
GRID = ["--density", "0.1", "--density", "0.0005", "--seed", "0", "--seed", "3", "--steps", "4"]


def test_sweep_writes_curves_and_every_run(tmp_path):
    result = invoke(*SWEEP, *GRID, "--out", tmp_path / "sweep")
    found = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert (tmp_path / "sweep" / "collapse.png").read_bytes().startswith(b"\x89PNG")
    runs = found["runs"]
    grid = [(name, seed, share) for seed in (0, 3) for name in ("synflow", "magnitude") for share in (0.1, 0.0005)]
    assert [(r["criterion"], r["seed"], r["kept"]) for r in runs] == [
        (name, seed, round(share * runs[0]["total"])) for name, seed, share in grid
    ]
    assert result.stdout.count("\n") == len(runs)

    invoke("prune", "lenet_300_100", "--input", "1x8x8", "--criterion", "magnitude", "--density", "0.0005",
           "--steps", "4", "--seed", "3", "--out", tmp_path / "one")  # fmt: skip
    masks = sp.Masks.load(tmp_path / "one" / "masks.safetensors")
    assert runs[-1]["smallest"] == min(masks.counts().values())
    assert runs[-1]["collapsed"] == [name for name, count in masks.counts().items() if not count]


def test_sweep_prints_json_alone(tmp_path):
    result = invoke(*SWEEP[:4], "--criterion", "random", "--density", "0.5", "--json", "--out", tmp_path)
    found = json.loads(result.stdout)
    [run] = found["runs"]
    assert found["layers"] == 3 and run["compression"] == 2.0 and run["smallest"] > 0 and run["connected"]


def test_sweep_refuses(tmp_path):
    assert "--criterion must be one of" in refused(*SWEEP[:2], "--criterion", "nothing", "--out", tmp_path)
    assert "from before training, got movement" in refused(*SWEEP[:2], "--criterion", "movement", "--out", tmp_path)
    assert not list(tmp_path.iterdir())
