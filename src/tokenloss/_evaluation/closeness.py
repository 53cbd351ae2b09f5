"""`assert_close`: whether a model's scores stay within limits, for tests of kernels and of quantized models."""

from __future__ import annotations

import functools
import os
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._comparison.comparison import compare
from tokenloss._comparison.paired import why_void
from tokenloss._core.arguments import refuse_given
from tokenloss._core.dtypes import CheckedArray, as_array, as_float_array, without_bfloat16
from tokenloss._core.errors import raise_error
from tokenloss._core.result import Shown, Table, as_text
from tokenloss._core.text import count_of
from tokenloss._evaluation.compare_files import compare_files
from tokenloss._evaluation.sink import Sink
from tokenloss._statistics.gates import checked_limits
from tokenloss.formats.content import as_source
from tokenloss.formats.sources import Source, require

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from tokenloss._comparison.comparison import Comparison
    from tokenloss._core.types import Array, ArrayLike, Float64Array, Kind
    from tokenloss._evaluation.sink import Block

    _Limits: TypeAlias = dict[str, float]  # by the names of gates
    _Describe: TypeAlias = Callable[
        [Array], dict[str, list[Any]]
    ]  # the cells of some tokens, by the head of the column
    _Scores: TypeAlias = ArrayLike | Source | str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_MOST_LISTED = 5  # positions


def assert_close(
    logits: _Scores,
    base: _Scores,
    targets: ArrayLike | None = None,
    *,
    max_kl: float | None = None,
    max_token_kl: float | None = None,
    max_abs_loss: float | None = None,
    min_same_top: float | None = None,
    kind: Kind | None = None,
    base_kind: Kind | None = None,
    classes: int | None = None,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    shift: bool | None = None,
    workers: int | None = None,
) -> None:
    """Raise an AssertionError unless a model's scores are within limits of those of its base.

    It is for tests: a kernel or an engine needs limits for each token, `max_token_kl` and `max_abs_loss`; a quantized
    model needs limits of means, `max_kl` and `min_same_top`. At least one must be given. A divergence or loss that is
    nan or infinite fails, whatever the limits are, and so does a comparison of no token.

    Parameters
    ----------
    logits, base : arrays of one shape (..., V), or sources, or paths
        Logits of the model and of its base, or scores of another `kind`, as in `compare`; or files of both, as in
        `compare_files`.
    targets : array of integers, optional
        Class ids of arrays, which `max_abs_loss` needs.
    max_kl : float, optional
        The largest mean KL divergence from the base, in nats, as in `tokenloss compare --max-kl`.
    max_token_kl : float, optional
        The largest KL divergence of any token, in nats.
    max_abs_loss : float, optional
        The largest absolute difference of the losses of any token, in nats.
    min_same_top : float, optional
        The least fraction of the tokens at which both have the same most likely class, 1.0 for all.
    shift : bool, optional
        For sources only: whether targets are the input ids of a causal model, as in `evaluate`.
    kind, base_kind, ignore_index, where
        As in `compare`; for arrays only.
    classes, workers
        As in `compare`.

    Raises
    ------
    AssertionError
        If a limit is exceeded, or if a warning shows that its value is meaningless, as a `KindWarning` does. The
        message has the values, the limits, and the tokens that differ most from the base.
    IndexError, TypeError, ValueError
        As in `compare`.

    See Also
    --------
    tokenloss.compare : The metrics, for arrays.
    tokenloss.results.Comparison.check : Limits that take the errors of the metrics into account.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss.testing import assert_close
    >>> base = np.array([[4.0, 0.0, 0.0], [0.0, 2.0, 1.0]])
    >>> assert_close(base.astype(np.float16), base, [0, 1], max_token_kl=1e-6, max_abs_loss=1e-3)
    >>> assert_close(base[:, [0, 2, 1]], base, [0, 1], max_abs_loss=1e-3, max_kl=0.5)
    Traceback (most recent call last):
    AssertionError: not close to the base  max_abs_loss fails (2 tokens)
    <BLANKLINE>
      max_kl        mean KL divergence                0.210256  holds, at most 0.5
      max_abs_loss  largest change of a token's loss  1         fails, at most 0.001
    <BLANKLINE>
      Tokens that differ most
      position  token  top class  base's        KL     loss  base's loss
           [1]      1          2       1  0.420512  1.40761     0.407606
    """
    __tracebackhide__ = True  # pytest then shows the line of the test
    given = {"max_kl": max_kl, "max_token_kl": max_token_kl, "max_abs_loss": max_abs_loss, "min_same_top": min_same_top}
    limits = {limit.gate: limit.value for limit in checked_limits(given, given)}
    are_files = [_is_source(scores) for scores in (logits, base)]
    if are_files[0] != are_files[1]:
        fits = "a path, as base is" if are_files[1] else "an array, as base is"
        raise_error("type", name="logits", got=type(logits).__name__, fits=f"{fits}; formats.open_scores reads files")
    array_options = {"targets": targets, "kind": kind, "base_kind": base_kind, "where": where}
    if are_files[0]:
        array_options["ignore_index"] = None if ignore_index == -100 else ignore_index
        refuse_given(array_options, "said where files are opened, as by formats.open_scores")
        base, logits = as_source(base, shift=shift, name="base"), as_source(logits, shift=shift, name="logits")
        for source in (base, logits):
            require(source, "rows", "assert_close")
        tokens = _Tokens()
        with warnings.catch_warnings():  # equal values are fine; comparing a file with itself is a mistake
            warnings.filterwarnings("ignore", ".*identical to base: the same values", UserWarning)
            result = compare_files(base, {"logits": logits}, classes=classes, sinks=[tokens], workers=workers)["logits"]
        message = _message(result, limits, functools.partial(tokens.describe, base.paths))
    else:
        refuse_given({"shift": shift}, "left out where logits and base are arrays; next_token shifts them")
        options = array_options | {"classes": classes, "ignore_index": ignore_index, "workers": workers}
        message = _message_of_arrays(logits, base, options.pop("targets"), limits, options)
    if message:
        raise AssertionError(message)


