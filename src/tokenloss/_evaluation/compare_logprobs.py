"""The comparison of files of log-probabilities of tokens: those of a trainer and of the engine that sampled."""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._comparison.comparisons import Comparisons
from tokenloss._comparison.mismatch import Mismatch, as_logprobs, mismatch, mismatch_of
from tokenloss._core._core import KINDS, is_log_prob
from tokenloss._core.arguments import as_paths
from tokenloss._core.errors import raise_error
from tokenloss._core.validation import check_log_probs
from tokenloss._evaluation.options import by_identity, single
from tokenloss._evaluation.sink import (
    ComparedBlock,
    check_files,
    checked_sinks,
    finish_sinks,
    open_sinks,
    token_function,
)
from tokenloss._statistics.sequences import check_segment_ids
from tokenloss.formats import npy, npz
from tokenloss.formats.base import is_float
from tokenloss.formats.readers import format_of
from tokenloss.formats.records import read_records
from tokenloss.formats.responses import is_responses, open_responses
from tokenloss.formats.responses.fields import Place, check_count, check_list

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from tokenloss._core.types import Array, BoolArray, Float64Array, IntArray
    from tokenloss._evaluation.sink import Sink

_NAME = "logprobs"  # of arrays in .npz files
# names of lists in JSON lines, and of their masks: our own, and those of verl, TRL and prime-rl
_FIELDS = {
    _NAME: None,
    "rollout_log_probs": "response_mask",
    "sampling_per_token_logps": "completion_mask",
    "completion_logprobs": "completion_mask",
}
_EPSILON = inspect.signature(mismatch).parameters["epsilon"].default
_ROWS = 1000  # whose ends are looked at: scores may be larger than memory


class _Row(NamedTuple):
    """A sequence: its line, the name of its request and its choice, and columns of its tokens."""

    line: int
    name: str | None
    choice: int
    values: Float64Array
    mask: BoolArray
    ids: Array
    texts: Array


