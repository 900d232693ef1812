"""Timings side by side with other ways to do the same work: `python -m benchmarks` or `make bench`."""
