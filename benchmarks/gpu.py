"""Everything there is to know on a GPU: ``python -m benchmarks.gpu [--minutes 8] [--out runs/gpu] [--dry-run]``.

Needs torch 2.10 or newer, pytest, pytest-benchmark and the prebuilt libraries in ``sparseprune/lib``; no compiler, no
network, no install. Tests of the ops first (a fast wrong kernel is worth nothing), then compute-sanitizer over them
where it is installed, then benchmarks by what they tell, then the rest of the tests; each within its own time, each
written to the output folder when it ends, so that a machine that is taken away costs the rest only.
``--dry-run`` is the same plan at toy size on a CPU.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .__main__ import pytest_command
from .environment import ROOT, tuned
from .linked import environment, link_install
from .steps import CUT, FAILED, Outcome, Step, run_steps

# (file, the most seconds it may take of eight minutes), by what a first measurement would change: the threshold is
# where PyTorch is expected to lose most, the linear layer decides when a kernel is chosen at all.
BENCHMARKS = (("topk_mask", 60), ("masked_linear", 80), ("prune", 50), ("masked_conv2d", 60), ("mask_bits", 25))
PLANNED_MINUTES = 8.0
TAIL = 20.0  # seconds kept for the tables

TOOLS = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"])
LIBRARIES = """
import torch, sparseprune, sparseprune.kernels
from sparseprune.ops import native
print("sparseprune", sparseprune.__version__, sparseprune.__file__, sparseprune.kernels.__file__)
print("torch", torch.__version__, "CUDA", torch.version.cuda, "devices", torch.cuda.device_count())
reasons = native.loaded()
print({device: reason or "loaded" for device, reason in reasons.items()})
raise SystemExit(bool(reasons[DEVICE]))
"""


def plan(out: Path, dry: bool, scale: float = 1.0) -> list[Step]:
    """The steps in order; ``scale`` stretches their limits with the minutes there are."""
    device = "cpu" if dry else "cuda"
    missing = None if shutil.which("compute-sanitizer", path=TOOLS) else "compute-sanitizer is not installed"
    if dry:
        missing = "compute-sanitizer checks kernels on a GPU"
    python = [sys.executable, "-c", LIBRARIES.replace("DEVICE", repr(device))]
    contract = ["tests/ops/test_contract.py"] if dry else ["tests/ops"]
    chosen = "agrees and native and float32 and cpu and mask" if dry else "cuda"

    steps = [
        Step("libraries", lambda _: python, 30 * scale),
        Step("tests of the ops", _tests(*contract, which=chosen), 100 * scale),
    ]
    for tool in ("memcheck", "racecheck"):
        kernels = _tests("tests/ops/test_contract.py", which="agrees and native and cuda and float32")
        steps.append(Step(tool, _sanitized(tool, kernels), 40 * scale, missing))
    for name, seconds in BENCHMARKS:
        steps.append(Step(f"benchmark {name}", _benchmark(out, name, device, dry), seconds * scale))
    graphs = _benchmark(out, "masked_linear", device, dry, "--graphs", "-k", "native and not backward", saved="graphs")
    steps.append(Step("graphs", graphs, 40 * scale, "CUDA graphs need a GPU" if dry else None))
    rest = _tests("tests", "--ignore", "tests/ops", which="cuda")
    steps.append(Step("all other tests", rest, 300 * scale, "continuous integration runs them" if dry else None))
    return steps


def _tests(*arguments: str, which: str) -> Callable[[float], Sequence[str]]:
    found = [str(ROOT / a) if a.startswith("tests") else a for a in arguments]
    configuration = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-p", "no:cacheprovider"]
    return lambda _: [sys.executable, "-m", "pytest", *found, *configuration, "-q", "-rf", "-W", "default", "-k", which]


def _sanitized(tool: str, command: Callable[[float], Sequence[str]]) -> Callable[[float], Sequence[str]]:
    # Without torch's caching every tensor is an allocation of its own, so that reading past its end is seen.
    prefix = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", "compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
    return lambda seconds: [*prefix, *command(seconds)]


def _benchmark(
    out: Path, name: str, device: str, dry: bool, *arguments: str, saved: str | None = None
) -> Callable[[float], Sequence[str]]:
    file = str(ROOT / "benchmarks" / f"bench_{name}.py")
    options = [*arguments, "--row-seconds", "0.1"]

    def command(seconds: float) -> list[str]:
        # It stops taking rows itself while there is time to save those it has.
        budget = ["--time-budget", str(max(1.0, seconds - 12))]
        return pytest_command(out / f"{saved or name}.json", device, file, *options, *budget, quick=dry)

    return command


def table(outcomes: Sequence[Outcome]) -> str:
    lines = [f"| {o.name} | {o.state} | {o.seconds:.0f} | {o.last_line.replace('|', '/')} |" for o in outcomes]
    return "\n".join(["| step | | seconds | its last line |", "| --- | --- | --: | --- |", *lines])


def report(out: Path) -> list[Path]:
    """Tables and figures of whatever was saved; a file that was cut off is left out."""
    from .report import write_report
    from .saved import load

    written = []
    for name, files in (("gpu", [name for name, _ in BENCHMARKS]), ("graphs", ["graphs"])):
        whole = [out / f"{file}.json" for file in files if _is_saved(out / f"{file}.json")]
        if whole:
            written += write_report(load(whole), name, out)
    return written


def _is_saved(path: Path) -> bool:
    from .saved import load

    try:
        return bool(load([path]).rows)
    except ValueError:
        return False


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=PLANNED_MINUTES, help="all of it fits in this")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder for what it finds")
    parser.add_argument("--dry-run", action="store_true", help="the same plan at toy size on a CPU")
    options = parser.parse_args(arguments)
    end = time.monotonic() + 60 * options.minutes
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for stale in ("steps", "graphs", *(name for name, _ in BENCHMARKS)):
        (out / f"{stale}.json").unlink(missing_ok=True)

    with tempfile.TemporaryDirectory() as folder:
        around = environment(
            tuned({**os.environ, "PATH": TOOLS}, "cpu" if options.dry_run else "cuda"), link_install(Path(folder))
        )
        steps = plan(out, options.dry_run, options.minutes / PLANNED_MINUTES)
        tell = lambda o: print(f"{o.name}: {o.state}, {o.seconds:.0f} s, {o.last_line}", flush=True)  # noqa: E731
        outcomes = run_steps(steps, out, end - TAIL * options.minutes / PLANNED_MINUTES, around, tell)
    (out / "steps.md").write_text(table(outcomes) + "\n")
    for path in report(out):
        print(path)
    print(table(outcomes))
    return int(any(outcome.state in (FAILED, CUT) for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
