"""Files that are written completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from tokenloss._errors import contextmanager

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import BinaryIO


def identity(path: str | os.PathLike[str]) -> object:
    """Key of a file, the same under all its names; the real path of a file that does not exist yet."""
    with contextlib.suppress(OSError):
        status = Path(path).stat()
        if status.st_ino:  # 0 where a file system has none
            return status.st_dev, status.st_ino
    return os.path.normcase(os.path.realpath(path))


def files_of(path: str) -> list[Path]:
    """A file, or all files in a directory."""
    return [file for file in Path(path).rglob("*") if file.is_file()] if Path(path).is_dir() else [Path(path)]


class WriteError(OSError):
    """A file that cannot be written."""


@contextmanager
def write_errors(path: str | os.PathLike[str] | None) -> Iterator[None]:
    """Turn errors about a file that is written, if there is one, into `WriteError`."""
    try:
        yield
    except OSError as error:
        if path is None:
            raise
        raise WriteError(f"{os.fspath(path)}: cannot be written: {error.strerror or error}") from error


def check_outputs(outputs: Sequence[tuple[str, str]], taken: dict[object, str]) -> None:
    """Refuse outputs that would replace an input, or each other, or that cannot be written.

    Outputs are names and paths; `taken` are inputs by `identity`.
    """
    taken = dict(taken)
    for name, path in outputs:
        if Path(path).exists() and not Path(path).is_file() and not Path(path).is_dir():
            continue  # a device, or a pipe
        place = Path(os.path.realpath(path))
        for one in (place, *place.parents):
            if identity(one) in taken:
                what = "would replace" if one == place else "would be written into"
                raise ValueError(f"{name} {path}: {what} {taken[identity(one)]}; give another name")
        if place.is_dir() or not place.parent.is_dir():
            reason = os.strerror(errno.EISDIR if place.is_dir() else errno.ENOENT)
            raise WriteError(f"{name} {path}: cannot be written: {reason}")
        taken[identity(place)] = f"what {name} writes"


@contextmanager
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
