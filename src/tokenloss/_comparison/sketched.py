"""Divergences of a model from the sketch of a base: sums over its classes estimate sums over all classes.

With p and q the probabilities of a class by base and model, each divergence is the sum of p f(q / p), f convex with
value and slope 0 at 1. It is taken over the most likely classes; of the tail, with mass T by the base and Q by the
model, it is T f(rho) at rho = Q / T, as if the tail were one class, plus the sum of p B(q / p), estimated by the draws,
where B is f less its tangent at rho. B is never negative, and neither is what the draws add to that lower bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._comparison.columns import VARIANCE, new_columns
from tokenloss._core.arguments import FURTHER_DIVERGENCES
from tokenloss._core.errors import raise_error
from tokenloss._core.validation import as_scores
from tokenloss._scores.softmax import logsumexp
from tokenloss._scores.tails import tails_of
from tokenloss._scores.token_scores import TokenScores
from tokenloss.formats.sketch_file import logits_at

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenloss._core.types import Array, BoolArray, Columns, Float64Array, IntArray
    from tokenloss.formats.scores_file import SketchFacts


# two units in the last place of numbers from 1 to 2
_STEPS = {"float16": 2.0**-9, "bfloat16": 2.0**-6, "float32": 2.0**-22, "float64": 2.0**-51}
MIN_DRAWS = 32  # with fewer, their noise distorts quantiles
_MOST_ABOVE = 10  # rounding errors, by which a sum of rounded probabilities may differ


class Student(NamedTuple):
    """The data of a model's rows that a comparison needs, given the sketch of its base."""

    logits: Float64Array  # (n, k + s) of the classes of the sketch
    logsumexps: Float64Array
    log_tails: Float64Array  # (n,) log of the probability of all but the first k of these
    n_impossible: IntArray  # (n,) classes without a probability
    n_shared: IntArray | None  # those that are impossible by the sketch, too; None if it does not record which
    argmax: IntArray
    nll: Float64Array
    dtype: str  # of its scores; "" of a server


def sketch_columns(
    rows: Array, facts: SketchFacts, classes: int, student: Student, kept: BoolArray, divergences: Sequence[str]
) -> Columns:
    """The columns of a comparison, with the variances of divergences over the draws."""
    columns = new_columns(len(rows), divergences)
    names = ("kl", *divergences)
    values = estimates(rows, facts, student, names)
    base_alone, own_alone = _alone(student, _n_impossible(rows, facts, classes))
    is_known = kept & ~np.isnan(rows["log_normalizers"]) & ~np.isnan(student.nll)
    infinite = {"kl": base_alone, "reverse_kl": own_alone}
    for name, (mean, variance) in values.items():
        is_infinite = infinite.get(name, False)
        columns[name] = np.where(is_known, np.where(is_infinite, np.inf, mean), np.nan)
        columns[name + VARIANCE] = np.where(is_known & ~np.bool_(is_infinite), variance, np.nan)
    names_of_rows = rows.dtype.names or ()
    columns["nll"] = np.where(kept, student.nll, np.nan)
    if "target_logprobs" in names_of_rows:
        columns["base_nll"] = np.where(kept, -rows["target_logprobs"], np.nan)
    with np.errstate(over="ignore", invalid="ignore"):
        columns["delta_p"] = np.exp(-columns["nll"]) - np.exp(-columns["base_nll"])
        columns["base_top_p"] = np.where(kept, np.exp(rows["logits"][:, 0] - rows["log_normalizers"]), np.nan)
    columns["is_same_top"] = kept & (student.argmax == rows["ids"][:, 0]) & (student.argmax >= 0)
    columns["kept"] = kept.copy()
    return columns | _parity(rows, facts, student, kept)


def _n_impossible(rows: Array, facts: SketchFacts, classes: int) -> IntArray:
    """The number of classes without a probability at each position of a sketch."""
    possible = np.isfinite(rows["logits"][:, : facts.top]).sum(1) + np.maximum(rows["supports"], 0)
    n_impossible: IntArray = classes - possible
    return n_impossible


def served_columns(
    rows: Array, facts: SketchFacts, classes: int, logprobs: Float64Array, nll: Float64Array, argmax: IntArray,
    error: float, divergences: Sequence[str],
) -> Columns:  # fmt: skip
    """The columns of a comparison with a server, which returned the log-probabilities of the sketch's classes.

    Its probability of the tail is what the most likely classes leave. Where that is not far above `error`, by which
    log-probabilities may be rounded, the base's own takes its place: an estimate at rho = 1 is unbiased without it.
    """
    total = np.exp(logprobs[:, : facts.top]).sum(1)
    for row in np.flatnonzero(total > 1 + _MOST_ABOVE * error)[:1].tolist():
        fits = "at most 1, as the probabilities of different classes do"
        raise_error("option", name="the sum of probabilities", got=float(total[row]), fits=fits)
    rest = 1 - total
    with np.errstate(divide="ignore", invalid="ignore"):
        log_tails = np.where(rest > _MOST_ABOVE * error, np.log(rest), rows["log_tails"])
    unknown = _n_impossible(rows, facts, classes)  # as the base, unless it gave 0 for one of these classes
    none = np.zeros(len(rows))
    student = Student(logprobs, none, log_tails, unknown, None, argmax, nll, "")
    columns = sketch_columns(rows, facts, classes, student, np.ones(len(rows), np.bool_), divergences)
    return columns | {"is_identical": np.zeros(len(rows), np.bool_)}


