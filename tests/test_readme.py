"""The README's examples run as written."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def test_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    [examples] = [b for b in blocks if b.startswith("import")]
    scope: dict[str, object] = {}
    exec(compile(examples, str(README), "exec"), scope)
    assert "conv1.weight" in capsys.readouterr().out
    assert scope["masks"].sparsity == 0.5 and (tmp_path / "masks.safetensors").exists()
    assert int(scope["best"].counts.sum()) == 100


def test_pictures_exist():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README.read_text()):
        assert (README.parent / path).exists(), path


def test_examples_of_the_diagnostics_run():
    page = README.parent / "docs" / "diagnostics.md"
    [examples] = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    scope: dict[str, object] = {}
    exec(compile(examples, str(page), "exec"), scope)
    assert scope["small"].parameters <= 10_000 and scope["worst"].counts() == scope["masks"].counts()
    public = re.findall(r"^from \.\w+ import (\w+) as", Path(scope["dx"].__file__).read_text(), re.MULTILINE)
    functions = [name for name in public if name[0].islower()]
    assert functions and not [name for name in functions if not re.search(rf"\b{name}\b", page.read_text())]


def test_examples_of_training_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = README.parent / "docs" / "training.md"
    [examples] = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    scope: dict[str, object] = {}
    exec(compile(examples, str(page), "exec"), scope)
    assert round(scope["winning"].density, 4) == 0.64 and scope["masks"].density == 0.2
    assert (tmp_path / "task.safetensors").exists()
    methods = {
        name
        for name, value in vars(scope["tr"]).items()
        if isinstance(value, type) and issubclass(value, scope["tr"].Method)
    }
    assert len(methods) > 7 and not [n for n in methods - {"Method"} if not re.search(rf"\b{n}\b", examples)]
