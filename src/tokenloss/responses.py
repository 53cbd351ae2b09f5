"""Two models compared by what servers returned: losses, changes of probability, and a lower bound of the divergence."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss import _workers
from tokenloss._errors import raise_error
from tokenloss._paired import KL_QUANTILES, Mean, as_json_figures, paired_figures, quantiles, sequence_table

if TYPE_CHECKING:
    from typing import Literal

    from tokenloss._evaluation.response_comparison import Compared, PairedFiles
    from tokenloss._evaluation.response_scores import ScoredResponses
    from tokenloss._types import Array, BoolArray, Float64Array, IntArray, Kind

_ARRAYS = ("nll", "base_nll", "kl_bound", "base_mass", "mass", "delta_p", "is_same_top", "is_top_known", "kept")


@dataclass(frozen=True, eq=False, repr=False)
class ResponseComparison:
    """Result of `compare_responses`: the figures of a model against its base that responses of servers allow for.

    Each ``*_stderr`` is the standard error of the figure before it, clustered by sequence, that is by response, if
    there are at least two: nan for less than two tokens and where the figure is infinite or nan. All figures are of the
    tokens that have a log-probability in both files, and nan if there are none.

    Attributes
    ----------
    part : {"prompt", "generated", "all"}
        The part of the responses that was compared.
    base_rounding, rounding : str
        How the log-probabilities of the base and of the model were rounded, such as "4 decimals", as their values show.
    n_without_number : int
        Number of tokens without a log-probability in one of the files, as the first one of each prompt.
    n_sentinels : int
        Number of other tokens that are left out, since one of the files has a sentinel there, such as -9999.0.
    n_skipped : int
        Number of requests that failed in one of the files, and were left out.
    count : int
        Number of tokens that were compared.
    n_sequences : int
        Number of sequences with any such token.
    is_clustered : bool
        Whether standard errors are clustered by sequence: not of a single one.
    interval_factor : float
        Number of standard errors from a mean to each end of its 95 % confidence interval, as of
        `LossMeter.interval_factor`.
    perplexity, perplexity_stderr, base_perplexity, base_perplexity_stderr : float
        exp of the mean loss, of the model and of its base.
    correlation : float
        Correlation of the two models' losses; nan where one of them is the same for all tokens.
    log_perplexity_ratio, perplexity_ratio, perplexity_difference : float
        ``log(perplexity / base_perplexity)``, ``perplexity / base_perplexity`` and ``perplexity - base_perplexity``.
    log_perplexity_ratio_stderr, perplexity_ratio_stderr, perplexity_difference_stderr : float
        Standard errors from the paired differences of the tokens' losses.
    mean_kl_bound, mean_kl_bound_stderr : float
        Mean lower bound, in nats, of the KL divergence of the model's distribution from the base's, which is at least
        that: see `topk_divergence_bound`. The token itself counts as a class that both list.
    kl_bound_quantiles : dict
        By fraction of the tokens, as `Comparison.kl_quantiles`.
    n_bounded : int
        Number of tokens for which both list a class besides the token itself.
    mean_base_mass, mean_mass : float
        Mean probability of the classes that both list, by the base and by the model: the part of the distributions that
        the bound is computed from.
    mean_delta_p, mean_delta_p_stderr, rms_delta_p, rms_delta_p_stderr : float
        Mean and root mean square of the change of the tokens' probabilities.
    delta_p_quantiles : dict
        As `kl_bound_quantiles`, also at 0.75 and 0.25.
    same_top, same_top_stderr : float
        Fraction of the tokens at which both models have the same most likely class, of those where that is known.
    n_top_known : int
        Number of the tokens where that is known.
    nll, base_nll : array of float64
        Loss of each token in nats, by the model and by its base.
    kl_bound, base_mass, mass, delta_p : array of float64
        For each token the lower bound, the probability of the classes that both list by each of the models, and the
        change of its probability.
    is_same_top, is_top_known : array of bool
        Whether both models have the same most likely class, and whether that is known.
    kept : array of bool
        Whether the token has a log-probability in both files. Where it has not, floats are nan.
    sequences : dict of 1-D arrays
        Columns of a table that has a row for each sequence with any compared token: "sequence" (its number in the file
        of the base, from 0), "tokens", means over its tokens: "loss", "base_loss", "loss_difference", "delta_p",
        "kl_bound" and "same_top" (nan where it is not known of any), "line" and "base_line", where its response is in
        the files, and "custom_id". All tokens are in the order of the file of the base.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from tokenloss import compare_responses
    >>> base = '{"choices": [{"message": {}, "logprobs": {"content": [{"token": "Yes", "logprob": -0.25}]}}]}'
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     paths = [pathlib.Path(directory) / name for name in ("base.jsonl", "other.jsonl")]
    ...     _ = [path.write_text(text) for path, text in zip(paths, (base, base.replace("0.25", "0.5")))]
    ...     compare_responses(*paths)
    ResponseComparison(count=1, n_sequences=1, perplexity=1.64872, base_perplexity=1.28403, mean_kl_bound=0.05671)
    """

    part: str
    base_rounding: str
    rounding: str
    n_without_number: int
    n_sentinels: int
    n_skipped: int
    count: int
    n_sequences: int
    is_clustered: bool
    interval_factor: float
    perplexity: float
    perplexity_stderr: float
    base_perplexity: float
    base_perplexity_stderr: float
    correlation: float
    log_perplexity_ratio: float
    log_perplexity_ratio_stderr: float
    perplexity_ratio: float
    perplexity_ratio_stderr: float
    perplexity_difference: float
    perplexity_difference_stderr: float
    mean_kl_bound: float
    mean_kl_bound_stderr: float
    kl_bound_quantiles: dict[float, float]
    n_bounded: int
    mean_base_mass: float
    mean_mass: float
    mean_delta_p: float
    mean_delta_p_stderr: float
    delta_p_quantiles: dict[float, float]
    rms_delta_p: float
    rms_delta_p_stderr: float
    same_top: float
    same_top_stderr: float
    n_top_known: int
    nll: Float64Array
    base_nll: Float64Array
    kl_bound: Float64Array
    base_mass: Float64Array
    mass: Float64Array
    delta_p: Float64Array
    is_same_top: BoolArray
    is_top_known: BoolArray
    kept: BoolArray
    sequences: dict[str, Array]

    def as_dict(self) -> dict[str, Any]:
        """All figures, without the arrays of tokens, as JSON can hold them.

        Returns
        -------
        dict
            By name; quantiles are by fraction, as text: "1", "0.999" and so on. If there is any sequence, "sequences"
            is a list that holds a dictionary for each.
        """
        return as_json_figures(self)

    def __repr__(self) -> str:
        """Show the main figures."""
        return (
            f"ResponseComparison(count={self.count}, n_sequences={self.n_sequences}, perplexity={self.perplexity:.6g}, "
            f"base_perplexity={self.base_perplexity:.6g}, mean_kl_bound={self.mean_kl_bound:.4g})"
        )


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
    # imported only here, to keep `import tokenloss` fast
    from tokenloss._evaluation.plan import Options
    from tokenloss._evaluation.response_comparison import PairedFiles, compare_pairs
    from tokenloss._evaluation.response_scores import ScoredResponses
    from tokenloss._evaluation.rounding import Rounding
    from tokenloss.formats import open_responses
    from tokenloss.formats.responses import is_responses

    paths = os.fspath(base), os.fspath(other)
    options = Options(array, kind, ignore_index, shift)
    files = _path(targets), _path(segment_ids)
    opened = [
        open_responses(path, part=part, skip_failed=skip_failed) if is_responses(path) else None for path in paths
    ]
    roundings, words = [Rounding(), Rounding()], ["", ""]
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
    _workers.check_workers(workers)
    compared = compare_pairs(iter(pairs), paths, roundings)
    own: Any = next(file for file in opened if file is not None)
    words = [word or str(rounding) for word, rounding in zip(words, roundings, strict=True)]
    return _comparison(compared, part=own.part, base_rounding=words[0], rounding=words[1], n_skipped=pairs.skipped)


def _path(path: str | os.PathLike[str] | None) -> str | None:
    """The name of a file that need not be given."""
    return None if path is None else os.fspath(path)


def _comparison(compared: Compared, **others: Any) -> ResponseComparison:
    """Figures of all tokens."""
    columns: dict[str, Any] = compared.columns
    kept = columns["kept"]
    ids = compared.sequences[kept]
    nll, base_nll, bound, delta_p = (columns[name][kept] for name in ("nll", "base_nll", "kl_bound", "delta_p"))
    figures, means = paired_figures(nll, base_nll, delta_p, ids)
    of_bound = Mean(bound, ids)
    masses = [Mean(columns[name][kept], None) for name in ("base_mass", "mass")]
    known = columns["is_top_known"]
    same_top = Mean(columns["is_same_top"][known], compared.sequences[known])
    sequences = sequence_table(means | {"kl_bound": of_bound})
    numbers: IntArray = sequences["sequence"]
    sequences["same_top"] = np.full(len(numbers), np.nan)
    sequences["same_top"][np.searchsorted(numbers, same_top.sequences.ids)] = same_top.sequences.loss
    for side, name in enumerate(("base_line", "line")):
        sequences[name] = np.array([compared.lines[number][side] for number in numbers.tolist()], np.int64)
    sequences["custom_id"] = np.array([compared.custom_ids[number] for number in numbers.tolist()], object)
    return ResponseComparison(
        n_without_number=int(np.count_nonzero(~kept & ~columns["is_sentinel"])),
        n_sentinels=int(np.count_nonzero(~kept & columns["is_sentinel"])),
        mean_kl_bound=of_bound.mean,
        mean_kl_bound_stderr=of_bound.stderr,
        kl_bound_quantiles=quantiles(np.sort(bound), KL_QUANTILES),
        n_bounded=int(np.count_nonzero(columns["is_bounded"])),
        mean_base_mass=masses[0].mean,
        mean_mass=masses[1].mean,
        same_top=same_top.mean,
        same_top_stderr=same_top.stderr,
        n_top_known=int(np.count_nonzero(known)),
        sequences=sequences,
        **others,
        **figures,
        **{name: columns[name] for name in _ARRAYS},
    )
