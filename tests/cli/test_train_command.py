"""`sparseprune train` and `report`: from the pruned network to the figure, and what is not overwritten."""

from __future__ import annotations

import json

import pytest
import torch
from cli.commands import MAGNITUDE, SNIP, invoke, refused
from safetensors.torch import load_file

from sparseprune.masks import Masks
from sparseprune.training import load_checkpoint, trainer


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "lenet-snip"
    invoke(*SNIP, "--out", out)
    return out


def train(out, *more, masks=None, code=0):
    masks = masks or out / "masks.safetensors"
    return invoke("train", "lenet_300_100", "--masks", masks, "--data", "digits", "--out", out, *more, code=code)


def test_train_starts_from_the_pruned_network_and_report_shows_it(pruned, tmp_path):
    source = pruned
    out = tmp_path / "trained"
    result = train(out, "--epochs", 2, "--schedule", "constant", masks=source / "masks.safetensors")
    assert "test error" in result.stdout and "epoch 2/2" in result.stderr
    history = json.loads((out / "history.json").read_text())
    assert [row["epoch"] for row in history] == [1, 2] and history[1]["test_error"] < 0.5
    weights = load_file(out / "model.safetensors")
    mask = Masks.load(source / "masks.safetensors")["fc1.weight"].to_bool()
    assert (weights["fc1.weight"][~mask] == 0).all() and (weights["fc1.weight"][mask] != 0).all()
    table = invoke("report", source, out, "--out", tmp_path / "c.png").stdout
    assert "lenet-snip" in table and "trained" in table and "5.00 %" in table
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    answer = json.loads(invoke("report", out, "--json").stdout)
    assert answer["runs"][0]["epochs"] == 2 and answer["runs"][0]["final_error"] == history[1]["test_error"]
    assert (out / "report.png").exists()


def test_train_starts_from_the_weights_that_were_pruned(pruned, tmp_path):
    masks = pruned / "masks.safetensors"
    train(tmp_path, "--epochs", 1, "--lr", 1e-9, "--seed", 4, masks=masks)
    trained, initial = (
        load_file(f)["fc1.weight"] for f in (tmp_path / "model.safetensors", pruned / "init.safetensors")
    )
    kept = Masks.load(masks)["fc1.weight"].to_bool()
    assert torch.allclose(trained[kept], initial[kept], rtol=0, atol=1e-6)


def test_train_json_and_dense(tmp_path):
    result = invoke("train", "lenet_300_100", "--epochs", 1, "--out", tmp_path / "dense", "--json")
    answer = json.loads(result.stdout)
    assert answer["density"] == 1.0 and len(answer["history"]) == 1 and result.stderr == ""
    assert json.loads(invoke("report", tmp_path / "dense", "--json").stdout)["runs"][0]["criterion"] == "dense"


def test_a_trained_folder_is_protected(tmp_path):
    out = tmp_path / "r"
    invoke(*MAGNITUDE, "--out", out)
    train(out, "--epochs", 1)
    invoke(*MAGNITUDE, "--out", out)  # the same again: the same masks
    assert (out / "history.json").exists()
    other = [
        "prune",
        "lenet_300_100",
        "--criterion",
        "random",
        "--density",
        "0.1",
        "--data",
        "digits",
        "--out",
        out,
    ]
    assert "--overwrite" in refused(*other)
    assert Masks.load(out / "masks.safetensors").metadata["criterion"] == "magnitude"
    invoke(*other, "--overwrite")
    assert not (out / "history.json").exists() and not (out / "checkpoint.pt").exists()
    assert "masks" in refused("train", "lenet_300_100", "--out", out)
    invoke(*MAGNITUDE, "--out", tmp_path / "s")
    masks = tmp_path / "s" / "masks.safetensors"
    assert "another run" in refused("train", "lenet_300_100", "--masks", masks, "--out", out)


def test_unfinished_runs_are_resumed_or_restarted_by_word_only(tmp_path, monkeypatch):
    out = tmp_path / "r"
    invoke(*MAGNITUDE, "--out", out)
    evaluate, calls = trainer.evaluate, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(trainer, "evaluate", interrupted)
    train(out, "--epochs", 3, code=130)
    assert load_checkpoint(out / "checkpoint.pt")["epoch"] == 1
    sentence = refused("train", "lenet_300_100", "--masks", out / "masks.safetensors", "--epochs", 3, "--out", out)
    assert "1 of 3 epochs" in sentence and "--resume" in sentence and "--restart" in sentence
    wrong = refused(
        "train", "lenet_300_100", "--masks", out / "masks.safetensors", "--epochs", 3, "--out", out,
        "--resume", "--lr", "0.3",
    )  # fmt: skip
    assert "lr must be 0.1" in wrong
    train(out, "--epochs", 3, "--resume")
    resumed = json.loads((out / "history.json").read_text())
    train(out, "--epochs", 3, "--restart")
    restarted = json.loads((out / "history.json").read_text())
    assert [{**row, "seconds": 0} for row in resumed] == [{**row, "seconds": 0} for row in restarted]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--optimizer", "lion"], "sgd, adam, adamw"),
        (["--schedule", "linear"], "cosine, step, constant"),
        (["--lr", "-1"], "lr must be"),
        (["--masks", "gone.safetensors"], "gone.safetensors"),
    ],
)
def test_wrong_training_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused("train", "lenet_300_100", "--out", "r", *options)
    assert not list(tmp_path.iterdir())


def test_masks_of_another_network_are_refused(pruned, tmp_path):
    masks = pruned / "masks.safetensors"
    assert "got 'fc1.weight'" in refused("train", "resnet20", "--masks", masks, "--out", tmp_path / "r")
    assert not (tmp_path / "r").exists()
