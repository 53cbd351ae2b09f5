"""Draft models of speculative decoding: how many drafted tokens a target model accepts, and the speedup."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from tokenloss._comparison.columns import check_normalized, join, logs, pair_columns
from tokenloss._comparison.compared_tokens import ComparedTokens
from tokenloss._comparison.draft_tables import BLOCK, drafts_shown
from tokenloss._comparison.metrics import signed_of
from tokenloss._comparison.paired import nan_last
from tokenloss._core import _core, jobs
from tokenloss._core.dtypes import CheckedArray
from tokenloss._core.errors import raise_error
from tokenloss._core.estimate import Estimate
from tokenloss._core.exact import ExactMoments, exp
from tokenloss._core.result import columns_of, formatted, nonzero
from tokenloss._core.validation import as_scores, check_kinds, check_mask, check_number, without_targets
from tokenloss._statistics.estimates import Measure
from tokenloss._statistics.ratio import ExactRatio, interval_above_0
from tokenloss._statistics.sequences import sequence_numbers, sums_by_segment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenloss._core.result import Shown
    from tokenloss._core.types import Array, ArrayLike, BoolArray, Columns, Float64Array, IntArray, Kind

_BLOCK = 1 << 23  # scores that are copied at a time
_MAX_K = 8  # drafted tokens of a call
_FAIR = 0.9  # a k can be the best one only if texts that are long enough for it hold this fraction of all positions
_TEMPERATURES = 1e-6, 1e6  # beyond which decoding is greedy, or all classes are alike


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class DraftAcceptance(ComparedTokens):
    """Result of `draft_acceptance`, and of `Comparison.acceptance`.

    Errors are clustered by text. If there is only one text, each block of 64 consecutive positions is treated as
    independent of the others. Errors are nan if there are fewer than two texts or blocks.

    Attributes
    ----------
    temperature : float
        The temperature of both models; 0 is greedy decoding.
    n_nan : int
        Number of positions whose acceptance is nan.
    mean_acceptance : Estimate
        Mean probability that the target accepts a token that the draft samples. Its interval is computed for its logit;
        for greedy decoding, where the mean is a fraction of the positions, by the binomial distribution.
    break_even_ratio : float
        The largest one in `by_k`: with a cost ratio below it, drafting pays for some k. Here and in `best_k`, a k is
        considered only if the texts that are long enough for it have nine tenths of the positions.
    cost_ratio : float or None
        Time of a draft step divided by the time of a target step, if given.
    best_k : int or None
        Number of drafted tokens with the largest speedup at this cost ratio; None without a cost ratio, or if all
        speedups are nan.
    best_speedup : Estimate or None
        The speedup there; below 1, drafting costs more than it gains.
    by_k : dict of 1-D arrays
        Columns of a table that has a row for each number of drafted tokens, 8 in all: "k" (from 1 to 8), "n_starts"
        (the number of positions that begin k positions of one text without a gap), "n_texts" (the number of texts that
        have such positions), "tokens_per_call" (the mean number of tokens per call of the target) with
        "tokens_per_call_stderr", "independent_tokens" (the same if each position had the mean acceptance),
        "break_even_ratio" (the cost ratio below which drafting k tokens pays, which is also the fraction of drafted
        tokens that is accepted), and with a cost ratio "speedup" and "speedup_stderr". Values are nan if no text has k
        positions in a row, and cover only the texts that have.
    acceptance : array of float64
        Probability that a drafted token is accepted at each position, in the batch's shape; nan where it is masked.
    kept : array of bool
        False where the position is masked; the acceptance of others may still be nan.
    sequences : dict of 1-D arrays or None
        Columns of a table that has a row for each text: "sequence" (its number), "count" and its mean "acceptance".
        None where positions were not numbered by text.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import draft_acceptance
    >>> target = np.random.default_rng(0).normal(size=(50, 20, 8))  # 50 texts of 20 tokens
    >>> result = draft_acceptance(target, 0.8 * target, cost_ratio=0.05)
    >>> result
    DraftAcceptance(mean_acceptance=0.9366 ± 0.000605, count=1000, n_sequences=50, temperature=1, best_speedup=5.01)
    >>> result.best_k, result.by_k["tokens_per_call"].round(2)
    (8, array([1.94, 2.81, 3.64, 4.4 , 5.12, 5.8 , 6.43, 7.02]))
    """

    GATES = ()
    _role = "draft"
    _why_no_gate = "is for divergences, not for the acceptance of drafts"
    _of_base = ("base", "base_kind", "base_head", "files", "shape", "n_without_next", "n_ignored", "temperature",
                "cost_ratio", "count", "n_sequences", "is_clustered")  # fmt: skip
    _errors_in_files: ClassVar = {"mean_acceptance": ("stderr", "interval"), "best_speedup": ("stderr",)}

    temperature: float
    n_nan: int
    mean_acceptance: Estimate
    break_even_ratio: float
    cost_ratio: float | None
    best_k: int | None
    best_speedup: Estimate | None
    by_k: dict[str, Array]
    acceptance: Float64Array
    kept: BoolArray

    @staticmethod
    def _shown_of(comparisons: Mapping[str, Any]) -> Shown:
        return drafts_shown(comparisons)

    @property
    def _equals_base(self) -> bool:
        """Whether the target surely accepts every token."""
        return self.mean_acceptance == 1

    @property
    def _can_tell(self) -> bool:
        """Whether equal values show that models are equal: not with greedy decoding, where they are 0 or 1."""
        return self.temperature > 0

    def _signature_fields(self) -> dict[str, Any]:
        fields = {"unit": "sequence" if self.is_clustered else "block", "temperature": f"{self.temperature:g}"}
        cost = None if self.cost_ratio is None else f"{self.cost_ratio:g}"
        return super()._signature_fields() | fields | {"cost": cost} | self._signed

    def _grouped(self) -> dict[str, Array]:
        return {"acceptance": self.acceptance}

    def _statistics(self) -> dict[str, Any]:
        return {"temperature": self.temperature} | super()._statistics()

    def _rows(self) -> list[dict[str, Any]]:
        """A row for each number of drafted tokens, after the values of all."""
        values = self._facts()
        return [values | row for row in values["by_k"]]

    def _rank(self) -> tuple[bool, float]:
        """Sort key: the draft with the largest gain comes first, or without a cost ratio the highest acceptance."""
        return nan_last(-self.mean_acceptance if self.best_speedup is None else -self.best_speedup)

    def _main(self) -> dict[str, str]:
        main = {"mean_acceptance": formatted(self.mean_acceptance, self.mean_acceptance.stderr, 4)}
        main |= {"count": str(self.count), **nonzero(n_sequences=self.n_sequences, n_nan=self.n_nan)}
        main["temperature"] = f"{self.temperature:g}"
        return main if self.best_speedup is None else main | {"best_speedup": f"{self.best_speedup:.3g}"}


DraftAcceptance.__module__ = "tokenloss.results"


def draft_acceptance(
    base_logits: ArrayLike,
    logits: ArrayLike,
    *,
    temperature: float = 1.0,
    kind: Kind | None = None,
    base_kind: Kind | None = None,
    axis: int = -1,
    where: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    cost_ratio: float | None = None,
    workers: int | None = None,
) -> DraftAcceptance:
    """Measure how many drafted tokens a target model accepts in speculative decoding, and the speedup.

    If the target's distribution is p and the draft's is q, a drafted token is accepted with probability ``sum(min(p,
    q))``, which is 1 minus the total variation. The number of tokens per call of the target, for 1 to 8 drafted tokens,
    and the speedup follow from this probability at each position.

    Parameters
    ----------
    base_logits, logits : arrays of shape (..., V) and (..., W)
        Logits of the target and of the draft for the same positions, or scores of another `kind`, as in `compare`:
        float16, bfloat16, float32 or float64. Both begin with the same classes; a class that only one model has (W may
        differ from V) has probability 0 in the other, and each model is normalized over its own classes.
    temperature : float, default 1.0
        Temperature of both models, from 1e-6 to 1e6; or 0 for greedy decoding, where a token is accepted if it is the
        likeliest class of both models (the first one if logits are equal).
    segment_ids : array of integers, optional
        Number of the text of each position, broadcast over the batch; the positions of a text are in order, and
        positions with negative numbers belong to no text. By default, each row of a batch (N, T) is a text, and a batch
        (T,) is a single text without a number.
    cu_seqlens : array of integers, optional
        Bounds of packed texts, such as [0, 7, 12] for two texts of 7 and 5 positions.
    cost_ratio : float, optional
        Time of a draft step divided by the time of a target call, such as 0.05, for the speedup.
    kind, base_kind, axis, where, workers
        As in `compare`.

    Returns
    -------
    DraftAcceptance
        With `acceptance` in the batch's shape.

    Raises
    ------
    TypeError, ValueError
        As in `compare`.

    See Also
    --------
    Comparison.acceptance : The same for files, from ``compare_files(..., temperature=1, classes="all")``.
    compare : Divergences, and perplexities.

    Notes
    -----
    The algorithm is from Leviathan et al., "Fast inference from transformers via speculative decoding",
    arXiv:2211.17192, and Chen et al., arXiv:2302.01318: k drafted tokens are tested one after the other, and the first
    rejected one is replaced by a token drawn from the remainder of p; if none is rejected, the target's call yields one
    more. So a call at position t yields ``1 + a[t] + a[t] * a[t + 1] + ...`` tokens, with k products of the acceptances
    a. The mean weights each position by the probability that a call begins there, which is higher after positions where
    drafts are rejected: if easy and hard passages alternate, most calls are in the hard ones, so the mean is below the
    usual ``(1 - a**(k + 1)) / (1 - a)`` for the mean acceptance a. No call crosses the end of a text or a masked
    position. With c the cost ratio, the speedup is ``tokens_per_call / (k * c + 1)``, if the target takes no longer to
    test k tokens than to generate one.

    Positions are taken from the given texts. For texts that the target itself generated at this temperature, the
    acceptance is as in real decoding; for other texts it is an estimate. The acceptance at a position is assumed not to
    depend on which tokens were accepted before.

    Examples
    --------
    >>> from tokenloss import draft_acceptance
    >>> target = [[2.0, 0.0, 0.0], [0.0, 2.0, 1.0], [0.0, 0.0, 3.0]]
    >>> draft = [[1.0, 0.0, 0.0], [0.0, 2.0, 2.0], [0.0, 0.0, 3.0]]
    >>> result = draft_acceptance(target, draft, cost_ratio=0.1)
    >>> result.acceptance.round(4)
    array([0.7891, 0.7764, 1.    ])
    >>> result.best_k, round(result.best_speedup, 4)
    (3, 2.3189)
    >>> draft_acceptance(target, draft, temperature=0).acceptance
    array([1., 1., 1.])
    """
    temperature, cost_ratio = check_temperature(temperature), check_cost_ratio(cost_ratio)
    kinds = check_kinds(base_kind, kind)
    base = as_scores("base_logits", base_logits, axis, kinds[0])
    draft = as_scores("logits", logits, axis, kinds[1])
    if draft.batch != base.batch:
        raise_error("shape", name="logits", got=draft.shape, fits=f"{base.shape}, except for the number of classes")
    for side in (base, draft):
        if not side.classes:
            raise_error("shape", name=side.name, got=side.shape, fits="a shape with one or more classes per position")
    jobs.warn_of_probs(without_targets(base, where), base, base_kind, kind)
    jobs.warn_of_probs(without_targets(draft, where), draft, kind)
    columns = _columns(base, draft, where, temperature, workers)
    numbers = sequence_numbers(segment_ids, cu_seqlens, base.batch)
    signed = signed_of(base_logits, logits, None, columns, None, kind, base_kind)
    kept_columns = acceptance(columns, temperature), columns["kept"], numbers
    return acceptance_of(*kept_columns, temperature, cost_ratio, base.batch, _signed=signed)


def _columns(base: _core.Scores, draft: _core.Scores, where: Any, temperature: float, workers: Any) -> Columns:
    """Columns from which the acceptance is computed, block by block where scores are copied."""
    sides, kinds = (base, draft), [_core.KINDS[side.kind] for side in (base, draft)]
    are_divided = temperature not in (0, 1)
    step = len(mask := np.atleast_1d(check_mask(True if where is None else where, base.batch)))
    rows = [np.atleast_2d(np.moveaxis(side.array, side.axis, -1)) for side in sides]
    if base.classes != draft.classes or (are_divided and kinds != ["logits", "logits"]):
        step = _BLOCK * step // max(1, base.rows * max(base.classes, draft.classes))
        for side in sides:
            check_normalized(side, where, workers)
    parts = []
    for start in range(0, max(1, len(mask)), max(1, step)):
        part = slice(start, start + max(1, step))
        some = [CheckedArray(array[part], side.dtype) for array, side in zip(rows, sides, strict=True)]
        if are_divided:
            some = [logs(one, mask[part]) if kind == "probs" else one for one, kind in zip(some, kinds, strict=True)]
        options: Any = dict(zip(("base_kind", "kind"), ["logits"] * 2 if are_divided else kinds, strict=True))
        options |= {"where": mask[part], "classes": "all", "temperature": temperature, "workers": workers}
        pair = jobs.with_known_kind(pair_columns)(some[0], {"logits": some[1]}, None, divergences=("tv",),
                                                only_divergences=temperature > 0, **options)  # fmt: skip
        parts.append(pair["logits"])
    return join(parts)


def acceptance(columns: Columns, temperature: float) -> Float64Array:
    """The probability that a drafted token is accepted at each position, given the columns at this temperature."""
    if temperature:
        return 1 - columns["tv"]
    return np.where(np.isnan(columns["tv"]), np.nan, columns["is_same_top"])  # masked, or of a score that is nan


def check_temperature(value: Any) -> float:
    """A temperature: 0, or a number within bounds."""
    least, most = _TEMPERATURES
    fits = f"0, for greedy decoding, or a number from {least:g} to {most:g}"
    temperature = check_number("temperature", value, fits, most=most)
    if 0 < temperature < least:
        raise_error("option", name="temperature", got=temperature, fits=fits)
    return temperature


def check_cost_ratio(value: Any) -> float | None:
    """The time of a draft step divided by that of a target call, if given."""
    return None if value is None else check_number("cost_ratio", value, "a finite number >= 0, or None")


class _Texts(NamedTuple):
    """The positions that count, in the order of their texts."""

    acceptance: Float64Array
    text: IntArray  # the number of its text, from 0; positions that belong to none are texts of their own
    sequence: IntArray  # the number that it came with
    is_first: BoolArray  # whether it begins a run: it is the first of its text, or comes after one that is masked
    left: IntArray  # number of positions from this one to the end of its run


def acceptance_of(
    acceptance: Float64Array, kept: BoolArray, segment_ids: IntArray | None, temperature: float,
    cost_ratio: float | None, batch: tuple[int, ...] = (-1,), **others: Any,
) -> DraftAcceptance:  # fmt: skip
    """The result, from the acceptance at each position, flat; `others` are its private fields.

    Without numbers, each element of the batch's first axis is a text, or all positions are one if it has no other axis.
    """
    if segment_ids is None and len(batch) > 1:
        segment_ids = np.repeat(np.arange(batch[0]), math.prod(batch[1:]))
    texts = _in_texts(acceptance, kept, segment_ids)
    groups = texts.text
    is_clustered = bool(groups.size) and int(groups[-1]) > 0
    if not is_clustered:
        groups = np.arange(groups.size) // BLOCK
    by_text = _ratio(texts.acceptance, np.ones(groups.size), groups)
    mean = ExactMoments.of(texts.acceptance).mean
    sequences = None if segment_ids is None else _sequence_table(texts)
    longest = np.zeros(int(texts.text.max(initial=-1)) + 1, np.int64)
    np.maximum.at(longest, texts.text, texts.left)
    rows = [_row(k, texts, groups, mean, cost_ratio, longest) for k in range(1, _MAX_K + 1)]
    table, unit = columns_of([row for row, _ in rows]), "sequences" if is_clustered else "blocks"
    # values of long texts only are not compared with those of all texts
    is_fair = np.array([np.count_nonzero(longest[texts.text] >= k) >= _FAIR * groups.size for k in table["k"]])
    ratios = table["break_even_ratio"]
    best = None if cost_ratio is None or math.isnan(table["speedup"][0]) else _best(table["speedup"], is_fair)
    return DraftAcceptance(
        temperature=temperature, count=groups.size,
        is_clustered=is_clustered, interval_factor=by_text.factor(), n_nan=int(np.isnan(texts.acceptance).sum()),
        mean_acceptance=_acceptance_estimate(mean, by_text, groups.size, unit, is_share=temperature == 0),
        break_even_ratio=float(ratios[_best(ratios, is_fair)]), cost_ratio=cost_ratio,
        best_k=None if best is None else int(table["k"][best]),
        best_speedup=None if best is None else _speedup_estimate(*rows[best], unit),
        by_k=table, acceptance=acceptance.reshape(batch), kept=kept.reshape(batch), sequences=sequences,
        _segment_ids=segment_ids, **others,
    )  # fmt: skip


def _in_texts(acceptance: Float64Array, kept: BoolArray, segment_ids: IntArray | None) -> _Texts:
    """Put positions in the order of their texts, and remove masked positions."""
    ids = np.zeros(kept.size, np.int64) if segment_ids is None else segment_ids
    order = np.argsort(ids, kind="stable")
    ids, mask = ids[order], kept[order]
    is_new = (np.diff(ids, prepend=ids[:1] - 1) != 0) | (ids < 0)
    is_first = (is_new | ~np.append(True, mask[:-1])[: mask.size])[mask]
    first = np.flatnonzero(is_first)
    lengths = np.diff(first, append=is_first.size)
    left = np.repeat(first + lengths, lengths) - np.arange(is_first.size)
    _, text = np.unique(np.cumsum(is_new)[mask], return_inverse=True)
    return _Texts(acceptance[order][mask], text, ids[mask], is_first, left)


def _ratio(numerators: Float64Array, denominators: Float64Array, groups: IntArray) -> ExactRatio:
    """The ratio of two sums, clustered by group."""
    return ExactRatio.of(*(sums_by_segment(values, None, groups).nll for values in (numerators, denominators)))


def _acceptance_estimate(mean: float, by_text: ExactRatio, count: int, unit: str, *, is_share: bool) -> Estimate:
    """The mean acceptance, with an interval for a fraction under greedy decoding, and otherwise one for its logit."""
    if is_share and by_text.count > 1:
        return Measure(mean, by_text, unit, "share", count).estimate()
    ends = mean, mean
    if by_text.count < 2 or math.isnan(mean):
        ends = math.nan, math.nan
    elif 0 < mean < 1 and by_text.stderr:
        odds, reach = mean / (1 - mean), by_text.factor() * by_text.stderr / (mean * (1 - mean))
        low, high = (odds * exp(sign * reach) for sign in (-1, 1))
        ends = low / (1 + low), 1 / (1 + 1 / high)
    return Estimate(mean, (by_text.stderr, ends, unit))


def _speedup_estimate(row: dict[str, Any], calls: ExactRatio, unit: str) -> Estimate:
    """The speedup of calls."""
    value, stderr = row["speedup"], row["speedup_stderr"]
    return Estimate(value, (stderr, interval_above_0(value, stderr, calls.factor()), unit))


def _sequence_table(texts: _Texts) -> dict[str, Array]:
    """Columns of the table of texts that have a number."""
    sums = sums_by_segment(texts.acceptance, None, texts.sequence)
    return {"sequence": sums.sequence, "count": sums.count, "acceptance": sums.loss}


def _row(
    k: int, texts: _Texts, groups: IntArray, mean: float, cost_ratio: float | None, longest: IntArray
) -> tuple[dict[str, Any], ExactRatio]:
    """Statistics of calls with k drafted tokens, and the ratio of their tokens to the number of calls."""
    accepted, tokens, independent = np.ones(groups.size), np.ones(groups.size), 1.0
    beyond = np.append(texts.acceptance, np.ones(k))
    for ahead in range(k):
        accepted *= beyond[ahead : ahead + groups.size]
        tokens += accepted  # of positions with fewer than k ahead, a number that is not read
        independent = 1 + mean * independent
    is_start = texts.left >= k
    begins = _probability_of_calls(k, texts, accepted)[is_start]
    calls = _ratio(begins * tokens[is_start], begins, groups[is_start])
    row: dict[str, Any] = {
        "k": k,
        "n_starts": int(np.count_nonzero(is_start)),
        "n_texts": int(np.count_nonzero(longest >= k)),
        "tokens_per_call": calls.ratio,
        "tokens_per_call_stderr": calls.stderr,
        "independent_tokens": independent,
        "break_even_ratio": (calls.ratio - 1) / k,
    }
    if cost_ratio is None:
        return row, calls
    cost = k * cost_ratio + 1
    return row | {"speedup": calls.ratio / cost, "speedup_stderr": calls.stderr / cost}, calls


def _probability_of_calls(k: int, texts: _Texts, accepted: Float64Array) -> Float64Array:
    """The probability that a call begins at each position, if k tokens are drafted per call along each run.

    The first position begins one. Another does if the draft was rejected at the position before, or if that has the
    target's own token after k accepted ones. So with a the acceptance, c the probability, and A the probability of k
    accepted tokens, `c[t + 1] = 1 - a[t] * (1 - A[t - k] * c[t - k])`.
    """
    before = np.append(0.0, texts.acceptance[:-1])[: texts.acceptance.size]
    probability: list[float] = np.where(texts.is_first, 1.0, 1 - before).tolist()
    step = k + 1
    is_inside = texts.left[: max(0, len(probability) - step)] > step
    again = np.where(is_inside, accepted[: is_inside.size] * texts.acceptance[k : k + is_inside.size], 0.0)
    for t, factor in enumerate(again.tolist()):
        probability[t + step] += factor * probability[t]
    return np.array(probability)


def _best(speedups: Array, is_fair: BoolArray) -> int:
    """Index of the largest value among the k for which nearly all texts are long enough; 0 if all are nan."""
    return int(np.argmax(np.where(is_fair & ~np.isnan(speedups), speedups, -np.inf)))
