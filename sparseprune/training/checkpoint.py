"""Checkpoints: all that a run needs to go on, in one file, written atomically, read without running code."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import torch

from ..files import write_atomically

FORMAT = "sparseprune-checkpoint"
VERSION = 2
KEYS = ("config", "epoch", "step", "loss_sum", "seconds", "history", "model", "optimizer", "method", "random")


def save_checkpoint(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write ``state`` to ``path``, whole or not at all.

    Args:
        path: the file; replaced when it exists.
        state: the values of ``KEYS``: tensors, numbers, strings and containers of these.

    Raises:
        ValueError: ``state`` lacks a key of ``KEYS`` or has another one.
        OSError: the file cannot be written; the previous one is then untouched.
    """
    if set(state) != set(KEYS):
        raise ValueError(f"state must have the keys {', '.join(KEYS)}, got {', '.join(state)}")
    payload = {"format": FORMAT, "version": VERSION, **state}
    try:
        write_atomically(path, lambda file: torch.save(payload, file))
    except RuntimeError as error:  # torch's writer complains of what a full disk left, and hides that
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint, all of it checked before anything is returned.

    Args:
        path: a file written by ``save_checkpoint``.

    Returns:
        The values of ``KEYS``, tensors on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut short, damaged, of another kind or of another version.
    """
    with open(path, "rb") as file:
        problem = _damage(file)
    if problem:
        raise ValueError(f"path must be a whole sparseprune checkpoint, got {path}: {problem}")
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"path must be a sparseprune checkpoint (tensors and plain values only), got {path}: {reason}"
        ) from error
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise ValueError(f"path must be a sparseprune checkpoint, got {path}: a torch file with {_describe(payload)}")
    if payload.get("version") != VERSION:
        raise ValueError(
            f"path must be a checkpoint of format version {VERSION}, got {path}: version {payload.get('version')!r}"
        )
    missing = [key for key in KEYS if key not in payload]
    if missing:
        raise ValueError(f"path must be a sparseprune checkpoint, got {path}: it lacks {', '.join(missing)}")
    return {key: payload[key] for key in KEYS}


def _damage(file: Any) -> str | None:
    # torch's reader does not verify the checksums it wrote: one flipped bit would load as another weight.
    size = os.fstat(file.fileno()).st_size
    if not zipfile.is_zipfile(file):
        return f"{size} bytes that are not a whole torch file (cut short, or another kind of file)"
    try:
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, RuntimeError, EOFError, OSError) as error:
        return f"{size} bytes with a damaged index ({error})"
    return f"damaged content in {broken}" if broken else None


def _describe(payload: object) -> str:
    if isinstance(payload, dict):
        return "the keys " + ", ".join(str(key) for key in list(payload)[:4]) if payload else "no keys"
    return f"a {type(payload).__name__}"
