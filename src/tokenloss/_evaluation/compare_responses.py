"""Comparisons of what servers returned."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tokenloss._comparison.response_pairs import PairedFiles, compare_pairs
from tokenloss._comparison.responses import ResponseComparison, response_comparison_of
from tokenloss._core import threads
from tokenloss._core.errors import raise_error
from tokenloss._evaluation.options import Options
from tokenloss._evaluation.response_scores import ScoredResponses
from tokenloss.formats.responses import is_responses, open_responses

if TYPE_CHECKING:
    from typing import Literal

    from tokenloss._core.types import Kind


def compare_responses(
    base: str | os.PathLike[str],
    other: str | os.PathLike[str],
    *,
    part: Literal["prompt", "generated", "all"] | None = None,
    skip_failed: bool = False,
    targets: str | os.PathLike[str] | None = None,
    segment_ids: str | os.PathLike[str] | None = None,
    array: str | None = None,
    kind: Kind | None = None,
    ignore_index: int = -100,
    shift: bool | None = None,
    workers: int | None = None,
) -> ResponseComparison:
    """Compare what two servers or models returned for the same texts, or what a server returned with full scores.

    Responses are matched by their ``custom_id`` where both files have these, else by their order, and token by token:
    by ids where both have them, else by text. What does not fit is an error.

    Parameters
    ----------
    base, other : str or path
        Files of responses, as `formats.open_responses` reads them; one of them may be a file of scores, as
        `formats.open_scores` reads them.
    part : {"prompt", "generated", "all"}, optional
        The tokens to read: those of the prompt, those that were generated, or both. By default the prompt where the
        file holds any log-probability of one, else what was generated. With "all", an echo that nothing divides counts
        as a prompt.
    skip_failed : bool, default False
        Leave out requests that failed in one of the files, and count them, rather than raise an error.
    targets : str or path, optional
        A .npy file of the class ids of the scores, if their own file holds none.
    segment_ids : str or path, optional
        A .npy file of the number of the sequence of each row of the scores.
    array : str, optional
        Name of the array of scores, if the file names its arrays. By default the array that is named after a kind.
    kind : {"logits", "log_probs", "probs"}, optional
        Kind of the scores. By default the name of their array, or logits if that is not a kind; files of llama.cpp hold
        log_probs.
    ignore_index : int, default -100
        Target value that marks rows of the scores to ignore (padding).
    shift : bool, optional
        Targets are the input ids of a causal model: row j is compared with id j + 1 of its sequence.
    workers : int, optional
        Number of threads, as in `cross_entropy`. No bit of the result depends on it.

    Returns
    -------
    ResponseComparison
        The figures, and results for each token.

    Raises
    ------
    ValueError
        If a file is damaged or the two do not fit together; the message names both lines and the token.
    OSError
        If a file cannot be read.

    See Also
    --------
    compare : The same from the logits of both models, with the KL divergence itself.
    topk_divergence_bound : The lower bound alone.

    Notes
    -----
    Servers list only the most likely classes, so that a lower bound of the divergence is known, and the probability of
    the classes that it is computed from. Classes are matched by id where both files have ids, else by text; a text that
    is of a part of a character, or that comes twice in a list, names no class. Two classes may have the same text in
    different lists, which the files do not show.

    Rows of scores, in order, are of the tokens that have a row before them: all but the first one of each prompt. Their
    targets must be the tokens' ids. Sequences of the scores, if there are any, are the responses in order; else rows
    that are ignored are left out.

    Examples
    --------
    >>> import json, pathlib, tempfile
    >>> from tokenloss import compare_responses
    >>> def response(*logprobs):
    ...     tops = [{"token": text, "logprob": logprob} for text, logprob in zip(("Yes", "No"), logprobs)]
    ...     content = [{"token": "Yes", "logprob": logprobs[0], "top_logprobs": tops}]
    ...     return {"choices": [{"message": {"content": "Yes"}, "logprobs": {"content": content}}]}
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     base, other = (pathlib.Path(directory) / name for name in ("base.json", "other.json"))
    ...     _ = base.write_text(json.dumps(response(-0.25, -1.75)))
    ...     _ = other.write_text(json.dumps(response(-0.5, -1.25)))
    ...     comparison = compare_responses(base, other)
    >>> comparison.nll, comparison.kl_bound.round(4), comparison.base_mass.round(4), comparison.same_top
    (array([0.5]), array([0.0624]), array([0.9526]), 1.0)
    """
    paths = os.fspath(base), os.fspath(other)
    options = Options(array, kind, ignore_index, shift)
    files = _path(targets), _path(segment_ids)
    opened = [
        open_responses(path, part=part, skip_failed=skip_failed) if is_responses(path) else None for path in paths
    ]
    words = ["", ""]
    pairs: PairedFiles | ScoredResponses
    if opened[0] is not None and opened[1] is not None:
        given = {"targets": targets, "segment_ids": segment_ids, "array": array, "kind": kind, "shift": shift}
        for name, value in (given | {"ignore_index": None if ignore_index == -100 else ignore_index}).items():
            if value is not None:
                raise_error("option", name=name, got=value, fits="left out, since no file holds scores")
        pairs = PairedFiles(opened[0], opened[1])
    elif opened[0] is None and opened[1] is None:
        got, fits = "is no file of responses", "be one, or the other file: a .json or .jsonl file"
        raise_error("content", path=paths[0], got=got, fits=fits)
    else:
        side = 0 if opened[0] is None else 1
        responses: Any = opened[1 - side]
        pairs = scored = ScoredResponses(paths[side], responses, options, files, side == 0, workers)
        words[side] = scored.words
    threads.check_workers(workers)
    columns, origins, roundings = compare_pairs(iter(pairs), paths)
    own: Any = next(file for file in opened if file is not None)
    words = [word or str(rounding) for word, rounding in zip(words, roundings, strict=True)]
    return response_comparison_of(
        columns, origins, part=own.part, base_rounding=words[0], rounding=words[1], n_skipped=pairs.skipped,
        _about={"base": paths[0], "other": paths[1]},
    )  # fmt: skip


def _path(path: str | os.PathLike[str] | None) -> str | None:
    """The name of a file that need not be given."""
    return None if path is None else os.fspath(path)
