"""YAML with lines, and the error of every wrong value."""

from __future__ import annotations

import pytest

from sparseprune.recipes import Recipe
from sparseprune.recipes.document import Node, read_yaml, steps_in

GOOD = {
    "model": "lenet_300_100",
    "data": "digits",
    "prune": {"criterion": "random", "density": 0.1},
    "method": {"name": "rigl", "until": "75 %"},
    "train": {"epochs": 3},
}


def test_lines_are_those_of_the_keys():
    node = read_yaml("a:\n  b: 1\n  c:\n    - 2\n    - 3\n\nd: {e: 4}\n", "r.yaml")
    assert node.value == {"a": {"b": 1, "c": [2, 3]}, "d": {"e": 4}}
    lines = {("a",): 1, ("a", "b"): 2, ("a", "c"): 3, ("a", "c", 1): 5, ("d",): 7, ("d", "e"): 7}
    assert {path: node.source.lines[path] for path in lines} == lines
    assert node.child("a").child("c").child(1).title == "a.c[1]"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-2E+3", -2000.0),
        (".5e1", 5.0),
        ("1.5", 1.5),
        ("7", 7),
        ("true", True),
        ("1e", "1e"),
        ("e5", "e5"),
    ],
)
def test_scalars(text, value):
    [read] = read_yaml(f"[{text}]", "r").value
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\nb: 2\na: 3\n", "got 'a' again (r.yaml, line 3)"),
        ("a: &x [1]\nb: *x\n", "got an alias (r.yaml, line 1)"),
        ("a: &x\n  b: *x\n", "got an alias (r.yaml, line 1)"),
        ("a: 1\n b: 2\n", "(r.yaml, line 2)"),
        ("a: [1, 2\n", "(r.yaml, line 2)"),
        ("a: !!python/object:os.system x\n", "(r.yaml, line 1)"),
        ("a: 1\nb: !!int x\n", "got 'x'"),
        ("a: 1\n---\nb: 2\n", "(r.yaml, line 2)"),
        ("? [1, 2]\n: 3\n", "names as keys"),
        ("a: 1\n<<: {b: 2}\n", "names as keys"),
        ("a: \x07\n", "(r.yaml, line 1)"),
    ],
)
def test_what_is_not_such_a_document(text, sentence):
    with pytest.raises(ValueError, match="^recipe must") as caught:
        read_yaml(text, "r.yaml")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"modle": 1}, "recipe must have keys among model, data, train, prune, method, penalty, seeds, device, dtype, "
                       "out, got 'modle'; did you mean 'model'?"),
        ({"model": 3}, "model must be a mapping with keys among name, options, init, got 3"),
        ({"model": {"options": {}}}, "model must have the key 'name', got options"),
        ({"data": "mnsit"}, "data.name must be one of digits, mnist, cifar10, cifar100, folder, got 'mnsit'; did you mean 'mnist'?"),
        ({"train": {}}, "train must have the key 'epochs', got no keys"),
        ({"train": {"epochs": 0}}, "train.epochs must be an integer >= 1, got 0"),
        ({"train": {"epochs": True}}, "train.epochs must be an integer >= 1, got True"),
        ({"train": {"epochs": 3, "lr": "fast"}}, "train.lr must be a finite number, got 'fast'"),
        ({"train": {"epochs": 3, "lr": float("inf")}}, "train.lr must be a finite number, got inf"),
        ({"train": {"epochs": 3, "lr": -1}}, "train.lr must be a finite number > 0, got -1"),
        ({"train": {"epochs": 3, "schedule": "step"}}, "train.milestones must be given with schedule 'step'"),
        ({"train": {"epochs": 3, "milestones": [1, "x"]}}, "train.milestones[1] must be an integer >= 1, got 'x'"),
        ({"prune": {"criterion": "snap", "density": 0.1}}, "did you mean 'snip'?"),
        ({"prune": {"criterion": "movement", "density": 0.1}}, "prune.criterion must be one of random"),
        ({"prune": {"criterion": "snip"}}, "prune must have exactly one of sparsity, density and keep, got none"),
        ({"prune": {"criterion": "snip", "density": 0.1, "keep": 3}}, "got density and keep"),
        ({"prune": {"criterion": "snip", "density": 0.1, "allocation": "erk"}}, "prune.allocation must come with scope layer"),
        ({"prune": {"criterion": "random", "density": 0.1, "batches": 2}}, "prune.batches must come with a criterion that takes data"),
        ({"prune": {"criterion": "obd", "density": 0.1, "bn": "train"}}, "prune.bn must be eval for obd"),
        ({"method": "rigel"}, "method.name must be one of gradual, tickets"),
        ({"method": "rigl"}, "method must have the key 'until'"),
        ({"method": {"until": 3}}, "method must have the key 'name', got until"),
        ({"method": {"name": "rigl", "until": 3, "evrey": 2}}, "got 'evrey'; did you mean 'every'?"),
        ({"method": {"name": "rigl", "until": "3 years"}}, "method.until must be steps, 'N epochs' or 'N %' of the training, got '3 years'"),
        ({"method": {"name": "rigl", "until": 3, "fraction": {"cosine": 1}}}, "method.fraction.cosine must be [start, end], got 1"),
        ({"method": {"name": "rigl", "until": 3, "keep_regrown": 1}}, "method.keep_regrown must be true or false, got 1"),
        ({"method": {"name": "rigl", "until": 3}, "prune": None}, "prune must be a mapping"),
        ({"method": {"name": "tickets", "rounds": 2}}, "prune must not come with method tickets, got both"),
        ({"penalty": "l3"}, "penalty.name must be one of l1, l2"),
        ({"penalty": {"name": "l1", "strength": "x"}}, "penalty.strength must be a finite number"),
        ({"seeds": [1, 1]}, "seeds must be different integers, got [1, 1]"),
        ({"seeds": [-1]}, "seeds[0] must be an integer >= 0, got -1"),
        ({"dtype": "int8"}, "dtype must be one of float32, float64, got 'int8'"),
        ({"out": 3}, "out must be text, got 3"),
    ],
)  # fmt: skip
def test_every_wrong_value_is_named(change, sentence):
    with pytest.raises(ValueError) as caught:
        Recipe.from_dict({**GOOD, **change})
    assert sentence in str(caught.value) and "line" not in str(caught.value)


