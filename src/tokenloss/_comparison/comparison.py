"""A model compared with its base model: perplexities, KL divergences, changes of probability."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._comparison.columns import OF_TARGETS, check_definitions, join, new_columns, pair_columns, share
from tokenloss._comparison.comparisons import Comparisons, warn_of_zero
from tokenloss._comparison.figures import check_groups, confidence_table, figures_of, group_table, signed_of
from tokenloss._comparison.paired import PairedLosses
from tokenloss._comparison.tables import scores_shown
from tokenloss._core.dtypes import CheckedArray, as_float_array
from tokenloss._core.errors import raise_error
from tokenloss._core.result import figure, nonzero, rows_of
from tokenloss._core.signature import merged_parts
from tokenloss._core.validation import check_axis

if TYPE_CHECKING:
    from typing import Literal

    from tokenloss._core.result import Shown
    from tokenloss._core.types import Array, ArrayLike, Columns, Float64Array, Kind


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(PairedLosses):
    """Result of `compare`: the figures of a model against its base that are published for quantised models.

    Each ``*_stderr`` is the standard error of the figure before it: nan for less than two tokens and where the figure
    is infinite or nan. All figures are of the included positions, and nan if there are none. With sequences, standard
    errors are clustered by sequence, while all other figures stay as they are.

    Attributes
    ----------
    definitions : str
        "exact" or "llama.cpp".
    has_targets : bool
        Whether there were targets. Without them, all figures of losses and of the tokens' probabilities are nan.
    mean_kl, mean_kl_stderr : float
        Mean KL divergence of the model's distribution from the base's, in nats.
    finite_mean_kl, finite_mean_kl_stderr : float
        Mean of the finite divergences.
    n_infinite, n_nan : int
        Number of positions whose divergence, or loss by one of the models, is infinite, or nan.
    kl_quantiles : dict
        As `delta_p_quantiles`, without 0.75 and 0.25.
    kl_quantile_intervals : dict of tuples
        By fraction, without 0.0 and 1.0: bounds of the 95 % confidence interval of the quantile. They are divergences
        of the ranks that the binomial distribution gives, or farther apart where the fraction of tokens up to the
        quantile varies by sequence. Where too few tokens bound an end, it is 0 or inf.
    base_left_out, left_out : float or None
        Mean probability of the classes that `classes` left out, by the base and by the model; None if there are none.
    kl : array of float64
        KL divergence at each position in nats.
    base_top_p : array of float64
        Probability of the base's most likely class: its confidence.
    sequences : dict of 1-D arrays or None
        Columns of a table that has a row for each sequence with any included position: "sequence" (its number, in
        ascending order), "count", and means over its included positions: "loss", "base_loss", "loss_difference", "kl",
        "delta_p" and "same_top". None if no sequences were given.

    Examples
    --------
    >>> from tokenloss import compare
    >>> comparison = compare([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]], [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]], [0, 1])
    >>> comparison
    Comparison(mean_kl=0.06537 ± 0.0113, count=2, perplexity=1.27067, base_perplexity=1.28565, same_top=1.0000)
    >>> round(comparison.kl_quantiles[0.5], 6), comparison.delta_p.round(4)
    (0.065366, array([ 0.1217, -0.1225]))
    """

    _of_base = ("base", "base_kind", "base_head", "files", "shape", "classes", "n_without_next", "n_ignored",
                "fits_better_shifted", "definitions", "has_targets", "count", "n_sequences", "is_clustered",
                "base_perplexity", "base_perplexity_stderr")  # fmt: skip

    definitions: str
    has_targets: bool
    mean_kl: float
    mean_kl_stderr: float
    finite_mean_kl: float
    finite_mean_kl_stderr: float
    n_infinite: int
    n_nan: int
    kl_quantiles: dict[float, float]
    kl_quantile_intervals: dict[float, tuple[float, float]]
    base_left_out: float | None
    left_out: float | None
    kl: Float64Array
    base_top_p: Float64Array

    def by(self, groups: ArrayLike) -> dict[str, Array]:
        """Means over groups of positions, such as types of tokens.

        Parameters
        ----------
        groups : array of integers, bool or text
            Label of the group of each position, broadcast over the batch.

        Returns
        -------
        dict of 1-D arrays
            Columns of a table that has a row for each group with any included position: "group" (its label, in
            ascending order), "count", and means over its included positions: "loss", "base_loss", "loss_difference",
            "loss_difference_stderr", "kl", "kl_stderr", "delta_p" and "same_top". With sequences, standard errors are
            clustered by sequence, unless the group has tokens of a single one.

        Raises
        ------
        TypeError, ValueError
            If `groups` has another dtype or shape.

        Examples
        --------
        >>> import numpy as np
        >>> from tokenloss import compare
        >>> comparison = compare(np.zeros((3, 2)), [[0.0, 0.0], [0.0, 1.0], [0.0, 2.0]], [0, 0, 1])
        >>> table = comparison.by(["word", "number", "word"])
        >>> table["group"].tolist(), table["count"].tolist(), table["kl"].round(4).tolist()
        (['number', 'word'], [1, 2], [0.1201, 0.2169])
        """
        return group_table(self, check_groups(groups, self.kept.shape), self.kept)

    @property
    def by_confidence(self) -> dict[str, Array]:
        """The table of `by` for five bins of `base_top_p`.

        "group" is the lower bound of a bin: 0.0, 0.2, 0.4, 0.6 or 0.8. Bins without positions are left out, and
        positions whose confidence is nan are in none.
        """
        return confidence_table(self)

    def _figures(self) -> dict[str, Any]:
        """All figures, and the table of confidence."""
        return super()._figures() | {"by_confidence": rows_of(self.by_confidence)}

    @staticmethod
    def _shown_of(comparisons: Mapping[str, Any]) -> Shown:
        return scores_shown(comparisons)

    def _main(self) -> dict[str, str]:
        names = ("n_sequences", "n_infinite", "n_nan")
        counts = {"count": str(self.count), **nonzero(**{name: getattr(self, name) for name in names})}
        main = {"mean_kl": figure(self.mean_kl, self.mean_kl_stderr, 4), **counts}
        of_targets = ("perplexity", "base_perplexity") if self.has_targets else ()
        main |= {name: figure(getattr(self, name)) for name in of_targets}
        return main | {"same_top": f"{self.same_top:.4f}"}


Comparison.__module__ = "tokenloss.results"


class ComparisonMeter:
    """Compares models with their base block by block, where their logits are not in memory at once.

    Blocks may be what an engine computes, or parts of arrays on the disk, as `numpy.load` maps them with `mmap_mode`.
    It keeps 42 bytes for each position, 8 more for each that comes with the number of its sequence, and 16 more where
    `classes` leaves some out; of each further candidate 25, and 8 where it has more than these classes. Blocks come in
    the order of the text and have any size: no bit of the result depends on how a text is split, or a sequence. Only
    one thread may update it at a time.

    Parameters
    ----------
    definitions : {"exact", "llama.cpp"}, default "exact"
        Formulas of the figures, as in `compare`.
    classes : int, optional
        Number of classes to compare, from the first, where vocabularies differ, as in `compare`.
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
    Comparison(mean_kl=0.07430 ± 0.0261, count=4, perplexity=1.95993, base_perplexity=3.00000, same_top=0.5000)

    Several candidates, each as if it were compared alone:

    >>> meter = ComparisonMeter()
    >>> meter.update(np.zeros((2, 3)), {"q4": [[1, 0, 0], [0, 1, 0]], "q8": [[0.1, 0, 0], [0, 0.1, 0]]}, [0, 1])
    >>> {name: round(comparison.mean_kl, 4) for name, comparison in meter.results().items()}
    {'q4': 0.1195, 'q8': 0.0011}
    """

    __module__ = "tokenloss"

    def __init__(
        self,
        *,
        definitions: Literal["exact", "llama.cpp"] = "exact",
        classes: int | None = None,
        ignore_index: int | None = -100,
        workers: int | None = None,
    ) -> None:
        self._definitions = check_definitions(definitions)
        self._options: dict[str, Any] = {"classes": classes, "ignore_index": ignore_index, "workers": workers}
        self._parts: dict[str, list[Columns]] = {}
        self._signed: dict[str, dict[str, Any]] = {}  # of each candidate, fields of its signature

    def update(
        self,
        base_logits: ArrayLike,
        logits: ArrayLike | Mapping[str, ArrayLike],
        targets: ArrayLike | None,
        *,
        kind: Kind = "logits",
        base_kind: Kind | None = None,
        axis: int = -1,
        where: ArrayLike | None = None,
        segment_ids: ArrayLike | None = None,
    ) -> None:
        """Compare the next positions.

        Sequences have the same numbers in all calls, so that one may go on in the next block. Positions without numbers
        belong to none. Several candidates are a mapping of `logits` by name, with the same names in all calls.

        Parameters
        ----------
        base_logits, logits : arrays of one shape (..., V)
            Logits (unnormalised log-probabilities), or what `kind` says: float16, bfloat16, float32 or float64, of any
            byte order and memory layout; anything with `__dlpack__` on the CPU (torch, JAX) is read without a copy.
            Lists are converted.
        targets : array of integers or None
            Class ids, of the shape of `logits` without its class axis. None in all calls, or in none.
        kind : {"logits", "log_probs", "probs"}, default "logits"
            What `logits` holds: logits, natural log-probabilities or probabilities. The latter two are divided by the
            sum of their row's probabilities, since rounding leaves it near 1.
        base_kind : {"logits", "log_probs", "probs"}, optional
            What `base_logits` holds; `kind` by default.
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
        others = logits if isinstance(logits, Mapping) else {"logits": logits}
        names = list(self._parts or others)
        if not names or set(names) != set(others):
            fits = "a mapping with the same names in all calls" if names else "an array, or a mapping of arrays"
            raise_error("option", name="logits", got=list(others), fits=f"{fits}: {names}" if names else fits)
        self._check_targets(targets is not None)
        columns = pair_columns(
            base_logits, others, targets, definitions=self._definitions, kind=kind, base_kind=base_kind, axis=axis,
            where=where, segment_ids=segment_ids, **self._options,
        )  # fmt: skip
        for name in names:
            self._parts.setdefault(name, []).append(columns[name])
            of_mask = columns[name]["kept"], self._options["classes"]
            signed = signed_of(base_logits, others[name], targets, *of_mask, kind, base_kind)
            self._signed[name] = merged_parts(self._signed.get(name, {}), signed)

    def merge(self, other: ComparisonMeter) -> None:
        """Add the positions of another meter, as if they were the next ones of the text.

        Sequences of the same number are one, as those of several calls of `update` are. So the blocks of a text may be
        compared by several processes, whose meters are pickled and merged in the order of the text.

        Parameters
        ----------
        other : ComparisonMeter
            The meter to add, with the same `definitions` and `classes`, of the same candidates; it does not change.

        Raises
        ------
        TypeError
            If it is not a `ComparisonMeter`.
        ValueError
            If it does not fit; the meter is then unchanged.

        Examples
        --------
        >>> import numpy as np
        >>> from tokenloss import ComparisonMeter
        >>> meters = ComparisonMeter(), ComparisonMeter()
        >>> for meter, shift in zip(meters, (0.5, 1.0)):
        ...     meter.update(np.zeros((2, 3)), [[shift, 0, 0], [0, shift, 0]], [0, 1])
        >>> meters[0].merge(meters[1])
        >>> meters[0].result()
        Comparison(mean_kl=0.07430 ± 0.0261, count=4, perplexity=1.95993, base_perplexity=3.00000, same_top=0.5000)
        """
        if not isinstance(other, ComparisonMeter):
            raise_error("type", name="other", got=type(other).__name__, fits="a ComparisonMeter")
        for name, mine, theirs in (
            ("definitions", self._definitions, other._definitions),
            ("classes", self._options["classes"], other._options["classes"]),
        ):
            if mine != theirs:
                raise_error("option", name=f"{name} of other", got=theirs, fits=f"{mine!r}, as this meter's")
        if not other._parts:
            return
        if self._parts and other._parts.keys() != self._parts.keys():
            fits = f"those of this meter: {[*self._parts]}"
            raise_error("option", name="the names of other", got=[*other._parts], fits=fits)
        self._check_targets(OF_TARGETS[0] in next(iter(other._parts.values()))[0])
        for name, parts in other._parts.items():
            self._parts[name] = [*self._parts.get(name, ()), *parts]
            self._signed[name] = merged_parts(self._signed.get(name, {}), other._signed[name])

    def _check_targets(self, are_given: bool) -> None:
        """Refuse targets after blocks without them, and the reverse."""
        for first, *_ in self._parts.values():
            if (OF_TARGETS[0] in first) != are_given:
                raise_error("sometimes", name="targets")

    def __eq__(self, other: object) -> bool:
        """Whether both compared the same positions, however these were split into blocks."""
        if not isinstance(other, ComparisonMeter):
            return NotImplemented
        if (self._definitions, self._options["classes"]) != (other._definitions, other._options["classes"]):
            return False
        mine, theirs = ({name: join(parts) for name, parts in meter._parts.items()} for meter in (self, other))
        return mine.keys() == theirs.keys() and all(
            mine[name].keys() == theirs[name].keys()
            and all(np.array_equal(mine[name][one], theirs[name][one], equal_nan=True) for one in mine[name])
            for name in mine
        )

    def result(self) -> Comparison:
        """Figures of all positions so far.

        Returns
        -------
        Comparison
            With arrays of one dimension.

        Raises
        ------
        ValueError
            If there are several candidates.
        """
        if len(self._parts) > 1:
            raise_error("candidates", got=len(self._parts))
        return next(iter(self.results().values()), comparison_of(self._definitions, new_columns(0)))

    def results(self) -> Comparisons[Comparison]:
        """Figures of all positions so far, of each candidate.

        Returns
        -------
        Comparisons
            A dict of `Comparison` by name; "logits" is the name of a candidate that came as an array. Arrays of the
            base are shared.
        """
        comparisons: Comparisons[Comparison] = Comparisons()
        first: Columns = {}
        for name, parts in self._parts.items():
            columns = share(join([new_columns(0), *parts]), first)
            first = first or columns
            comparisons[name] = comparison_of(self._definitions, columns, signed=self._signed[name])
        return comparisons


