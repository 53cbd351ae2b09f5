"""What calibration needs of the tokens of a shard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core.dtypes import as_float_array, without_bfloat16
from tokenloss._core.errors import named, refuse
from tokenloss._evaluation.checkpoint import record
from tokenloss._evaluation.sequences import joined
from tokenloss._statistics.calibration import class_probs
from tokenloss._statistics.reliability import FEW_CLASSES, calibration_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenloss._core.types import Array, BoolArray, Columns, Float64Array, IntArray
    from tokenloss._evaluation.shards import Shard
    from tokenloss._scores.token_scores import TokenScores
    from tokenloss._statistics.reliability import Calibration

_BINS = 15, "equal_mass"


@record
class CalibratedTokens(NamedTuple):
    """The scored tokens, in arrays of one length, but for the probabilities of few classes, which are flat."""

    nll: Float64Array
    confidence: Float64Array
    brier: Float64Array
    is_greedy: BoolArray
    target: IntArray
    sequence: IntArray  # negative for none
    probs: Float64Array  # of all classes of a token, one after the other; empty if these are many

    @classmethod
    def of_block(cls, block: Any, scores: TokenScores, moments: Columns, kind: str) -> CalibratedTokens:
        """The scored tokens of a `RowBlock`."""
        rows = np.flatnonzero(scores.kept)
        probs: Array = np.empty(0)
        if block.scores.shape[-1] <= FEW_CLASSES:
            probs = class_probs(without_bfloat16(*as_float_array(kind, block.scores))[rows], kind).reshape(-1)
        return cls(
            scores.nll[rows], moments["confidence"][rows], moments["brier"][rows], scores.is_greedy[rows],
            block.ids[rows].astype(np.int64), block.sequences[rows], probs,
        )  # fmt: skip

    def after(self, number: int) -> CalibratedTokens:
        """The tokens with their sequences counted on from a number."""
        return self._replace(sequence=np.where(self.sequence < 0, self.sequence, self.sequence + number))

    def calibration(self) -> Calibration:
        """The calibration of these tokens."""
        columns: dict[str, Any] = self._asdict()
        columns["segment_ids"] = columns.pop("sequence")
        probs = columns.pop("probs")
        if probs.size:
            columns["probs"] = probs.reshape(len(self.nll), -1)
        return calibration_of(columns, *_BINS)


NO_TOKENS = CalibratedTokens(
    np.empty(0), np.empty(0), np.empty(0), np.empty(0, np.bool_), np.empty(0, np.int64), np.empty(0, np.int64),
    np.empty(0),
)  # fmt: skip


def joined_tokens(parts: Iterable[CalibratedTokens | None], *, are_numbered: bool) -> CalibratedTokens | None:
    """The tokens of all parts; None if they were not wanted. Unless they share numbers, sequences are counted on."""
    tokens, first = [], 0
    for part in parts:
        if part is None:
            return None
        tokens.append(part if are_numbered else part.after(first))
        first += int(part.sequence.max(initial=-1)) + 1
    return joined(NO_TOKENS, tokens)


def check_calibrated(shard: Shard) -> None:
    """Refuse hidden states and distributions as targets, from which no calibration follows."""
    for is_wrong, got, fits in (
        (shard.spec.kind == "hidden_states", "hidden states", "scores of all classes"),
        (shard.target_type == "distributions", "distributions as targets", "class ids"),
    ):
        if is_wrong:
            refuse(shard.path, f"holds {got}", f"hold {fits}, for {named('calibration', True)}")
