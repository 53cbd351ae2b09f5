"""`calibration`: whether predicted probabilities match how often predictions are right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._core import _core, jobs
from tokenloss._core.dtypes import CheckedArray, as_array, as_float_array, without_bfloat16
from tokenloss._core.validation import as_positions, as_scores, check_kind, check_mask, check_sample_weight
from tokenloss._scores.losses import natural_logs
from tokenloss._scores.softmax import softmax
from tokenloss._scores.token_scores import token_job
from tokenloss._statistics.bins import Tokens, check_bins
from tokenloss._statistics.reliability import FEW_CLASSES, calibration_of, fit_temperature
from tokenloss._statistics.sequences import check_segment_ids

if TYPE_CHECKING:
    from typing import Literal

    from tokenloss._core.types import Array, ArrayLike, BoolArray, Columns, Float64Array, Kind
    from tokenloss._statistics.reliability import Calibration


def calibration(
    scores: ArrayLike,
    targets: ArrayLike,
    *,
    kind: Kind | None = None,
    axis: int = -1,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    bins: int = 15,
    binning: Literal["equal_mass", "equal_width"] = "equal_mass",
    temperature: bool = True,
    brier: bool = False,
    workers: int | None = None,
) -> Calibration:
    """Measure how well predicted probabilities match outcomes, and fit the temperature that makes them match.

    Parameters
    ----------
    scores : array of shape (..., V), or with ``kind="probs"`` in the shape of `targets`
        Logits, or scores of another `kind`: float16, bfloat16, float32 or float64. Probabilities without an axis of
        classes are probabilities of class 1, as in scikit-learn for binary targets.
    targets : array of integers
        Class ids, in the shape of `scores` without its class axis; for binary targets 0 and 1, or bool.
    kind : {"logits", "log_probs", "probs"}, optional
        What `scores` contains: logits (the default, with a `KindWarning` if they look like probabilities), natural
        log-probabilities or probabilities, as in `token_scores`.
    sample_weight : array of floats, optional
        Weight of each token, broadcast over `targets`: from 0 to 1e100. Tokens with weight 0 are left out. Bins of
        equal mass contain equally many tokens, regardless of their weights.
    segment_ids : array of integers, optional
        Number of the sequence of each token, broadcast over `targets`: standard errors are then clustered by sequence.
        Tokens with negative numbers belong to no sequence.
    bins : int, default 15
        Number of bins.
    binning : {"equal_mass", "equal_width"}, default "equal_mass"
        Whether bins contain equally many tokens, or are equally wide.
    temperature : bool, default True
        Whether to find the temperature that minimizes the loss, which reads the scores another three to six times.
    brier : bool, default False
        Whether to compute the Brier score for more than 10 classes, too. It takes a second pass over each row; with
        logits and `temperature`, which needs this pass anyway, the score is always computed.
    axis, ignore_index, where, workers
        As in `cross_entropy`.

    Returns
    -------
    Calibration
        Exact statistics with their errors, independent of the order of the tokens.

    Raises
    ------
    IndexError, TypeError, ValueError
        As in `cross_entropy`. Also if `bins`, `binning` or `segment_ids` are invalid.

    See Also
    --------
    evaluate : The same for files and engines, with ``calibration=True``.

    Notes
    -----
    Bins are open below and closed above, so a confidence of 1 is in the last one, and end at quantiles of the
    confidences (by linear interpolation) or at equal distances, as in scikit-learn's ``calibration_curve``. The
    debiased error is the plain one minus its bias due to chance, which Kumar, Liang and Ma (NeurIPS 2019) estimate by
    resampling each bin's accuracy; here it is the mean of a folded normal distribution with the bin's clustered error.
    The temperature is the root of the mean of loss - entropy, by Newton's method; its error is an M-estimator's.

    Errors are for a fixed model: they account for the choice of the tokens or sequences, but not for the choice of the
    bins.

    Examples
    --------
    >>> from tokenloss import calibration
    >>> result = calibration([0.1, 0.3, 0.6, 0.9, 0.8], [0, 1, 1, 1, 0], kind="probs", bins=2, temperature=False)
    >>> round(result.ece, 4), round(result.brier, 4), round(result.accuracy, 4)
    (0.34, 0.524, 0.6)
    """
    checked = check_bins(bins, binning)
    view, prepared, is_binary = _as_classes(scores, targets, kind)
    given = as_scores("scores", view, -1 if is_binary else axis, check_kind(kind))
    mask = None if where is None else check_mask(where, given.batch)
    weights = None if sample_weight is None else check_sample_weight(sample_weight, given.batch)
    if weights is not None:  # losses are not multiplied by them
        mask = weights != 0 if mask is None else mask & (weights != 0)
    positions = as_positions("targets", prepared, given, ignore_index, mask, distributions=False)
    jobs.warn_of_probs(positions, given, kind)
    own_kind, is_fitted = _core.KINDS[given.kind], bool(temperature)
    columns = token_columns(given, positions, workers, has_second=brier or (is_fitted and own_kind == "logits"))
    kept = columns.pop("kept")
    rows: Any = slice(None) if kept.all() else np.flatnonzero(kept)
    columns = {name: column[rows] for name, column in columns.items()}
    columns["target"] = positions.targets.reshape(-1)[rows].astype(np.int64)
    if segment_ids is not None:
        columns["segment_ids"] = check_segment_ids(segment_ids, given.batch).reshape(-1)[rows]
    if weights is not None:
        columns["sample_weight"] = weights.reshape(-1)[rows]
    if given.classes <= FEW_CLASSES:
        view = np.moveaxis(without_bfloat16(given.array, given.dtype), given.axis, -1).reshape(-1, given.classes)
        columns["probs"] = class_probs(view[rows], own_kind)
    if is_binary:
        columns |= {"prediction": columns["probs"][1], "event": columns["target"] == 1}
    if not is_fitted:
        return calibration_of(columns, *checked)
    logits = given
    if own_kind != "logits":  # probabilities are taken by their logarithms
        array: Any = CheckedArray(given.array, given.dtype)
        if own_kind == "probs":
            array = _logs(given, kept)
        logits = as_scores("scores", array, given.axis)

    def at_scale(scale: float) -> Columns:
        scaled = columns
        if scale != 1 or own_kind != "logits":
            scaled = token_columns(logits, positions, workers, scale, has_second=True)
            scaled = {name: column[rows] for name, column in scaled.items()}
        prediction = scaled["confidence"]
        if is_binary:  # the likelier class of the two is 1, or 0
            prediction = np.where(columns["prediction"] > 0.5, prediction, 1 - prediction)
        return scaled | {"prediction": prediction}

    tokens = Tokens(len(columns["nll"]), *map(columns.get, ("sample_weight", "segment_ids")))
    return calibration_of(columns, *checked, fit_temperature(at_scale, tokens))


def _as_classes(scores: Any, targets: Any, kind: Any) -> tuple[Any, Any, bool]:
    """Scores with an axis of classes, their targets, and whether the scores were probabilities of class 1."""
    if kind != "probs":
        return scores, targets, False
    array, code = as_float_array("scores", scores)
    labels, _ = as_array("targets", targets, "an integer")
    if array.shape != labels.shape:
        return CheckedArray(array, code), targets, False
    probs = without_bfloat16(array, code).astype(np.float64)
    return np.stack([1 - probs, probs], -1), labels.astype(np.int8) if labels.dtype == np.bool_ else labels, True


def _logs(given: _core.Scores, kept: BoolArray) -> CheckedArray:
    """The logarithms of the probabilities of kept tokens, in the layout of the scores."""
    probs = np.moveaxis(without_bfloat16(given.array, given.dtype), given.axis, -1)
    return CheckedArray(
        *as_float_array("scores", np.moveaxis(natural_logs(probs, np.repeat(kept, given.classes)), -1, given.axis))
    )


def token_columns(
    scores: _core.Scores, positions: _core.Positions, workers: Any, scale: float = 1.0, *, has_second: bool = False
) -> Columns:
    """Flat columns of all positions: those of `calibration_of`, "kept", "entropy" and those of `with_moments`."""
    job, columns = token_job(scores, positions, (scale, 0.0), 0)
    moments = with_moments(job, has_second=has_second)
    jobs.run(job, workers)
    return moments | {name: columns[name].reshape(-1) for name in ("nll", "is_greedy", "kept", "entropy")}


def with_moments(job: _core.TokenStats, *, has_second: bool) -> Columns:
    """New columns that the job fills besides those of `token_scores`: "confidence", perhaps "brier" and "variance".

    The latter two take a second pass over each row, while it is in a cache.
    """
    names = ("confidence", "brier", "variance")
    columns: Columns = {name: np.full(job.scores.rows, np.nan) for name in names[: 3 if has_second else 1]}
    job.add_moments(*map(columns.get, names))
    return columns


def class_probs(scores: Array, kind: str) -> Float64Array:
    """The probabilities of the classes, of shape (V, tokens), from rows (tokens, V) with few classes."""
    array: Any = scores.astype(np.float64)
    array = np.ascontiguousarray((array if kind == "probs" else jobs.with_known_kind(softmax)(array)).T)
    if kind == "probs":
        array /= sum(array)  # which adds in the order of the classes
    probs: Float64Array = array
    return probs
