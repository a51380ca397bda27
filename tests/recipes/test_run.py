"""Running recipes: every method by name, the same bits as the library's calls, and after an interruption."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sparseprune as sp
from sparseprune import training as tr
from sparseprune.recipes import Recipe
from sparseprune.recipes.methods import METHODS, PENALTIES

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.yaml"))
ERK = {"criterion": "random", "density": 0.1, "scope": "layer", "allocation": "erk"}
METHOD_SECTIONS = {
    "gradual": {"density": 0.1, "begin": 1, "end": "80 %", "every": 2, "scope": "layer", "exclude": "fc3"},
    "tickets": {"rounds": 3, "scope": "layer", "rates": {"fc3.weight": 0.1}, "rewind_to": 2},
    "set": {"until": "1 epoch", "every": 2},
    "rigl": {"until": "80 %", "every": 2, "fraction": {"cosine": [0.5, 0.1]}},
    "sparse-momentum": {"until": 8, "every": 2, "decay": 0.5},
    "dsr": {"until": 8, "every": 2, "fraction": 0.1, "threshold": 0.01},
    "deepr": {"until": 8, "l1": 1e-3},
    "nest": {"grow_until": 4, "prune_until": 8, "every": 2, "growth": 0.05},
    "gram-schmidt": {"every": 3, "tolerance": 0.5, "prune_after": 2, "exclude": "fc1"},
    "edge-popup": {"density": 0.3, "scope": "global"},
    "piggyback": {"trained": ["fc3.bias"], "threshold": 0.009},
    "bernoulli": {"gradient": "reinforce", "rescale": True},
}
TRAIN = {"epochs": 2, "batch_size": 256, "lr": 0.05}


class Stop(Exception):
    pass


def recipe_of(name, seeds=(0,)):
    values = {"model": "lenet_300_100", "data": "digits", "train": TRAIN, "seeds": list(seeds)}
    values["method"] = {"name": name, **METHOD_SECTIONS[name]}
    if METHODS[name].starts == "sparse":
        values["prune"] = ERK
    return Recipe.from_dict(values)


def stop_at(seed, epoch, step):
    def progress(number, event):
        if (number, event.epoch, event.step, event.record) == (seed, epoch, step, None):
            raise Stop

    return progress


def test_every_method_and_penalty_of_the_library_has_a_name():
    def below(base):
        return {base, *(kind for child in base.__subclasses__() for kind in below(child))}

    ours = {kind for base in (tr.Method, tr.supermasks.MaskedModel) for kind in below(base)}
    public = {kind for kind in ours if getattr(tr, kind.__name__, None) is kind}
    abstract = {tr.Method, tr.DynamicSparseTraining}
    assert public - abstract == {choice.kind for choice in METHODS.values()}
    assert set(PENALTIES.values()) == below(tr.penalties.Penalty) - {tr.penalties.Penalty}
    assert set(METHOD_SECTIONS) == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_every_argument_of_a_method_can_be_given(name):
    """Except what a recipe decides elsewhere, and rules, which are functions."""
    elsewhere = {"seed", "steps_per_round", "pattern", "drop", "grow", "redistribute", "gradients"}
    choice = METHODS[name]
    taken = {}
    for base in choice.kind.__mro__:
        if "__init__" in vars(base) and base is not tr.DynamicSparseTraining:
            parameters = inspect.signature(base).parameters.values()
            taken |= {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY} | taken
            if all(p.kind is not p.VAR_KEYWORD for p in parameters):
                break
    allocation = {"scope", "allocation"} if name == "gradual" else set()
    assert set(choice.required) | set(choice.optional) == set(taken) - elsewhere | allocation
    assert all(taken[key].default is inspect.Parameter.empty for key in set(choice.required) - {"rounds"})
    empty = {key for key, p in taken.items() if p.default is inspect.Parameter.empty} - elsewhere
    assert empty == set(choice.required)


@pytest.mark.parametrize("name", METHODS)
def test_stopped_and_resumed_it_ends_with_the_same_bits(name, tmp_path):
    whole, stopped = recipe_of(name), recipe_of(name)
    results = whole.run(tmp_path / "whole")
    with pytest.raises(Stop):
        stopped.run(tmp_path / "stopped", progress=stop_at(0, 2, 4))
    resumed = stopped.run(tmp_path / "stopped", resume=True)
    assert resumed == results
    files = [tmp_path / folder / "seed0" for folder in ("whole", "stopped")]
    for file in ("model.safetensors", "masks.safetensors", "init.safetensors"):
        assert (files[0] / file).read_bytes() == (files[1] / file).read_bytes(), file
    first, last = (load_file(files[0] / f"{kind}.safetensors") for kind in ("init", "model"))
    held = sp.Masks.load(files[0] / "masks.safetensors")
    for weight, mask in held.items():
        assert not last[weight][~mask.to_bool()].any()
        frozen = torch.equal(last[weight][mask.to_bool()], first[weight][mask.to_bool()])
        assert frozen == (METHODS[name].learned and name != "bernoulli"), weight  # rescaled by its density
    expected = {
        "gradual": None,
        "gram-schmidt": None,
        "tickets": 0.6434,
        "nest": None,
        "piggyback": None,
        "bernoulli": None,
        "edge-popup": 0.3,
    }
    if (density := expected.get(name, 0.1)) is not None:
        assert held.density == pytest.approx(density, abs=2e-3)
    assert results["seeds"]["0"]["density"] == held.density


def test_it_is_what_the_librarys_calls_give(tmp_path):
    results = recipe_of("set", seeds=(3,)).run(tmp_path)
    data = sp.data.load("digits")
    torch.manual_seed(3)
    model = sp.models.lenet_300_100(input_shape=data.input_shape)
    random = sp.Random(torch.Generator().manual_seed(3))
    sp.sparsify(model, sp.prune(model, random, density=0.1, pattern=sp.LayerWise(sp.erk)))
    history = tr.train(
        model, data, **TRAIN, seed=3,
        method=lambda m, o: tr.SET(m, o, every=2, until=6, fraction=0.3, seed=3),
    )  # fmt: skip
    saved = load_file(tmp_path / "seed3" / "model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items())
    assert results["seeds"]["3"]["final_error"] == history[-1].test_error


def test_seeds_have_folders_and_a_mean(tmp_path):
    recipe = recipe_of("set", seeds=(4, 5))
    with pytest.raises(Stop):
        recipe.run(tmp_path, progress=stop_at(5, 1, 2))
    assert (tmp_path / "seed4" / "model.safetensors").exists() and not (tmp_path / "results.json").exists()
    events = []
    results = recipe.run(tmp_path, resume=True, progress=lambda seed, event: events.append(seed))
    assert set(events) == {5}, "a finished seed is not trained again"
    errors = [row["final_error"] for row in results["seeds"].values()]
    assert results["mean_error"] == sum(errors) / 2
    assert results["std_error"] == pytest.approx(abs(errors[0] - errors[1]) / 2**0.5)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe
    assert sp.Masks.load(tmp_path / "seed4" / "masks.safetensors") != sp.Masks.load(
        tmp_path / "seed5" / "masks.safetensors"
    )


def test_a_folder_belongs_to_its_recipe(tmp_path):
    recipe = recipe_of("set")
    recipe.run(tmp_path)
    with pytest.raises(ValueError, match="out must be a folder without a run"):
        recipe.run(tmp_path)
    other = Recipe.from_dict({**recipe.to_dict(), "train": {**recipe.train, "lr": 0.2}})
    with pytest.raises(ValueError, match="train must be .*'lr': 0.05.*, got .*'lr': 0.2"):
        other.run(tmp_path, resume=True)
    values = recipe.to_dict()
    del values["method"]
    with pytest.raises(ValueError, match="recipe must have the key 'method'"):
        Recipe.from_dict(values).run(tmp_path, resume=True)
    before = (tmp_path / "seed0" / "model.safetensors").read_bytes()
    other.run(tmp_path, resume=False)
    assert (tmp_path / "seed0" / "model.safetensors").read_bytes() != before
    assert Recipe.load(tmp_path / "recipe.yaml") == other


def test_another_runs_masks_on_fresh_weights(tmp_path):
    """Liu et al.'s training from scratch: the mask is equal, the weights are the seed's own."""
    recipe_of("set").run(tmp_path / "first")
    path = tmp_path / "first" / "seed0" / "masks.safetensors"
    values = {"model": "lenet_300_100", "data": "digits", "train": TRAIN, "seeds": [7], "prune": {"masks": str(path)}}
    Recipe.from_dict(values).run(tmp_path / "scratch")
    folder = tmp_path / "scratch" / "seed7"
    assert dict(sp.Masks.load(folder / "masks.safetensors")) == dict(sp.Masks.load(path))
    torch.manual_seed(7)
    expected = sp.models.lenet_300_100(input_shape=sp.data.load("digits").input_shape).fc1.weight
    assert torch.equal(load_file(folder / "init.safetensors")["fc1.weight"], expected)
    with pytest.raises(ValueError, match="prune must have keys among masks, got 'density'"):
        Recipe.from_dict({**values, "prune": {"masks": str(path), "density": 0.1}})
    other = Recipe.from_dict({**values, "model": "resnet20"})
    with pytest.raises(ValueError, match="fc1.weight"):
        other.run(tmp_path / "other")
    with pytest.raises((ValueError, OSError), match="gone"):
        Recipe.from_dict({**values, "prune": {"masks": str(tmp_path / "gone")}}).run(tmp_path / "other")
    assert not (tmp_path / "other").exists()


TEXT = """\
model: {name: lenet_300_100}
data: digits
prune:
  criterion: random
  density: 0.1
  exclude: []
