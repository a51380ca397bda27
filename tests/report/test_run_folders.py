"""load_run: what a folder holds, and which file is at fault where it does not."""

from __future__ import annotations

import json

import pytest
import torch

from sparseprune.masks import Masks
from sparseprune.report import load_run
from sparseprune.training import Epoch, History

RUN = {"format": "sparseprune-run", "version": 1, "model": "net", "criterion": "snip", "masks": True}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "my-run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(RUN))
    bits = torch.zeros(4, 5, dtype=torch.bool)
    bits[1, 2:] = True
    Masks({"a.weight": bits, "b.weight": torch.zeros(2, dtype=torch.bool)}).save(folder / "masks.safetensors")
    epochs = [
        Epoch(1, 1.0, 1.5, 0.5, 0.1, 2.0),
        Epoch(2, 0.5, 1.2, 0.25, 0.05, 2.0),
        Epoch(3, 0.4, 1.3, 0.3, 0.0, 2.0),
    ]
    (folder / "history.json").write_text(json.dumps(History(epochs).to_list()))
    return folder


def test_a_whole_folder(folder):
    run = load_run(folder)
    assert (run.name, run.model, run.criterion) == ("my-run", "net", "snip")
    assert [(layer.name, layer.kept, layer.total) for layer in run.layers] == [
        ("a.weight", 3, 20),
        ("b.weight", 0, 2),
    ]
    assert (run.kept, run.total, run.density) == (3, 22, 3 / 22)
    assert [layer.name for layer in run.dead_layers] == ["b.weight"]
    assert (run.final_error, run.best_error, len(run.history)) == (0.3, 0.25, 3)


def test_before_training_and_without_masks(folder):
    (folder / "history.json").unlink()
    assert load_run(folder).final_error is None and load_run(folder).best_error is None
    (folder / "run.json").write_text(json.dumps({**RUN, "criterion": None, "masks": False}))
    assert load_run(folder).criterion == "dense" and load_run(folder).density == 1.0


@pytest.mark.parametrize("name", ["run.json", "masks.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name}.*my-run"):
        load_run(folder)


@pytest.mark.parametrize("name", ["run.json", "masks.safetensors", "history.json"])
def test_a_damaged_file_is_named(folder, name):
    content = (folder / name).read_bytes()
    for damage in (content[: len(content) // 2], b"", b"\xff\xfe\x00"):
        (folder / name).write_bytes(damage)
        with pytest.raises(ValueError, match=rf"my-run/{name}"):
            load_run(folder)


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("run.json", [], "a list, not a dict"),
        ("run.json", {**RUN, "version": 7}, "version 7"),
        ("run.json", {"format": "other"}, "format 'other'"),
        ("history.json", {}, "a dict, not a list"),
        ("history.json", [{"epoch": 1}], "epoch 1 must have the fields"),
        ("history.json", [3], "got int"),
        ("history.json", [{**Epoch(1, 1, 1, 1, 1, 1).__dict__, "lr": "x"}], "'x' as lr"),
    ],
)
def test_foreign_content_is_named(folder, name, content, found):
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"my-run/{name}.*{found}"):
        load_run(folder)


def test_a_missing_folder(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere, which is not a folder"):
        load_run(tmp_path / "nowhere")
