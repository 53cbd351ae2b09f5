"""A model compared with its base model: perplexities, KL divergences, changes of probability."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss import _core, _job
from tokenloss._dtypes import CheckedArray, as_float_array
from tokenloss._errors import raise_error
from tokenloss._paired import KL_QUANTILES, Mean, as_json_figures, paired_figures, quantiles, sequence_table
from tokenloss._validation import as_other_scores, as_positions, as_scores, check_axis
from tokenloss.sequences import check_offsets, check_segment_ids

if TYPE_CHECKING:
    from typing import Literal

    from tokenloss._types import Array, ArrayLike, BoolArray, Float64Array, IntArray

    _Columns = dict[str, Array]

UNNORMALIZED = 0.1  # |logsumexp| that log-probabilities may have after rounding and clipping

# results for each position
_COLUMNS = {
    "nll": np.float64, "base_nll": np.float64, "kl": np.float64, "delta_p": np.float64, "is_same_top": np.bool_,
    "kept": np.bool_, "base_top_p": np.float64,
}  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Result of `compare`: the figures of a model against its base that are published for quantised models.

    Each ``*_stderr`` is the standard error of the figure before it: nan for less than two tokens and where the figure
    is infinite or nan. All figures are of the included positions, and nan if there are none. With sequences, standard
    errors are clustered by sequence, while all other figures stay as they are.

    Attributes
    ----------
    definitions : str
        "exact" or "llama.cpp".
    count : int
        Number of included positions.
    n_sequences : int
        Number of sequences with any included position; 0 if none were given.
    is_clustered : bool
        Whether standard errors are clustered by sequence: not without sequences, and not of a single one.
    perplexity, perplexity_stderr, base_perplexity, base_perplexity_stderr : float
        exp of the mean loss, of the model and of its base.
    correlation : float
        Correlation of the two models' losses; nan where one of them is the same for all tokens.
    log_perplexity_ratio, perplexity_ratio, perplexity_difference : float
        ``log(perplexity / base_perplexity)``, ``perplexity / base_perplexity`` and ``perplexity - base_perplexity``.
    log_perplexity_ratio_stderr, perplexity_ratio_stderr, perplexity_difference_stderr : float
        Standard errors from the paired differences of the tokens' losses.
    mean_kl, mean_kl_stderr : float
        Mean KL divergence of the model's distribution from the base's, in nats.
    kl_quantiles : dict
        By fraction of the tokens: 1.0 (the maximum), 0.999, 0.99, 0.95, 0.9, 0.5 (the median), 0.1, 0.05, 0.01, 0.001
        and 0.0 (the minimum), interpolated linearly.
    mean_delta_p, mean_delta_p_stderr, rms_delta_p, rms_delta_p_stderr : float
        Mean and root mean square of the change of the targets' probabilities.
    delta_p_quantiles : dict
        As `kl_quantiles`, also at 0.75 and 0.25.
    same_top, same_top_stderr : float
        Fraction of positions where both models have the same most likely class.
    nll, base_nll : array of float64
        Loss of each position in nats, by the model and by its base.
    kl, delta_p : array of float64
        KL divergence at each position in nats, and the change of its target's probability.
    is_same_top, kept : array of bool
        Whether both models have the same most likely class, and whether the position is included: neither ignored nor
        masked. The other arrays are 0 where it is not.
    base_top_p : array of float64
        Probability of the base's most likely class: its confidence.
    sequences : dict of 1-D arrays or None
        Columns of a table that has a row for each sequence with any included position: "sequence" (its number, in
        ascending order), "tokens", and means over its included positions: "loss", "base_loss", "loss_difference", "kl",
        "delta_p" and "same_top". None if no sequences were given.

    Examples
    --------
    >>> from tokenloss import compare
    >>> comparison = compare([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]], [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]], [0, 1])
    >>> comparison
    Comparison(count=2, perplexity=1.271, base_perplexity=1.286, mean_kl=0.06537, same_top=1)
    >>> round(comparison.kl_quantiles[0.5], 6), comparison.delta_p.round(4)
    (0.065366, array([ 0.1217, -0.1225]))
    """

    definitions: str
    count: int
    n_sequences: int
    is_clustered: bool
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
    mean_kl: float
    mean_kl_stderr: float
    kl_quantiles: dict[float, float]
    mean_delta_p: float
    mean_delta_p_stderr: float
    delta_p_quantiles: dict[float, float]
    rms_delta_p: float
    rms_delta_p_stderr: float
    same_top: float
    same_top_stderr: float
    nll: Float64Array
    base_nll: Float64Array
    kl: Float64Array
    delta_p: Float64Array
    is_same_top: BoolArray
    kept: BoolArray
    base_top_p: Float64Array
    sequences: dict[str, Array] | None

    def as_dict(self) -> dict[str, Any]:
        """All figures, without the arrays of positions, as JSON can hold them.

        Returns
        -------
        dict
            By name; quantiles are by fraction, as text: "1", "0.999" and so on. If there is any sequence, "sequences"
            is a list that holds a dictionary for each.

        Examples
        --------
        >>> from tokenloss import compare
        >>> compare([[0.0, 0.0]], [[0.0, 0.0]], [0]).as_dict()["kl_quantiles"]["0.999"]
        0.0
        """
        return as_json_figures(self)

    def __repr__(self) -> str:
        """Show the main figures."""
        sequences = f"n_sequences={self.n_sequences}, " if self.n_sequences else ""
        return (
            f"Comparison(count={self.count}, {sequences}perplexity={self.perplexity:.4g}, "
            f"base_perplexity={self.base_perplexity:.4g}, mean_kl={self.mean_kl:.4g}, same_top={self.same_top:.4g})"
        )