def _parity(rows: Array, facts: SketchFacts, student: Student, kept: BoolArray) -> Columns:
    """The margins of the most likely classes, their rounding, and whether all numbers of the sketch are equal."""
    base, own = rows["logits"].astype(np.float64), student.logits
    known, n = rows["ids"] >= 0, len(rows)
    step = max(_STEPS.get(name, 0.0) for name in (facts.words[1], student.dtype))
    with np.errstate(all="ignore"):
        margins = [one[:, 0] - one[:, 1] if facts.top > 1 else np.full(n, np.nan) for one in (base, own)]
        largest = np.abs(base[:, :2]).max(1)
        power = 1.0 if facts.words[0] == "probs" else np.ldexp(0.5, np.frexp(largest)[1])
        rounding = np.where(np.isfinite(largest) & (largest > 0), step * power, 0)
    same = ((base == own) | ~known).all(1) & (rows["log_normalizers"] == student.logsumexps)
    same &= rows["log_tails"] == student.log_tails
    columns: Columns = dict(zip(("base_margin", "margin"), margins, strict=True)) | {"rounding": rounding}
    return {name: np.where(kept, one, np.nan) for name, one in columns.items()} | {"is_identical": same & kept}


def _alone(student: Student, n_impossible: IntArray) -> tuple[BoolArray, BoolArray]:
    """Whether the base has a class that is impossible under the model, and the reverse, as far as this is known."""
    own = student.n_impossible
    shared = np.minimum(own, n_impossible) if student.n_shared is None else student.n_shared
    return own > shared, n_impossible > shared


def estimates(
    rows: Array, facts: SketchFacts, student: Student, names: Sequence[str]
) -> dict[str, tuple[Float64Array, Float64Array]]:
    """The estimate of each divergence at each position, and its variance over the draws."""
    top, s = facts.top, facts.tail
    log_tails, is_known = rows["log_tails"], rows["ids"] >= 0
    log_p = np.where(is_known, rows["logits"].astype(np.float64) - rows["log_normalizers"][:, None], -np.inf)
    log_q = np.where(is_known, student.logits - student.logsumexps[:, None], -np.inf)
    has_tail, estimated = log_tails > -np.inf, {}
    with np.errstate(all="ignore"):
        log_ratio = np.where(is_known & (log_p != log_q), log_q - log_p, 0)
        no_tail = np.where(np.isneginf(student.log_tails), 0, np.inf)
        tail_ratio = np.where(has_tail & (student.log_tails != log_tails), student.log_tails - log_tails, 0)
        tail_ratio = np.where(has_tail, tail_ratio, no_tail)
        p, q, base_tail, own_tail = np.exp(log_p), np.exp(log_q), np.exp(log_tails), np.exp(student.log_tails)
        share = np.where(has_tail[:, None], np.exp(log_p[:, top:] - log_tails[:, None]), 0)
        least = facts.epsilon / np.maximum(rows["supports"], 1)[:, None]
        weight = (1 + facts.epsilon) / max(s, 1) / (share + least) * is_known[:, top:]
        terms, others, slopes = _terms(p, q, log_ratio), _terms(base_tail, own_tail, tail_ratio), _slopes(tail_ratio)
        for name in names:
            key = "squared hellinger" if name == "hellinger" else name
            bound = np.maximum(terms[key][:, :top].sum(1) + others[key], 0)
            tangent = share * others[key][:, None]
            tangent = tangent + slopes[key][:, None] * (q[:, top:] - own_tail[:, None] * share)
            gap = np.nan_to_num(np.maximum(terms[key][:, top:] - tangent, 0), nan=0, posinf=np.inf)
            draws = np.where(has_tail[:, None], weight * gap, 0)  # only rounding makes a gap < 0
            mean = bound + draws.sum(1)
            variance = s * draws.var(1, ddof=1) if s > 1 else np.full(len(p), np.nan if s else 0.0)
            estimated[name] = (mean, variance) if name == key else _root_of(mean, variance)
    return estimated


