"""Lets a new environment see the packages of the Python it was made with: ``python use_parent_packages.py PARENT``.

``venv --system-site-packages`` shows an environment the packages of the Python installation. Where the Python that made
it is itself one of an environment, that environment's packages are missing: a .pth file adds them. Its cmake and ninja,
which the build looks for beside the interpreter, are linked.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

PATHS = """
import sys, sysconfig
print(sysconfig.get_path("scripts"))
print(*(path for path in sys.path if path.endswith(("site-packages", "dist-packages"))), sep="\\n")
"""


def main(parent: str) -> None:
    """Makes the running environment see the packages of the interpreter ``parent``."""
    lines = subprocess.run([parent, "-c", PATHS], capture_output=True, text=True, check=True).stdout
    scripts, *packages = lines.splitlines()
    missing = [path for path in packages if path not in sys.path]
    if missing:
        Path(sysconfig.get_path("purelib"), "parent.pth").write_text("\n".join(missing) + "\n")
    for tool in ("cmake", "ninja"):
        source, target = Path(scripts, tool), Path(sysconfig.get_path("scripts"), tool)
        if source.exists() and not target.exists():
            target.symlink_to(source)


if __name__ == "__main__":
    main(sys.argv[1])
