"""Write a file whole or not at all: temporary file in the same folder, fsync, rename, fsync of the folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a temporary file, then give it the name ``path``.

    Whenever the process dies, ``path`` is the old file or the new one, never a part. The temporary name is
    fixed, so that a killed run leaves at most one behind and the next run overwrites it.

    Args:
        path: the file to make or replace; a symbolic link is followed, its target replaced.
        write: called once with a file opened for writing bytes.

    Raises:
        OSError: the folder is missing, full or read-only. ``path`` is then as it was.
    """
    target = Path(path).resolve()
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    # The rename itself is only safe from a power cut once the folder's entry is on disk.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
