"""Results of evaluations: of one shard, as stored in a checkpoint, and of all shards."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from tokenloss._core.advice import void_of
from tokenloss._core.errors import raise_error
from tokenloss._core.estimate import Estimate
from tokenloss._core.result import NamedResults, columns_of
from tokenloss._core.signature import IdsHash, differing_fields, joined_signature
from tokenloss._evaluation.checkpoint import record
from tokenloss._evaluation.score_tables import evaluations_shown, shown, verdict
from tokenloss._evaluation.sequences import (
    NO_SEQUENCES,
    SequenceColumns,
    Sources,
    greedy_by_segment,
    joined,
    joined_groups,
    joined_tokens,
)
from tokenloss._statistics.gates import Gated, GatedResult, independent_note, verdict_on
from tokenloss._statistics.groups import check_groups, columns_of_groups, rows_of_sequences
from tokenloss._statistics.meter import LossMeter, LossMetrics
from tokenloss._statistics.reliability import verdict_on_calibration
from tokenloss._statistics.tables import calibration_tables
from tokenloss.formats.responses import Failed
from tokenloss.formats.rounding import Rounding

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenloss._core.result import Shown
    from tokenloss._core.types import Array, ArrayLike, Columns
    from tokenloss._evaluation.sequences import GroupMeters
    from tokenloss._statistics.estimates import Measure, Method
    from tokenloss._statistics.gates import Limit, Verdict
    from tokenloss._statistics.reliability import Calibration


# the gates that `check` takes, and how their statistics are estimated
_METHODS: dict[str, Method] = {"max_perplexity": "exp", "max_loss": "mean", "min_greedy_accuracy": "share"}
_MIN_SHIFT_SAMPLE = 64  # rows
_MIN_SHIFT_Z = 4  # standard errors, since the losses of random logits vary


@record
class TokenLoss(NamedTuple):
    """A token and its loss, as it is listed among the highest."""

    row: int | None  # None of responses
    sequence: int | None  # None of a token that belongs to none, as is its position
    position: int | None
    target: int
    text: str | None
    nll: float

    @property
    def sort_key(self) -> float:
        """The loss; nan counts as infinite."""
        return math.inf if math.isnan(self.nll) else self.nll


@record
@dataclasses.dataclass(frozen=True)
class ShiftSample:
    """A sample of rows: how much lower their losses are if each predicts the target of the row beside it (the gain).

    That is the next row, or where targets are shifted the one before.
    """

    rows: int = 0
    gain: float = 0.0
    squares: float = 0.0  # of the gains

    def __add__(self, other: ShiftSample) -> ShiftSample:
        """Join two samples."""
        return ShiftSample(self.rows + other.rows, self.gain + other.gain, self.squares + other.squares)

    @property
    def fits_better(self) -> bool:
        """True if the mean gain exceeds ln 4 nats, and the gain four standard errors of it."""
        least = max(self.rows * math.log(4), _MIN_SHIFT_Z * math.sqrt(max(self.squares, 0)))
        return self.rows >= _MIN_SHIFT_SAMPLE and self.gain > least


@record
class ResponseFigures(NamedTuple):
    """Results of a file of responses other than losses."""

    dialect: str
    part: str
    n_responses: int  # choices, those without any token to score among them
    n_without_number: int  # tokens
    n_sentinels: int  # tokens
    n_greedy_known: int  # tokens that are known to be greedy or not
    n_short_lists: int
    n_uncovered_bytes: int  # of their texts, in no token
    rounding: Rounding
    failed: list[Failed]
    sources: Sources  # of each sequence that has a token to score


@record
class ShardResult(NamedTuple):
    """Result of a shard."""

    meter: LossMeter  # of all tokens but those in `split`
    n_ignored: int
    greedy: LossMeter  # for each token for which it is known: 1 if it is the likeliest class, else 0; not of `split`
    highest_loss_tokens: list[TokenLoss]
    sequences: SequenceColumns = NO_SEQUENCES
    split: SequenceColumns = NO_SEQUENCES  # the tokens of sequences that go on in other shards
    shift_sample: ShiftSample = ShiftSample()
    responses: ResponseFigures | None = None  # of a file of responses
    rms: tuple[float, ...] = ()  # root mean squares of a sample of hidden states
    n_nan: int = 0  # tokens whose loss is nan
    n_infinite: int = 0
    ids_sum: int = 0  # the hash of the class ids that are scored; 0 of responses
    ids_ends: Array = NO_SEQUENCES.ids  # the ends in the hash of sequences that continue in other shards
    groups: GroupMeters | None = None
    calibrated: Columns | None = None

    @property
    def n_tokens(self) -> int:
        """The number of tokens."""
        return self.meter.count + len(self.split.ids)

    def meters(self) -> tuple[LossMeter, LossMeter, SequenceColumns]:
        """Meters of all tokens' losses and of whether they are greedy, and sums over the sequences in `split`."""
        meter, greedy, sequences = self.meter + LossMeter(), self.greedy + LossMeter(), self.split.summed()
        meter.update(sequences)
        greedy.update(greedy_by_segment(self.split.is_greedy, self.split.ids))
        return meter, greedy, SequenceColumns.of(sequences)

    @classmethod
    def total(cls, parts: Sequence[ShardResult], top: int = 0, by: str | None = None) -> ShardResult:
        """The result of all parts in the order of the text, without the fields that only responses have."""
        ids_hash = IdsHash.from_parts(parts)
        groups, splits = joined_groups(((part.groups, part.split) for part in parts), by)
        tokens = (token for part in parts for token in part.highest_loss_tokens)
        return cls(
            sum((part.meter for part in parts), LossMeter()),
            sum(part.n_ignored for part in parts),
            sum((part.greedy for part in parts), LossMeter()),
            sorted(tokens, key=lambda token: -token.sort_key)[:top],
            joined(NO_SEQUENCES, (part.sequences for part in parts)),
            joined(NO_SEQUENCES, splits),
            sum((part.shift_sample for part in parts), ShiftSample()),
            rms=tuple(rms for part in parts for rms in part.rms),
            n_nan=sum(part.n_nan for part in parts),
            n_infinite=sum(part.n_infinite for part in parts),
            ids_sum=ids_hash.total,
            ids_ends=ids_hash.ends(),
            groups=groups,
            calibrated=joined_tokens((part.calibrated for part in parts), are_numbered=True),
        )


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(LossMetrics, GatedResult):
    """Result of `evaluate`, which has the statistics of `LossMeter`, such as `loss` and `perplexity`.

    Attributes
    ----------
    meter : LossMeter
        Exact sums over all tokens: loss, standard error, perplexity and the like.
    sequences : dict of 1-D arrays
        A table of the sequences, by column: `file` (number of the file, from 0; -1 where several hold a part),
        `sequence`, `count`, `nll`, `loss`, `perplexity` and `is_greedy`. For responses also `line`, `choice`,
        `is_greedy_known` and `custom_id`. With a tokenizer also `n_bytes` and `bits_per_byte`.
    figures : dict
        All that ``tokenloss score --format json`` prints: values of all tokens, of each file and of each sequence, and
        the tokens and sequences of the highest losses.

    Notes
    -----
    Evaluations of parts add up with ``+`` and ``sum``, or thousands of them with `of_parts`, even after pickle has
    brought them from other machines. The result is bitwise identical to that of one call on all files, or on all
    blocks, in this order, except that no last row predicts the first id of another part if targets are shifted, and
    that for blocks, ``figures["fits_better_shifted"]`` comes from a sample of each part. The numbers of files continue,
    and so do rows and sequences of blocks without segment ids. Both must have the same kind of scores, number of
    classes and options, and either both or neither must have lengths of the text. Counting anything twice is refused: a
    file or a `custom_id` that is in both and, if `segment_ids` number the sequences of all files or blocks, a number
    that is in both, because sequences with the same number cannot be distinguished.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import evaluate
    >>> logits = np.zeros((2, 3, 8), np.float32)  # two sequences of three tokens
    >>> evaluation = evaluate([(logits, np.ones((2, 3), int))])
    >>> evaluation
    Evaluation(loss=2.07944 ± 0.00, count=6, n_sequences=2, perplexity=8.00000, accuracy=0.0000)
    >>> evaluation.sequences["count"]
    array([3, 3])
    >>> evaluation + evaluate([(np.zeros((1, 2, 8), np.float32), np.ones((1, 2), int))])
    Evaluation(loss=2.07944 ± 0.00, count=8, n_sequences=3, perplexity=8.00000, accuracy=0.0000)
    """

    GATES: ClassVar[tuple[str, ...]] = (*_METHODS, "max_ece")
    _why_no_gate = "does not apply to evaluations"

    meter: LossMeter
    sequences: dict[str, Array]
    figures: dict[str, Any]
    _parts: Any = field(compare=False)  # of `parts.py`
    _calibration: Calibration | None = None

    @property
    def _meter(self) -> LossMeter:
        return self.meter

    @property
    def accuracy(self) -> Estimate:
        """The fraction of tokens that are the most likely class, where this is known; nan without such tokens."""
        return Estimate(self.figures["accuracy"], lambda: self._measure("min_greedy_accuracy"))

    @property
    def calibration(self) -> Calibration | None:
        """The calibration of all tokens, in 15 bins of equal mass; None unless it was requested."""
        return self._calibration

    @property
    def groups(self) -> dict[str, Array] | None:
        """The table of the groups of `by`, by column, as `Evaluation.by` returns it; None without `by`.

        "group" is the label, and of positions the first one of a bin. Tokens without a label come last, as None.
        """
        return columns_of_groups(self.figures["groups"]) if "groups" in self.figures else None

    def by(self, groups: ArrayLike) -> dict[str, Array]:
        """Compute the losses of groups of sequences, such as domains; `evaluate(..., by=)` also groups tokens.

        Parameters
        ----------
        groups : array of integers, bool or text
            Label of each sequence, in the order of `sequences`.

        Returns
        -------
        dict of 1-D arrays
            Columns of a table that has a row for each group: "group" (its label, in ascending order), "count",
            "n_sequences", "loss", "stderr", "perplexity" with its 95 % interval ("perplexity_low" and
            "perplexity_high"), and with a tokenizer "bits_per_byte" with its error and interval. Errors are clustered
            by sequence, and nan for a single one. Tokens that belong to no sequence are in no group.

        Raises
        ------
        TypeError, ValueError
            If `groups` has another dtype or shape.

        Examples
        --------
        >>> import numpy as np
        >>> from tokenloss import evaluate
        >>> logits = np.random.default_rng(0).normal(size=(4, 5, 8))
        >>> table = evaluate([(logits, np.zeros((4, 5), int))]).by(["news", "code", "news", "code"])
        >>> table["group"].tolist(), table["count"].tolist(), table["loss"].round(3).tolist()
        (['code', 'news'], [10, 10], [2.198, 2.319])
        """
        return columns_of_groups(rows_of_sequences(check_groups(groups, self.sequences["count"].shape), self.sequences))

    @property
    def signature(self) -> str:
        """A line that says how the values were computed, to publish with them."""
        return str(self.figures["signature"])

    @property
    def n_nan(self) -> int:
        """The number of tokens whose loss is nan."""
        return int(self.figures["n_nan"])

    @classmethod
    def of_parts(cls, evaluations: Iterable[Evaluation]) -> Evaluation:
        """Add up evaluations of parts, as ``sum`` does, but in linear instead of quadratic time.

        Parameters
        ----------
        evaluations : iterable of Evaluation
            The evaluations to add up, at least one, in the order of the text.

        Returns
        -------
        Evaluation
            The same as ``sum(evaluations)``, which is as good for a few dozen.

        Raises
        ------
        TypeError
            If one of them is not an `Evaluation`.
        ValueError
            If the iterable is empty, if they do not fit, or if something would count twice.

        Examples
        --------
        >>> import numpy as np
        >>> from tokenloss import evaluate
        >>> from tokenloss.results import Evaluation
        >>> parts = [evaluate([(np.zeros((1, 3, 8)), np.ones((1, 3), int))]) for _ in range(4)]
        >>> Evaluation.of_parts(parts)
        Evaluation(loss=2.07944 ± 0.00, count=12, n_sequences=4, perplexity=8.00000, accuracy=0.0000)
        """
        parts = list(evaluations)
        for one in parts:
            if not isinstance(one, Evaluation):
                raise_error("container", name="one of evaluations", got=type(one).__name__, fits="an Evaluation")
        if not parts:
            raise_error("empty", name="evaluations", fits="at least one Evaluation")
        merged: Evaluation = parts[0]._parts.merged(parts) if len(parts) > 1 else parts[0]
        return merged

    def columns(self) -> dict[str, Array]:
        """Return the columns of a table that has a row for each sequence.

        Returns
        -------
        dict of 1-D arrays
            `sequences`; single tokens are in what `tokenloss.sinks.TokenTable` writes.

        Examples
        --------
        >>> import numpy as np
        >>> from tokenloss import evaluate
        >>> evaluate([(np.zeros((2, 3, 8)), np.ones((2, 3), int))]).columns()["loss"].round(4)
        array([2.0794, 2.0794])
        """
        return dict(self.sequences)

    def _measure(self, gate: str) -> Measure:
        """The statistic that a gate limits."""
        meter = ShardResult.total(self._parts.results).meters()[1] if gate == "min_greedy_accuracy" else self.meter
        return meter._measure()._replace(method=_METHODS[gate], n_tokens=meter.count)

    def _verdict(self, limit: Limit, tail: float) -> Verdict:
        if limit.gate == "max_ece":
            return verdict_on_calibration(self.calibration, limit, tail, void_of(self.figures, limit.gate))
        measure = self._measure(limit.gate)
        notes, void = independent_note(measure, tail), void_of(self.figures, limit.gate)
        return verdict_on(limit, measure.reach(tail, limit.value), measure, notes=notes, void=void)

    def _main(self) -> dict[str, str]:
        return self._main_of({"n_nan": self.n_nan}, {"accuracy": f"{self.accuracy:.4f}"})

    def _facts(self) -> dict[str, Any]:
        """All values."""
        return self.figures

    def _shown(self) -> Shown:
        """Tables of the metrics, files and highest losses, and what they mean in words."""
        parts, calibration = shown(self.figures, self.meter), self.calibration
        tables = [] if calibration is None else calibration_tables(calibration, "calibration")
        tables.append(verdict(self.figures, self.meter))
        return parts._replace(signature=self.signature, tables=[*parts.tables, *tables])

    def _compared(self) -> dict[str, Any]:
        """All values except its time and the bytes that it read, which are fewer if it resumed from a state."""
        left_out = ("seconds", "gb_per_second", "n_bytes_read")
        metrics = {name: value for name, value in self.figures.items() if name not in left_out}
        return super()._compared() | {"figures": metrics}

    def __add__(self, other: Evaluation) -> Evaluation:
        """The evaluation of the files or blocks of both."""
        if not isinstance(other, Evaluation):
            return NotImplemented
        return self.of_parts([self, other])

    def __radd__(self, other: object) -> Evaluation:
        """The same evaluation, for the 0 that `sum` starts with."""
        return self if type(other) is int and other == 0 else NotImplemented


