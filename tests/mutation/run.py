"""Mutation check of csrc/cpu and csrc/cuda: changes one operator or constant at a time and asks whether tests notice.

    python tests/mutation/run.py --count 60 --seed 0

Results are appended to a file as they come, so a run that was stopped goes on where it was. Changes are compiled in
``build/mutation``; the sources are never written to.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from cpu.build import DoesNotCompile  # noqa: E402
from mutation.compiled import cpu_library, cuda_module, units_of  # noqa: E402
from mutation.mutants import ROOT, Mutant, mutants  # noqa: E402

LIMIT = {"cpu": 60, "cuda": 120}  # seconds; the checks take about 3 and 20 on an idle core


class Worker:
    """A process that tries libraries. The CPU's is AddressSanitizer's: a read past an end that changes no result."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self._folder = kind, folder
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_PERTURB_": "1"}
        if kind == "cpu":
            names = ("libasan.so", "libubsan.so")
            found = [subprocess.check_output(["g++", f"-print-file-name={n}"], text=True).strip() for n in names]
            environment["LD_PRELOAD"] = ":".join(found)
            environment["ASAN_OPTIONS"] = "detect_leaks=0:max_malloc_fill_size=1073741824:malloc_fill_byte=255"
        command = [sys.executable, str(HERE / "worker.py")]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def verdict(self, job: dict) -> dict:
        job |= {
            "kind": self.kind,
            "limit": LIMIT[self.kind],
            "report": str(self._folder / f"mutation-report-{os.getpid()}"),
        }
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


class Session:
    """Compiles and tries mutants; starts each worker when it is needed first."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._workers, self._proven = folder, {}, set()
        folder.mkdir(parents=True, exist_ok=True)

    def _job(self, kind: str, mutant: Mutant) -> dict | None:
        if kind == "cuda":
            library, units = cuda_module(self._folder / "simt", mutant)
            return {"library": library, "units": units}
        placed = units_of(mutant)
        if placed is None:
            return None
        level, units = placed
        library = cpu_library(self._folder / "cpu", mutant, level, units)
        return {"library": str(library), "level": level, "units": units}

    def _unchanged_passes(self, kind: str, job: dict) -> None:
        """What a mutant is tried on must pass without it, or killing says nothing."""
        new = [unit for unit in job["units"] if (kind, unit) not in self._proven]
        if not new:
            return
        if kind == "cuda":
            library = cuda_module(self._folder / "simt", None)[0]
        else:
            library = str(cpu_library(self._folder / "cpu", None, job["level"], []))
        result = self._workers[kind].verdict({**job, "library": library, "units": new})
        if result["verdict"] != "survived":
            raise SystemExit(f"the unchanged kernels must pass, got {result['verdict']}")
        self._proven.update((kind, unit) for unit in new)

    def outcome(self, mutant: Mutant) -> dict:
        kind = "cuda" if "/cuda/" in mutant.file else "cpu"
        try:
            job = self._job(kind, mutant)
        except DoesNotCompile as error:
            return {"verdict": f"rejected by the compiler: {error}"}
        if job is None:
            return {"verdict": "not compiled on this machine"}
        if kind not in self._workers:
            self._workers[kind] = Worker(kind, self._folder)
        self._unchanged_passes(kind, job)
        result = self._workers[kind].verdict(job)
        if kind == "cpu":
            Path(job["library"]).unlink()  # 14 MB each
        return result

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()


def summary(results: list[dict]) -> str:
    counts = Counter(result["verdict"].partition(":")[0] for result in results)
    tried = counts["killed"] + counts["survived"]
    share = f"{counts['killed'] / tried:.1%}" if tried else "none"
    return f"{tried} mutants, {counts['killed']} killed ({share}), {counts['survived']} survived"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="how many mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--only", default="", help="mutants whose file:line:... starts with this, all of them")
    parser.add_argument("--without", nargs="*", default=[], help="none of those whose file starts with one of these")
    parser.add_argument("--folder", type=Path, default=ROOT / "build/mutation", help="for what is compiled")
    parser.add_argument("--results", type=Path, help="the file of results (default: results.jsonl in the folder)")
    parser.add_argument("--retry", action="store_true", help="try again those that survived an earlier run")
    options = parser.parse_args()
    everything = [m for m in mutants() if not m.file.startswith(tuple(options.without))]
    random.Random(options.seed).shuffle(everything)
    chosen = [m for m in everything if m.key.startswith(options.only)] if options.only else everything
    chosen = chosen[: options.count]
    session = Session(options.folder)
    log = options.results or options.folder / "results.jsonl"
    known = {}
    if log.exists():
        known = {r["key"]: r for r in map(json.loads, log.read_text().splitlines())}
    if options.retry:
        known = {key: r for key, r in known.items() if r["verdict"] != "survived"}
    results = []
    for i, mutant in enumerate(chosen, 1):
        result = known.get(mutant.key)
        if result is None:
            result = {"key": mutant.key, **session.outcome(mutant), "diff": mutant.diff}
            with log.open("a") as file:
                file.write(json.dumps(result) + "\n")
        results.append(result)
        print(
            f"[{i}/{len(chosen)}] {mutant.key.rpartition(':')[0]} {result['verdict'].splitlines()[0][:120]}", flush=True
        )
    session.close()
    for result in results:
        if result["verdict"] == "survived":
            print(f"\n{result['key']}\n{result['diff']}")
    print(f"\n{summary(results)}")


if __name__ == "__main__":
    main()
