"""Results of evaluations: of a shard, as a checkpoint holds it, and of all of them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenloss._core.result import Result, columns_of
from tokenloss._evaluation.response_figures import ResponseFigures
from tokenloss._evaluation.score_tables import evaluations_shown, shown
from tokenloss._evaluation.sequences import NO_SEQUENCES, SequenceColumns
from tokenloss._statistics.meter import LossMeter

if TYPE_CHECKING:
    from tokenloss._core.result import Shown
    from tokenloss._core.types import Array


_MIN_SHIFT_SAMPLE = 64  # rows
_MIN_SHIFT_Z = 4  # standard errors, since the losses of random logits vary


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


@dataclasses.dataclass(frozen=True)
class ShiftSample:
    """A sample of rows: how much lower their losses are if each row predicts the next row's target (the gain)."""

    rows: int = 0
    gain: float = 0.0
    squares: float = 0.0  # of the gains

    def __add__(self, other: ShiftSample) -> ShiftSample:
        """Join two samples."""
        return ShiftSample(self.rows + other.rows, self.gain + other.gain, self.squares + other.squares)

    @property
    def fits_better_shifted(self) -> bool:
        """True if the mean gain exceeds ln 4 nats, and the gain four standard errors of it."""
        least = max(self.rows * math.log(4), _MIN_SHIFT_Z * math.sqrt(max(self.squares, 0)))
        return self.rows >= _MIN_SHIFT_SAMPLE and self.gain > least


class ShardResult(NamedTuple):
    """Result of a shard."""

    meter: LossMeter  # of all tokens but those in `split`
    n_ignored: int
    n_greedy: int
    highest_loss_tokens: list[TokenLoss]
    sequences: SequenceColumns = NO_SEQUENCES
    split: SequenceColumns = NO_SEQUENCES  # the tokens of sequences that go on in other shards
    shift_sample: ShiftSample = ShiftSample()
    responses: ResponseFigures | None = None  # of a file of responses
    rms: tuple[float, ...] = ()  # root mean squares of a sample of hidden states
    n_nan: int = 0  # tokens whose loss is nan
    n_infinite: int = 0

    @property
    def n_tokens(self) -> int:
        """The number of tokens."""
        return self.meter.count + len(self.split.ids)

    @property
    def n_greedy_known(self) -> int:
        """The number of tokens that are known to be greedy or not."""
        return self.responses.n_greedy_known if self.responses else self.n_tokens


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
class Evaluation(Result):
    """Result of `evaluate`.

    Attributes
    ----------
    meter : LossMeter
        Exact sums over all tokens: loss, standard error, perplexity and the like.
    sequences : dict of 1-D arrays
        A table of the sequences, by column: `file` (number of the file, from 0; -1 where several hold a part),
        `sequence`, `count`, `nll`, `loss`, `perplexity` and `is_greedy`. Of responses also `line`, `choice`,
        `is_greedy_known` and `custom_id`.
    figures : dict
        All that ``tokenloss score --format json`` prints: figures of all tokens, of each file and of each sequence, and
        the tokens and sequences of the highest losses.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import evaluate
    >>> logits = np.zeros((2, 3, 8), np.float32)  # two sequences of three tokens
    >>> evaluation = evaluate([(logits, np.ones((2, 3), int))])
    >>> evaluation
    Evaluation(count=6, n_sequences=2, loss=2.07944, stderr=0, perplexity=8, accuracy=0.0000)
    >>> evaluation.sequences["count"]
    array([3, 3])
    """

    __module__ = "tokenloss"

    meter: LossMeter
    sequences: dict[str, Array]
    figures: dict[str, Any]

    @property
    def accuracy(self) -> float:
        """The fraction of the tokens that are the most likely class, of those where this is known; nan of none."""
        accuracy: float = self.figures["accuracy"]
        return accuracy

    def _figures(self) -> dict[str, Any]:
        """All figures."""
        return self.figures

    def _shown(self) -> Shown:
        """Tables of the figures, files and highest losses."""
        return shown(self.figures, self.meter._basis())

    def _compared(self) -> dict[str, Any]:
        """All but the time that it took."""
        figures = {name: figure for name, figure in self.figures.items() if name not in ("seconds", "gb_per_second")}
        return vars(self) | {"figures": figures}

    def __repr__(self) -> str:
        """Show the main figures."""
        meter, n_nan = self.meter, self.figures["n_nan"]
        count = f"count={meter.count}, " + (f"n_nan={n_nan}, " if n_nan else "")
        return (
            f"Evaluation({count}n_sequences={meter.n_sequences}, loss={meter.loss:.6g}, stderr={meter.stderr:.3g}, "
            f"perplexity={meter.perplexity:.6g}, accuracy={self.accuracy:.4f})"
        )


class Evaluations(Result, dict[str, Evaluation]):
    """Evaluations of several models side by side: a dict of `Evaluation` by the name of the model.

    This is what ``tokenloss score A=a.npz B=b.npz`` prints. Losses and perplexities compare models whose tokens are the
    same; bits per byte compare any two on the same text.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import evaluate
    >>> from tokenloss._evaluation.results import Evaluations
    >>> ids, logits = np.arange(4), 4 * np.eye(4)
    >>> found = Evaluations({name: evaluate([(scale * logits, ids)]) for name, scale in (("A", 1.0), ("B", 0.5))})
    >>> print(found.summary())
    2 models  logits; 4 tokens, taken as independent
    <BLANKLINE>
      model  tokens       loss  ±  perplexity       95 % interval  greedy accuracy
      A           4  0.0534919  0     1.05495  1.0549 to 1.0549         100.00 %
    """

    __module__ = "tokenloss"

    def _figures(self) -> dict[str, Any]:
        """The figures of each, by its name."""
        return {name: one._figures() for name, one in self.items()}

    def _shown(self) -> Shown:
        """A table with a row for each."""
        return evaluations_shown(self._figures(), {one.meter._basis() for one in self.values()})

    def columns(self) -> dict[str, Array]:
        """Columns of a table with a row for each model.

        Returns
        -------
        dict of 1-D arrays
            "name", each figure that is one number or text, and the ends of intervals, such as "perplexity_low".
        """
        return columns_of([{"name": name, **one._figures()} for name, one in self.items()])

    def _compared(self) -> dict[str, Any]:
        """The evaluations."""
        return dict(self)

    def __repr__(self) -> str:
        """Show the evaluations by name."""
        return f"Evaluations({dict.__repr__(self)})"
