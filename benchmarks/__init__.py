"""The benchmark suite: `make bench`, or one piece alone, such as `python -m benchmarks.step`."""
