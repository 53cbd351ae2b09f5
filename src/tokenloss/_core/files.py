"""Files: which paths are the same file, the content of a directory, and writing a file completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import glob
import importlib.util
import os
import secrets
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenloss._core.errors import contextmanager
from tokenloss._core.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import BinaryIO

# None on Windows
_fcntl: Any = importlib.import_module("fcntl") if importlib.util.find_spec("fcntl") else None
_NAME_LETTERS = 40  # of an output, in the name of its temporary file: a name has at most 255 bytes
_LEFT_SECONDS = 3600  # a temporary file that is older and not locked was left by a run that was killed


def exists(path: str) -> bool:
    """Whether a path exists; False for text that is too long for a path, where `Path.exists` raises."""
    return os.path.exists(path)  # noqa: PTH110 -- `Path.exists` raises for such text


def identity(path: str | os.PathLike[str]) -> object:
    """Key of a file, the same under all its names; the real path of a file that does not exist yet."""
    with contextlib.suppress(OSError):
        status = Path(path).stat()
        if status.st_ino:  # 0 where a file system has none
            return status.st_dev, status.st_ino
    return os.path.normcase(os.path.realpath(path))


def files_of(path: str) -> list[Path]:
    """A file, or all files in a directory."""
    if not Path(path).is_dir():
        return [Path(path)]
    paths = (Path(parent, name) for parent, _, files in _walk(path) for name in files)
    return [file for file in paths if file.is_file()]


def links_in(directory: str) -> Iterator[Path]:
    """All links in a directory, such as a Zarr store with some of its files elsewhere."""
    for parent, directories, files in _walk(directory):
        yield from (path for path in map(Path(parent).joinpath, (*directories, *files)) if path.is_symlink())


def _walk(directory: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk through a directory and its subdirectories, including linked ones, each once."""
    seen = {identity(directory)}
    for parent, directories, files in os.walk(directory, followlinks=True):
        yield parent, directories, files
        keys = {name: identity(Path(parent, name)) for name in directories}
        directories[:] = [name for name, key in keys.items() if key not in seen]
        seen.update(keys.values())


class WriteError(OSError):
    """A file that cannot be written."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


@contextmanager
def write_errors(path: str | os.PathLike[str] | None, by: str = "") -> Iterator[None]:
    """Turn errors about a file that is being written, if any, into `WriteError`; `by` names its writer."""
    try:
        yield
    except OSError as error:
        if path is None or isinstance(error, WriteError):
            raise
        name = f"{by} {os.fspath(path)}" if by else os.fspath(path)
        raise WriteError(f"{name}: cannot be written: {error.strerror or error}") from error


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
                raise ValueError(printable(f"{name} {path}: {what} {taken[identity(one)]}; give another name"))
        if place.is_dir() or not place.parent.is_dir():
            reason = os.strerror(errno.EISDIR if place.is_dir() else errno.ENOENT)
            raise WriteError(f"{name} {path}: cannot be written: {reason}")
        taken[identity(place)] = f"what {name} writes"


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` when all is written; until then, the old file stays.

    The new file has the mode of the old one, and its owner and group where the system allows that.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe or a device must not be replaced by a file
        with path.open("wb") as device:
            yield device
        return
    path = Path(os.path.realpath(path))  # a link stays a link
    old = path.stat() if path.exists() else None
    mode = 0o666 if old is None else stat.S_IMODE(old.st_mode) & 0o777
    prefix = f".{path.name[:_NAME_LETTERS]}.tokenloss-"
    _remove_left(path.parent, prefix)
    temporary = path.with_name(f"{prefix}{secrets.token_hex(8)}.tmp")
    file = open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115 -- closed below
    try:
        with file:
            with contextlib.suppress(OSError):  # a file system may have no locks
                _lock(file)
            if old is not None:
                _give_access(temporary, old)
            yield file
            file.flush()
            if _fcntl is not None:
                temporary.replace(path)  # while it is locked
        if _fcntl is None:
            temporary.replace(path)  # Windows renames no open file
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _remove_left(folder: Path, prefix: str) -> None:
    """Remove temporary files left by killed runs: those that no run has locked or recently changed.

    Where there are no locks, none is removed, except on Windows, which does not remove an open file.
    """
    for left in folder.glob(f"{glob.escape(prefix)}*.tmp"):
        with contextlib.suppress(OSError):  # another run writes it, or has removed it
            status = left.lstat()
            if stat.S_ISREG(status.st_mode) and time.time() - status.st_mtime > _LEFT_SECONDS:
                with left.open("rb") as file:
                    _lock(file)
                left.unlink()


def _lock(file: BinaryIO) -> None:
    """Lock an open file until it is closed; an OSError if another run has locked it."""
    if _fcntl is not None:
        _fcntl.flock(file, _fcntl.LOCK_EX | _fcntl.LOCK_NB)


def _give_access(path: Path, old: os.stat_result) -> None:
    """Give a file the owner, group and mode of another, as far as the system allows."""
    for owner in ((old.st_uid, -1), (-1, old.st_gid)):
        with contextlib.suppress(AttributeError, OSError):  # Windows has no owners
            os.chown(path, *owner)
    with contextlib.suppress(OSError):
        path.chmod(stat.S_IMODE(old.st_mode) & 0o777)