def test_a_method_that_moves_masks_needs_some():
    with pytest.raises(ValueError, match="method must come with prune for rigl, got none"):
        Recipe.from_dict({key: value for key, value in GOOD.items() if key != "prune"})


def test_a_file_adds_its_name_and_line(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("model: lenet5\ndata: digits\n\ntrain:\n  epochs: 3\n  lr:\n    fast\n")
    with pytest.raises(ValueError) as caught:
        Recipe.load(path)
    assert str(caught.value) == f"train.lr must be a finite number, got 'fast' ({path}, line 6)"
    path.write_text("")
    with pytest.raises(ValueError, match=r"recipe must be a mapping .*, got None \(.*, line 1\)"):
        Recipe.load(path)
    with pytest.raises(ValueError, match="recipe must be a file of text, got .*gone.yaml"):
        Recipe.load(tmp_path / "gone.yaml")


def test_saved_and_loaded_it_is_the_same(tmp_path):
    recipe = Recipe.from_dict(
        {**GOOD, "penalty": {"name": "l1", "strength": 1e-5}, "train": {"epochs": 3, "lr": 1e-10}}
    )
    recipe.save(tmp_path / "r.yaml")
    assert Recipe.load(tmp_path / "r.yaml") == recipe == Recipe.from_dict(recipe.to_dict())
    assert recipe.train["batch_size"] == 64 and recipe.method["every"] == 100 and recipe.prune["steps"] == 1


@pytest.mark.parametrize(
    ("length", "steps"), [(7, 7), ("2 epochs", 40), ("1 epoch", 20), ("0.5 epochs", 10), ("75 %", 150), ("100%", 200)]
)
def test_lengths_of_training(length, steps):
    assert Node(length).steps() == length and steps_in(length, 10, 20) == steps
