"""Benchmarks against plain PyTorch, run from the root of the repository: ``python -m bench.compare --help``."""