def _is_source(scores: Any) -> bool:
    """Whether scores are given as a source, or as one or more paths."""
    first = scores[0] if isinstance(scores, list | tuple) and scores else scores
    return isinstance(first, Source | str | os.PathLike)


def _message_of_arrays(logits: Any, base: Any, targets: Any, limits: _Limits, options: dict[str, Any]) -> str:
    """The message of an AssertionError about arrays; `options` are arguments of `compare`."""
    scores = CheckedArray(*as_float_array("logits", logits))
    base_scores = CheckedArray(*as_float_array("base", base))
    arrays: Any = {"base_logits": base_scores, "logits": scores}
    comparison = compare(targets=targets, **arrays, **options)

    def describe(positions: Array) -> dict[str, list[Any]]:
        index = np.unravel_index(positions, comparison.kept.shape)
        columns: dict[str, list[Any]] = {"position": np.transpose(index).tolist()}
        if targets is not None:
            columns["token"] = as_array("targets", targets)[0][index].tolist()
        for head, (array, code) in ("top class", scores), ("base's", base_scores):
            columns[head] = without_bfloat16(array[index][:, : options["classes"]], code).argmax(-1).tolist()
        return columns

    return _message(comparison, limits, describe)


class _Tokens(Sink):
    """Keeps the columns that describe each token of files."""

    rows = "tokens"
    top_k = 1
    _name = "assert_close"

    def __init__(self) -> None:
        super().__init__()
        self._columns: dict[str, list[Array]] = {}  # of each block, by the head of the column

    def write(self, block: Block) -> None:
        """Keep the columns that describe the tokens of a block, without their scores."""
        heads = {"file": "file", "row": "row", "token": "target", "text": "text"}
        columns = {head: block.columns[name] for head, name in heads.items() if name in block.columns}
        columns |= {"top class": block.tops["logits"]["top_ids"][:, 0], "base's": block.tops[""]["top_ids"][:, 0]}
        for head, column in columns.items():
            self._columns.setdefault(head, []).append(column)

    def describe(self, files: Sequence[str], positions: Array) -> dict[str, list[Any]]:
        """The cells of some tokens of these files, without empty columns."""
        columns = {head: np.concatenate(parts)[positions].tolist() for head, parts in self._columns.items()}
        columns["file"] = [files[number] if len(files) > 1 else None for number in columns["file"]]
        columns["token"] = [None if token < 0 else token for token in columns["token"]]
        return {head: cells for head, cells in columns.items() if any(cell is not None for cell in cells)}


