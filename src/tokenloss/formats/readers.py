"""The table of formats, and the format of a file."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from tokenloss._core.errors import refuse, worded
from tokenloss.formats import llama_cpp, npy, npz, safetensors, zarr
from tokenloss.formats.base import library_errors, open_regular
from tokenloss.formats.records import are_records

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn

    from tokenloss.formats.scores_file import Format

FORMATS = (npy.FORMAT, npz.FORMAT, safetensors.FORMAT, zarr.FORMAT, llama_cpp.FORMAT)
_BY_SUFFIX = {suffix: one for one in FORMATS for suffix in one.suffixes}
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
    """Whether an entry of a directory holds scores: if it is a Zarr store, or by its suffix, or by its first bytes."""
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
    if by_suffix is None and start.startswith(_PICKLE):
        _refuse_pickle(path)
    if by_suffix is None and are_records(path):
        refuse(path, "is JSON", "hold scores or hidden states" + worded("; formats.open_responses reads responses", ""))
    if by_suffix is None and start and _JSON.match(start):
        refuse(path, "is JSON by its first bytes", "have a name that ends in .json or .jsonl, if it holds responses")
    if by_suffix is None and Path(path).suffix.lower() in _TABLES:
        fits = "be saved as .npz: np.savez('scores.npz', logits=logits, targets=targets)"
        refuse(path, "is a table or a file of another program", fits)
    if by_suffix is None:
        refuse(path, "is no file of scores", f"be {FILES}; or one of responses (.json, .jsonl)")
    return by_suffix


def _refuse_pickle(path: str) -> NoReturn:
    """Raise that a file is no data, but a program that makes them."""
    fits = "be saved by numpy.save, or by numpy.savez or safetensors.torch.save_file with arrays named logits and "
    fits += "targets, or logprobs (of tokens)"
    refuse(path, "is a pickle, as torch.save writes", fits)
