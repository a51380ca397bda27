"""Steps of a plan, each a command in a process of its own with a time limit, its outcome written before the next."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

PASSED, FAILED, CUT, ABSENT, UNREACHED = "passed", "failed", "cut off", "absent", "no time left"
GRACE = 5.0  # seconds between asking a process to stop, so that it can save what it has, and ending it


@dataclass(frozen=True)
class Step:
    """One step of a plan.

    Attributes:
        name: also the name of the file with its output.
        command: given the seconds it has, the command; so that a benchmark can stop taking rows in time.
        seconds: the most it may take.
        absent: why it cannot run here, or None.
    """

    name: str
    command: Callable[[float], Sequence[str]]
    seconds: float
    absent: str | None = None


@dataclass(frozen=True)
class Outcome:
    name: str
    state: str
    seconds: float
    last_line: str


def run_steps(
    steps: Sequence[Step], out: Path, until: float, environment: Mapping[str, str], tell: Callable[[Outcome], None]
) -> list[Outcome]:
    """Runs the steps in order, none past the monotonic time ``until``; rewrites ``out/steps.json`` after each."""
    outcomes: list[Outcome] = []
    for number, step in enumerate(steps):
        log = out / f"{number:02d}-{step.name.replace(' ', '-')}.txt"
        outcomes.append(_run_step(step, log, out, until - time.monotonic(), environment))
        _write(out / "steps.json", json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
        tell(outcomes[-1])
    return outcomes


def _run_step(step: Step, log: Path, folder: Path, left: float, environment: Mapping[str, str]) -> Outcome:
    if step.absent:
        return Outcome(step.name, ABSENT, 0.0, step.absent)
    seconds = min(step.seconds, left)
    if seconds < 1:
        return Outcome(step.name, UNREACHED, 0.0, "")
    start = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(step.command(seconds)),
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own: what it started is ended with it
        )
        state = _wait(process, seconds)
    lines = log.read_text(errors="replace").strip().splitlines()
    return Outcome(step.name, state, time.monotonic() - start, lines[-1][-200:].strip("= ") if lines else "")


def _wait(process: subprocess.Popen[bytes], seconds: float) -> str:
    try:
        return PASSED if process.wait(max(0.5, seconds - GRACE)) == 0 else FAILED
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return CUT


def _write(path: Path, text: str) -> None:
    """Whole or not at all, also when the machine is taken away meanwhile."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text + "\n")
    temporary.replace(path)
