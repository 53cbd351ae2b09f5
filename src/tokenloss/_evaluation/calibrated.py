"""What calibration needs of the tokens of a shard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core.dtypes import as_float_array, without_bfloat16
from tokenloss._core.errors import named, refuse
from tokenloss._evaluation.checkpoint import record
from tokenloss._evaluation.sequences import joined
from tokenloss._statistics.calibration import probs_and_brier
from tokenloss._statistics.reliability import FEW_CLASSES, calibration_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenloss._core.types import BoolArray, Columns, Float64Array, IntArray
    from tokenloss._evaluation.shards import Shard
    from tokenloss._scores.token_scores import TokenScores
    from tokenloss._statistics.reliability import Calibration

_BINS = 15, "equal_mass"


@record
class CalibratedTokens(NamedTuple):
    """The scored tokens, in arrays of one length, but for the last two."""

    nll: Float64Array
    confidence: Float64Array
    is_greedy: BoolArray
    target: IntArray
    sequence: IntArray  # negative for none
    brier: Float64Array  # and the next are empty for more than a few classes
    probs: Float64Array  # of all classes of a token, one after the other

    @classmethod
    def of_block(cls, block: Any, scores: TokenScores, moments: Columns, kind: str) -> CalibratedTokens:
        """The scored tokens of a `RowBlock`."""
        rows = np.flatnonzero(scores.kept)
        target, few = block.ids[rows].astype(np.int64), dict[str, Any]()
        if block.scores.shape[-1] <= FEW_CLASSES:
            few = probs_and_brier(without_bfloat16(*as_float_array(kind, block.scores))[rows], kind, target)
        return cls(
            scores.nll[rows], moments["confidence"][rows], scores.is_greedy[rows], target, block.sequences[rows],
            few.get("brier", np.empty(0)), few.get("probs", np.empty(0)).reshape(-1),
        )  # fmt: skip

    def after(self, number: int) -> CalibratedTokens:
        """The tokens with their sequences counted on from a number."""
        return self._replace(sequence=np.where(self.sequence < 0, self.sequence, self.sequence + number))

    def calibration(self) -> Calibration:
        """The calibration of these tokens."""
        columns = self._asdict() | {"segment_ids": self.sequence}
        few = {"brier": self.brier, "probs": self.probs.reshape(len(self.nll), -1)} if self.probs.size else {}
        names = ("nll", "confidence", "is_greedy", "target", "segment_ids")
        return calibration_of({name: columns[name] for name in names} | few, *_BINS)


NO_TOKENS = CalibratedTokens(
    np.empty(0), np.empty(0), np.empty(0, np.bool_), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0),
    np.empty(0),
)  # fmt: skip


def joined_tokens(parts: Iterable[CalibratedTokens | None], *, are_numbered: bool) -> CalibratedTokens | None:
    """The tokens of all parts; None if they were not wanted. Unless they share numbers, sequences are counted on."""
    tokens, first = [], 0
    for part in parts:
        if part is None:
            return None
        numbers, own = np.unique(part.sequence, return_inverse=True)  # which may be as high as any
        own = np.where(part.sequence < 0, -1, own + first)
        tokens.append(part if are_numbered else part._replace(sequence=own))
        first += numbers.size
    return joined(NO_TOKENS, tokens)


def check_calibrated(shard: Shard) -> None:
    """Refuse hidden states and distributions as targets, from which no calibration follows."""
    by = named("calibration", True)
    if shard.spec.kind == "hidden_states":
        refuse(shard.path, "holds hidden states", f"hold scores of all classes, for {by}")
    if shard.target_type == "distributions":
        refuse(shard.path, "holds distributions as targets", f"hold class ids, for {by}")
