"""`sparseprune train recipe.yaml`: results, refusals, and what goes with a recipe."""

from __future__ import annotations

import json

import pytest
from cli.commands import invoke, refused
from safetensors.torch import load_file

from sparseprune.training import trainer

TEXT = """\
model: lenet_300_100
data: digits
prune: {criterion: snip, density: 0.1}
method: {name: set, until: 75 %, every: 1 epoch}
train:
  epochs: 2
  lr: 0.05
seeds: [0, 1]
out: results
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "r.yaml"
    path.write_text(TEXT)
    return path


def test_a_recipe_is_run_reported_and_restarted(recipe, tmp_path):
    result = invoke("train", recipe)
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["seed 0", "seed 1"] and lines[2].startswith("mean")
    assert "seed 1, epoch 2/2" in result.stderr and "Wrote results" in result.stderr
    table = invoke("report", "results/seed0", "results/seed1", "--out", "r.png").stdout
    assert "snip + set" in table and "10.0 %" in table
    assert "out must be a folder without a run" in refused("train", recipe)
    answer = json.loads(invoke("train", recipe, "--resume", "--json").stdout)
    assert answer["mean_error"] < 0.9 and set(answer["seeds"]) == {"0", "1"}
    weights = load_file("results/seed1/model.safetensors")["fc1.weight"]
    invoke("train", recipe, "--restart", "--out", "again", "--json")
    assert (load_file("again/seed1/model.safetensors")["fc1.weight"] == weights).all()


def test_ctrl_c_says_how_to_go_on(recipe, monkeypatch):
    evaluate, calls = trainer.evaluate, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        return None if len(calls) == 3 else evaluate(*args, **kwargs)

    monkeypatch.setattr(trainer, "evaluate", interrupted)
    monkeypatch.setattr("sys.argv", ["sparseprune", "train", "r.yaml"])
    result = invoke("train", recipe, code=130)
    assert "To go on: sparseprune train r.yaml --resume" in result.stderr
    assert "mean" in invoke("train", recipe, "--resume").stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--lr", "0.3"], "--lr must not come with a recipe"),
        (["--seed", "3"], "--seed must not come with a recipe"),
        (["--masks", "m.safetensors"], "--masks must not come with a recipe"),
        (["--out", "r.yaml"], "--out must be a folder that can be written to"),
    ],
)
def test_what_does_not_go_with_a_recipe(recipe, tmp_path, arguments, sentence):
    assert sentence in refused("train", recipe, *arguments)
    assert list(tmp_path.iterdir()) == [recipe]


def test_a_wrong_key_is_one_sentence(recipe, tmp_path):
    recipe.write_text(TEXT.replace("criterion: snip", "criterion: snap"))
    sentence = refused("train", recipe)
    assert "prune.criterion must be one of" in sentence and "did you mean 'snip'?" in sentence and "line 3" in sentence
    assert list(tmp_path.iterdir()) == [recipe]


def test_a_model_needs_a_folder():
    assert "--out must be given" in refused("train", "lenet_300_100")
