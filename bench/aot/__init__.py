"""Compiles every Triton kernel ahead of time for devices that need not be present: ``python -m bench.aot``."""