class ComparisonMeter:
    """Compares a model with its base block by block, where their logits are not in memory at once.

    It keeps 42 bytes for each position, and 8 more for each that comes with the number of its sequence. Blocks come in
    the order of the text and have any size: no bit of the result depends on how a text is split, or a sequence. Only
    one thread may update it at a time.

    Parameters
    ----------
    definitions : {"exact", "llama.cpp"}, default "exact"
        Formulas of the figures, as in `compare`.
    ignore_index : int or None, default -100
        Target value that marks positions to ignore (padding); their logits are never read.
    workers : int, optional
        Number of threads, as in `cross_entropy`. No bit of the result depends on it.

    Raises
    ------
    ValueError
        If `definitions` is neither "exact" nor "llama.cpp".

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import ComparisonMeter
    >>> meter = ComparisonMeter()
    >>> for shift in (0.5, 1.0):
    ...     meter.update(np.zeros((2, 3)), [[shift, 0, 0], [0, shift, 0]], [0, 1])
    >>> meter.result()
    Comparison(count=4, perplexity=1.96, base_perplexity=3, mean_kl=0.0743, same_top=0.5)
    """

    def __init__(
        self,
        *,
        definitions: Literal["exact", "llama.cpp"] = "exact",
        ignore_index: int | None = -100,
        workers: int | None = None,
    ) -> None:
        if definitions not in ("exact", "llama.cpp"):
            raise_error("option", name="definitions", got=definitions, fits="'exact' or 'llama.cpp'")
        self._definitions = definitions
        self._ignore_index = ignore_index
        self._workers = workers
        self._parts: list[_Columns] = [{name: np.empty(0, dtype) for name, dtype in _COLUMNS.items()}]

    def update(
        self,
        base_logits: ArrayLike,
        logits: ArrayLike,
        targets: ArrayLike,
        *,
        axis: int = -1,
        where: ArrayLike | None = None,
        segment_ids: ArrayLike | None = None,
    ) -> None:
        """Compare the next positions.

        Sequences have the same numbers in all calls, so that one may go on in the next block. Positions without numbers
        belong to none.

        Parameters
        ----------
        base_logits, logits : arrays of one shape (..., V)
            Logits (unnormalised log-probabilities): float16, bfloat16, float32 or float64, of any byte order and memory
            layout; anything with `__dlpack__` on the CPU (torch, JAX) is read without a copy. Lists are converted.
        targets : array of integers
            Class ids, of the shape of `logits` without its class axis.
        axis : int, default -1
            Axis of the classes.
        where : array of bool, optional
            Mask of the positions to include, broadcast over the batch; the logits of others are never read.
        segment_ids : array of integers, optional
            Number of the sequence of each position, broadcast over the batch, in any order: standard errors are then
            clustered by sequence. Positions of negative numbers belong to no sequence: each is a group of its own.

        Raises
        ------
        IndexError, TypeError, ValueError
            If an argument is invalid; the meter is then unchanged.
        """
        base = as_scores("base_logits", base_logits, axis)
        other = as_other_scores("logits", logits, base)
        positions = as_positions("targets", targets, base, self._ignore_index, where, distributions=False)
        columns: _Columns = {name: np.zeros(base.rows, dtype) for name, dtype in _COLUMNS.items()}
        numbers = None if segment_ids is None else check_segment_ids(segment_ids, base.batch).flatten()
        flat = {name: column.view(np.uint8) if column.dtype == bool else column for name, column in columns.items()}
        unnormalized = -1 if self._definitions == "exact" else UNNORMALIZED
        _job.run(_core.PairStats(base, positions, other, unnormalized, flat), self._workers)
        if numbers is not None:
            columns["segment_ids"] = numbers
        self._parts.append(columns)

    def result(self) -> Comparison:
        """Figures of all positions so far.

        Returns
        -------
        Comparison
            With arrays of one dimension.
        """
        return _comparison(self._definitions, self._parts, (-1,))


