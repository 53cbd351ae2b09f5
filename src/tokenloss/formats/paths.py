"""The files that paths, patterns and folders stand for, and their order."""

from __future__ import annotations

import glob
import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tokenloss._core.errors import refuse
from tokenloss._core.files import identity
from tokenloss._core.text import printable
from tokenloss.formats.readers import is_scores
from tokenloss.formats.records import are_records

if TYPE_CHECKING:
    from collections.abc import Sequence


def resolved(patterns: Sequence[str], are_scores: bool = False) -> list[str]:
    """Replace patterns by the paths that match, and directories by their files, in the order of their numbers."""
    paths = []
    for pattern in patterns:
        matches = [pattern]
        if glob.has_magic(pattern) and not Path(pattern).exists():
            matches = sorted(glob.glob(pattern, recursive=True), key=by_number)
        elif are_scores and Path(pattern).is_dir() and not is_scores(pattern):
            files = _files_in(pattern)
            matches = [*filter(is_scores, files)] or [*filter(are_records, files)]
            if not matches:
                got, fits = "is a directory without files of scores or of responses", "hold some, or files of samples"
                if not any(Path(pattern).iterdir()):
                    got, fits = "is empty", "hold files of scores, of responses or of samples"
                refuse(pattern, got, fits)
        if not matches:
            raise ValueError(printable(f"{pattern}: matches no file"))
        paths += matches
    return paths


def _files_in(folder: str) -> list[str]:
    """The entries of a folder, in the order of their numbers."""
    return sorted((str(path) for path in Path(folder).iterdir() if path.name[0] != "."), key=by_number)


def check_different(paths: Sequence[str]) -> None:
    """Refuse a file that is given twice, under whatever names."""
    seen: dict[object, str] = {}
    for path in paths:
        first = seen.get(identity(path))
        if first is not None:
            refuse(path, "is given twice" if first == path else f"is given twice, as {first}, too", "be given once")
        seen[identity(path)] = path


def by_number(path: str) -> tuple[str | int, ...]:
    """Sort key that puts part-2 before part-10."""
    return tuple(int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", path)))


def check_order(paths: Sequence[str], targets: Sequence[str], shift: bool | None) -> None:
    """Refuse files that are not in the order of their numbers, if the order matters."""
    misplaced = [_misplaced(paths), _misplaced(targets)]
    if shift or (targets and not all(misplaced)):
        for path, following in itertools.chain(*misplaced):
            fits = "come after it; with the pattern in quotes, files are in the order of their numbers"
            refuse(path, f"comes before {following}", fits)


def _misplaced(paths: Sequence[str]) -> list[tuple[str, str]]:
    """Neighbours not in the order of their numbers, if all are in the order of letters, as a shell sorts them."""
    return [
        (path, following)
        for path, following in itertools.pairwise(paths if list(paths) == sorted(paths) else ())
        if by_number(path) > by_number(following) and by_number(path)[::2] == by_number(following)[::2]
    ]
