"""The table of formats, the format of a file, and the files that paths, patterns and folders refer to."""

from __future__ import annotations

import glob
import itertools
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from tokenloss._core.arguments import as_paths
from tokenloss._core.errors import raise_error, refuse, worded
from tokenloss._core.files import identity
from tokenloss._core.text import printable
from tokenloss.formats import llama_cpp, npy, npz, safetensors, sketch_file, zarr
from tokenloss.formats.base import library_errors, open_regular
from tokenloss.formats.records import are_records

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, NoReturn

    from tokenloss.formats.scores_file import Format

FORMATS = (npy.FORMAT, npz.FORMAT, safetensors.FORMAT, zarr.FORMAT, llama_cpp.FORMAT)
_BY_SUFFIX = {suffix: one for one in (*FORMATS, sketch_file.SKETCH_FORMAT) for suffix in one.suffixes}
_TABLES = (".csv", ".tsv", ".parquet", ".arrow", ".feather", ".xlsx", ".h5", ".hdf5", ".mat")
_PICKLE = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))  # the first bytes of a pickle
_MOST_MAGIC = max(len(one.magic) for one in FORMATS)
_JSON = re.compile(rb'\s*(\[\s*)?(\{\s*("|$)|\{?$)')  # the first bytes of objects, or of a list of them


def either(words: Iterable[str]) -> str:
    """Words joined by commas and, before the last, by "or"."""
    *others, last = words
    return f"{', '.join(others)} or {last}"


FILES = either(one.words for one in FORMATS)  # what a file of scores may be, for messages and help


def is_scores(path: str) -> bool:
    """Whether an entry of a directory contains scores: a Zarr store, or by its suffix or first bytes."""
    place = Path(path)
    if place.is_dir():
        return zarr.is_store([file.name for file in place.iterdir()])
    if place.name.startswith(".") or not place.is_file():  # some systems store notes in hidden files
        return False
    if place.suffix.lower() in _BY_SUFFIX:
        return True
    with open_regular(path) as file:
        start = file.read(_MOST_MAGIC)
    return any(start.startswith(one.magic) for one in FORMATS if not one.suffixes)


def format_of(path: str) -> Format:
    """The format of a file, by its first bytes or else by its name."""
    if path and Path(path).is_dir():
        return zarr.FORMAT
    with open_regular(path) as file:
        start = file.read(_MOST_MAGIC)
        if start.startswith(npz.FORMAT.magic):
            with library_errors(path), zipfile.ZipFile(file) as archive:
                names = archive.namelist()
            if any(name.endswith("data.pkl") for name in names):
                _refuse_pickle(path)
            return zarr.FORMAT if zarr.is_store(names) else npz.FORMAT
    for one in FORMATS:
        if one.magic and start.startswith(one.magic):
            return one
    by_suffix = _BY_SUFFIX.get(Path(path).suffix.lower())
    if by_suffix is not None:
        return by_suffix
    if start.startswith(_PICKLE):
        _refuse_pickle(path)
    if are_records(path):
        refuse(path, "is JSON", "have scores or hidden states" + worded("; formats.open_responses reads responses", ""))
    if start and _JSON.match(start):
        refuse(path, "begins like JSON", "have a name that ends in .json or .jsonl, if it contains responses")
    if Path(path).suffix.lower() in _TABLES:
        fits = "be saved as .npz: np.savez('scores.npz', logits=logits, targets=targets)"
        refuse(path, "is a table or a file of another program", fits)
    return refuse(path, "is not a file of scores", f"be {FILES}; or responses (.json, .jsonl)")


def _refuse_pickle(path: str) -> NoReturn:
    """Raise an error that a file is not data but a program that makes data."""
    fits = "be saved by numpy.save, or by numpy.savez or safetensors.torch.save_file with arrays named logits and "
    fits += "targets, or logprobs (of tokens)"
    refuse(path, "is a pickle, such as torch.save writes", fits)


def resolved(patterns: Sequence[str], are_scores: bool = False) -> list[str]:
    """Replace patterns by the paths that match, and directories by their files, in the order of their numbers."""
    paths = []
    for pattern in patterns:
        matches = [pattern]
        if glob.has_magic(pattern) and not Path(pattern).exists():
            matches = sorted(glob.glob(pattern, recursive=True), key=by_number)
        elif are_scores and Path(pattern).is_dir() and not is_scores(pattern):
            files = sorted((str(path) for path in Path(pattern).iterdir() if path.name[0] != "."), key=by_number)
            matches = [*filter(is_scores, files)] or [*filter(are_records, files)]
            if not matches:
                got, fits = "is a directory without files of scores or responses", "contain such files, or samples"
                if not any(Path(pattern).iterdir()):
                    got, fits = "is empty", "contain files of scores, of responses or of samples"
                refuse(pattern, got, fits)
        if not matches:
            raise ValueError(printable(f"{pattern}: matches no file"))
        paths += matches
    return paths


def located(paths: Any) -> tuple[list[str], list[str]]:
    """The paths given to an opener, and the files that they refer to."""
    given = as_paths("paths", paths)
    if not given:
        raise_error("empty", name="paths", fits="a path, or paths")
    return [*given], resolved(given, are_scores=True)


def check_different(paths: Sequence[str]) -> None:
    """Refuse a file that is given twice, even under different names."""
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
    """Neighbors not in the order of their numbers, if all files are in alphabetical order, as a shell sorts them."""
    return [
        (path, following)
        for path, following in itertools.pairwise(paths if list(paths) == sorted(paths) else ())
        if by_number(path) > by_number(following) and by_number(path)[::2] == by_number(following)[::2]
    ]
