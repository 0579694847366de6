"""Runs the command line: ``python -m mobilevit_kernels``."""

import sys

from mobilevit_kernels.cli import main

sys.exit(main())
