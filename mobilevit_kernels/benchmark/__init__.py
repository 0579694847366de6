"""Measuring speed against plain PyTorch and other runtimes: problems, a correctness gate, timing, reports."""
