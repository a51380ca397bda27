"""A process that is killed again and again ends with the same bits as one that was left alone."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

VICTIM = Path(__file__).parent / "victim.py"


def run(*arguments):
    return [sys.executable, str(VICTIM), *map(str, arguments)]


def kill_when_progressed(checkpoint, previous, delay):
    process = subprocess.Popen(run(checkpoint))
    deadline = time.monotonic() + 60
    while not checkpoint.exists() or checkpoint.read_bytes() == previous:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(delay)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    return checkpoint.read_bytes()


def test_killed_runs_end_like_an_undisturbed_one(tmp_path):
    checkpoint = tmp_path / "killed.pt"
    first = kill_when_progressed(checkpoint, None, 0.07)
    second = kill_when_progressed(checkpoint, first, 0.011)
    assert first != second
    subprocess.run(run(checkpoint, tmp_path / "killed"), check=True)
    subprocess.run(run(tmp_path / "undisturbed.pt", tmp_path / "undisturbed"), check=True)
    killed, undisturbed = (torch.load(tmp_path / name, weights_only=True) for name in ("killed", "undisturbed"))
    assert len(killed["history"]) == 6
    for ours, theirs in zip(killed["history"], undisturbed["history"], strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    for name, value in undisturbed["model"].items():
        assert torch.equal(killed["model"][name], value), name