def compare(
    base_logits: ArrayLike,
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    definitions: Literal["exact", "llama.cpp"] = "exact",
    workers: int | None = None,
) -> Comparison:
    """Compare a model, say a quantised one, with its base, in the figures that are published for quantised models.

    Parameters
    ----------
    base_logits, logits : arrays of one shape (..., V)
        Logits (unnormalised log-probabilities): float16, bfloat16, float32 or float64, of any byte order and memory
        layout; anything with `__dlpack__` on the CPU (torch, JAX) is read without a copy. Lists are converted.
    targets : array of integers
        Class ids, of the shape of `logits` without its class axis.
    axis : int, default -1
        Axis of the classes.
    ignore_index : int or None, default -100
        Target value that marks positions to ignore (padding); their logits are never read.
    where : array of bool, optional
        Mask of the positions to include, broadcast over the batch; the logits of others are never read.
    segment_ids : array of integers, optional
        Number of the sequence of each position, broadcast over the batch, in any order: standard errors are then
        clustered by sequence. Positions of negative numbers belong to no sequence: each is a group of its own.
    cu_seqlens : array of integers, optional
        Bounds of packed sequences, such as [0, 7, 12] for two of 7 and 5 positions of ``targets.ravel()``.
    definitions : {"exact", "llama.cpp"}, default "exact"
        Formulas of the figures. "exact": the base's distribution is ``softmax(base_logits)``, and divergences are sums
        over all classes. "llama.cpp", as its perplexity tool prints them: `base_logits` are log-probabilities, used as
        given (the probabilities in its files do not quite add up to 1), and divergences are sums over those above -16.
    workers : int, optional
        Number of threads, as in `cross_entropy`. No bit of the result depends on it.

    Returns
    -------
    Comparison
        With arrays of the batch's shape. `nll` has the bits of ``cross_entropy(..., reduction="none")``; for "exact" so
        has `base_nll`, and `kl` has the bits of ``kl_divergence(..., reduction="none")``.

    Raises
    ------
    IndexError
        If an included target is out of range; the message names its position and value.
    TypeError, ValueError
        If an argument is invalid; the message names it, what came and what fits.

    See Also
    --------
    ComparisonMeter : The same, block by block.
    kl_divergence : The divergence alone.

    Notes
    -----
    The figures are those of llama.cpp's ``llama-perplexity --kl-divergence``. Standard errors of perplexities, of their
    ratio and difference and of the root mean square are of first order (the delta method), those of ratio and
    difference from the tokens' differences of loss. An infinite loss makes its perplexity infinite; a nan makes all
    figures of its kind nan. Only the arrays of the result grow with the number of positions.

    Tokens of one document are alike, so a standard error that takes them as independent is often too small. Given
    `segment_ids` or `cu_seqlens`, each one is clustered by sequence (Miller, arXiv:2411.00640), and paired as before:
    with S the sum over a sequence of n tokens of, say, their differences of loss, and G sequences, the error of the
    mean ``mu`` is ``sqrt(G / (G - 1) * sum((S - mu * n)**2)) / sum(n)``. A token outside of any sequence is a sequence
    of one. A single sequence does not show how sequences vary: its tokens are taken as independent. Each row of a
    padded batch (N, T) is a sequence by ``segment_ids=np.arange(N)[:, None]``.

    Examples
    --------
    >>> from tokenloss import compare
    >>> comparison = compare([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]], [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]], [0, 1])
    >>> round(comparison.perplexity_ratio, 6), round(comparison.perplexity_ratio_stderr, 6)
    (0.988349, 0.15452)
    >>> round(comparison.mean_kl, 6), comparison.same_top
    (0.065366, 1.0)

    Two documents of two tokens, in each of which both models' losses differ alike:

    >>> base = [[[1.0, 0.0], [1.2, 0.0]], [[0.5, 0.0], [0.3, 0.0]]]
    >>> logits = [[[0.6, 0.0], [0.8, 0.0]], [[0.4, 0.0], [0.2, 0.0]]]
    >>> tokens = compare(base, logits, [[0, 0], [0, 0]])
    >>> documents = compare(base, logits, [[0, 0], [0, 0]], segment_ids=[[0], [1]])
    >>> round(tokens.log_perplexity_ratio_stderr, 4), round(documents.log_perplexity_ratio_stderr, 4)
    (0.0218, 0.0373)
    >>> documents.sequences["loss_difference"].round(4)
    array([0.116 , 0.0414])
    """
    meter = ComparisonMeter(definitions=definitions, ignore_index=ignore_index, workers=workers)
    base: Any = CheckedArray(*as_float_array("base_logits", base_logits))
    shape = base.array.shape
    axis = check_axis("base_logits", len(shape), axis)
    batch = shape[:axis] + shape[axis + 1 :]
    if cu_seqlens is not None:
        if segment_ids is not None:
            raise_error("together", name="segment_ids", got="cu_seqlens")
        lengths = np.diff(check_offsets(cu_seqlens, math.prod(batch)))
        segment_ids = np.repeat(np.arange(lengths.size), lengths).reshape(batch)
    meter.update(base, logits, targets, axis=axis, where=where, segment_ids=segment_ids)
    return _comparison(definitions, meter._parts, batch)


