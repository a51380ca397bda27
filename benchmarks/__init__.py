"""Benchmarks: ours beside dense and beside what others use, each checked for correctness before it is timed."""
