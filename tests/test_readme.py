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
    assert sum(m.count() for m in scope["best"]) == 100


def test_pictures_exist():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README.read_text()):
        assert (README.parent / path).exists(), path
