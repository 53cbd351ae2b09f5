"""Results of evaluations: of a shard, as a checkpoint holds it, and of all of them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenloss._core.text import as_strict_json
from tokenloss._evaluation import checks
from tokenloss._evaluation.response_figures import ResponseFigures
from tokenloss._evaluation.sequences import NO_SEQUENCES, SequenceColumns
from tokenloss._statistics.meter import LossMeter

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from tokenloss._core.types import Array
    from tokenloss._evaluation.plan import Options, Shard

    _Sink: TypeAlias = Callable[[Any], None]  # called with each block of tokens


_MIN_SHIFT_SAMPLE = 64


_MIN_SHIFT_Z = 4  # standard errors, since the losses of random logits vary


class TokenLoss(NamedTuple):
    """A token and its loss."""

    position: int
    target: int
    loss: float
    text: str | None
    sequence: int | None = None

    @property
    def sort_key(self) -> float:
        """The loss, nan above all."""
        return math.inf if math.isnan(self.loss) else self.loss


@dataclasses.dataclass(frozen=True)
class ShiftSample:
    """A sample of rows: how much lower their losses are if each row predicts the next row's target (the gain)."""

    rows: int = 0
    gain: float = 0.0
    squares: float = 0.0  # of the gains

    def __add__(self, other: ShiftSample) -> ShiftSample:
        """The rows of both."""
        return ShiftSample(self.rows + other.rows, self.gain + other.gain, self.squares + other.squares)

    @property
    def fits_better_shifted(self) -> bool:
        """True if the mean gain exceeds ln 4 nats, and the gain four standard errors of it."""
        least = max(self.rows * math.log(4), _MIN_SHIFT_Z * math.sqrt(max(self.squares, 0)))
        return self.rows >= _MIN_SHIFT_SAMPLE and self.gain > least

    def to_json(self) -> list[str]:
        """The sample, as JSON can hold it."""
        return list(map(repr, dataclasses.astuple(self)))

    @classmethod
    def from_json(cls, state: Any) -> ShiftSample:
        """Inverse of `to_json`."""
        rows, gain, squares = state
        return cls(int(rows), float(gain), float(squares))


class ShardResult(NamedTuple):
    """Result of a shard."""

    meter: LossMeter  # of all but the split sequences
    ignored: int
    greedy: int
    highest_loss_tokens: list[TokenLoss]
    sequences: SequenceColumns = NO_SEQUENCES
    split: SequenceColumns = NO_SEQUENCES  # tokens of sequences that other shards hold a part of
    shift_sample: ShiftSample = ShiftSample()
    responses: ResponseFigures | None = None  # of a file of responses
    rms: tuple[float, ...] = ()  # root mean squares of a sample of hidden states
    n_nan: int = 0  # tokens whose loss is nan
    n_infinite: int = 0

    def to_json(self) -> dict[str, Any]:
        """The exact result, as JSON can hold it."""
        tokens = [(*token[:2], repr(token.loss), *token[3:]) for token in self.highest_loss_tokens]
        return {
            "meter": self.meter._to_json(), "ignored": self.ignored, "greedy": self.greedy,
            "highest_loss_tokens": tokens, "sequences": self.sequences.to_json(), "split": self.split.to_json(),
            "shift_sample": self.shift_sample.to_json(), "responses": self.responses and self.responses.to_json(),
            "rms": list(map(repr, self.rms)), "n_nan": self.n_nan, "n_infinite": self.n_infinite,
        }  # fmt: skip

    @classmethod
    def from_json(cls, result: Any) -> ShardResult:
        """Inverse of `to_json`."""
        tokens = [
            TokenLoss(position, target, float(loss), text, sequence)
            for position, target, loss, text, sequence in result["highest_loss_tokens"]
        ]
        responses = result["responses"] and ResponseFigures.from_json(result["responses"])
        return cls(
            LossMeter._from_json(result["meter"]), result["ignored"], result["greedy"], tokens,
            SequenceColumns.from_json(result["sequences"]), SequenceColumns.from_json(result["split"]),
            ShiftSample.from_json(result["shift_sample"]), responses, tuple(map(float, result["rms"])),
            result["n_nan"], result["n_infinite"],
        )  # fmt: skip

    @property
    def n_tokens(self) -> int:
        """The number of tokens."""
        return self.meter.count + len(self.split.ids)

    @property
    def greedy_known(self) -> int:
        """The number of tokens that are known to be greedy or not."""
        return self.responses.greedy_known if self.responses else self.n_tokens

    def is_consistent(self, shard: Shard, options: Options) -> bool:
        """Consistency check of a checkpoint entry: whether scoring a shard can give it."""
        tokens, sequences = self.highest_loss_tokens, self.sequences
        rows = None if shard.size is not None else shard.scored_rows  # of responses, it is not known before
        integers = [
            self.ignored,
            self.greedy,
            self.n_nan,
            self.n_infinite,
            *(number for token in tokens for number in token[:2]),
        ]
        integers += [token.sequence for token in tokens if token.sequence is not None]
        if (rows is None) != (self.responses is not None):
            return False
        if self.responses is not None:
            figures, rows = self.responses, self.n_tokens + self.ignored
            if (
                figures.without_number + figures.sentinels != self.ignored
                or len(figures.sources.line) != len(sequences.ids)
                or not self.greedy <= figures.greedy_known <= self.n_tokens
            ):
                return False
        return (
            all(type(number) is int and abs(number) < 2**63 for number in integers)
            and all(token.text is None or isinstance(token.text, str) for token in tokens)
            and len(tokens) <= options.top
            and len(self.rms) <= checks.NORM_SAMPLE
            and self.n_tokens + self.ignored == rows
            and 0 <= self.greedy <= self.n_tokens <= (rows or 0)
            and min(self.n_nan, self.n_infinite) >= 0
            and self.n_nan + self.n_infinite <= self.n_tokens
            and self.meter.n_bytes == self.meter.n_words == 0  # which are of all shards together
            and self.meter.n_sequences == len(sequences.ids)
            and 0 <= sequences.tokens.sum() <= self.meter.count
            and bool((sequences.tokens > 0).all() and (self.split.tokens == 1).all())
        )


