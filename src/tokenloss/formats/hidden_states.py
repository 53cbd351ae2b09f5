"""Files of hidden states, which a model's projection onto the vocabulary makes logits of."""

from __future__ import annotations

import dataclasses
import os

from tokenloss._core.arguments import refuse_given
from tokenloss._core.errors import raise_error
from tokenloss._core.validation import head_transform
from tokenloss.formats.lm_head import open_lm_head
from tokenloss.formats.readers import format_of
from tokenloss.formats.scores_file import HIDDEN_NAMES, LmHead, ScoresFile


def open_hidden_states(
    path: str | os.PathLike[str],
    lm_head: LmHead | str | os.PathLike[str],
    *,
    name: str | None = None,
    logit_scale: float | None = None,
    softcap: float | None = None,
    targets_array: str | None = None,
) -> ScoresFile:
    """Open a file of hidden states, which a projection onto the vocabulary makes logits of.

    Parameters
    ----------
    path : str or path
        A file of hidden states (..., D) after the model's final norm, of a format of `open_scores` other than
        llama.cpp's. A .safetensors file that vLLM's hidden-states connector wrote, of one layer, is one sequence.
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
        ``config.json`` says; logits of -inf stay -inf.
    targets_array : str, optional
        Name of the array of targets, if the file names its arrays. By default ``targets``, or else ``labels``.

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
    file = format_of(text).open_scores(text, name, HIDDEN_NAMES[0], targets_array)
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
