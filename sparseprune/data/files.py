"""Finding the files of a data set in the folder a user names."""

from __future__ import annotations

from os import PathLike
from pathlib import Path


def folder_of(data_dir: str | PathLike[str] | None, dataset: str) -> Path:
    """Returns ``data_dir`` as a path; raises ValueError unless it is an existing folder."""
    if data_dir is None:
        raise ValueError(f"data_dir must be the folder that holds {dataset}, got None (nothing is fetched)")
    folder = Path(data_dir)
    if not folder.is_dir():
        raise ValueError(f"data_dir must be an existing folder that holds {dataset}, got {str(folder)!r}")
    return folder


def find(folder: Path, subfolders: tuple[str, ...], names: tuple[str, ...]) -> Path:
    """Returns the first existing file with one of the names, in the folder or one of its subfolders.

    Raises:
        ValueError: there is none; the message lists the names and the places.
    """
    places = [folder, *(folder / subfolder for subfolder in subfolders)]
    for place in places:
        for name in names:
            if (place / name).is_file():
                return place / name
    also = f" (or in its {', '.join(subfolders)})" if subfolders else ""
    raise ValueError(f"data_dir must contain {' or '.join(names)}{also}, got {str(folder)!r} without it")