Evaluation.__module__ = "tokenloss.results"


# columns of the table of several models that come first
_MAIN = ("count", "loss", "stderr", "perplexity", "perplexity_interval", "accuracy", "bits_per_byte")


class Evaluations(Gated, NamedResults[Evaluation]):
    """Evaluations of several models side by side: a dict of `Evaluation` by the name of the model.

    This is what ``tokenloss score A=a.npz B=b.npz`` prints. Losses and perplexities compare models whose tokens are the
    same; bits per byte compare any two on the same text.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import evaluate
    >>> from tokenloss.results import Evaluations
    >>> ids, logits = np.arange(4), 4 * np.eye(4)
    >>> models = Evaluations({name: evaluate([(scale * logits, ids)]) for name, scale in (("A", 1.0), ("B", 0.5))})
    >>> print(models.summary())  # doctest: +ELLIPSIS
    2 models  logits; 4 tokens, assumed independent; tokenloss compare has the errors of differences
    <BLANKLINE>
      model  tokens       loss  ±  perplexity     95 % interval  greedy accuracy
      A           4  0.0534904  0     1.05495  1.0549 to 1.0549         100.00 %
      B           4   0.340753  0     1.40601    1.406 to 1.406         100.00 %
    <BLANKLINE>
      tokenloss:...|unit:token|tokens:4|kind:logits|dtype:float64|ids:4fe95c65
    """

    __module__ = "tokenloss.results"

    def _facts(self) -> dict[str, Any]:
        """The values of each, by its name."""
        return {name: one._facts() for name, one in self.items()}

    def _shown(self) -> Shown:
        """A table with a row for each."""
        shown = evaluations_shown(self, self._differences())
        return shown._replace(signature=joined_signature(one.signature for one in self.values()))

    def _differences(self) -> list[str]:
        """Names of the fields by which the signatures of the models differ."""
        return differing_fields(one.signature for one in self.values())

    def _results(self) -> dict[str, Evaluation]:
        return dict(self)

    def columns(self) -> dict[str, Array]:
        """Return the columns of a table with a row for each model.

        Returns
        -------
        dict of 1-D arrays
            "name", the main metrics, then each other single value, and the ends of intervals, such as
            "perplexity_low".
        """
        rows = []
        for name, one in self.items():
            calibrated = {f"calibration_{key}": value for key, value in one.figures.get("calibration", {}).items()}
            rows.append({"name": name} | {main: one.figures[main] for main in _MAIN} | one.figures | calibrated)
        return columns_of(rows)