def _root_of(square: Float64Array, variance: Float64Array) -> tuple[Float64Array, Float64Array]:
    """The root of an estimate, corrected for its curvature, and the variance of the root."""
    root = np.sqrt(square)
    spread = np.where(square > 0, np.nan_to_num(variance) / square, 0)
    return root + np.minimum(spread / (8 * np.where(root > 0, root, 1)), root / 2), spread / 4


def _terms(p: Array, q: Array, log_ratio: Array) -> Mapping[str, Array]:
    """P f(q / p) of each divergence."""
    half = np.logaddexp(0, log_ratio) - np.log(2)  # log of (p + q) / 2p
    js_p = np.where(p > 0, -p * half, 0)
    js_q = np.where(q > 0, q * np.where(p > 0, log_ratio - half, np.log(2)), 0)
    return {
        "kl": np.where(p > 0, q - p - p * log_ratio, q),
        "reverse_kl": np.where(q > 0, q * log_ratio, 0) - q + p,
        "tv": np.maximum(p - q, 0),
        "js": (js_p + js_q) / 2,
        "squared hellinger": (np.sqrt(p) - np.sqrt(q)) ** 2 / 2,
    }


def _slopes(log_ratio: Array) -> Mapping[str, Array]:
    """The derivative of each f at exp(log_ratio)."""
    return {
        "kl": -np.expm1(-log_ratio),
        "reverse_kl": log_ratio,
        "tv": -1.0 * (log_ratio < 0),
        "js": (np.log(2) - np.logaddexp(0, -log_ratio)) / 2,
        "squared hellinger": -np.expm1(-log_ratio / 2) / 2,
    }


# -- rows and results --------------------------------------------------------------------------------------------------


def student_of(
    logits: Array, rows: Array, facts: SketchFacts, scores: TokenScores, kept: BoolArray, dtype: str,
    workers: int | None,
) -> Student:  # fmt: skip
    """The data that a comparison needs from rows of logits, whose scores are known."""
    top, lse = rows["ids"][:, : facts.top], logsumexp(logits, workers=workers)
    at = logits_at(logits, rows["ids"])
    maxima = logits_at(logits, scores.argmax[:, None])[:, 0]
    tails = tails_of(as_scores("logits", logits, -1), top, maxima, np.empty((len(rows), 0)), 0.0, kept, workers)
    n_possible = (np.isfinite(at[:, : facts.top]) & (top >= 0)).sum(1) + tails.supports
    shared = None if facts.masked is None else np.zeros(len(rows), np.int64)
    if facts.masked is not None and len(facts.masked):
        shared = (logits[:, facts.masked] == -np.inf).sum(1)
    with np.errstate(invalid="ignore"):
        log_tails = tails.log_masses - lse
    return Student(at, lse, log_tails, logits.shape[1] - n_possible, shared, scores.argmax, scores.nll, dtype)


def sketch_scores(rows: Array, top_k: int) -> TokenScores | None:
    """The scores of the base with its likeliest classes; None if no output needs them."""
    if not top_k:
        return None
    has_targets, n = "targets" in (rows.dtype.names or ()), len(rows)
    with np.errstate(invalid="ignore"):
        logprobs = rows["logits"][:, :top_k].astype(np.float64) - rows["log_normalizers"][:, None]
    ids = rows["ids"][:, :top_k].astype(np.int64)
    nll = -rows["target_logprobs"] if has_targets else np.full(n, np.nan)
    rank = rows["target_ranks"].astype(np.int64) if has_targets else np.full(n, -1)
    greedy = ids[:, 0] == rows["targets"] if has_targets else np.zeros(n, np.bool_)
    lse, kept = rows["log_normalizers"], rows["supports"] >= 0
    return TokenScores(nll, lse, rows["entropies"], rank, ids[:, 0], greedy, kept, ids, logprobs)


def sketch_metrics(columns: Columns, metrics: dict[str, Any], top: int, tail: int) -> dict[str, Any]:
    """The fields of a comparison that differ if its base is a sketch."""
    kept = columns["kept"]
    names = [name for name in ("kl", *FURTHER_DIVERGENCES) if name + VARIANCE in columns]
    variances = {name: columns[name + VARIANCE][kept] for name in names}
    errors = {name: float(np.sqrt(one.sum())) / max(one.size, 1) for name, one in variances.items()}

    def shown(quantiles: dict[float, Any]) -> dict[float, Any]:
        fits = {at: value for at, value in quantiles.items() if at < 1 and tail >= MIN_DRAWS}
        return fits if tail else quantiles

    by_name = {name: shown(one) for name, one in metrics["divergence_quantiles"].items()}
    return {
        "sketch": {"top": top, "tail": tail, "draws_stderr": errors},
        "kl_quantiles": shown(metrics["kl_quantiles"]),
        "divergence_quantiles": type(metrics["divergence_quantiles"])(by_name),
    }
