"""Everything measured on a GPU, in one command: ``python -m bench.gpu.report --help``."""
