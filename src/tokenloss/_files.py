"""Files that are written completely or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO


def identity(path: str | os.PathLike[str]) -> object:
    """Key of a file, the same under all its names; the real path of a file that does not exist yet."""
    with contextlib.suppress(OSError):
        status = Path(path).stat()
        if status.st_ino:  # 0 where a file system has none
            return status.st_dev, status.st_ino
    return os.path.normcase(os.path.realpath(path))


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` when all is written; until then, the old file stays."""
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe or a device must not be replaced by a file
        with path.open("wb") as file:
            yield file
        return
    path = Path(os.path.realpath(path))  # a link stays a link
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
