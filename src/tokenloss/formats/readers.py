"""`open_scores`, the table of formats, and which of them a file has."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from tokenloss._core._core import KINDS
from tokenloss._core.arguments import check_choice
from tokenloss._core.errors import raise_error
from tokenloss.formats import llama_cpp, npy, npz, safetensors, zarr
from tokenloss.formats.base import library_errors, open_regular

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn

    from tokenloss._core.types import Kind
    from tokenloss.formats.scores_file import Format, ScoresFile

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


def open_scores(
    path: str | os.PathLike[str],
    *,
    array: str | None = None,
    kind: Kind | None = None,
    targets_array: str | None = None,
) -> ScoresFile:
    """Open a file of scores, and check everything in it except the scores.

    Parameters
    ----------
    path : str or path
        A .npy, .npz or .safetensors file, a Zarr store (a directory or a .zip file), or a file of logits that
        llama.cpp's ``llama-perplexity --kl-divergence-base`` wrote.
    array : str, optional
        Name of the array of scores, if the file names its arrays. By default the array that is named after a kind.
    kind : {"logits", "log_probs", "probs"}, optional
        Kind of the scores. By default the name of their array, or logits if that is not a kind; files of llama.cpp hold
        log_probs.
    targets_array : str, optional
        Name of the array of targets, if the file names its arrays. By default ``targets``, or else ``labels``.

    Returns
    -------
    ScoresFile
        The open file; `ScoresFile.blocks` reads its scores.

    Raises
    ------
    ValueError
        If the file is damaged or is not a file of scores; the message names the file, the byte where it is known, what
        came and what fits.
    OSError
        If the file cannot be read.
    ImportError
        If the format needs a package that is not installed: zarr, or ml_dtypes for bfloat16.

    See Also
    --------
    open_hidden_states : The same of hidden states.
    tokenloss.formats.llama_cpp.write : Writes a file as llama.cpp does.

    Notes
    -----
    A file may hold ``token_ids`` or ``input_ids`` in place of targets, which are to be shifted, and ``attention_mask``:
    `tokenloss.evaluate` leaves out what it masks where it shifts targets, and else refuses targets that do not.

    Files are memory-mapped block by block where possible; compressed ones are read as a stream. Checksums of mapped
    data are not verified, since that would read the whole file. Chunks of a Zarr store that were never written have its
    fill value, as Zarr defines; but for scores, nan takes the place of a fill value of 0, since a run that broke off
    leaves such chunks (0 stays where a chunk holds the probabilities of only some classes). Only the methods stored and
    deflated of .zip files are supported. A row, a chunk of a Zarr store, targets or tokens are refused if they take
    both more than 16 MB and more than a thousand times the bytes that are stored; the shapes of targets and tokens are
    checked against the scores' before they are read. Pickled objects are refused. No name in an archive is used as a
    path, and no name of a directory as a URL.

    Only regular files are read: no pipe, no device and no standard input, not even through a link in a Zarr store. A
    file that is truncated, changed or replaced after it was opened is refused at the next block (files of a Zarr store
    are not checked). If another process truncates a mapped file while a block is being read, the system ends this
    process by SIGBUS, which no check can prevent: write a new file and rename it instead.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from tokenloss import cross_entropy
    >>> from tokenloss.formats import open_scores
    >>> with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
    ...     path = pathlib.Path(directory) / "scores.npz"
    ...     np.savez(path, logits=np.float32([[2, 1, 0], [0, 3, 0]]), targets=[0, 1])
    ...     scores = open_scores(path)
    ...     print(scores.kind, scores.shape)
    ...     [round(cross_entropy(block, [target]), 4) for block, target in zip(scores.blocks(1), scores.targets)]
    logits (2, 3)
    [0.4076, 0.0949]
    """
    check_choice("kind", kind, KINDS)
    name = os.fspath(path)
    return format_of(name).open_scores(name, array, kind, targets_array)


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
    if by_suffix is None and start and _JSON.match(start):
        got, fits = "is JSON by its first bytes", "have a name that ends in .json or .jsonl, if it holds responses"
        raise_error("content", path=path, got=got, fits=fits)
    if by_suffix is None and Path(path).suffix.lower() in _TABLES:
        fits = "be saved as .npz: np.savez('scores.npz', logits=logits, targets=targets)"
        raise_error("content", path=path, got="is a table or a file of another program", fits=fits)
    if by_suffix is None:
        fits = f"be {FILES}; or one of responses (.json, .jsonl)"
        raise_error("content", path=path, got="is no file of scores", fits=fits)
    return by_suffix


def _refuse_pickle(path: str) -> NoReturn:
    """Raise that a file is no data, but a program that makes them."""
    fits = "be saved by numpy.save, or by numpy.savez or safetensors.torch.save_file with arrays named logits and "
    fits += "targets, or logprobs (of tokens)"
    raise_error("content", path=path, got="is a pickle, as torch.save writes", fits=fits)
