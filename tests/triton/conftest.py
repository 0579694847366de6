"""These tests call the Triton launchers on the CPU: ``make test-triton`` runs them, in Triton's interpreter."""

from mobilevit_kernels.triton_kernels import support

collect_ignore_glob = [] if support.interpreted() else ["test_*.py"]
