"""Which reader opens a file of scores or of hidden states, and what its model says of the logits."""

from __future__ import annotations

import dataclasses
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from tokenloss._core._core import KINDS
from tokenloss._core.arguments import refuse_given
from tokenloss._core.errors import raise_error
from tokenloss._core.validation import head_transform
from tokenloss.formats import llama_cpp, npy, npz, safetensors, zarr
from tokenloss.formats.base import HIDDEN_NAMES, LmHead, ScoresFile, library_errors, open_regular
from tokenloss.formats.lm_head import open_lm_head

if TYPE_CHECKING:
    from types import ModuleType

    from tokenloss._core.types import Kind

_MAGIC = {npy.MAGIC: npy, llama_cpp.MAGIC: llama_cpp}
_SUFFIXES = {".npy": npy, ".npz": npz, ".safetensors": safetensors}


def open_scores(
    path: str | os.PathLike[str],
    *,
    array: str | None = None,
    kind: Kind | None = None,
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
    An array `attention_mask` is refused where it is 0 and targets do not leave the token out.

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
    if kind is not None and kind not in KINDS:
        raise_error("option", name="kind", got=kind, fits=", ".join(map(repr, KINDS)))
    name = os.fspath(path)
    file: ScoresFile = _reader(name).open_scores(name, array, kind)
    return file


def open_hidden_states(
    path: str | os.PathLike[str],
    lm_head: LmHead | str | os.PathLike[str],
    *,
    name: str | None = None,
    logit_scale: float | None = None,
    softcap: float | None = None,
) -> ScoresFile:
    """Open a file of hidden states, which a projection onto the vocabulary makes logits of.

    Parameters
    ----------
    path : str or path
        A .npy, .npz or .safetensors file or a Zarr store, as `open_scores` takes them, of hidden states (..., D) after
        the model's final norm. A .safetensors file that vLLM's hidden-states connector wrote, of one layer, is one
        sequence.
    lm_head : str or path
        The projection: ``FILE`` or ``FILE:NAME``. FILE is a model's .safetensors file, the index of its shards
        (``model.safetensors.index.json``), its directory, or a .npz or .npy file. The weight is found by its usual
        names, or those of an embedding where ``config.json`` beside it says that this is the head, too; it is (V, D) or
        (D, V), by its shape. A bias beside it belongs to it. With a NAME, what ``config.json`` says of the logits holds
        as without one.
    name : str, optional
        Name of the array of hidden states, if the file names its arrays. By default ``hidden_states`` or ``hidden``.
    logit_scale : float, optional
        Multiplier of the logits (1 / temperature), in place of the model's own; by default what ``config.json`` beside
        `lm_head` says, or 1.
    softcap : float, optional
        Logits become ``softcap * tanh(logit_scale * logits / softcap)``, or with 0 stay as they are, whatever
        ``config.json`` says; those of -inf stay -inf.

    Returns
    -------
    ScoresFile
        The open file, of kind "hidden_states"; `ScoresFile.blocks` reads its hidden states.

    Raises
    ------
    ValueError
        If a file is damaged or does not hold them, or ``config.json`` has a key that may change logits in a way that is
        not known for that type of model; the message names the file, what came and what fits.
    OSError
        If a file cannot be read.
    ImportError
        If the format needs a package that is not installed: zarr, or ml_dtypes for bfloat16.

    See Also
    --------
    tokenloss.linear_token_scores : Scores of tokens from hidden states and such a projection.

    Notes
    -----
    The weight is memory-mapped, never loaded whole. Where the file holds no targets, but ``token_ids`` or
    ``input_ids``, these are the `ScoresFile.input_ids`, which are to be shifted. The transform of the logits is kept as
    `LmHead.logit_scale` and `LmHead.softcap`, for functions such as `tokenloss.linear_token_scores`.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss.formats import open_hidden_states
    >>> with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
    ...     hidden, head = (pathlib.Path(directory) / name for name in ("hidden.npy", "head.npy"))
    ...     np.save(hidden, np.ones((3, 4)))
    ...     np.save(head, np.ones((4, 10)))
    ...     states = open_hidden_states(hidden, head)
    ...     states.kind, states.shape, states.lm_head.weight.shape
    ('hidden_states', (3, 10), (10, 4))
    """
    text = os.fspath(path)
    reader = _reader(text)
    if reader is llama_cpp:
        raise_error("content", path=text, got="holds log_probs of llama.cpp", fits="hold hidden states")
    file: ScoresFile = reader.open_scores(text, name, HIDDEN_NAMES[0])
    scale, cap = head_transform(logit_scale, softcap)
    if isinstance(lm_head, LmHead):
        refuse_given({"logit_scale": scale, "softcap": cap}, "left out where lm_head is open, and has its own")
        head = lm_head
    else:
        head = open_lm_head(os.fspath(lm_head), file.shape[-1], scale, cap)
    if head.weight.shape[1] != file.shape[-1]:
        got, fits = f"holds hidden states of {file.shape[-1]} features", f"fit the head of {head.weight.shape[1]}"
        raise_error("content", path=text, got=got, fits=fits)
    return dataclasses.replace(file, shape=(*file.shape[:-1], len(head.weight)), lm_head=head)


def is_scores(path: str) -> bool:
    """Whether a file of a directory is one of scores, by its name or its first bytes; directories are if of Zarr."""
    place = Path(path)
    if place.is_dir():
        return zarr.is_store([file.name for file in place.iterdir()])
    if place.name.startswith(".") or not place.is_file():  # some systems store notes in hidden files
        return False
    if place.suffix.lower() in (*_SUFFIXES, ".zip"):
        return True
    with open_regular(path) as file:
        return file.read(len(llama_cpp.MAGIC)) == llama_cpp.MAGIC


def _reader(path: str) -> ModuleType:
    """The module that reads a file, by its first bytes or else by its name."""
    if path and Path(path).is_dir():
        return zarr
    with open_regular(path) as file:
        start = file.read(8)
        if start.startswith(b"PK"):
            with library_errors(path), zipfile.ZipFile(file) as archive:
                return zarr if zarr.is_store(archive.namelist()) else npz
    for magic, reader in _MAGIC.items():
        if start.startswith(magic):
            return reader
    reader_by_name = _SUFFIXES.get(Path(path).suffix.lower())
    if reader_by_name is None:
        raise_error(
            "content", path=path, got="is no file of scores",
            fits="be a .npy, .npz or .safetensors file, a Zarr store, or logits of llama.cpp",
        )  # fmt: skip
    return reader_by_name
