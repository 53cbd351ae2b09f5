"""A model compared with its base model: perplexities, KL divergences, changes of probability."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from tokenloss._comparison.columns import HAS_TEXTS, check_definitions, pair_columns
from tokenloss._comparison.comparisons import warn_of_zero
from tokenloss._comparison.drafts import acceptance, acceptance_of, check_cost_ratio
from tokenloss._comparison.metrics import confidence_table, score_metrics, signed_of
from tokenloss._comparison.paired import PairedLosses, why_void
from tokenloss._comparison.sketched import MIN_DRAWS, sketch_metrics
from tokenloss._comparison.tables import scores_shown
from tokenloss._core.arguments import further_divergences
from tokenloss._core.dtypes import CheckedArray, as_float_array
from tokenloss._core.errors import raise_error
from tokenloss._core.result import facts_of, formatted, nonzero, rows_of
from tokenloss._core.validation import check_axis
from tokenloss._statistics import calibration as calibrations
from tokenloss._statistics.reliability import verdict_on_calibration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal

    from tokenloss._comparison.compared_tokens import About
    from tokenloss._comparison.drafts import DraftAcceptance
    from tokenloss._core.estimate import Estimate
    from tokenloss._core.result import Shown
    from tokenloss._core.types import Array, ArrayLike, Columns, Float64Array, Kind
    from tokenloss._statistics.gates import Limit, Verdict
    from tokenloss._statistics.reliability import Calibration

# fields that describe divergences
_NOT_OF_DRAFTS = "by", "groups", "classes", "fits_better_shifted", "by_token_type", "definitions"


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Comparison(PairedLosses):
    """Result of `compare`: the metrics of a model against its base that are published for quantized models.

    A standard error is nan for fewer than two tokens and if the value is infinite or nan. Only included positions
    count; without any, all values are nan. Sequences change only the errors, which are then clustered by sequence.

    Attributes
    ----------
    definitions : str
        "exact" or "llama.cpp".
    has_targets : bool
        Whether there were targets. Without them, all metrics of losses and of the tokens' probabilities are nan.
    temperature : float
        The divisor of both models' logits, 1 by default. 0 means greedy decoding: only `acceptance` then differs from
        its value at 1.
    mean_kl : Estimate
        Mean KL divergence of the model's distribution from the base's, in nats.
    finite_mean_kl : Estimate
        Mean of the finite divergences.
    n_infinite, n_nan : int
        Number of positions whose divergence, or loss by one of the models, is infinite, or nan.
    kl_quantiles : dict
        As `delta_p_quantiles`, without 0.75 and 0.25. Those between 0 and 1 have intervals, but no standard errors: the
        ends are divergences of the ranks that the binomial distribution gives, or farther apart where the fraction of
        tokens up to the quantile varies by sequence. Where too few tokens bound an end, it is 0 or inf.
    base_left_out, left_out : float or None
        Mean probability of the classes that `classes` left out, by the base and by the model; None without `classes`.
    kl : array of float64
        KL divergence at each position in nats.
    base_top_p : array of float64
        Probability of the base's most likely class: its confidence.
    rounding : array of float64
        Two units in the last place of the base's two largest logits, in the coarser dtype of both scores (hidden states
        where there are some), in nats.
    divergences : dict of Estimate
        Means of the requested `divergences` other than "kl", by name: "reverse_kl", the KL divergence of the
        base's distribution from the model's, and "js", the Jensen-Shannon divergence, both in nats; "tv", the total
        variation, and "hellinger", the Hellinger distance, from 0 to 1.
    divergence_quantiles : dict of dict
        By the same names, quantiles as `kl_quantiles`, but without intervals.
    token_divergences : dict of array of float64
        By the same names, the value at each position.
    calibration, base_calibration : Calibration or None
        The calibration of the model and of its base, each over all of its own classes and at temperature 1; None unless
        it was requested.
    sketch : dict or None
        If the base is a sketch: its numbers of classes, "top" and "tail", and "draws_stderr", the errors that its draws
        add to the mean divergences for these texts, by name. Divergences are then estimates, and without draws lower
        bounds; quantiles are left out if there are fewer than 32 draws, and the maximum always.
    sequences : dict of 1-D arrays or None
        Columns of a table that has a row for each sequence with any included position: "sequence" (its number, in
        ascending order), "count", and means over its included positions: "loss", "base_loss", "loss_difference", "kl",
        "delta_p", "same_top", and further divergences; also the first positions at which the scores differ,
        "first_difference", and the most likely classes, "first_flip", or -1. None if no sequences were given.

    Notes
    -----
    A model is "broken" if its median divergence exceeds 1 nat, or if a single divergence is nan or exceeds both 4 nats
    and 1,000 times the median: quantization seldom does that. Without a second run of the base, "within noise"
    means that no divergence exceeds ``rounding**2 / 2 + 1e-9``, the most that such changes of logits can cause. With
    `noise`, the limits are twice its mean divergence and ten times its largest one, if these are larger.

    Examples
    --------
    >>> from tokenloss import compare
    >>> comparison = compare([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]], [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]], [0, 1])
    >>> comparison
    Comparison(mean_kl=0.06537 ± 0.0113, count=2, perplexity=1.27067, base_perplexity=1.28565, same_top=1.0000)
    >>> round(comparison.kl_quantiles[0.5], 6), comparison.delta_p.round(4)
    (0.065366, array([ 0.1217, -0.1225]))
    """

    GATES: ClassVar[tuple[str, ...]] = (*PairedLosses.GATES, "max_ece")
    _of_base = ("base", "by", "base_kind", "base_head", "files", "shape", "classes", "n_without_next", "n_ignored",
                "window", "stride", "n_context", "fits_better_shifted", "definitions", "temperature", "has_targets",
                "count", "n_sequences", "is_clustered", "base_perplexity", "base_perplexity_stderr",
                "base_calibration")  # fmt: skip

    definitions: str
    has_targets: bool
    mean_kl: Estimate
    finite_mean_kl: Estimate
    n_infinite: int
    n_nan: int
    kl_quantiles: dict[float, Estimate]
    base_left_out: float | None
    left_out: float | None
    kl: Float64Array
    base_top_p: Float64Array
    rounding: Float64Array
    temperature: float = 1.0
    divergences: dict[str, Estimate] = field(default_factory=dict)
    divergence_quantiles: dict[str, dict[float, Estimate]] = field(default_factory=dict)
    token_divergences: dict[str, Float64Array] = field(default_factory=dict)
    sketch: dict[str, Any] | None = None
    calibration: Calibration | None = None
    base_calibration: Calibration | None = None

    @staticmethod
    def _shown_of(comparisons: Mapping[str, Any]) -> Shown:
        return scores_shown(comparisons)

    @property
    def by_confidence(self) -> dict[str, Array]:
        """The table of `by` for five bins of `base_top_p`.

        "group" is the lower bound of a bin: 0.0, 0.2, 0.4, 0.6 or 0.8. Bins without positions are left out, and
        positions whose confidence is nan are in none.
        """
        return confidence_table(self)

    def acceptance(self, *, cost_ratio: float | None = None) -> DraftAcceptance:
        """Compute how many drafted tokens the base accepts in speculative decoding, at the comparison's temperature.

        Parameters
        ----------
        cost_ratio : float, optional
            Time of a draft step divided by the time of a target call, such as 0.05, for the speed-up.

        Returns
        -------
        DraftAcceptance
            The same as from `draft_acceptance`: a drafted token is accepted with probability ``1 - tv``, or for greedy
            decoding if `is_same_top`.

        Raises
        ------
        TypeError, ValueError
            If `cost_ratio` is invalid, if the comparison has no total variation, or if blocks of a `ComparisonMeter`
            contained several texts without `segment_ids`.

        Examples
        --------
        >>> from tokenloss import compare
        >>> target, draft = [[2.0, 0.0, 0.0], [0.0, 2.0, 1.0]], [[1.0, 0.0, 0.0], [0.0, 2.0, 2.0]]
        >>> compare(target, draft, divergences=("tv",)).acceptance().acceptance.round(4)
        array([0.7891, 0.7764])
        """
        cost_ratio = check_cost_ratio(cost_ratio)
        if "tv" not in self.token_divergences:
            fits = "needs the total variation: ask for divergences=('tv',), or in compare_files for temperature="
            raise_error("not for", name="acceptance", fits=fits)
        if self.kept.ndim == 1 and HAS_TEXTS in self._signed:
            fits = "needs the text of each position: give segment_ids to ComparisonMeter.update"
            raise_error("not for", name="acceptance", fits=fits)
        columns = {"tv": self.token_divergences["tv"].reshape(-1), "is_same_top": self.is_same_top.reshape(-1)}
        own: Sequence[Any] = self._about, self._signed
        about, signed = ({key: one[key] for key in one if key not in _NOT_OF_DRAFTS} for one in own)
        drafts = acceptance_of(
            acceptance(columns, self.temperature), self.kept.reshape(-1), self._segment_ids, self.temperature,
            cost_ratio, self.kept.shape, _about=about, _signed=signed,
        )  # fmt: skip
        if "sequences" in about:  # with the numbers that they have in their files
            pairs = zip(rows_of(drafts.sequences or {}), about["sequences"], strict=True)
            about["sequences"] = [row | {key: of[key] for key in ("file", "sequence")} for row, of in pairs]
        return drafts

    @property
    def _is_lower_bound(self) -> bool:
        return self.sketch is not None and not self.sketch["tail"]

    def _why_unknown(self, limit: Limit) -> str:
        tail = self.sketch["tail"] if self.sketch else 0
        is_noisy = limit.fraction is not None and 0 < tail < MIN_DRAWS
        return f"{tail} draws distort quantiles, and {MIN_DRAWS} do not" if is_noisy else ""

    def _signature_fields(self) -> dict[str, Any]:
        temperature = None if self.temperature == 1 else f"{self.temperature:g}"
        return super()._signature_fields() | {"temperature": temperature}

    def _statistics(self) -> dict[str, Any]:
        values = super()._statistics()
        if self.temperature == 1:
            del values["temperature"]
        if self.sketch is None:
            del values["sketch"]
        for name in ("calibration", "base_calibration"):
            own = values.pop(name)
            values |= {} if own is None else {name: facts_of(own)}
        for name in ("divergences", "divergence_quantiles", "token_divergences"):
            del values[name]
        for name, mean in self.divergences.items():
            values |= {f"mean_{name}": mean, f"{name}_quantiles": self.divergence_quantiles[name]}
        return values

    def _grouped(self) -> dict[str, Array]:
        return super()._grouped() | self.token_divergences

    def _facts(self) -> dict[str, Any]:
        return super()._facts() | {"by_confidence": rows_of(self.by_confidence)}

    def _rows(self) -> list[dict[str, Any]]:
        (row,) = super()._rows()
        for name in ("base_calibration", "calibration"):
            row |= {f"{name}_{key}": value for key, value in row.get(name, {}).items()}
        return [row]

    def _verdict(self, limit: Limit, tail: float) -> Verdict:
        if limit.gate == "max_ece":
            return verdict_on_calibration(self.calibration, limit, tail, why_void(self, limit.gate))
        return super()._verdict(limit, tail)

    def _arrays(self) -> dict[str, Array]:
        return super()._arrays() | self.token_divergences

    def _main(self) -> dict[str, str]:
        names = ("n_sequences", "n_infinite", "n_nan")
        counts = {"count": str(self.count), **nonzero(**{name: getattr(self, name) for name in names})}
        main = {"mean_kl": formatted(self.mean_kl, self.mean_kl.stderr, 4), **counts}
        target_metrics = ("perplexity", "base_perplexity") if self.has_targets else ()
        main |= {name: formatted(getattr(self, name)) for name in target_metrics}
        main["same_top"] = f"{self.same_top:.4f}"
        return main | ({"divergences": str([*self.divergences])} if self.divergences else {})


Comparison.__module__ = "tokenloss.results"


def compare(
    base_logits: ArrayLike,
    logits: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    kind: Kind | None = None,
    base_kind: Kind | None = None,
    classes: int | None = None,
    axis: int = -1,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    definitions: Literal["exact", "llama.cpp"] = "exact",
    divergences: Sequence[str] = ("kl",),
    calibration: bool = False,
    workers: int | None = None,
) -> Comparison:
    """Compare a model, such as a quantized one, with its base, by the metrics usually published for quantized models.

    Parameters
    ----------
    base_logits, logits : arrays of one shape (..., V)
        Logits (unnormalized log-probabilities), or scores of another `kind`: float16, bfloat16, float32 or float64, of
        any byte order and memory layout; anything with `__dlpack__` on the CPU (torch, JAX) is read without a copy.
        Lists are converted.
    targets : array of integers, optional
        Class ids, in the shape of `logits` without its class axis. Without targets there are divergences, but no
        losses.
    kind : {"logits", "log_probs", "probs"}, optional
        What `logits` contains: logits (the default, with a `KindWarning` if they look like probabilities), natural
        log-probabilities or probabilities. In the latter two cases, each row is normalized, since rounding leaves the
        sum of its probabilities only near 1.
    base_kind : {"logits", "log_probs", "probs"}, optional
        What `base_logits` contains; `kind` by default.
    classes : int, optional
        Number of classes to compare, from the first, if vocabularies differ, such as by padding: both models'
        distributions are normalized over these classes, targets must be among them, and `Comparison.left_out` shows
        what is left out. By default, both models must have the same number of classes.
    axis : int, default -1
        Axis of the classes.
    ignore_index : int or None, default -100
        Target value that marks positions to ignore (padding); their logits are never read.
    where : array of bool, optional
        Mask of the positions to include, broadcast over the batch; the logits of others are never read.
    segment_ids : array of integers, optional
        Number of the sequence of each position, broadcast over the batch, in any order: standard errors are then
        clustered by sequence. Positions with negative numbers belong to no sequence: each is a group of its own.
    cu_seqlens : array of integers, optional
        Bounds of packed sequences, such as [0, 7, 12] for two of 7 and 5 positions of ``targets.ravel()``.
    definitions : {"exact", "llama.cpp"}, default "exact"
        Formulas of the metrics. "exact": the base's distribution is ``softmax(base_logits)``, and divergences are sums
        over all classes. "llama.cpp", as its perplexity tool prints them: `base_logits` are log-probabilities, used as
        given (the probabilities in its files do not quite add up to 1, and `classes` may leave out a tenth of the
        probability), and divergences are sums only over log-probabilities above -16.
    divergences : sequence of {"kl", "reverse_kl", "js", "tv", "hellinger"}, default ("kl",)
        Divergences of each position, as `kl_divergence` defines them. "kl" is always computed: the others need its
        logsumexps. The others take a second pass, over rows in the cache.
    calibration : bool, default False
        Whether to measure the calibration of both models, too, as the function `calibration` does; it needs targets.
    workers : int, optional
        Number of threads, as in `cross_entropy`. The result is bitwise identical for any number.

    Returns
    -------
    Comparison
        Arrays have the batch's shape. For logits, `nll` is bitwise equal to ``cross_entropy(..., reduction="none")``;
        with "exact", so is `base_nll`, and `kl` is bitwise equal to ``kl_divergence(..., reduction="none")``.

    Raises
    ------
    IndexError
        If an included target is out of range; the message names its position and value.
    TypeError, ValueError
        If an argument is invalid; the message names the argument, the value given and what is accepted. Also if a
        probability is outside [0, 1] by more than 1e-3, or a row of probabilities or log-probabilities is far from
        normalized: if the log of their sum is beyond +-0.1 (0.5 in half precision).

    See Also
    --------
    ComparisonMeter : The same, block by block.
    kl_divergence : Only the divergence.

    Notes
    -----
    These are the metrics of llama.cpp's ``llama-perplexity --kl-divergence``. Standard errors of perplexities, of their
    ratio and difference, and of the root mean square are first-order (the delta method); for the ratio and the
    difference, they are computed from each token's difference in loss. An infinite loss, such as from a probability of
    0, makes its perplexity infinite; a nan makes all metrics of its kind nan. Only the arrays of the result grow with
    the number of positions.

    Tokens of one document are alike, so an error that treats them as independent is often too small. `segment_ids` or
    `cu_seqlens` cluster it by sequence (Miller, arXiv:2411.00640): with S the sum over a sequence of n tokens of, say,
    their differences in loss, and G sequences, the error of the mean ``mu`` is ``sqrt(G / (G - 1) * sum((S - mu *
    n)**2)) / sum(n)``. A token outside of any sequence is a sequence of one. The tokens of a single sequence are
    treated as independent. Each row of a padded batch (N, T) is a sequence by ``segment_ids=np.arange(N)[:, None]``.

    Examples
    --------
    >>> from tokenloss import compare
    >>> comparison = compare([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]], [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]], [0, 1])
    >>> round(comparison.perplexity_ratio, 6), round(comparison.perplexity_ratio.stderr, 6)
    (0.988349, 0.15452)
    >>> round(comparison.mean_kl, 6), comparison.same_top
    (0.065366, 1.0)

    Further divergences:

    >>> comparison = compare(
    ...     [[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]], [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]], [0, 1], divergences=("tv", "js")
    ... )
    >>> round(comparison.divergences["tv"], 6), round(comparison.divergences["js"], 6)
    (0.130339, 0.015897)

    Two documents of two tokens; within each, the two models' losses differ by similar amounts:

    >>> base = [[[1.0, 0.0], [1.2, 0.0]], [[0.5, 0.0], [0.3, 0.0]]]
    >>> logits = [[[0.6, 0.0], [0.8, 0.0]], [[0.4, 0.0], [0.2, 0.0]]]
    >>> tokens = compare(base, logits, [[0, 0], [0, 0]])
    >>> documents = compare(base, logits, [[0, 0], [0, 0]], segment_ids=[[0], [1]])
    >>> round(tokens.log_perplexity_ratio.stderr, 4), round(documents.log_perplexity_ratio.stderr, 4)
    (0.0218, 0.0373)
    """
    base: Any = CheckedArray(*as_float_array("base_logits", base_logits))
    shape = base.array.shape
    axis = check_axis("base_logits", len(shape), axis)
    batch = shape[:axis] + shape[axis + 1 :]
    wanted = further_divergences(divergences, check_definitions(definitions))
    if calibration and targets is None:
        raise_error("not for", name="calibration", fits="needs targets")
    columns = pair_columns(
        base, {"logits": logits}, targets, definitions=definitions, divergences=wanted, kind=kind, base_kind=base_kind,
        classes=classes, axis=axis, ignore_index=ignore_index, where=where, segment_ids=segment_ids,
        cu_seqlens=cu_seqlens, workers=workers,
    )  # fmt: skip
    signed = signed_of(base, logits, targets, columns["logits"], classes, kind, base_kind)
    comparison = comparison_of(definitions, columns["logits"], batch, signed)
    if calibration:
        labels: Any = targets
        numbers = columns["logits"].get("segment_ids")
        options: dict[str, Any] = {"axis": axis, "ignore_index": ignore_index, "where": where, "workers": workers}
        options["segment_ids"] = None if numbers is None else numbers.reshape(batch)
        own, base_fit = (
            calibrations.calibration(scores, labels, kind=of or "logits", **options)
            for scores, of in ((logits, kind), (base_logits, base_kind or kind))
        )
        comparison = replace(comparison, calibration=own, base_calibration=base_fit)
    return warn_of_zero(comparison, kind, base_kind or kind)


def described(comparison: Comparison, about: About, signed: dict[str, Any]) -> Comparison:
    """The comparison with facts about its files, and further fields of its signature."""
    return replace(comparison, _about=about, _signed=comparison._signed | signed)


def comparison_of(
    definitions: str, columns: Columns, batch: tuple[int, ...] = (-1,), signed: dict[str, Any] | None = None,
    temperature: float = 1.0, drawn: tuple[int, int] | None = None,
) -> Comparison:  # fmt: skip
    """The comparison from columns, whose arrays get the shape of the batch; `signed` are fields of its signature.

    `drawn` are the numbers of likely and of drawn classes, if the base is a sketch.
    """
    metrics = score_metrics(columns, batch)
    if drawn is not None:
        metrics |= sketch_metrics(columns, metrics, *drawn)
    signed = {"definitions": None if definitions == "exact" else definitions} | (signed or {})
    signed |= {"ids": signed["ids"].total} if "ids" in signed else {}
    signed |= {"classes": None} if metrics["left_out"] is None else {}  # all classes
    return Comparison(definitions=definitions, **metrics, temperature=temperature, _signed=signed)
