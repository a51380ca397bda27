"""Benchmarks: ours beside dense and beside what others use, each checked for correctness before it is timed.

    python -m benchmarks [--quick] [--device cuda] [--out runs/bench.json]     one run, with the environment it needs
    python -m benchmarks.report runs/bench.json                                its tables and plots
    python -m benchmarks.gpu [--minutes 8] [--dry-run]                         everything there is to know on a GPU

A file ``bench_<op>.py`` says which rows there are; ``rows.py`` what a row is; ``measure.py`` how one is taken.
"""
