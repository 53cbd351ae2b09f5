"""Runs a job of `_core` over its rows, and raises an error for the first row that it refused."""

from __future__ import annotations

import contextvars
import functools
import reprlib
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from tokenloss._core import _core, threads
from tokenloss._core.errors import KindWarning, named, raise_bad_class, raise_error, warn
from tokenloss._core.validation import check_reduction

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from tokenloss._core.types import Float64Array

P = ParamSpec("P")
T = TypeVar("T")

_IS_KNOWN = contextvars.ContextVar("whether the kind of scores is known", default=False)

# what the message suggests for a row whose logsumexp is too far from 0, by the kind of its scores
_NORMALIZED = {
    "logits": "{is_llama_cpp} takes log-probabilities, as log_softmax gives them",
    "log_probs": "for natural log-probabilities it is 0; for logits, give {is_logits}",
    "probs": "probabilities add up to 1: divide each row by its sum; for logits, give {is_logits}",
}


def new_losses(reduction: Any, batch: tuple[int, ...]) -> Float64Array | None:
    """An array for the loss of each position, 0 where masked; None if only the sum or mean is needed."""
    return np.zeros(batch) if check_reduction(reduction) == "none" else None


def run_and_reduce(
    job: _core.RowJob, losses: Float64Array | None, reduction: Any, workers: Any
) -> float | Float64Array:
    """Run a job, and reduce its losses."""
    run(job, workers)
    return reduced(job, losses, reduction)


def reduced(job: _core.RowJob, losses: Float64Array | None, reduction: Any) -> float | Float64Array:
    """The sum or mean of the losses of a job that has run, or each of them: a scalar for a single row."""
    if losses is None:
        return job.reduced(reduction == "mean")
    scalar: Float64Array = losses[()] if losses.ndim == 0 else losses
    return scalar


def run(job: _core.RowJob, workers: Any) -> None:
    """Run a job over all rows, and raise an error for the first row that it refused."""
    positions = job.positions
    if positions.by_class and not job.refuses_bad_targets:
        check_targets(positions, job.scores)
    threads.run(job, threads.check_workers(workers))
    if job.has_refused:
        if positions.by_class:  # the first class id out of range is reported before any score that was refused
            check_targets(positions, job.scores)
        raise_refusal(job)


def with_known_kind(function: Callable[P, T]) -> Callable[P, T]:
    """The function without its warning about probabilities, for logits whose kind was given or has been checked."""

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> T:
        token = _IS_KNOWN.set(True)
        try:
            return function(*args, **options)
        finally:
            _IS_KNOWN.reset(token)

    return call


def warn_of_probs(positions: _core.Positions, scores: _core.Scores, *kinds: str | None) -> bool:
    """Whether scores look like probabilities, and none of the arguments for their kind was given; if so, warn."""
    seem_probs = not any(kinds) and not _IS_KNOWN.get() and _core.look_like_probs(scores, positions)
    if seem_probs:
        option = "base_kind" if scores.name == "base_logits" else "kind"
        fits = f"give {option}='probs', or {option}='logits' if these are logits"
        fits = fits if kinds else "pass their logarithm; cross_entropy_loss takes probabilities"
        words = f"{scores.name} looks like probabilities, since rows add up to 1, but is read as logits; {fits}"
        warn(words, KindWarning)
    return seem_probs


def check_targets(positions: _core.Positions, scores: _core.Scores) -> None:
    """Refuse class ids out of range, and integer distributions that are not one-hot."""
    if positions.is_checked:
        return
    if positions.by_class:
        row = positions.find_bad_target()
        if row >= 0:
            raise_bad_class(positions.name, positions.targets, _index(positions, row), positions.classes)
    elif (row := positions.find_bad_distribution()) >= 0:
        _raise_not_one_hot(positions, scores, row, False)


def _index(positions: _core.Positions, row: int) -> list[int]:
    """The index of a row in the batch."""
    return [int(i) for i in np.unravel_index(row, positions.batch)] if positions.batch else []


def _raise_not_one_hot(positions: _core.Positions, scores: _core.Scores, row: int, is_probability: bool) -> NoReturn:
    """Raise the error for a row of integers that is not one-hot."""
    position = _index(positions, row)
    index: Any = (*position[: scores.axis], slice(None), *position[scores.axis :])
    if position or not is_probability:
        fits = f"class ids have shape {positions.batch}; distributions are floats"
    else:  # the arguments of scikit-learn's log_loss for N probabilities of class 1
        fits = (
            "for N probabilities of class 1, write cross_entropy_loss(y_true, np.stack([1 - y_pred, y_pred], -1)); for "
            "one row of classes, cross_entropy_loss(np.float64(y_true), y_pred)"
        )
    targets = positions.targets[index]
    got = f"{reprlib.repr(targets.tolist())}, which add up to {targets.sum(dtype=object)}"
    raise_error("one-hot", name=positions.name, position=position or "", got=got, fits=fits)


def raise_unnormalized(name: str, position: Sequence[int], kind: str, logsumexp: float) -> NoReturn:
    """Raise the error for a row that is not normalized; for probabilities, the message has their sum."""
    is_logits, is_llama_cpp = named("kind", "logits"), named("definitions", "llama.cpp")
    name, fits = f"{name}{position or ''}", _NORMALIZED[kind].format(is_logits=is_logits, is_llama_cpp=is_llama_cpp)
    with np.errstate(over="ignore"):
        got = np.exp(logsumexp) if kind == "probs" else logsumexp
    raise_error("sum" if kind == "probs" else "unnormalized", name=name, got=got, fits=fits)


def raise_refusal(job: _core.RowJob) -> NoReturn:
    """Raise the error for the first row that a job refused while it read rows."""
    reason, row, k, score = job.refusal()
    positions, scores, is_probability = job.positions, job.scores, job.is_probability
    if reason == _core.BAD_DISTRIBUTION:
        _raise_not_one_hot(positions, scores, row, is_probability)
    position = _index(positions, row)
    if isinstance(job, _core.PairJob) and k >= scores.classes:
        scores, k = job.other, k - scores.classes
    kind = _core.KINDS[scores.kind]
    if reason == _core.UNNORMALIZED:
        raise_unnormalized(scores.name, position, kind, score)
    if reason == _core.BAD_TARGET:
        fits = f"[0, {positions.classes})"
        raise_error("changed", name=positions.name, position=position or "", fits=fits)
    position.insert(scores.axis, k)
    fits = "probability" if is_probability or kind == "probs" else "log-probability"
    fits += "; use cross_entropy for logits" if kind == "logits" else f"; for logits, give {named('kind', 'logits')}"
    raise_error("score", name=scores.name, position=position, got=score, fits=fits)
