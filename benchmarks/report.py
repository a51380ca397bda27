"""Turns saved runs into tables and plots: ``python -m benchmarks.report SAVED.json... [--name NAME] [--to FOLDER]``.

Ratios are to the best dense and the best peer of the same run; what is below 1 is a loss and is listed by itself too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from .rows import DENSE, OURS, PEER
from .saved import Run, Taken, crossover, load

RESULTS = Path(__file__).resolve().parent / "results"
FACTS = ("gpu", "processor", "threads", "platform", "torch", "cuda", "python", "numpy", "scipy", "triton", "sparseprop")


def write_report(run: Run, name: str, folder: Path) -> list[Path]:
    """Writes NAME.md and its figures into ``folder`` and returns their paths, the table first."""
    from .plots import draw

    folder.mkdir(parents=True, exist_ok=True)
    figures = draw(run, name, folder)
    table = folder / f"{name}.md"
    table.write_text(markdown(run, name, [path.name for path in figures]))
    return [table, *figures]


def markdown(run: Run, name: str, figures: list[str]) -> str:
    parts = [f"# {name}", *_heading(run), *(f"![{figure}]({figure})" for figure in figures)]
    parts += [*_crossovers(run), *_losses(run)]
    for group in run.groups:
        parts += [f"## {group}", _table(run, run.group(group))]
    return "\n\n".join(parts) + "\n"


def _heading(run: Run) -> Iterator[str]:
    machine = run.machine
    if machine.get("quick"):
        yield "**Toy sizes: this shows that everything runs, and no speed.**"
    lines = [f"| {key} | {machine[key]} |" for key in FACTS if machine.get(key)]
    lines.append(f"| commit | {machine.get('commit')} |")
    tuned = "kept heap, threads bound to cores" if machine.get("tuned") else "**as the system gives it, not tuned**"
    lines.append(f"| allocator and threads | {tuned} |")
    limits = ", ".join(f"{k} {v:.0f} {'GB/s' if k == 'read' else 'GF/s'}" for k, v in machine["limits"].items())
    lines.append(f"| measured limits | {limits} |")
    yield "\n".join(["| machine | |", "| --- | --- |", *lines])
    yield (
        "Medians. GF/s and GB/s count the job: operations on kept weights for what computes with those alone, every "
        "input and result once. Percent is of the time those would take at the measured limits; what fits in a cache "
        "can pass 100. Peak is memory beyond what was there before the call, its result included. Ratios say how many "
        "times faster than the best dense and the best peer of the same job in the same run: **bold is a loss**. "
        "A `~` marks times whose middle half spreads over more than 15 %."
    )


def _table(run: Run, rows: list[Taken]) -> str:
    columns = ["", "density", "dtype", "ms", "GF/s", "GB/s", "% of limit", "peak MiB", "vs dense", "vs peer"]
    extra = [key for key in ("cold ms", "graph ms") if any(row.notes.get(key) is not None for row in rows)]
    lines = [columns[:4] + extra + columns[4:]]
    lines.append(["---", *["--:"] * (len(lines[0]) - 1)])
    for row in rows:
        ratios = [_ratio(run.ratio(row, kind)) if row.kind == OURS else "" for kind in (DENSE, PEER)]
        side = f"**{row.side}**" if run.chosen(row) else row.side
        density = "any" if row.density is None else f"{row.density:g}"
        time = ("~" if row.unsteady else "") + _number(row.ms)
        notes = [_number(row.notes.get(key)) for key in (*extra, "GF/s", "GB/s", "percent of limit", "peak MiB")]
        lines.append([side, density, row.dtype, time, *notes, *ratios])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _crossovers(run: Run) -> Iterator[str]:
    lines = []
    for group in run.groups:
        for dtype in dict.fromkeys(row.dtype for row in run.group(group)):
            if speedups := run.speedups(group, dtype):
                lines.append(f"| {group} | {dtype} | {_crossing(speedups)} |")
    if lines:
        yield "\n".join(["| ours is faster than the best dense | dtype | |", "| --- | --- | --- |", *lines])


def _crossing(speedups: list[tuple[float, float]]) -> str:
    if all(ratio < 1 for _, ratio in speedups):
        return f"at no density down to {speedups[-1][0]:g}"
    if all(ratio >= 1 for _, ratio in speedups):
        return f"at every density up to {speedups[0][0]:g}"
    at = crossover(speedups)
    return "irregularly, see the table" if at is None else f"below a density of {at:.2g}"


def _losses(run: Run) -> Iterator[str]:
    lines = [
        f"| {row.group} | {'any' if row.density is None else f'{row.density:g}'} | {row.dtype} | {row.side} "
        f"| {best.side} | {_number(row.ms)} | {_number(best.ms)} |"
        for row, best in run.losses()
    ]
    if lines:
        head = [
            "| where it loses | density | dtype | ours | to | ms | its ms |",
            "| --- | --: | --- | --- | --- | --: | --: |",
        ]
        yield "\n".join([*head, *lines])


def _ratio(value: float | None) -> str:
    if value is None:
        return ""
    text = f"{value:.2f}x" if value < 10 else f"{value:.0f}x"
    return f"**{text}**" if value < 1 else text


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("saved", nargs="+", type=Path)
    parser.add_argument("--name", help="what to call the result; the first file's name by default")
    parser.add_argument("--to", type=Path, default=RESULTS, help="folder, benchmarks/results by default")
    options = parser.parse_args(arguments)
    try:
        written = write_report(load(options.saved), options.name or options.saved[0].stem, options.to)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    for path in written:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