class _Rows(NamedTuple):
    """The sequences of a file of responses, or of lines of JSON with a list of log-probabilities."""

    path: str
    rows: list[_Row]

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each row."""
        return [len(row.values) for row in self.rows]

    def joined(self, column: str) -> Array:
        """A column of all tokens, one sequence after the other."""
        return np.concatenate([getattr(row, column) for row in self.rows] or [np.empty(0)])


# -- what files hold ---------------------------------------------------------------------------------------------------


def are_logprobs(paths: Sequence[str], part: Any) -> bool:
    """Whether files hold a log-probability of each token, by their content, and not scores of all classes."""
    kinds = [_kind_of(path) for path in paths]
    if kinds == ["batch", "batch"] and all(map(_ends_in_zeros, paths)):
        got = "has no number above 0, and its rows end in zeros, as log-probabilities of tokens with padding do"
        fits = f"be a .npz file, whose array is named {_NAME} (of tokens) or {', '.join(KINDS)} (of all classes)"
        raise_error("content", path=paths[0], got=got, fits=fits)
    if "batch" in kinds and "responses" in kinds and "scores" not in kinds and len(paths) == 2:
        batch, responses = (paths[kinds.index(kind)] for kind in ("batch", "responses"))
        return _fits_batch(batch, responses, part)
    is_sure = bool({"array", "lists"} & {*kinds}) and "scores" not in kinds
    if is_sure and "unreadable" in kinds:
        _readable_kind_of(paths[kinds.index("unreadable")])  # raises an error that says why
    return is_sure


def _kind_of(path: str) -> str:
    """The kind of a file, as in `_readable_kind_of`, or "unreadable"."""
    with contextlib.suppress(OSError, ValueError):  # which the reader of the file will raise
        return _readable_kind_of(path)
    return "unreadable"


def _readable_kind_of(path: str) -> str:
    """The kind of a file: "array" or "lists" of log-probabilities, perhaps a "batch", "responses" or "scores"."""
    if is_responses(path):
        return "lists" if _are_lists(next(read_records(path)).value) else "responses"
    form = format_of(path)
    if form is npy.FORMAT:
        place = npy.locate(path)
        if len(place.shape) == 2 and _are_padded(place.map()):
            return "array"
        return {1: "array", 2: "batch"}.get(len(place.shape) * is_float(place.dtype), "scores")
    if form is npz.FORMAT:
        names = npz.array_names(path)
        return "array" if _NAME in names and not {*KINDS} & {*names} else "scores"
    return "scores"


def _are_padded(array: Array) -> bool:
    """Whether rows end in nan, and have no number above 0 before: no scores of all classes are so."""
    if not is_float(array.dtype) or not array.shape[1] or not np.isnan(array[:_ROWS, -1]).any():
        return False
    return not (array > 0).any()


def _ends_in_zeros(path: str) -> bool:
    """Whether rows end in zeros, each in another number of them, and have no number above 0: no scores are so."""
    array = npy.open_array(path)
    is_zero = array[:_ROWS] == 0
    if not is_zero.size or (array[:_ROWS] > 0).any():
        return False
    lengths = np.where(is_zero.all(axis=1), is_zero.shape[1], (~is_zero[:, ::-1]).argmax(axis=1))
    is_padded = lengths.max() >= 2 and len({*lengths.tolist()}) > 1 and not is_zero.all(axis=1).any()
    return bool(is_padded) and not (array > 0).any()


def _are_lists(value: dict[str, Any]) -> bool:
    """Whether a line has a plain list of log-probabilities."""
    return "choices" not in value and any(isinstance(value.get(name), list) for name in _FIELDS)


def _fits_batch(path: str, responses: str, part: Any) -> bool:
    """Whether an array of two dimensions has a row for each response, and not for each token; an error for both."""
    rows, lengths = npy.locate(path).shape[0], []
    with contextlib.suppress(ValueError):  # of what is wrong with the responses, or that they are of prompts alone
        file = open_responses(responses, part=part or "generated", skip_failed=True)
        lengths = [len(response.ids) for response in file]
    if not lengths or rows != len(lengths) or (npy.open_array(path) > 0).any():
        return False
    if rows == sum(lengths):
        got = f"has {rows:,} rows, and {responses} as many responses, each of one token"
        fits = f"be a .npz file, whose array is named {_NAME} (of tokens) or {', '.join(KINDS)} (of all classes)"
        raise_error("content", path=path, got=got, fits=fits)
    return True


# -- the comparison ----------------------------------------------------------------------------------------------------


def compare_logprobs(
    base: list[str], others: dict[str, list[str]], *, segment_ids: Any,
    part: Literal["prompt", "generated", "all"] | None, skip_failed: bool, sinks: Sequence[Sink],
) -> Comparisons[Mismatch]:  # fmt: skip
    """Compare the log-probabilities of a trainer, the base, with those of the engine that sampled the tokens.

    Options are those of `compare_files`.
    """
    trainer = single("base", base)
    if len(others) > 1:
        fits = "one file, of the engine that sampled, where files hold log-probabilities of tokens"
        raise_error("option", name="the list of others", got=f"{len(others)} files", fits=fits)
    ((name, paths),) = others.items()
    sampler = single(f"others[{name!r}]", paths)
    segments = as_paths("segment_ids", segment_ids)
    outputs = checked_sinks(sinks, "compare_files", None, None)
    for output in outputs:
        if not output._takes_logprobs:
            raise_error("not for", name=output._name, fits="does not apply to log-probabilities of tokens alone")
    check_files(outputs, None, by_identity([trainer, sampler, *segments]))
    kinds = [_kind_of(path) for path in (trainer, sampler)]
    if kinds[0] == "responses":
        next(iter(open_responses(trainer, skip_failed=True)), None)  # raises an error if it contains something else
        got, fits = "holds responses of the engine that sampled", f"come second, after those of the trainer, {sampler}"
        raise_error("content", path=trainer, got=got, fits=fits)
    sides = [_read(path, kind, part, skip_failed) for path, kind in zip((trainer, sampler), kinds, strict=True)]
    rows = next((side for side in (sides[1], sides[0]) if isinstance(side, _Rows)), None)
    about = {"name": name, "trainer": trainer, "sampler": sampler}
    if rows is None:
        found = _of_arrays((trainer, sampler), sides, segments, about)
    else:
        if segments:
            raise_error("not for", name="segment_ids", fits="is for arrays, and a file holds a sequence on each line")
        about |= {"part": part or "generated"} if kinds[1] == "responses" else {}
        found = _of_rows((trainer, sampler), sides, rows, about)
    result: Comparisons[Mismatch] = Comparisons({name: found})
    with contextlib.ExitStack() as stack:
        has_text = rows is not None and any(text is not None for row in rows.rows for text in row.texts)
        open_sinks(stack, outputs, None, None, 0, has_text=has_text, names=(name,), of_logprobs=True)
        _give(outputs, name, found, rows)
        if outputs:
            finish_sinks(outputs, result._figures(), result)
    return result


def _read(path: str, kind: str, part: Any, skip_failed: bool) -> _Rows | Float64Array:
    """The log-probabilities of a file of this kind."""
    if kind not in ("responses", "lists"):
        named = npz.open_array(path, _NAME) if format_of(path) is npz.FORMAT else npy.open_array(path)
        array: Float64Array = as_logprobs(f"{path}: {_NAME}", named)
        check_log_probs(f"{path}: {_NAME}", array, True)
        return array
    if kind == "lists":
        return _Rows(path, [_listed(value, Place(path, line)) for line, value in read_records(path)])
    responses = open_responses(path, part=part or "generated", skip_failed=skip_failed)
    return _Rows(path, [
        _Row(one.line, one.custom_id, one.choice, one.logprobs, np.ones(len(one.ids), np.bool_), one.ids, one.tokens)
        for one in responses
    ])  # fmt: skip


def _listed(value: dict[str, Any], place: Place) -> _Row:
    """The sequence of a line that has a list of log-probabilities, and perhaps one that masks it."""
    names = [name for name in _FIELDS if name in value]
    if len(names) != 1:
        held = " and ".join(names) or "no log-probabilities"
        place.refuse(f"it holds {held}", f'hold one list, {{"{_NAME}": [...]}}')
    (name,) = names
    numbers = check_list(value[name], name, place)
    field = _FIELDS[name]
    marks = [1] * len(numbers) if field not in value else check_list(value[field], field, place, len(numbers))
    for i, (number, mark) in enumerate(zip(numbers, marks, strict=True)):
        if mark not in (0, 1):
            place.refuse(f"{field}[{i}] is {mark!r}", "be 0 or 1")
        is_known = is_log_prob(number) or (type(number) is float and not number > 1e-3)  # by rounding; nan, too
        if mark and number is not None and not is_known:
            place.refuse(f"{name}[{i}] is {number!r}", "be a log-probability, a number of at most 0, or null")
    n, mask, of_request = len(numbers), np.array(marks, np.bool_), value.get("custom_id")
    values = [number if mark and number is not None else np.nan for number, mark in zip(numbers, marks, strict=True)]
    choice = check_count(value.get("choice", 0), "choice", place)
    of_request = of_request if of_request is None else str(of_request)
    return _Row(place.line, of_request, choice, np.array(values, np.float64), mask, np.full(n, -1), np.full(n, None))


def _of_arrays(paths: tuple[str, str], arrays: Sequence[Any], segments: list[str], about: dict[str, Any]) -> Mismatch:
    """Compare two arrays of one shape, whose padding is nan in both."""
    ours, theirs = arrays
    if ours.shape != theirs.shape or not ours.shape:
        got, fits = f"has shape {theirs.shape}", f"have {ours.shape}, as {paths[0]}"
        raise_error("content", path=paths[1], got=got, fits=fits if ours.shape else "be of tokens")
    lengths = [_lengths(array) for array in arrays]
    for row in np.flatnonzero(lengths[0] != lengths[1])[:1].tolist():
        got = f"row {row} has {lengths[1][row]} tokens before its padding of nan"
        raise_error("content", path=paths[1], got=got, fits=f"have {lengths[0][row]}, as {paths[0]}")
    ids: IntArray | None = None
    if segments:
        ids = check_segment_ids(npy.open_array(single("segment_ids", segments)), ours.shape).flatten()
    return mismatch_of(ours, theirs, np.ones(ours.shape, np.bool_), ids, _EPSILON, about)


def _lengths(array: Float64Array) -> IntArray:
    """The length of each row along the last axis without the nan at its end."""
    is_number = ~np.isnan(array).reshape(-1, array.shape[-1] if array.size else 1)
    lengths: IntArray = (np.arange(1, is_number.shape[1] + 1) * is_number).max(axis=1, initial=0)
    return lengths


def _of_rows(paths: tuple[str, str], sides: Sequence[Any], rows: _Rows, about: dict[str, Any]) -> Mismatch:
    """Compare two files, at least one of which holds a sequence on each line, as `rows` do."""
    ids = np.repeat(np.arange(len(rows.rows)), rows.lengths)
    values, mask = [], np.ones(ids.shape, np.bool_)
    for path, side in zip(paths, sides, strict=True):
        if not isinstance(side, _Rows):
            values.append(_fitted(path, side, rows))
            continue
        paired = _paired(side, rows)
        values.append(paired.joined("values"))
        mask &= paired.joined("mask") != 0
    ours = np.where(np.isnan(values[1]), np.nan, values[0])  # what has no number is left out
    found = mismatch_of(ours, values[1], mask, ids, _EPSILON, about)
    assert found.sequences is not None
    found.sequences["line"] = np.array([row.line for row in rows.rows], np.int64)[found.sequences["sequence"]]
    return found


def _paired(side: _Rows, rows: _Rows) -> _Rows:
    """The sequences of a file in the order of another one: by the names of requests if both have them, else by place.

    Raises an error if the sequences do not match, or if only some of a file's sequences have a name.
    """
    if side is rows:
        return side
    files = side, rows
    named = [[row for row in one.rows if row.name is not None] for one in files]
    for one, with_name in zip(files, named, strict=True):
        if with_name and len(with_name) < len(one.rows):
            line = next(row.line for row in one.rows if row.name is None)
            raise_error(
                "record", path=one.path, line=line, got="it has no custom_id", fits="have one, like the other lines"
            )
    if all(named):
        first = [{(row.name, row.choice): row for row in with_name[::-1]} for with_name in named]
        for one, own, other, others in zip(files, first, files[::-1], first[::-1], strict=True):
            for key, row in (((row.name, row.choice), row) for row in one.rows):
                if own[key] is not row:
                    got = f"the custom_id {row.name!r} comes twice"
                    fits = 'have one of its own, or further choices of a request a "choice" each'
                    raise_error("record", path=one.path, line=row.line, got=got, fits=fits)
                if key not in others:
                    got = f"the custom_id {row.name!r} is on no line of {other.path}"
                    raise_error("record", path=one.path, line=row.line, got=got, fits="match one")
        side = _Rows(side.path, [first[0][row.name, row.choice] for row in rows.rows])
    _check_rows(side, rows)
    return side


def _check_rows(side: _Rows, rows: _Rows) -> None:
    """Refuse a file of other sequences than another one."""
    if len(side.rows) != len(rows.rows):
        got, fits = f"holds {len(side.rows)} sequences", f"hold {len(rows.rows)}, as {rows.path}"
        raise_error("content", path=side.path, got=got, fits=fits)
    for row, other in zip(side.rows, rows.rows, strict=True):
        if len(row.values) != len(other.values):
            fits = f"have {len(other.values)}, as line {other.line} of {rows.path}"
            raise_error("record", path=side.path, line=row.line, got=f"it has {len(row.values)} tokens", fits=fits)


def _fitted(path: str, array: Float64Array, rows: _Rows) -> Float64Array:
    """The numbers of an array that belong to the tokens of rows, one sequence after the other."""
    lengths = rows.lengths
    if array.ndim == 1:
        if array.size != sum(lengths):
            got = f"holds {array.size:,} log-probabilities"
            fits = f"hold {sum(lengths):,}, one for each token of the {len(lengths):,} sequences of {rows.path}"
            raise_error("content", path=path, got=got, fits=fits)
        return array
    if array.ndim != 2 or len(array) != len(lengths):
        fits = f"have ({len(lengths)}, T), a row for each sequence of {rows.path}, or one dimension"
        raise_error("content", path=path, got=f"has shape {array.shape}", fits=fits)
    parts = [np.empty(0)]
    for i, (row, length) in enumerate(zip(array, lengths, strict=True)):
        tail, head = row[length:], row[: max(row.size - length, 0)]
        fits_left = length <= row.size and (np.isnan(tail).all() or not tail.any())
        fits_right = 0 < length < row.size and bool(np.isnan(head).all())
        if fits_left == fits_right:
            got = f"row {i} has {row.size} numbers, {np.count_nonzero(np.isnan(row))} of them nan"
            fits = f"hold {length} log-probabilities, as many as line {rows.rows[i].line} of {rows.path} has tokens, "
            fits += "and then nan or 0, or nan before them"
            raise_error("content", path=path, got=got, fits=fits)
        parts.append(row[:length] if fits_left else row[row.size - length :])
    return np.concatenate(parts)


def _give(outputs: Sequence[Sink], name: str, found: Mismatch, rows: _Rows | None) -> None:
    """Give the tokens to the sinks that need them."""
    add = token_function(outputs, 0)
    if add is None:
        return
    columns, unknown = found.columns(), np.full(found.kept.size, -1)
    target = unknown if rows is None else rows.joined("ids").astype(np.int64)
    text = None if rows is None else rows.joined("texts").astype(np.object_)
    sequence, position = (columns.pop(place, unknown) for place in ("sequence", "position"))
    add(ComparedBlock(name, columns, target, text, 0, None, sequence, position, None, None))
