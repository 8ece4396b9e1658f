"""The benchmark suite. `make bench` runs all of it; `python -m benchmarks.step` and the like run one benchmark."""
