"""Two models compared by what servers returned: losses, changes of probability, and a lower bound of the divergence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._comparison.paired import KL_QUANTILES, Mean, as_json_figures, paired_figures, quantiles, sequence_table

if TYPE_CHECKING:
    from tokenloss._comparison.response_pairs import Compared
    from tokenloss._core.types import Array, BoolArray, Float64Array, IntArray

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

    __module__ = "tokenloss"

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


def response_comparison_of(compared: Compared, **others: Any) -> ResponseComparison:
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