def _included(parts: list[_Columns], kept: BoolArray) -> tuple[Array, IntArray | None]:
    """Index of the included positions, and their sequences' numbers, negative for none; None if none were given."""
    if not any("segment_ids" in part for part in parts):
        return kept, None
    ids = [part["segment_ids"] if "segment_ids" in part else np.full(part["nll"].size, -1) for part in parts]
    numbers = np.concatenate(ids)
    index = np.flatnonzero(kept)
    index = index[np.argsort(numbers[index], kind="stable")]  # sorted once, instead of for each sum
    return index, numbers[index]


def _comparison(definitions: str, parts: list[_Columns], batch: tuple[int, ...]) -> Comparison:
    """Figures of all positions."""
    columns: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]).reshape(batch) for name in _COLUMNS}
    included, ids = _included(parts, columns["kept"].reshape(-1))
    nll, base_nll, kl, delta_p, is_same_top = (
        columns[name].reshape(-1)[included] for name in ("nll", "base_nll", "kl", "delta_p", "is_same_top")
    )
    figures, means = paired_figures(nll, base_nll, delta_p, ids)
    divergence, same_top = Mean(kl, ids), Mean(is_same_top, ids)
    change = means.pop("delta_p")
    means |= {"kl": divergence, "delta_p": change, "same_top": same_top}
    return Comparison(
        definitions=definitions,
        mean_kl=divergence.mean,
        mean_kl_stderr=divergence.stderr,
        kl_quantiles=quantiles(kl, KL_QUANTILES),
        same_top=same_top.mean,
        same_top_stderr=same_top.stderr,
        sequences=None if ids is None else sequence_table(means),
        **figures,
        **columns,
    )
