"""`sparseprune prune` and `info`: what they write, print and refuse."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from cli.commands import MAGNITUDE, SNIP, invoke, refused
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import sparseprune as sp
from sparseprune.cli import app
from sparseprune.masks import Masks
from sparseprune.recipes.names import CRITERIA


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "lenet-snip"
    return out, invoke(*SNIP, "--out", out)


def test_prune_writes_masks_weights_description_and_figure(pruned):
    out, result = pruned
    masks = Masks.load(out / "masks.safetensors")
    assert masks.count() == 2510 and list(masks) == ["fc1.weight", "fc2.weight", "fc3.weight"]
    assert masks.metadata["criterion"] == "snip" and masks.metadata["torch"] == torch.__version__
    run = json.loads((out / "run.json").read_text())
    assert (run["kept"], run["total"], run["arguments"]["steps"]) == (2510, 50200, 1)
    assert (out / "density.png").read_bytes().startswith(b"\x89PNG")
    assert "2,510 of 50,200" in result.stdout and str(out) in result.stderr
    assert "Next: sparseprune train lenet_300_100 --masks" in result.stderr


def test_prune_is_the_library_on_the_weights_it_saved(pruned):
    out, _ = pruned
    data = sp.data.load("digits")
    model = sp.models.create("lenet_300_100", input_shape=data.input_shape)
    model.load_state_dict(load_file(out / "init.safetensors"))
    batch = data.balanced(10, torch.Generator().manual_seed(0))
    expected = sp.prune(model, sp.SNIP(torch.nn.functional.cross_entropy, [batch], bn="train"), sparsity=0.95)
    assert dict(Masks.load(out / "masks.safetensors")) == dict(expected)


def test_json_is_one_object_and_nothing_else(tmp_path):
    result = invoke(*MAGNITUDE, "--out", tmp_path / "r", "--json")
    answer = json.loads(result.stdout)
    assert answer["kept"] == 5020 and answer["summary"]["layers"][0]["name"] == "fc1.weight"
    assert result.stderr == ""


def test_seed_changes_the_network_and_repeats(tmp_path):
    masks = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        invoke(*MAGNITUDE, "--seed", seed, "--out", tmp_path / name)
        masks[name] = dict(Masks.load(tmp_path / name / "masks.safetensors"))
    assert masks["a"] == masks["b"] != masks["c"]


@pytest.mark.parametrize(
    ("options", "check"),
    [
        (["--keep", "77"], lambda m: m.count() == 77),
        (
            ["--density", "0.1", "--scope", "layer"],
            lambda m: m.counts() == dict(zip(m, (1920, 3000, 100), strict=True)),
        ),
        (
            ["--density", "0.1", "--scope", "layer", "--allocation", "erk"],
            lambda m: m["fc3.weight"].density > 0.5,
        ),
        (["--keep", "9", "--min-per-layer", "3"], lambda m: list(m.counts().values()) == [3, 3, 3]),
        (["--density", "0.1", "--exclude", "fc3", "--exclude", "fc1"], lambda m: list(m) == ["fc2.weight"]),
        (["--density", "0.1", "--dtype", "float64", "--init", "orthogonal"], lambda m: m.count() == 5020),
    ],
    ids=["keep", "layer", "erk", "floor", "exclude", "dtype"],
)
def test_options_reach_the_library(tmp_path, options, check):
    invoke("prune", "lenet_300_100", "--criterion", "magnitude", "--data", "digits", "--out", tmp_path, *options)
    assert check(Masks.load(tmp_path / "masks.safetensors"))


@pytest.mark.parametrize("criterion", sorted(set(CRITERIA) - {"magnitude", "snip", "exact", "fourier"}))
def test_every_criterion_runs_with_its_defaults(tmp_path, criterion, before_training):
    extra = ["--initial", before_training] if CRITERIA[criterion].needs_initial else []
    command = ["prune", "lenet_300_100", "--criterion", criterion, "--density", "0.1", "--data", "digits"]
    invoke(*command, *extra, "--out", tmp_path)
    assert Masks.load(tmp_path / "masks.safetensors").count() == 5020
    steps = json.loads((tmp_path / "run.json").read_text())["arguments"]["steps"]
    assert steps == (100 if criterion in ("synflow", "iterative-snip") else 1)


@pytest.mark.parametrize("criterion", ["exact", "fourier"])
def test_criteria_that_try_every_weight_or_unit_run_on_the_last_layer(tmp_path, criterion):
    command = ["prune", "lenet_300_100", "--criterion", criterion, "--data", "digits", "--samples-per-class", "1"]
    invoke(*command, "--exclude", "fc1", "--exclude", "fc2", "--keep", "77", "--out", tmp_path)
    assert Masks.load(tmp_path / "masks.safetensors").counts() == {"fc3.weight": 77}


@pytest.fixture(scope="module")
def before_training(tmp_path_factory):
    path = tmp_path_factory.mktemp("initial") / "init.safetensors"
    model = sp.models.create("lenet_300_100", input_shape=(1, 8, 8))
    save_file({name: torch.randn_like(value) for name, value in model.state_dict().items()}, path)
    return path


def test_initial_weights_are_those_of_the_file(tmp_path, before_training):
    command = ["prune", "lenet_300_100", "--criterion", "movement", "--density", "0.1", "--data", "digits"]
    invoke(*command, "--initial", before_training, "--out", tmp_path)
    model = sp.models.create("lenet_300_100", input_shape=(1, 8, 8))
    model.load_state_dict(load_file(tmp_path / "init.safetensors"))
    expected = sp.prune(model, sp.Movement(load_file(before_training)), density=0.1)
    assert dict(Masks.load(tmp_path / "masks.safetensors")) == dict(expected)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["prune", "lenet_300_100", "--criterion", "snap", "--density", "0.1"],
            "random, magnitude, snip, grasp, synflow",
        ),
        (["prune", "lenet_300", "--criterion", "random", "--density", "0.1"], "lenet_300_100"),
        (["prune", "lenet5", "--criterion", "random"], "exactly one of sparsity, density and keep"),
        (
            ["prune", "lenet5", "--criterion", "random", "--density", "0.1", "--sparsity", "0.9"],
            "exactly one of",
        ),
        (
            ["prune", "lenet5", "--criterion", "random", "--sparsity", "1"],
            "sparsity must be in [0, 1), got 1",
        ),
        (
            ["prune", "lenet5", "--criterion", "random", "--density", "0.1", "--schedule", "fast"],
            "one-shot, linear, expo",
        ),
        (["prune", "lenet5", "--criterion", "random", "--density", "0.1", "--scope", "all"], "global, layer"),
        (
            ["prune", "lenet5", "--criterion", "random", "--density", "0.1", "--allocation", "erk"],
            "--scope layer only",
        ),
        (["prune", "lenet5", "--criterion", "random", "--density", "0.1", "--exclude", "fc9"], "'fc9'"),
        (
            ["prune", "lenet5", "--criterion", "random", "--density", "0.1", "--min-per-layer", "x"],
            "a count or a share",
        ),
        (
            ["prune", "lenet5", "--criterion", "random", "--density", "0.1", "--dtype", "int8"],
            "float32, float64",
        ),
        (
            ["prune", "lenet5", "--criterion", "random", "--density", "0.1", "--device", "tpu"],
            "device of this machine",
        ),
        (["prune", "lenet5", "--criterion", "random", "--density", "0.1", "--input", "28x28"], "CxHxW"),
        (
            ["prune", "lenet5", "--criterion", "random", "--density", "0.1", "--init", "zeros"],
            "kaiming_normal",
        ),
        (
            ["prune", "lenet5", "--criterion", "random", "--density", "0.1", "--model-option", "a"],
            "NAME=VALUE",
        ),
        (
            ["prune", "lenet5", "--criterion", "random", "--density", "0.1", "--data-dir", "x"],
            "must come with --data",
        ),
        (
            ["prune", "lenet5", "--criterion", "random", "--density", "0.1", "--batches", "2"],
            "must come with a criterion that takes data, got random",
        ),
        ([*SNIP, "--data", "letters"], "digits, mnist, cifar10, cifar100, folder"),
        ([*SNIP, "--data", "mnist", "--data-dir", "nowhere"], "nowhere"),
        ([*SNIP, "--input", "1x9x9"], "1x8x8"),
        ([*SNIP, "--samples-per-class", "5000"], "at most"),
        ([*SNIP, "--samples-per-class", "5", "--batches", "2"], "got both"),
        ([*SNIP, "--batches", "99"], "at most 11"),
        ([*SNIP, "--bn", "off"], "eval, train"),
        (
            ["prune", "lenet5", "--criterion", "fisher", "--density", "0.1", "--bn", "train"],
            "--bn must be eval for fisher",
        ),
        (
            ["prune", "lenet5", "--criterion", "movement", "--density", "0.1"],
            "--initial must be given for movement, got none",
        ),
        ([*SNIP, "--initial", "w.pt"], "--initial must not come with snip, got w.pt"),
        ([*SNIP, "--weights", "gone.pt"], "gone.pt"),
        (["report", "nowhere"], "nowhere"),
    ],
    ids=lambda value: "" if isinstance(value, list) else value[:20],
)
def test_wrong_arguments_are_one_sentence_and_leave_nothing(tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(*arguments)
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback():
    result = CliRunner().invoke(app, [*MAGNITUDE[:-2], "--criterion", "x", "--debug"])
    assert isinstance(result.exception, ValueError)


def test_weights_files(tmp_path):
    model = sp.models.create("lenet5")
    state = {name: torch.full_like(value, 0.5) for name, value in model.state_dict().items()}
    command = ["prune", "lenet5", "--criterion", "magnitude", "--density", "0.5", "--out", tmp_path / "r"]
    save_file(state, tmp_path / "w.safetensors")
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        invoke(*command, "--weights", tmp_path / name)
        assert all((value == 0.5).all() for value in load_file(tmp_path / "r" / "init.safetensors").values())
    torch.save({"a": subprocess.Popen}, tmp_path / "code.pt")
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:5000])
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pt")
    torch.save([1], tmp_path / "list.pt")
    for name in ("code.pt", "half.safetensors", "other.pt", "list.pt"):
        assert name in refused(*command, "--weights", tmp_path / name)


def test_info_tells_what_a_bug_report_needs():
    facts = json.loads(invoke("info", "--json").stdout)
    assert facts["packages"]["torch"] == torch.__version__ and facts["threads"] == torch.get_num_threads()
    assert facts["backends on cpu"]["reference"] == "usable" and set(facts["libraries"]) == {"cpu", "cuda"}
    text = invoke("info").stdout
    assert all(name in text for name in facts)


def test_info_without_native_parts(monkeypatch):
    monkeypatch.setitem(sys.modules, "sparseprune._C", None)
    assert "not built" in json.loads(invoke("info", "--json").stdout)["build"]
