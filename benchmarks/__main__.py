"""Run the benchmarks: ``python -m benchmarks [--quick] [--device cpu|cuda] [--untuned] [--out FILE] [pytest arguments]``.

Replaces itself by pytest, because the allocator and OpenMP read their settings when a process starts. Whatever else
is given goes to pytest: ``-k "masked_linear and native"`` takes some of the rows.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from .environment import ROOT, tuned


def pytest_command(out: Path, device: str, *arguments: str, quick: bool = False) -> list[str]:
    """The command that takes the rows of the files in ``arguments`` (of all, where none is named) and saves them."""
    files = [a for a in arguments if a.endswith(".py")] or [str(ROOT / "benchmarks")]
    return [
        *(sys.executable, "-m", "pytest", *files, "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)),
        *("-o", "python_files=bench_*.py", "-q", "-p", "no:cacheprovider"),
        *("-W", "default"),  # another torch's advice is no reason to lose a number
        *("-W", "ignore::pytest_benchmark.logger.PytestBenchmarkWarning"),  # all rows skipped: nothing to save
        *("--benchmark-only", f"--benchmark-json={out}", "--benchmark-columns=median,iqr,rounds"),
        *("--benchmark-disable-gc", "--bench-device", device, *(["--quick"] if quick else [])),
        *(a for a in arguments if not a.endswith(".py")),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="toy sizes: proves that it runs, measures nothing")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--untuned", action="store_true", help="the allocator and threads as a user gets them")
    parser.add_argument("--out", type=Path, default=Path("runs/bench.json"))
    options, rest = parser.parse_known_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ) if options.untuned else tuned(os.environ, options.device)
    command = pytest_command(options.out.resolve(), options.device, *rest, quick=options.quick)
    os.execve(command[0], command, environment)


if __name__ == "__main__":
    main()
