"""Checkpoints: whole or not at all, and anything else is refused by name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch

from sparseprune.files import write_atomically
from sparseprune.training import load_checkpoint, save_checkpoint
from sparseprune.training.checkpoint import KEYS
from sparseprune.training.random_state import derived_generator, random_state, seeded, set_random_state


def state(value: float = 1.0) -> dict:
    return dict.fromkeys(KEYS, 0) | {"model": {"w": torch.full((300, 7), value)}, "random": random_state()}


def test_what_is_saved_comes_back(tmp_path):
    save_checkpoint(tmp_path / "c.pt", state(2.5))
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert torch.equal(loaded["model"]["w"], torch.full((300, 7), 2.5))
    assert list(loaded) == list(KEYS)
    assert os.listdir(tmp_path) == ["c.pt"]


def test_a_state_with_missing_parts_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must have the keys"):
        save_checkpoint(tmp_path / "c.pt", {"model": {}})
    assert not os.listdir(tmp_path)


def test_every_truncation_and_every_flipped_byte_is_refused(tmp_path):
    path = tmp_path / "c.pt"
    save_checkpoint(path, state())
    whole = path.read_bytes()
    for length in (0, 1, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"c\.pt"):
            load_checkpoint(path)
    at = whole.index(torch.full((300, 7), 1.0).numpy().tobytes()) + 4000
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(ValueError, match="damaged content"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        ({"state_dict": {}}, "the keys state_dict"),
        ([1, 2], "a list"),
        ({"format": "sparseprune-checkpoint", "version": 99}, "version 99"),
        ({"format": "sparseprune-checkpoint", "version": 2, "epoch": 2}, "lacks config"),
        ({"f": subprocess.Popen}, "tensors and plain values only"),
    ],
)
def test_foreign_files_are_named_with_what_was_found(tmp_path, payload, found):
    torch.save(payload, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=found):
        load_checkpoint(tmp_path / "c.pt")


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "c.pt")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    save_checkpoint(path, state(1.0))
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_atomically(path, lambda file: (file.write(b"half"), full()))
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(path, state(2.0))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["c.pt"]


def test_a_full_disk_is_said_and_the_old_file_stays(tmp_path):
    """torch's writer replaces the file's error by one of its own; the limit on a file's size stands for the disk."""
    path = tmp_path / "c.pt"
    save_checkpoint(path, state(1.0))
    before = path.read_bytes()
    code = (
        "import resource, signal, sys, torch; from sparseprune.training import load_checkpoint, save_checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); state = load_checkpoint(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: save_checkpoint(sys.argv[1], state)\n"
        "except OSError as error: assert 'File too large' in str(error); sys.exit(3)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == 3
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["c.pt"]


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "c.pt"
    save_checkpoint(path, state(1.0))
    before = path.read_bytes()
    code = (
        "import os, sys; from sparseprune.files import write_atomically\n"
        "write_atomically(sys.argv[1], lambda f: (f.write(b'half'), f.flush(), os.kill(os.getpid(), 9)))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    save_checkpoint(path, state(2.0))
    assert os.listdir(tmp_path) == ["c.pt"]


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "link.pt").symlink_to(tmp_path / "real.pt")
    save_checkpoint(tmp_path / "link.pt", state())
    assert (tmp_path / "link.pt").is_symlink()
    load_checkpoint(tmp_path / "real.pt")


def test_random_states_survive_a_checkpoint_and_the_callers_are_untouched(tmp_path):
    import random

    import numpy as np

    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(())), float(torch.randn(()))

    draw()
    np.random.randn()
    save_checkpoint(tmp_path / "c.pt", state() | {"random": random_state()})
    expected = draw()
    set_random_state(load_checkpoint(tmp_path / "c.pt")["random"])
    assert draw() == expected
    set_random_state(load_checkpoint(tmp_path / "c.pt")["random"])
    with seeded(4):
        first = draw()
    assert draw() == expected
    with seeded(4):
        assert draw() == first


def test_derived_generators_are_all_different():
    seeds = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert len({float(torch.rand((), generator=derived_generator(*numbers))) for numbers in seeds}) == len(seeds)
