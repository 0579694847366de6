"""Writing a file so that there is always a whole one."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replaced_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a new file that takes the place of ``path`` once the block has ended and its bytes are on the disk.

    An error, or the death of the process, leaves an older file of that name as it was.

    Args:
        path: the file to be; its folder exists.

    Raises:
        OSError: the folder is missing or cannot be written.
    """
    file = Path(path)
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
