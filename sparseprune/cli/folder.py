"""What the commands write into a run's folder, and what they may overwrite there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..masks import Masks
from ..report.runs import CHECKPOINT_FILE as CHECKPOINT_FILE
from ..report.runs import HISTORY_FILE, RUN_FILE
from ..report.runs import INIT_FILE as INIT_FILE
from ..report.runs import MODEL_FILE as MODEL_FILE
from ..report.runs import write_json as write_json
from ..report.runs import write_run as write_run
from ..training.history import History

FIGURE_FILE = "density.png"
TRAINING_FILES = (HISTORY_FILE, CHECKPOINT_FILE, MODEL_FILE)


def read_run(folder: Path) -> dict[str, Any]:
    """run.json as far as there is a readable one, else an empty dictionary."""
    try:
        run = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return run if isinstance(run, dict) else {}


def read_history(path: Path) -> History:
    """The epochs written so far; none where the file is damaged, since a checkpoint has them all."""
    try:
        return History.from_list(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return History()


def check_writable(folder: Path) -> None:
    """A folder that cannot be made or written to is an error now, not after the work; nothing is made yet.

    Raises:
        ValueError: something else than a folder is in the way, or it may not be written to.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"--out must be a folder that can be written to, got {str(folder)!r}")


def stale_training(folder: Path, arguments: dict[str, Any], overwrite: bool) -> list[Path]:
    """What to remove when pruning into a folder: no trained network may stand beside masks it did not have.

    Raises:
        ValueError: the folder holds the training of a run with other arguments, and ``overwrite`` is false.
    """
    present = [name for name in TRAINING_FILES if (folder / name).exists()]
    if not present or read_run(folder).get("arguments") == arguments:
        return []
    if not overwrite:
        raise ValueError(
            f"--out must be a folder without another run's training, got {str(folder)!r} with "
            f"{', '.join(present)}: take another folder, or remove them with --overwrite"
        )
    return [folder / name for name in present]


def same_masks(path: Path, masks: Masks) -> bool:
    """Whether the file holds exactly these masks."""
    return dict(Masks.load(path)) == dict(masks)
