"""Results of `compare_files` of responses: losses, changes of probability, a lower bound of the divergence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._comparison.paired import KL_QUANTILES, Mean, PairedLosses, paired_figures, quantiles, sequence_table
from tokenloss._comparison.tables import responses_shown
from tokenloss._core.result import figure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenloss._core.result import Shown
    from tokenloss._core.types import Array, BoolArray, Columns, Float64Array

TOKEN_COLUMNS = (
    "kept", "base_nll", "nll", "kl_bound", "delta_p", "is_same_top", "is_top_known", "base_mass", "mass",
)  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class ResponseComparison(PairedLosses):
    """Result of `compare_files` of responses: the figures of a model against its base that these allow for.

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
    mean_kl_bound, mean_kl_bound_stderr : float
        Mean lower bound, in nats, of the KL divergence of the model's distribution from the base's, which is at least
        that: see `topk_divergence_bound`. The token itself counts as a class that both list.
    kl_bound_quantiles : dict
        As `delta_p_quantiles`, without 0.75 and 0.25.
    n_bounded : int
        Number of tokens for which both list a class besides the token itself.
    mean_base_mass, mean_mass : float
        Mean probability of the classes that both list, by the base and by the model: the part of the distributions that
        the bound is computed from.
    n_top_known : int
        Number of the tokens at which it is known whether both models have the same most likely class.
    kl_bound, base_mass, mass : array of float64
        For each token the lower bound, and the probability of the classes that both list by each of the models.
    is_top_known : array of bool
        Whether it is known if both models have the same most likely class.
    sequences : dict of 1-D arrays
        Columns of a table that has a row for each sequence with any compared token: "sequence" (its number in the file
        of the base, from 0), "count" and means over its tokens: "loss", "base_loss", "loss_difference", "delta_p",
        "kl_bound" and "same_top" (nan where it is not known of any), "line" and "base_line", where its response is in
        the files, and "custom_id". All tokens are in the order of the file of the base.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from tokenloss import compare_files
    >>> base = '{"choices": [{"message": {}, "logprobs": {"content": [{"token": "Yes", "logprob": -0.25}]}}]}'
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     paths = [pathlib.Path(directory) / name for name in ("base.jsonl", "other.jsonl")]
    ...     _ = [path.write_text(text) for path, text in zip(paths, (base, base.replace("0.25", "0.5")))]
    ...     compare_files(paths[0], {"q4": paths[1]})["q4"]
    ResponseComparison(mean_kl_bound=0.05671, count=1, n_sequences=1, perplexity=1.64872, base_perplexity=1.28403)
    """

    _divergence = "kl_bound"
    _quantity = "lower bound of the KL divergence"
    _unit = "response"

    part: str
    base_rounding: str
    rounding: str
    n_without_number: int
    n_sentinels: int
    n_skipped: int
    mean_kl_bound: float
    mean_kl_bound_stderr: float
    kl_bound_quantiles: dict[float, float]
    n_bounded: int
    mean_base_mass: float
    mean_mass: float
    n_top_known: int
    kl_bound: Float64Array
    base_mass: Float64Array
    mass: Float64Array
    is_top_known: BoolArray
    sequences: dict[str, Array]

    def _signature_fields(self) -> dict[str, Any]:
        """Fields of its signature."""
        return super()._signature_fields() | {"kind": "responses", "part": self.part}

    @staticmethod
    def _shown_of(comparisons: Mapping[str, Any]) -> Shown:
        return responses_shown(comparisons)

    def _main(self) -> dict[str, str]:
        bound = figure(self.mean_kl_bound, self.mean_kl_bound_stderr, 4)
        main = {"mean_kl_bound": bound, "count": str(self.count), "n_sequences": str(self.n_sequences)}
        return main | {name: figure(getattr(self, name)) for name in ("perplexity", "base_perplexity")}


ResponseComparison.__module__ = "tokenloss.results"


def response_comparison_of(
    columns: Columns, origins: dict[int, tuple[int, int, str | None]], **others: Any
) -> ResponseComparison:
    """Figures of all tokens, and the table of their sequences, with the origin of each."""
    mask, known, ids = columns["kept"], columns["is_top_known"], columns["sequence"]
    nll, base_nll, bound, delta_p = (columns[name][mask] for name in ("nll", "base_nll", "kl_bound", "delta_p"))
    figures, means = paired_figures(nll, base_nll, delta_p, ids[mask])
    mean_bound, same_top = Mean(bound, ids[mask]), Mean(columns["is_same_top"][known], ids[known])
    base_mass, mass = (Mean(columns[name][mask], None) for name in ("base_mass", "mass"))
    sequences = sequence_table(means | {"kl_bound": mean_bound})
    numbers = sequences["sequence"]
    sequences["same_top"] = np.full(len(numbers), np.nan)
    sequences["same_top"][np.searchsorted(numbers, same_top.sequences.sequence)] = same_top.sequences.loss
    for i, (name, dtype) in enumerate((("base_line", np.int64), ("line", np.int64), ("custom_id", object))):
        sequences[name] = np.array([origins[number][i] for number in numbers.tolist()], dtype)
    figures |= {name: columns[name] for name in TOKEN_COLUMNS}
    return ResponseComparison(
        n_without_number=int(np.count_nonzero(~mask & ~columns["is_sentinel"])),
        n_sentinels=int(np.count_nonzero(~mask & columns["is_sentinel"])),
        mean_kl_bound=mean_bound.mean,
        mean_kl_bound_stderr=mean_bound.stderr,
        kl_bound_quantiles=quantiles(np.sort(bound), KL_QUANTILES),
        n_bounded=int(np.count_nonzero(columns["is_bounded"])),
        mean_base_mass=base_mass.mean,
        mean_mass=mass.mean,
        same_top=same_top.mean,
        same_top_stderr=same_top.stderr,
        n_top_known=int(np.count_nonzero(known)),
        sequences=sequences,
        _segment_ids=ids,
        **others,
        **figures,
    )