def _message(comparison: Comparison, limits: _Limits, describe: _Describe) -> str:
    """The message of an AssertionError; "" if all limits hold and all numbers are finite."""
    if "max_abs_loss" in limits and not comparison.has_targets:
        raise_error("type", name="targets", got=None, fits="given, or in the files, for max_abs_loss")
    columns: dict[str, Any] = comparison.columns()
    kept, kl, same_top = (columns[name] for name in ("kept", "kl", "is_same_top"))
    with np.errstate(invalid="ignore"):  # infinite losses
        change = abs(columns["nll"] - columns["base_nll"])
    # by limit: words, the value for all tokens, and how far each token is
    metrics: dict[str, tuple[str, float, Float64Array]] = {
        "max_kl": ("mean KL divergence", comparison.mean_kl, kl),
        "max_token_kl": ("largest KL divergence of a token", _largest(kl[kept]), kl),
        "max_abs_loss": ("largest change of a token's loss", _largest(change[kept]), change),
        "min_same_top": ("top-1 agreement", comparison.same_top, np.where(same_top, 0.0, 1 + kl)),
    }
    rows, failed = [], []
    for name, limit in limits.items():
        words, value, _ = metrics[name]
        is_least = name.startswith("min_")
        if (void := why_void(comparison, name)) or not (value >= limit if is_least else value <= limit):  # or nan
            failed.append(name)
        verdict = f"{'fails' if name in failed else 'holds'}, at {'least' if is_least else 'most'} {limit:g}"
        verdict += void and f"; this value cannot be trusted: {void}"
        rows.append((name, words, f"{value:.6g}", verdict))
    for word, number in ("nan", comparison.n_nan), ("infinite", comparison.n_infinite):
        if number:
            rows.append((word, "divergence or loss of a token", f"{number:,}", "fails, none"))
            failed.append(word)
    if not failed:
        return ""
    distance = metrics[failed[0]][2] if failed[0] in metrics else kl
    is_finite = np.isfinite(kl) & (np.isfinite(change) | (not comparison.has_targets))
    distance = np.where(kept, np.where(is_finite, distance, np.inf), 0)
    worst = np.argsort(-distance, kind="stable")[: min(_MOST_LISTED, np.count_nonzero(distance))]
    numbers = {"KL": "kl"} | ({"loss": "nll", "base's loss": "base_nll"} if comparison.has_targets else {})
    cells = describe(worst) if worst.size else {}
    cells |= {head: [f"{one:.6g}" for one in columns[name][worst]] for head, name in numbers.items()}
    lines = zip(*(map(str, column) for column in cells.values()), strict=True)
    tables = [Table(rows), Table([*lines], (*cells,), "Tokens that differ most")]
    note = f"{', '.join(failed)} {'fails' if len(failed) == 1 else 'fail'} ({count_of(comparison.count, 'token')})"
    return as_text(Shown("not close to the base", note, tables[: 1 + (worst.size > 0)]))


def _largest(values: Array) -> float:
    """The largest value; nan if any value is nan, or without values."""
    return float(values.max()) if values.size else np.nan
