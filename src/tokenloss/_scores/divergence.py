"""Kullback-Leibler divergence between the predictions of two models, and a bound on it from their likeliest classes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from tokenloss._core import _core, jobs
from tokenloss._core.arguments import FURTHER_DIVERGENCES, check_divergences
from tokenloss._core.dtypes import as_array, as_float_array, dtype_name, is_integer, without_bfloat16
from tokenloss._core.errors import raise_error
from tokenloss._core.exact import ExactMoments
from tokenloss._core.validation import as_other_scores, as_scores, check_kinds, check_number, without_targets

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from tokenloss._core.types import Array, ArrayLike, Float64Array, IntArray, Kind

_BLOCK = 1 << 18  # listed classes that are matched at a time
_FLOAT64_ERROR = 1e-14  # of a mass
_MAX_LOG_MASS = 0.1  # logarithm of the mass of a list, after rounding
_ROUNDING = 1e-6  # of log-probabilities in float32
_HALF_STEPS = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # the largest rounding of a number, relative to it


@overload
def kl_divergence(
    base_logits: ArrayLike, logits: ArrayLike, *, kind: Kind | None = None, base_kind: Kind | None = None,
    reduction: Literal["none"], axis: int = -1, where: ArrayLike | None = None, divergences: None = None,
    workers: int | None = None,
) -> Float64Array: ...  # fmt: skip
@overload
def kl_divergence(
    base_logits: ArrayLike, logits: ArrayLike, *, kind: Kind | None = None, base_kind: Kind | None = None,
    axis: int = -1, where: ArrayLike | None = None, reduction: Literal["mean", "sum"] = "mean",
    divergences: None = None, workers: int | None = None,
) -> float: ...  # fmt: skip
@overload
def kl_divergence(
    base_logits: ArrayLike, logits: ArrayLike, *, divergences: Sequence[str], kind: Kind | None = None,
    base_kind: Kind | None = None, axis: int = -1, where: ArrayLike | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean", workers: int | None = None,
) -> Divergences: ...  # fmt: skip
def kl_divergence(
    base_logits: ArrayLike,
    logits: ArrayLike,
    *,
    kind: Kind | None = None,
    base_kind: Kind | None = None,
    axis: int = -1,
    where: ArrayLike | None = None,
    reduction: str = "mean",
    divergences: Sequence[str] | None = None,
    workers: int | None = None,
) -> float | Float64Array | Divergences:
    """Compute the Kullback-Leibler divergence of a model's predictions from a base model's, and other divergences.

    For each position it is ``sum(p * (log(p) - log(q)))`` over the classes, with ``p = softmax(base_logits)`` and
    ``q = softmax(logits)``: the extra cost in nats of coding the base's tokens with the other model. One pass over
    both arrays.

    Parameters
    ----------
    base_logits, logits : arrays of one shape (..., V)
        Logits, or scores of another `kind`, as in `compare`: float16, bfloat16, float32 or float64.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides the sum by the number of included positions (nan if none is included). "none" gives the
        divergence of each position, 0.0 where masked.
    divergences : list or tuple of {"kl", "reverse_kl", "js", "tv", "hellinger"}, or one of them, optional
        The divergences to return by name, in a `Divergences`: with ``m = (p + q) / 2``, "kl" is as above, "reverse_kl"
        is ``sum(q * (log(q) - log(p)))``, "js" (Jensen-Shannon) the mean of the divergences of p and of q from m, "tv"
        (total variation) ``sum(abs(p - q)) / 2``, and "hellinger" ``sqrt(sum((sqrt(p) - sqrt(q))**2) / 2)``.
    kind, base_kind, axis, where, workers
        As in `compare`.

    Returns
    -------
    float, array of float64, or Divergences
        A Python float, or for "none" an array of the batch's shape, a scalar for a single row. It is never negative, 0
        for equal rows, inf where a class is possible for the base and impossible for the other model, and nan where a
        logit of either is nan or +inf. With `divergences`, the same for each of them: "js" is at most log 2, and "tv"
        and "hellinger" are at most 1, even after rounding.

    Raises
    ------
    TypeError, ValueError
        As in `compare`.

    See Also
    --------
    cross_entropy : The loss of the tokens of a text.

    Notes
    -----
    Kullback and Leibler, "On information and sufficiency", 1951. Each divergence is within 2e-7 nats of the exact one
    (float64: 4e-15, relative to the larger of 1 and the logsumexp), or within a relative 1e-6 if that is more. For
    probabilities, it is SciPy's ``rel_entr(p, q).sum()`` after both are normalized, computed in float64 for all dtypes.

    Lin, "Divergence measures based on the Shannon entropy", 1991; total variation and Hellinger's distance: Le Cam,
    "Asymptotic methods in statistical decision theory", 1986. Divergences other than "kl" take a second pass over each
    row, while it is in a cache. No term of their sums is negative, so "reverse_kl", "js" and "hellinger" stay precise
    where models are nearly equal: for thousands of classes whose float32 logits differ by some 1e-4, their relative
    error is about 1e-4. Without ``kind="probs"``, probabilities are treated as logits, whose softmaxes are nearly
    equal: divergences come out far too small. In float64, the error of "reverse_kl" is at most a relative 6e-14 plus
    1e-16 times the largest logsumexp.

    Examples
    --------
    >>> from tokenloss import kl_divergence
    >>> round(kl_divergence([[2.0, 1.0, 0.0]], [[2.0, 1.0, 1.0]]), 6)
    0.053808
    >>> round(kl_divergence([[0.5, 0.25, 0.25]], [[0.25, 0.25, 0.5]], kind="probs"), 6)
    0.173287
    >>> result = kl_divergence([[2.0, 1.0, 0.0]], [[2.0, 1.0, 1.0]], divergences=("tv", "js"))
    >>> round(result.tv, 6), round(result.js, 6)
    (0.121911, 0.014853)
    """
    kinds = check_kinds(base_kind, kind)
    base = as_scores("base_logits", base_logits, axis, kinds[0])
    other = as_other_scores("logits", logits, base, kinds[1])
    positions = without_targets(base, where)
    jobs.warn_of_probs(positions, base, base_kind, kind)
    jobs.warn_of_probs(positions, other, kind)
    job = DivergenceJob(base, positions, other, reduction, divergences)
    jobs.run(job.job, workers)
    return job.result()


class DivergenceJob:
    """A job of divergences, and their reduction."""

    def __init__(
        self, base: _core.Scores, positions: _core.Positions, other: _core.Scores, reduction: str,
        divergences: Sequence[str] | None,
    ) -> None:  # fmt: skip
        names = () if divergences is None else check_divergences(divergences)
        self._names, self._reduction, self._is_alone = names, reduction, divergences is None
        self._positions, self._kl = positions, jobs.new_losses(reduction, base.batch)
        self._columns = {name: np.zeros(base.rows) for name in names if name in FURTHER_DIVERGENCES}
        self.job = _core.KLDivergence(base, positions, self._kl, other, self._columns)

    def result(self) -> float | Float64Array | Divergences:
        """The result of the job, which has run."""
        kl = jobs.reduced(self.job, self._kl, self._reduction)
        if self._is_alone:
            return kl
        reduced = {"kl": kl} if "kl" in self._names else {}
        return Divergences(**reduced, **{name: self._reduced(column) for name, column in self._columns.items()})

    def _reduced(self, column: Float64Array) -> float | Float64Array:
        """A column reduced by `reduction`; masked positions are 0."""
        if self._reduction == "none":
            each: Float64Array = column.reshape(self._positions.batch)[()]
            return each
        moments = ExactMoments.of(column)
        return moments.sum_over(self._positions.count_unmasked()) if self._reduction == "mean" else moments.sum


class Divergences(NamedTuple):
    """Result of `kl_divergence` and `linear_kl_divergence` for several divergences; None if not requested.

    Attributes
    ----------
    kl, reverse_kl : float or array of float64, or None
        Kullback-Leibler divergence of the model from the base, and of the base from the model, in nats.
    js : float or array of float64, or None
        Jensen-Shannon divergence in nats, from 0 to log 2.
    tv, hellinger : float or array of float64, or None
        Total variation and Hellinger distance, from 0 to 1.

    Examples
    --------
    >>> from tokenloss import kl_divergence
    >>> kl_divergence([[0.5, 0.5]], [[1.0, 0.0]], kind="probs", divergences=("tv",))
    Divergences(kl=None, reverse_kl=None, js=None, tv=0.5, hellinger=None)
    """

    kl: Any = None
    reverse_kl: Any = None
    js: Any = None
    tv: Any = None
    hellinger: Any = None


Divergences.__module__ = "tokenloss.results"


class TopkDivergence(NamedTuple):
    """Result of `topk_divergence_bound`, in arrays of the batch's shape.

    Attributes
    ----------
    kl : array of float64
        Lower bound on the Kullback-Leibler divergence, in nats.
    base_mass, mass : array of float64
        Probability of the classes that both lists name, by the base and by the other model.
    n_common : array of int64
        Number of these classes.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import topk_divergence_bound
    >>> topk_divergence_bound([[3, 5]], np.log([[0.5, 0.25]]), [[5, 4]], np.log([[0.75, 0.125]])).n_common
    array([1])
    """

    kl: Any
    base_mass: Any
    mass: Any
    n_common: Any


TopkDivergence.__module__ = "tokenloss.results"


def topk_divergence_bound(
    base_top_ids: ArrayLike,
    base_top_logprobs: ArrayLike,
    top_ids: ArrayLike,
    top_logprobs: ArrayLike,
    *,
    rounding: float | None = None,
) -> TopkDivergence:
    """Compute a lower bound on the Kullback-Leibler divergence of two models from only their most likely classes.

    With T the classes in both lists, and P and Q their total probabilities under the two models, it is ``sum(p * log(p
    / q) for T) + (1 - P) * log((1 - P) / (1 - Q))``: the divergence of coarser distributions, in which all other
    classes are merged into one. The whole divergence, from `kl_divergence`, is at least as large.

    Parameters
    ----------
    base_top_ids : array of integers, of shape (..., K)
        Class ids that the base lists for each position, in any order, each once; negative ids do not name a class.
    base_top_logprobs : array of floats, of shape (..., K)
        Their log-probabilities in nats. Lists are converted.
    top_ids, top_logprobs : arrays of shape (..., L)
        The same for the other model.
    rounding : float, optional
        How far a log-probability may be from the unrounded one: 5e-5 for those with 4 decimals. By default 1e-6; lists
        in float16 or bfloat16 add the rounding error of their dtype, 1 / 2048 or 1 / 256 of the number. If such numbers
        were converted to float32, cast them back. The bound holds for all log-probabilities that round to these, and is
        therefore somewhat lower where the models differ.

    Returns
    -------
    TopkDivergence
        `kl`, `base_mass`, `mass` and `n_common`. `kl` is never negative, 0 for equal lists and where no class is in
        both, inf where a class in both is possible only for the base, and nan where a log-probability is nan.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

    See Also
    --------
    kl_divergence : The divergence, from all classes.
    compare_files : The bound for each token of responses of servers.

    Notes
    -----
    Merging classes never increases a divergence (the data processing inequality), so the bound holds for any lists. The
    sum over only T is not a divergence: it may be negative. Masses that exceed 1 by rounding are scaled to 1.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import kl_divergence, topk_divergence_bound
    >>> base, other = np.log([0.5, 0.25, 0.125, 0.125]), np.log([0.25, 0.5, 0.125, 0.125])
    >>> round(kl_divergence(base, other), 6)
    0.173287
    >>> print(topk_divergence_bound([0, 1], base[:2], [1, 0], other[[1, 0]]).kl.round(5))
    0.17329
    >>> bound = topk_divergence_bound([0, 1], base[:2], [1, 2], other[1:3])
    >>> print(bound.kl.round(5), bound.base_mass.round(6), bound.mass.round(6))
    0.13081 0.25 0.5
    """
    if rounding is not None:
        rounding = max(
            check_number("rounding", rounding, "a number from 0 to 0.01, or None", most=0.01), _FLOAT64_ERROR
        )
    base_ids, base_logs, base_step = _as_list("base_top", base_top_ids, base_top_logprobs)
    ids, logs, step_of_other = _as_list("top", top_ids, top_logprobs)
    errors = _Errors(_ROUNDING, base_step, step_of_other) if rounding is None else _Errors(rounding, 0.0, 0.0)
    batch = base_ids.shape[:-1]
    if ids.shape[:-1] != batch:
        fits = f"({', '.join(map(str, (*batch, 'L')))}), to fit base_top_ids"
        raise_error("shape", name="top_ids", got=ids.shape, fits=fits)
    rows, width = math.prod(batch), max(1, base_ids.shape[-1] + ids.shape[-1])
    arrays: list[Any] = [array.reshape(rows, array.shape[-1]) for array in (base_ids, base_logs, ids, logs)]
    step = max(1, _BLOCK // width)
    parts = [
        _bounds(errors, *(array[start : start + step] for array in arrays)) for start in range(0, max(1, rows), step)
    ]
    return TopkDivergence(*(np.concatenate(column).reshape(batch)[()] for column in zip(*parts, strict=True)))


class _Errors(NamedTuple):
    """The largest rounding errors of log-probabilities: absolute for both, and relative to their size by model."""

    fixed: float
    base_step: float
    step: float


def _as_list(name: str, ids: Any, logprobs: Any) -> tuple[IntArray, Float64Array, float]:
    """Ids (..., K), negative for no class, their log-probabilities in float64, and half a step of their dtype."""
    classes, code = as_array(f"{name}_ids", ids, "an integer")
    if classes.ndim == 0:
        raise_error("shape", name=f"{name}_ids", got=(), fits="(..., K)")
    if classes.size and not is_integer(code, classes):
        raise_error("dtype", name=f"{name}_ids", got=dtype_name(code, classes), fits="integer")
    logs, code = as_float_array(f"{name}_logprobs", logprobs)
    if logs.shape != classes.shape:
        raise_error("shape", name=f"{name}_logprobs", got=logs.shape, fits=f"{classes.shape}, to fit {name}_ids")
    values: Array = without_bfloat16(logs, code)
    if classes.dtype == np.uint64 and classes.max(initial=0) > np.iinfo(np.int64).max:
        raise_error("option", name=f"a class of {name}_ids", got=int(classes.max()), fits="less than 2**63")
    classes = classes.astype(np.int64)
    values = np.where(classes < 0, -np.inf, values.astype(np.float64))
    with np.errstate(over="ignore"):
        log_mass = np.log(np.maximum(np.exp(values).sum(-1), 1.0))  # nan stays
    wrong = log_mass[log_mass > _MAX_LOG_MASS]
    if wrong.size:
        fits = "log-probabilities add up to probabilities of at most 1: log_softmax makes them of logits"
        raise_error("unnormalized", name=f"{name}_logprobs", got=wrong[0], fits=fits)
    ordered = np.sort(classes, axis=-1)
    twice = ordered[..., 1:][(ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)]
    if twice.size:
        raise_error("twice", name=f"{name}_ids", got=twice[0])
    return classes, values, _HALF_STEPS.get(dtype_name(code, logs), 0.0)


def _bounds(
    errors: _Errors, base_ids: IntArray, base_logs: Float64Array, ids: IntArray, logs: Float64Array
) -> tuple[Array, Array, Array, Array]:
    """Bound, both masses and the number of common classes of rows (N, K) and (N, L)."""
    n, split = len(ids), base_ids.shape[1]
    both = np.concatenate([base_ids, ids], axis=1)
    order = np.argsort(both, axis=1, kind="stable")  # a class in both comes twice, the base's first
    both = np.take_along_axis(both, order, 1)
    is_common = (both[:, 1:] == both[:, :-1]) & (both[:, 1:] >= 0)
    row, place = np.nonzero(is_common)
    log_p = base_logs[row, order[row, place]]
    log_q = logs[row, order[row, place + 1] - split]
    base_mass, mass = (np.bincount(row, np.exp(log), n).astype(np.float64) for log in (log_p, log_q))
    roundings = [_roundings(errors.fixed, step, log) for log, step in ((log_p, errors.base_step), (log_q, errors.step))]
    log_p, log_q = (
        log - np.maximum(0.0, np.log(np.maximum(1.0, total)) - _most(row, rounding, n))[row]
        for log, total, rounding in zip((log_p, log_q), (base_mass, mass), roundings, strict=True)
    )
    base_mass, mass = np.minimum(base_mass, 1.0), np.minimum(mass, 1.0)
    kl = _least_divergence(roundings, row, log_p, log_q, base_mass, mass)
    return np.maximum(kl, 0.0) + 0.0, base_mass, mass, np.bincount(row, minlength=n)


def _roundings(fixed: float, step: float, logs: Float64Array) -> float | Float64Array:
    """The largest rounding error of each log-probability."""
    return fixed + step * np.abs(np.where(logs == -np.inf, 0.0, logs)) if step else fixed


def _most(row: IntArray, roundings: float | Float64Array, n: int) -> float | Float64Array:
    """The largest rounding of each of n rows."""
    if isinstance(roundings, float):
        return roundings
    most = np.zeros(n)
    np.maximum.at(most, row, roundings)
    return most


def _least_divergence(
    roundings: Sequence[float | Float64Array], row: IntArray, log_p: Array, log_q: Array, base_mass: Array, mass: Array
) -> Float64Array:
    """Lower bound on the divergence of all distributions whose log-probabilities are within `roundings` of these.

    For any function g of the classes, ``sum(p * g) - log(sum(q * exp(g)))`` is at most the divergence (Donsker and
    Varadhan), and equals it where g is ``log(p / q)``. Here g is that of the rounded p and q, and each p and q is moved
    from the rounded one to where the result is least; the other classes, as one, have what is left of 1.
    """
    n, (p_rounding, q_rounding) = len(mass), roundings
    with np.errstate(divide="ignore", invalid="ignore"):  # of -inf; nan stays
        p, q = np.exp(log_p), np.exp(log_q)
        g = np.where((p == 0) & (q == 0), 0.0, log_p - log_q)
        # rounding may have taken all of a rest, which must not make it seem impossible
        lost, other_lost = (
            rounding * total if isinstance(rounding, float) else np.bincount(row, rounding * part, n)
            for rounding, total, part in ((p_rounding, base_mass, p), (q_rounding, mass, q))
        )
        rest_g = np.log((1 - base_mass + lost) / (1 - mass + other_lost))
        p = p * np.exp(np.where(g > rest_g[row], -p_rounding, p_rounding))
        q = q * np.exp(np.where(g > rest_g[row], q_rounding, -q_rounding))
        mean_g = np.bincount(row, np.where(p == 0, 0.0, p * g), n) + (1 - np.bincount(row, p, n)) * rest_g
        rest = np.maximum(1 - np.bincount(row, q, n), 0.0)
        mean_exp_g = np.bincount(row, np.where(q == 0, 0.0, q * np.exp(g)), n) + rest * np.exp(rest_g)
        is_impossible = np.bincount(row, (q == 0) & (p > 0), n) > 0  # only for the other model
        kl: Float64Array = np.where(is_impossible, np.inf, mean_g - np.log(mean_exp_g))
        return np.where(np.isnan(base_mass + mass), np.nan, kl)