def compare(
    base_logits: ArrayLike,
    logits: ArrayLike,
    targets: ArrayLike | None,
    *,
    kind: Kind = "logits",
    base_kind: Kind | None = None,
    classes: int | None = None,
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
        Logits (unnormalised log-probabilities), or what `kind` says: float16, bfloat16, float32 or float64, of any byte
        order and memory layout; anything with `__dlpack__` on the CPU (torch, JAX) is read without a copy. Lists are
        converted.
    targets : array of integers or None
        Class ids, of the shape of `logits` without its class axis. With None there are divergences, but no losses.
    kind : {"logits", "log_probs", "probs"}, default "logits"
        What `logits` holds: logits, natural log-probabilities or probabilities. The latter two are divided by the sum
        of their row's probabilities, since rounding leaves it near 1.
    base_kind : {"logits", "log_probs", "probs"}, optional
        What `base_logits` holds; `kind` by default.
    classes : int, optional
        Number of classes to compare, from the first, where vocabularies differ, say in padding: both models'
        distributions are of these alone (normalised anew), targets are among them, and `Comparison.left_out` tells what
        is left out. By default both must have the same number.
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
        given (the probabilities in its files do not quite add up to 1, and `classes` may leave out a tenth), and
        divergences are sums over those above -16.
    workers : int, optional
        Number of threads, as in `cross_entropy`. No bit of the result depends on it.

    Returns
    -------
    Comparison
        With arrays of the batch's shape. Of logits, `nll` has the bits of ``cross_entropy(..., reduction="none")``; for
        "exact" so has `base_nll`, and `kl` has the bits of ``kl_divergence(..., reduction="none")``.

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
    difference from the tokens' differences of loss. An infinite loss, as of a probability of 0, makes its perplexity
    infinite; a nan makes all figures of its kind nan. Only the arrays of the result grow with the number of positions.

    Tokens of one document are alike, so an error that takes them as independent is often too small. `segment_ids` or
    `cu_seqlens` cluster it by sequence (Miller, arXiv:2411.00640): with S the sum over a sequence of n tokens of, say,
    their differences of loss, and G sequences, the error of the mean ``mu`` is ``sqrt(G / (G - 1) * sum((S - mu *
    n)**2)) / sum(n)``. A token outside of any sequence is a sequence of one. The tokens of a single sequence are taken
    as independent. Each row of a padded batch (N, T) is a sequence by ``segment_ids=np.arange(N)[:, None]``.

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
    """
    base: Any = CheckedArray(*as_float_array("base_logits", base_logits))
    shape = base.array.shape
    axis = check_axis("base_logits", len(shape), axis)
    batch = shape[:axis] + shape[axis + 1 :]
    columns = pair_columns(
        base, {"logits": logits}, targets, definitions=check_definitions(definitions), kind=kind, base_kind=base_kind,
        classes=classes, axis=axis, ignore_index=ignore_index, where=where, segment_ids=segment_ids,
        cu_seqlens=cu_seqlens, workers=workers,
    )  # fmt: skip
    signed = signed_of(base, logits, targets, columns["logits"]["kept"], classes, kind, base_kind)
    return warn_of_zero(comparison_of(definitions, columns["logits"], batch, signed), kind, base_kind or kind)


def comparison_of(
    definitions: str, columns: Columns, batch: tuple[int, ...] = (-1,), signed: dict[str, Any] | None = None
) -> Comparison:
    """The comparison of columns, whose arrays get the shape of the batch; `signed` are fields of its signature."""
    figures = figures_of(columns, batch)
    signed = {"definitions": None if definitions == "exact" else definitions} | (signed or {})
    signed |= {"classes": None} if figures["left_out"] is None else {}  # all classes
    return Comparison(definitions=definitions, **figures, _signed=signed)