class NormWarning(UserWarning):
    """Warns that hidden states seem to lack the model's final norm, without which their logits are wrong.

    Examples
    --------
    >>> import warnings
    >>> from tokenloss import NormWarning
    >>> warnings.simplefilter("error", NormWarning)
    """

    __module__ = "tokenloss"


class ShiftWarning(UserWarning):
    """Warns that targets seem to be a causal model's own input, which should have been shifted.

    Examples
    --------
    >>> import warnings
    >>> from tokenloss import ShiftWarning
    >>> warnings.simplefilter("error", ShiftWarning)  # rather an error than a wrong perplexity
    """

    __module__ = "tokenloss"


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """Result of `evaluate`.

    Attributes
    ----------
    meter : LossMeter
        Exact sums over all tokens: loss, standard error, perplexity and the like.
    sequences : dict of 1-D arrays
        A table of the sequences, by column: `file` (number of the file, from 0; -1 where several hold a part),
        `sequence`, `tokens`, `nll`, `loss`, `perplexity` and `is_greedy`. Of responses also `line`, `choice`,
        `is_greedy_known` and `custom_id`.
    figures : dict
        All that ``tokenloss score --json`` prints: figures of all tokens, of each file and of each sequence, and the
        tokens and sequences of the highest losses.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import evaluate
    >>> logits = np.zeros((2, 3, 8), np.float32)  # two sequences of three tokens
    >>> evaluation = evaluate([(logits, np.ones((2, 3), int))])
    >>> evaluation
    Evaluation(tokens=6, sequences=2, loss=2.07944, stderr=0, perplexity=8, accuracy=0.0000)
    >>> evaluation.sequences["tokens"]
    array([3, 3])
    """

    __module__ = "tokenloss"

    meter: LossMeter
    sequences: dict[str, Array]
    figures: dict[str, Any]

    @property
    def accuracy(self) -> float:
        """The fraction of the tokens, of those where it is known, that are the most likely class; nan of none."""
        accuracy: float = self.figures["accuracy"]
        return accuracy

    def as_dict(self) -> dict[str, Any]:
        """The figures, as JSON can hold them.

        Returns
        -------
        dict
            Numbers that JSON does not have, nan and the infinities, are None.

        Examples
        --------
        >>> from tokenloss import evaluate
        >>> evaluate([([[0.0, 0.0]], [0])]).as_dict()["stderr"] is None  # of a single token
        True
        """
        figures: dict[str, Any] = as_strict_json(self.figures)
        return figures

    def __repr__(self) -> str:
        """Show the main figures."""
        meter, n_nan = self.meter, self.figures["n_nan"]
        count = f"tokens={meter.count}, " + (f"n_nan={n_nan}, " if n_nan else "")
        return (
            f"Evaluation({count}sequences={meter.n_sequences}, loss={meter.loss:.6g}, stderr={meter.stderr:.3g}, "
            f"perplexity={meter.perplexity:.6g}, accuracy={self.accuracy:.4f})"
        )
