"""Triton kernels: per op, the kernels, their candidate configurations, and launchers named as the registered ops.

Importing this package imports triton; ``support`` says beforehand whether that can work.
"""
