"""Statistics of each token: loss, entropy, rank, most likely classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core import _core, jobs
from tokenloss._core.errors import raise_error
from tokenloss._core.exact import ExactMoments, exp
from tokenloss._core.result import Result, Shown, Table, formatted, nonzero, places_in
from tokenloss._core.validation import as_positions, as_scores, check_integer, check_kind, logit_transform

if TYPE_CHECKING:
    from tokenloss._core.types import Array, ArrayLike, BoolArray, Float64Array, IntArray, Kind


class Column(NamedTuple):
    """One statistic of each token."""

    dtype: type
    masked: float  # value at masked positions
    is_top: bool = False  # has an axis of the top_k classes


# The columns of a token, in the order of the fields of `TokenScores`, whose docstring describes them. Each output
# follows this table; `TokenStats` in `_core` computes them.
COLUMNS = {
    "nll": Column(np.float64, math.nan),
    "logsumexp": Column(np.float64, math.nan),
    "entropy": Column(np.float64, math.nan),
    "rank": Column(np.int64, -1),
    "argmax": Column(np.int64, -1),
    "is_greedy": Column(np.bool_, False),
    "kept": Column(np.bool_, False),
    "top_ids": Column(np.int64, -1, is_top=True),
    "top_logprobs": Column(np.float64, math.nan, is_top=True),
}


@dataclass(frozen=True, eq=False, repr=False)
class TokenScores(Result):
    """Result of `token_scores`: statistics of each position, in arrays of the batch's shape.

    Attributes
    ----------
    nll : array of float64
        Loss in nats: -log of the target's probability.
    logsumexp : array of float64
        Logarithm of the sum of the exponentials of the logits.
    entropy : array of float64
        Entropy of the predicted distribution, in nats.
    rank : array of int64
        1 + number of other classes whose logit is >= the target's; ties count against the target.
    argmax : array of int64
        Most likely class, the lowest id in a tie; -1 if all logits are nan.
    is_greedy : array of bool
        Whether the target is `argmax`.
    kept : array of bool
        Whether the position is included: neither ignored nor masked. Where it is not, floats are nan, the rank and
        class ids -1, and `is_greedy` is False.
    top_ids, top_logprobs : arrays of shape (..., k), or None
        The k most likely classes, in descending order, and their log-probabilities in nats; ties in ascending order of
        class ids.

    Examples
    --------
    >>> from tokenloss import token_scores
    >>> token_scores([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]], [0, 1])
    TokenScores(loss=0.251264, count=2, perplexity=1.28565, accuracy=1.0000)
    """

    nll: Float64Array
    logsumexp: Float64Array
    entropy: Float64Array
    rank: IntArray
    argmax: IntArray
    is_greedy: BoolArray
    kept: BoolArray
    top_ids: IntArray | None = None
    top_logprobs: Float64Array | None = None

    @property
    def count(self) -> int:
        """The number of included positions."""
        return int(np.count_nonzero(self.kept))

    @property
    def n_nan(self) -> int:
        """The number of included positions whose loss is nan."""
        return int(np.count_nonzero(np.isnan(self.nll) & self.kept))

    @property
    def loss(self) -> float:
        """The mean loss of the included positions in nats; nan without included positions."""
        return ExactMoments.of(self.nll, self.kept).mean

    @property
    def perplexity(self) -> float:
        """``exp(loss)``; inf where that is beyond a float."""
        return exp(self.loss)

    @property
    def accuracy(self) -> float:
        """The fraction of the included positions where `is_greedy`; nan without included positions."""
        return int(np.count_nonzero(self.is_greedy)) / self.count if self.count else math.nan

    def columns(self) -> dict[str, Array]:
        """Return the columns of a table that has a row for each position.

        Returns
        -------
        dict of 1-D arrays
            By name, as the attributes; `top_ids` and `top_logprobs` become `top_id_1`, `top_logprob_1`, `top_id_2` and
            so on. If the batch has several axes, `sequence` and `position` come first: the index along its
            first axis, and the place in the others in C order.

        Examples
        --------
        >>> from tokenloss import token_scores
        >>> columns = token_scores([[[2.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [3.0, 0.0]]], [[0, 1], [0, 0]]).columns()
        >>> columns["sequence"].tolist(), columns["position"].tolist(), columns["nll"].round(2).tolist()
        ([0, 0, 1, 1], [0, 1, 0, 1], [0.31, 0.31, 0.31, 0.05])
        """
        columns = places_in(self.kept.shape)
        columns |= {name: getattr(self, name).reshape(-1) for name, column in COLUMNS.items() if not column.is_top}
        tops = [name for name, column in COLUMNS.items() if column.is_top]
        for k in range(0 if self.top_ids is None else self.top_ids.shape[-1]):
            for name in tops:
                columns[f"{name.removesuffix('s')}_{k + 1}"] = getattr(self, name)[..., k].reshape(-1)
        return columns

    def _main(self) -> dict[str, str]:
        main = {"loss": formatted(self.loss), "count": str(self.count), **nonzero(n_nan=self.n_nan)}
        return main | {"perplexity": formatted(self.perplexity), "accuracy": f"{self.accuracy:.4f}"}

    def _facts(self) -> dict[str, Any]:
        names = ("count", "n_nan", "loss", "perplexity", "accuracy")
        return {name: getattr(self, name) for name in names}

    def _shown(self) -> Shown:
        rows = [
            ("tokens", f"{self.count:,}", f"{self.n_nan:,} nan" if self.n_nan else ""),
            ("loss", f"{self.loss:.6g}", "nats"),
            ("perplexity", f"{self.perplexity:.6g}", ""),
            ("bits per token", f"{self.loss / math.log(2):.6g}", ""),
            ("greedy accuracy", f"{100 * self.accuracy:.2f} %", ""),
        ]
        return Shown("token scores", " \N{MULTIPLICATION SIGN} ".join(map(str, self.kept.shape)), [Table(rows)])


TokenScores.__module__ = "tokenloss.results"


def token_scores(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    kind: Kind | None = None,
    axis: int = -1,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    top_k: int = 0,
    workers: int | None = None,
) -> TokenScores:
    """Compute the loss, entropy, rank and most likely classes of each token, in one pass over the logits.

    Parameters
    ----------
    logits : array of shape (..., V)
        Logits, or the scores that `kind` names, as in `cross_entropy`: float16, bfloat16, float32 or float64.
    targets : array of integers
        Class ids, in the shape of `logits` without its class axis.
    kind : {"logits", "log_probs", "probs"}, optional
        What `logits` contains: logits (the default, with a `KindWarning` if they look like probabilities), natural
        log-probabilities or probabilities. For the latter two, `nll` uses the values as given; for all other
        statistics, rows are first normalized (`logsumexp` is the log of a row's sum).
    top_k : int, default 0
        Number of most likely classes to list.
    axis, ignore_index, where, logit_scale, softcap, workers
        As in `cross_entropy`.

    Returns
    -------
    TokenScores
        With arrays of the batch's shape. `nll` is bitwise identical to ``cross_entropy(..., reduction="none")``.
        `logsumexp` is as accurate as the function `logsumexp`, but found from the target and the other classes: its
        last digits may depend on the target. `rank`, `argmax` and the order of `top_ids` are exact: they compare the
        logits as given, before `logit_scale` and `softcap`. For probabilities, `nll` is bitwise identical to
        ``cross_entropy_loss(..., reduction="none")``; for log-probabilities, to `nll_loss`.

    Raises
    ------
    IndexError, TypeError, ValueError
        As in `cross_entropy`. Also if a probability is outside [0, 1] by more than 1e-3, or a row of probabilities or
        log-probabilities is far from normalized: if the log of their sum is beyond +-0.1 (0.5 in half precision).

    See Also
    --------
    cross_entropy : Only the loss.

    Notes
    -----
    Entropy is within 2e-7 nats of the exact value (float64: 4e-15, relative to the larger of 1 and the logsumexp).
    If a logit is nan, so are the loss and entropy of its row; its class has no rank and is never among the most likely.

    Examples
    --------
    >>> from tokenloss import token_scores
    >>> scores = token_scores([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]], [1, 1], top_k=2)
    >>> scores.rank, scores.entropy.round(4)
    (array([2, 1]), array([0.8324, 0.3666]))
    >>> scores.top_ids
    array([[0, 1],
           [1, 0]])
    """
    transform = logit_transform(logit_scale, softcap)
    scores = as_scores("logits", logits, axis, check_kind(kind))
    if kind not in (None, "logits") and transform != (1.0, 0.0):
        raise_error("together", name="logit_scale" if softcap is None else "softcap", got=f"kind={kind!r}")
    positions = as_positions("targets", targets, scores, ignore_index, where, distributions=False)
    jobs.warn_of_probs(positions, scores, kind)
    job, columns = token_job(scores, positions, transform, top_k)
    jobs.run(job, workers)
    return TokenScores(**columns)


def token_job(
    scores: _core.Scores, positions: _core.Positions, transform: tuple[float, float], top_k: Any
) -> tuple[_core.TokenStats, dict[str, Any]]:
    """The job that computes the columns of `token_scores`, and these columns, which it fills."""
    fits = f"an integer from 0 to {scores.classes}, the number of classes"
    top_k = check_integer("top_k", top_k, fits, least=0, most=scores.classes)
    columns: dict[str, Any] = {}
    for name, column in COLUMNS.items():
        columns[name] = np.zeros((*scores.batch, top_k) if column.is_top else scores.batch, column.dtype)
    flat = {name: array.reshape(-1) for name, array in columns.items()}
    flat |= {name: array.view(np.uint8) for name, array in flat.items() if array.dtype == bool}
    job = _core.TokenStats(scores, positions, columns["nll"], *transform, top_k, flat)
    return job, columns if top_k else columns | {name: None for name, column in COLUMNS.items() if column.is_top}
