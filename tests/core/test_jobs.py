"""Jobs of the core refuse to run on what does not fit: they trust their arguments in all else."""

import numpy as np
import pytest
from arrays import DEFAULTS

from tokenloss._core import _core
from tokenloss._core.validation import as_positions, as_scores, loss_options, scores_of_shape, without_targets

LOGITS = as_scores("logits", np.zeros((2, 3)), -1)
OTHER = as_scores("logits", np.zeros((3, 2)), -1)
CLASS_IDS = as_positions("targets", np.array([0, 1]), LOGITS, None)
EXACT = _core.DEFINITIONS["exact"]


def test_positions_of_other_scores():
    with pytest.raises(ValueError, match="positions are those of other scores"):
        _core.ClassIdLoss(OTHER, CLASS_IDS, None, True, 0.0)


@pytest.mark.parametrize("targets", [None, np.eye(3)[:2]])
def test_positions_without_class_ids(targets):
    positions = without_targets(LOGITS) if targets is None else as_positions("targets", targets, LOGITS, None)
    columns = {}
    for job in (
        lambda: _core.ClassIdLoss(LOGITS, positions, None, True, 0.0),
        lambda: _core.TokenStats(LOGITS, positions, np.zeros(2), 1.0, 0.0, 0, columns),
        lambda: _core.PairStats(LOGITS, positions, LOGITS, EXACT, columns),
    ):
        with pytest.raises(ValueError, match="positions have no class ids"):
            job()


def test_scores_without_an_array():
    scores = scores_of_shape("logits", (2, 3), -1)
    job = _core.CrossEntropy(scores, CLASS_IDS, None, loss_options(**DEFAULTS))
    with pytest.raises(ValueError, match="they arrive in tiles"):
        job.run(2, False)
    with pytest.raises(ValueError, match="they arrive in tiles"):
        _core.KLDivergence(LOGITS, without_targets(LOGITS), None, scores, {}).run(2, False)
    with pytest.raises(ValueError, match="another shape"):
        _core.KLDivergence(LOGITS, without_targets(LOGITS), None, OTHER, {})
    with pytest.raises(ValueError, match="another shape"):
        _core.PairStats(LOGITS, CLASS_IDS, OTHER, EXACT, {})


def test_columns_of_another_length():
    floats = "nll", "base_nll", "kl", "delta_p", "base_top_p", "base_margin", "margin", "rounding"
    columns = {name: np.zeros(2) for name in floats}
    columns |= {name: np.zeros(3, np.uint8) for name in ("is_same_top", "is_identical", "kept")}
    with pytest.raises(ValueError, match="a number for each row"):
        _core.PairStats(LOGITS, CLASS_IDS, LOGITS, EXACT, columns)


@pytest.mark.parametrize(
    ("ids", "results"),
    [
        (np.zeros((3, 4), np.int64), 8),
        (np.zeros((2, 4), np.int64), 7),
        (np.zeros((2, 4), np.int32), 8),
        (np.zeros((4, 2), np.int64).T, 8),
    ],
)
def test_class_ids_of_other_scores_or_another_layout(ids, results):
    with pytest.raises(ValueError, match="class ids or log-probabilities are those of other scores"):
        _core.ClassLogProbs(LOGITS, without_targets(LOGITS), 1.0, 0.0, ids, np.zeros(results))


def test_cost_of_distributions_that_are_not_there():
    assert _core.SoftTargetLoss(LOGITS, without_targets(LOGITS), None, True, 0.0).row_cost > 0


def test_inputs_are_made_once():
    with pytest.raises(ValueError, match="scores do not change"):
        LOGITS.__init__("logits", np.ones((2, 3)), 3, 1, (2, 3))
    with pytest.raises(ValueError, match="positions do not change"):
        CLASS_IDS.__init__((2,), 3, "targets", None, 0, -1, None, None, None, 0, None)
