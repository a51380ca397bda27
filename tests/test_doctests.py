"""The examples in docstrings."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import torch

import sparseprune

NAMES = ["sparseprune", *(m.name for m in pkgutil.walk_packages(sparseprune.__path__, "sparseprune."))]
SKIPPED = ("sparseprune.kernels", "sparseprune._C")
OPTIONAL = {"sparseprune.training.lightning": "lightning", "sparseprune.training.huggingface": "transformers"}


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith(SKIPPED)])
def test_docstring_examples(name):
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name])
    module = importlib.import_module(name)
    scope = {"sp": sparseprune, **vars(module), "torch": torch, "nn": torch.nn}
    failed, _ = doctest.testmod(module, extraglobs=scope, raise_on_error=False)
    assert failed == 0
