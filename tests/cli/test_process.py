"""The command as a process: exit codes, streams, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

COMMAND = [sys.executable, "-c", "from sparseprune.cli import main; main()"]
# One thread: other processes on the machine must not make these wait at every barrier.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def call(*arguments):
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, env=ENVIRONMENT)


def test_help_names_the_commands_and_errors_have_no_traceback():
    result = call("--help")
    assert result.returncode == 0 and all(name in result.stdout for name in ("prune", "train", "report", "info"))
    result = call("prune", "lenet5", "--criterion", "random", "--sparsity", "2")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == "error: sparsity must be in [0, 1), got 2.0\n"


def test_ctrl_c_says_how_to_resume_and_the_result_is_that_of_an_undisturbed_run(tmp_path):
    options = [
        "train",
        "lenet_300_100",
        "--epochs",
        "6",
        "--batch-size",
        "32",
        "--seed",
        "5",
        "--device",
        "cpu",
    ]
    stopped, whole = tmp_path / "stopped run", tmp_path / "whole"
    process = subprocess.Popen(
        [*COMMAND, *options, "--out", stopped], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    deadline = time.monotonic() + 60
    while not (stopped / "checkpoint.pt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in errors
    assert f"To go on: sparseprune {' '.join(options)} --out '{stopped}' --resume" in errors
    assert call(*options, "--out", stopped, "--resume").returncode == 0
    result = call(*options, "--out", whole, "--json")
    assert (stopped / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    resumed, undisturbed = (
        json.loads((stopped / "history.json").read_text()),
        json.loads(result.stdout)["history"],
    )
    assert [{**row, "seconds": 0} for row in resumed] == [{**row, "seconds": 0} for row in undisturbed]


def test_names_are_shown_as_they_are_whatever_the_terminal_can(tmp_path):
    result = call("report", tmp_path / "runs:x:1")
    assert result.returncode == 2 and "runs:x:1" in result.stderr
    result = subprocess.run(
        [*COMMAND, "report", "\u00fc"], capture_output=True, env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}
    )
    assert result.returncode == 2 and b"got \\xfc" in result.stderr and b"codec" not in result.stderr


def test_a_reader_that_leaves_is_no_error():
    with subprocess.Popen(
        [*COMMAND, "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 1
