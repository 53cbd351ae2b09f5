"""Files that are written completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenloss._core.errors import contextmanager

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import BinaryIO

# Windows has no fcntl, and does not remove a file that is open
_fcntl: Any = importlib.import_module("fcntl") if importlib.util.find_spec("fcntl") else None
_NAME_LETTERS = 40  # of an output, in the name of its temporary file: a name has at most 255 bytes


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
    found = (Path(parent, name) for parent, _, files in _walk(path) for name in files)
    return [file for file in found if file.is_file()]


def links_in(directory: str) -> Iterator[Path]:
    """All links in a directory, say of a Zarr store some of whose files are elsewhere."""
    for parent, directories, files in _walk(directory):
        yield from (path for path in map(Path(parent).joinpath, (*directories, *files)) if path.is_symlink())


def _walk(directory: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk through a directory and those in it, linked ones among them, each once."""
    seen = {identity(directory)}
    for parent, directories, files in os.walk(directory, followlinks=True):
        yield parent, directories, files
        keys = {name: identity(Path(parent, name)) for name in directories}
        directories[:] = [name for name, key in keys.items() if key not in seen]
        seen.update(keys.values())


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
    temporary, file = _create_beside(path, 0o666 if old is None else stat.S_IMODE(old.st_mode) & 0o777)
    with contextlib.ExitStack() as stack:
        try:
            if _fcntl is not None:  # a second descriptor keeps the lock until the file has its name
                stack.callback(os.close, os.dup(file.fileno()))
            with file:
                if old is not None:
                    _give_access(temporary, old)
                yield file
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _create_beside(path: Path, mode: int) -> tuple[Path, BinaryIO]:
    """Create a temporary file beside an output, in place of one that a killed run left there."""
    number = -1
    while True:  # other runs may write the same output
        number += 1
        temporary = path.with_name(f".{path.name[:_NAME_LETTERS]}.tokenloss-{number}.tmp")
        _remove_left(temporary)
        try:
            file = open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115 -- it is returned open
        except FileExistsError:
            continue
        try:
            is_ours = _is_ours(file, temporary)
        except OSError:  # a file system without locks, where no run removes what another left
            is_ours = True
        if is_ours:
            return temporary, file
        file.close()


def _remove_left(temporary: Path) -> None:
    """Remove a temporary file, unless a run still writes it."""
    with contextlib.suppress(OSError):
        if _fcntl is None:
            temporary.unlink()
            return
        flags = os.O_NOFOLLOW | os.O_NONBLOCK  # whatever has this name
        with open(temporary, "rb", opener=lambda name, access: os.open(name, access | flags)) as file:
            if _is_ours(file, temporary):
                temporary.unlink()


def _is_ours(file: BinaryIO, path: Path) -> bool:
    """Lock an open file; False if another run has locked it, or if its path does not lead to it any more."""
    if _fcntl is None:
        return True
    try:
        _fcntl.flock(file, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _give_access(path: Path, old: os.stat_result) -> None:
    """Give a file the owner, group and mode of another, as far as the system allows."""
    for owner in ((old.st_uid, -1), (-1, old.st_gid)):
        with contextlib.suppress(AttributeError, OSError):  # Windows has no owners
            os.chown(path, *owner)
    with contextlib.suppress(OSError):
        path.chmod(stat.S_IMODE(old.st_mode) & 0o777)
