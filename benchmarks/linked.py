"""Runs the package from a source checkout with prebuilt libraries: a folder of links that looks like an install.

An install maps the top-level ``kernels`` to ``sparseprune.kernels`` and leaves metadata that ``__version__`` is read
from; a bare checkout on PYTHONPATH has neither. The links give both, without a build and for any Python.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from .environment import ROOT


def link_install(folder: Path) -> Path:
    """Fills ``folder`` with the package, its kernels and its metadata as links to the checkout; returns it."""
    package = folder / "sparseprune"
    package.mkdir(parents=True, exist_ok=True)
    for source in (*(ROOT / "sparseprune").iterdir(), ROOT / "kernels"):
        link = package / source.name
        if not link.is_symlink():
            link.symlink_to(source)
    [version] = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    metadata = folder / f"sparseprune-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(exist_ok=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: sparseprune\nVersion: {version}\n")
    return folder


def environment(base: Mapping[str, str], folder: Path) -> dict[str, str]:
    """``base`` with the linked package, then the checkout (for ``benchmarks``), before everything else on the path.

    Whoever uses it must not start in the checkout: there Python would find the bare ``sparseprune`` first.
    """
    path = [str(folder), str(ROOT), *filter(None, base.get("PYTHONPATH", "").split(os.pathsep))]
    return {**base, "PYTHONPATH": os.pathsep.join(path)}