method:
  name: rigl
  until: 9
  fraction: 0.3
train:
  epochs: 1
  batch_size: 512
  lr: 0.1
"""


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("lenet_300_100", "lenet", "model.name must be one of lenet_300_100"),
        ("lenet_300_100}", "lenet_300_100, init: glorot}", "model.init must"),
        ("density: 0.1", "density: 1.5", "prune.density must be in (0, 1], got 1.5 (recipe.yaml, line 5)"),
        ("exclude: []", "exclude: fc9", "prune.exclude must name modules or parameters of the model, got 'fc9'"),
        (
            "fraction: 0.3",
            "fraction: 1.3",
            "method.fraction must be a number in [0, 1], got 1.3 (recipe.yaml, line 10)",
        ),
        ("until: 9", "until: 0", "method.until must be an integer >= 1, got 0 (recipe.yaml, line 9)"),
        ("data: digits", "data: {name: mnist, dir: gone}", "data.dir must"),
        ("lenet_300_100", "lenet5", "model: input_shape must be (1, 28, 28) or (1, 32, 32) for this model"),
        ("lr: 0.1", "lr: 1e30", "train.lr must be low enough to train, got 1e+30"),
        ("train:", "device: cpux\ntrain:", "device must be a device of this machine, got 'cpux'"),
    ],
)
def test_what_only_the_model_can_tell_is_named_with_its_line_too(tmp_path, monkeypatch, old, new, sentence):
    monkeypatch.chdir(tmp_path)
    assert old in TEXT
    Path("recipe.yaml").write_text(TEXT.replace(old, new))
    with pytest.raises(ValueError) as caught:
        Recipe.load("recipe.yaml").run("out")
    assert sentence in str(caught.value) and "(recipe.yaml, line" in str(caught.value)
    assert not Path("out").exists() or "1e30" in new  # only that takes training to find out


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(path, tmp_path):
    values = Recipe.load(path).to_dict()
    values["train"] |= {"epochs": 2, "batch_size": 512, "milestones": [1] if values["train"]["milestones"] else []}
    results = Recipe.from_dict({**values, "seeds": [0]}).run(tmp_path)
    assert results["seeds"]["0"]["epochs"] >= 2
