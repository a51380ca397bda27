"""`sparseprune explain` and `sparseprune calibrate`."""

from __future__ import annotations

import json

from cli.commands import MAGNITUDE, invoke, refused

from sparseprune.ops import calibration, costs


def test_a_run_and_a_model_with_masks_say_the_same(tmp_path):
    invoke(*MAGNITUDE, "--out", tmp_path)
    of_run = json.loads(invoke("explain", tmp_path, "--batch", 16, "--json").stdout)
    spec = ["explain", "lenet_300_100", "--masks", tmp_path / "masks.safetensors", "--data", "digits", "--batch", 16]
    assert json.loads(invoke(*spec, "--json").stdout) == of_run
    assert of_run["constants"] == str(costs.SHIPPED) and len(of_run["products"]) == 9
    first = of_run["products"][0]
    assert first["product"] == "forward" and first["chosen"] in first["predicted"] and first["measured"] is None
    table = invoke(*spec, "--measure").stdout
    for product in of_run["products"]:
        assert product["layer"] in table and product["product"] in table and product["reason"] in table


def test_refusals(tmp_path):
    assert "--masks must be given for a model" in refused("explain", "lenet_300_100")
    assert "a folder without a run" in refused("explain", tmp_path, "--masks", tmp_path / "m.safetensors")


def test_calibrate_says_where_it_wrote(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "measure_and_fit", lambda: {"op": {}})
    result = invoke("calibrate", "--out", tmp_path / "c.json")
    assert str(tmp_path / "c.json") in result.stderr.replace("\n", "")
    assert json.loads((tmp_path / "c.json").read_text())["ops"] == {"op": {}}
