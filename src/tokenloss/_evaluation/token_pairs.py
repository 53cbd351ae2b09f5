"""Comparisons of the log-probabilities of tokens, by a trainer and by the engine that sampled them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._comparison.comparisons import Comparisons
from tokenloss._comparison.mismatch import EPSILON, Mismatch, mismatch_of
from tokenloss._core.errors import raise_error, refuse
from tokenloss._evaluation.checkpoint import record
from tokenloss._evaluation.options import Options
from tokenloss._evaluation.plan import planned
from tokenloss._evaluation.responses import FilesUnit, group_codes, sequences_of, units_of
from tokenloss._evaluation.score import score_shard
from tokenloss._evaluation.scored_responses import runs
from tokenloss._evaluation.sequences import groups_of
from tokenloss._evaluation.sink import Block, schema_of
from tokenloss.formats.logprobs import Logprobs, read_array, read_lines, read_segment_ids, refuse_padding, seems_padded
from tokenloss.formats.responses import Responses, open_responses, response_of
from tokenloss.formats.scores import Scores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenloss._comparison.compared_tokens import About
    from tokenloss._core.types import Array, BoolArray, Float64Array, IntArray
    from tokenloss._evaluation.run import Run, Work
    from tokenloss.formats.responses import Response
    from tokenloss.formats.sources import Source

_PLACES = ("sequence", "position", "target")
_MISMATCHES = ("kept", "logprobs", "base_logprobs", "difference", "ratio")
_MISMATCHES_OF_SEQUENCES = (
    "file", "sequence", "count", "line", "difference", "k3", "log_ratio", "ratio", "geometric_ratio",
)  # fmt: skip


@record
class ComparedLosses(NamedTuple):
    """Result of a pair: the log-probabilities of both, the mask of tokens that count, and their sequences."""

    logprobs: Float64Array
    base_logprobs: Float64Array
    mask: Array
    shape: tuple[int, ...]
    segment_ids: Array | None = None
    lines: Array | None = None  # of each sequence
    ids: Array | None = None
    texts: Array | None = None
    labels: list[Any] | None = None  # of the groups of each sequence, for all its tokens or for each
    lengths: list[int] | None = None  # of the sequences

    def mismatch(self, about: About) -> Mismatch:
        """The public result of the pair."""
        ours, theirs, mask = (array.reshape(self.shape) for array in (self.logprobs, self.base_logprobs, self.mask))
        measured = mismatch_of(ours, theirs, mask, self.segment_ids, EPSILON, about)
        if self.lines is not None and measured.sequences is not None:
            measured.sequences["line"] = self.lines[measured.sequences["sequence"]]
        return measured


def compare_losses(
    base: Source, models: Mapping[str, Source], abouts: Sequence[About], run: Run, by: str | None = None
) -> Comparisons[Mismatch]:
    """The comparison of a trainer (the base) with the engine that sampled the tokens, by log-probabilities."""
    units = units_of(base, models)
    if len(units) > 1:
        fits = "one file, of the engine that sampled, if files contain log-probabilities of tokens"
        raise_error("option", name="the list of others", got=f"{len(units)} files", fits=fits)
    (unit,), (given,) = units, abouts
    about: About = {"name": given["name"], "trainer": unit.base.paths[0], "sampler": unit.other.paths[0]}
    if isinstance(unit.base, Responses):
        next(iter(unit.base), None)  # raises an error if it contains something else
        got = "contains responses of the engine that sampled"
        refuse(unit.base.paths[0], got, f"come second, after those of the trainer, {unit.other.paths[0]}")
    if isinstance(unit.other, Responses):
        part: Any = unit.other.options["part"] or "generated"
        read = open_responses(unit.other.paths, part=part, skip_failed=unit.other.options["skip_failed"])
        unit, about["part"] = unit._replace(other=read), part
    text = ["text"] * isinstance(unit.other, Responses)
    schema = schema_of(("file", *_PLACES, *text, *_MISMATCHES), _MISMATCHES_OF_SEQUENCES, (unit.name,))
    (result,) = run.map(_compare_losses, [unit], schema, are_candidates=True)
    comparisons = Comparisons({unit.name: (one := result.mismatch(about))})
    if by is not None:
        positions = one.columns().get("position", np.full(one.kept.size, -1))
        codes = group_codes(by, positions, result.labels or (), result.lengths or ())
        about |= groups_of(one, by, [codes], base.paths[0])
    run.sinks.finish(comparisons, lambda: sequences_of(comparisons))
    return comparisons


def _compare_losses(unit: FilesUnit, work: Work) -> ComparedLosses:
    """The log-probabilities of both for the same tokens."""
    base, other = (_side(source, work) for source in (unit.base, unit.other))
    if isinstance(base, _Array) and isinstance(other, _Array):
        result, padded = _compared_arrays(base, other)
    else:
        result = _compared_rows(base, other)
        padded = [side.padded for side in (base, other) if isinstance(side, _Rows) and side.padded is not None]
    if padded and not result.mismatch({}).void:  # else the diagnosis already gives the advice
        refuse_padding(padded[0])
    if work.emit:
        places = {name: np.full(result.logprobs.size, -1) for name in _PLACES} | result.mismatch({}).columns()
        columns = places | {
            name: one for name, one in (("target", result.ids), ("text", result.texts)) if one is not None
        }
        own = {name: columns.pop(name) for name in _MISMATCHES if name in columns and name != "kept"}
        work.emit(Block(columns, {unit.name: own}))
    work.advance(unit.n_bytes)
    return result


class _Array(NamedTuple):
    """Log-probabilities without sequences, or with the rows of an array as sequences."""

    source: Source
    path: str
    values: Float64Array
    mask: BoolArray  # of the tokens that count; the values of others are nan
    ids: IntArray | None = None  # class ids, where they are known


def _side(source: Source, work: Work) -> _Array | _Rows:
    """The log-probabilities of a source."""
    path = source.paths[0]
    if isinstance(source, Scores):
        return _losses_of_scores(source, work)
    if isinstance(source, Logprobs) and source.shape is not None:
        values, mask = read_array(source)
        return _Array(source, path, values, np.ones(values.shape, np.bool_) if mask is None else mask)
    if isinstance(source, Logprobs):
        rows, is_padded = read_lines(source)
        return _Rows(path, rows, source if is_padded else None)
    assert isinstance(source, Responses)
    return _Rows(path, [*source])


def _losses_of_scores(source: Scores, work: Work) -> _Array | _Rows:
    """The log-probabilities of the tokens of scores that are not ignored, by sequence if there are sequences."""
    blocks: list[Block] = []
    path, options = source.paths[0], Options.of(source.token_options)
    for shard in planned(source, (), options, work.handles):
        if shard.target_type == "distributions":
            refuse(path, "has distributions as targets", "have class ids, each of which has a log-probability")
        score_shard(shard, work._replace(emit=blocks.append, advance=lambda n_bytes: None), options)
    names = ("kept", "nll", "sequence", "target")
    columns = [[block.columns[name] for name in names] for block in blocks if block.columns["kept"].any()]
    if not columns:
        return _Array(source, path, np.empty(0), np.empty(0, np.bool_))
    kept, nll, numbers, ids = map(np.concatenate, zip(*columns, strict=True))
    logprobs, numbers, ids = -nll[kept], numbers[kept], ids[kept]
    if (numbers < 0).all():
        return _Array(source, path, logprobs, np.ones(logprobs.shape, np.bool_), ids)
    if (numbers < 0).any():
        fits = "give a sequence number to each token, or to none"
        refuse(path, "has tokens that are in no sequence", fits)
    rows = [
        dataclasses.replace(response_of(number, None, 0, logprobs[start:stop]), ids=ids[start:stop])
        for number, (start, stop) in enumerate(runs(path, numbers), 1)
    ]
    return _Rows(path, rows)


def _compared_arrays(base: _Array, other: _Array) -> tuple[ComparedLosses, list[Logprobs]]:
    """The log-probabilities of two arrays of one shape, padded with nan, and the sources whose zeros may be padding."""
    shape, paths = base.values.shape, (base.path, other.path)
    if other.values.shape != shape or not shape:
        got, fits = f"has shape {other.values.shape}", f"have shape {shape}, like {paths[0]}"
        refuse(paths[1], got, fits if shape else "be of tokens")
    mask = base.mask & other.mask
    ours, theirs = (np.where(mask, side.values, np.nan) for side in (base, other))
    lengths = [_lengths(array) for array in (ours, theirs)]
    for row in np.flatnonzero(lengths[0] != lengths[1])[:1].tolist():
        got = f"row {row} has {lengths[1][row]} tokens before its padding of nan"
        refuse(paths[1], got, f"have {lengths[0][row]}, like {paths[0]}")
    sources = [(side.source, values) for side, values in ((base, ours), (other, theirs))]
    arrays = [(source, values) for source, values in sources if isinstance(source, Logprobs)]
    padded = [source for source, values in arrays if seems_padded(source, values)]
    if len(padded) == len(sources) and not any(source.array is not None for source in padded):
        refuse_padding(padded[0])
    numbers = [ids for source, _ in arrays if (ids := read_segment_ids(source, shape)) is not None]
    if len(numbers) > 1 and not np.array_equal(numbers[0], numbers[1]):
        own, others = (side.source.token_options.segment_ids[0] for side in (base, other))
        refuse(others, f"its sequences differ from those in {own}", "have the same sequences")
    ids = base.ids if other.ids is None else other.ids
    segment_ids = numbers[0] if numbers else None
    flat = ours.reshape(-1), theirs.reshape(-1), mask.reshape(-1)
    return ComparedLosses(*flat, shape, segment_ids, ids=ids), padded


def _lengths(array: Float64Array) -> IntArray:
    """The length of each row along the last axis, without nan at its end."""
    is_number = ~np.isnan(array).reshape(-1, array.shape[-1] if array.size else 1)
    lengths: IntArray = (np.arange(1, is_number.shape[1] + 1) * is_number).max(axis=1, initial=0)
    return lengths


class _Rows(NamedTuple):
    """The sequences of a file."""

    path: str
    rows: list[Response]
    padded: Logprobs | None = None  # the source, if zeros at the ends of its lists may be padding

    @property
    def lengths(self) -> list[int]:
        """The number of tokens in each sequence."""
        return [len(row.logprobs) for row in self.rows]

    def joined(self, column: str) -> Array:
        """A column of all tokens, one sequence after the other."""
        return np.concatenate([getattr(row, column) for row in self.rows] or [np.empty(0)])

    def mask(self) -> Array:
        """Mask of the tokens that count."""
        masks = [np.ones(len(row.logprobs), np.bool_) if row.mask is None else row.mask for row in self.rows]
        return np.concatenate(masks or [np.empty(0, np.bool_)])


def _compared_rows(*sides: _Array | _Rows) -> ComparedLosses:
    """The log-probabilities of two sources, at least one of which has sequences of its own."""
    rows = next(side for side in sides[::-1] if isinstance(side, _Rows))
    numbers = np.repeat(np.arange(len(rows.rows)), rows.lengths)
    values, known, mask = [], [rows.joined("ids")], np.ones(numbers.shape, np.bool_)
    names: list[list[Any]] = []  # of groups
    for side in sides:
        if isinstance(side, _Rows):
            paired = _paired(side, rows)
            logprobs, own = paired.joined("logprobs"), paired.mask()
            known.append(paired.joined("ids"))
            names.append([row.label for row in paired.rows])
        else:
            if side.source.token_options.segment_ids:
                raise_error("not for", name="segment_ids", fits=f"is for arrays, and {rows.path} has its own sequences")
            logprobs, own = _fitted(side, rows)
            known += [] if side.ids is None else [side.ids]
        values.append(logprobs)
        mask &= own
    ours = np.where(np.isnan(values[1]), np.nan, values[0])  # tokens without a number are left out
    lines = np.array([row.line for row in rows.rows], np.int64)
    ids = next((one for one in known if (one >= 0).any()), known[0]).astype(np.int64)
    texts = rows.joined("tokens").astype(np.object_)
    labels = [next((label for label in own if label is not None), None) for own in zip(*names, strict=True)]
    return ComparedLosses(ours, values[1], mask, ours.shape, numbers, lines, ids, texts, labels, rows.lengths)


def _paired(side: _Rows, rows: _Rows) -> _Rows:
    """The sequences of a file in the order of another one: by `custom_id` if both files have it, else by position."""
    if side is rows:
        return side
    files = side, rows
    named = [[row for row in one.rows if row.custom_id is not None] for one in files]
    for one, with_name in zip(files, named, strict=True):
        if with_name and len(with_name) < len(one.rows):
            line = next(row.line for row in one.rows if row.custom_id is None)
            raise_error(
                "record", path=one.path, line=line, got="it has no custom_id", fits="have one, like the other lines"
            )
    if all(named):
        first = [{(row.custom_id, row.choice): row for row in with_name[::-1]} for with_name in named]
        for one, own, other, others in zip(files, first, files[::-1], first[::-1], strict=True):
            for key, row in (((row.custom_id, row.choice), row) for row in one.rows):
                if own[key] is not row:
                    got = f"the custom_id {row.custom_id!r} comes twice"
                    fits = 'have one of its own, or further choices of a request a "choice" each'
                    raise_error("record", path=one.path, line=row.line, got=got, fits=fits)
                if key not in others:
                    got = f"the custom_id {row.custom_id!r} is on no line of {other.path}"
                    raise_error("record", path=one.path, line=row.line, got=got, fits="match one")
        side = _Rows(side.path, [first[0][row.custom_id, row.choice] for row in rows.rows])
    _check_rows(side, rows)
    return side


def _check_rows(side: _Rows, rows: _Rows) -> None:
    """Refuse a file whose sequences differ in number or length from those of another file."""
    if len(side.rows) != len(rows.rows):
        refuse(side.path, f"has {len(side.rows)} sequences", f"have {len(rows.rows)}, as {rows.path} does")
    for row, other in zip(side.rows, rows.rows, strict=True):
        if len(row.logprobs) != len(other.logprobs):
            fits = f"have {len(other.logprobs)}, as on line {other.line} of {rows.path}"
            raise_error("record", path=side.path, line=row.line, got=f"it has {len(row.logprobs)} tokens", fits=fits)


def _fitted(side: _Array, rows: _Rows) -> tuple[Float64Array, BoolArray]:
    """The numbers of an array that belong to the tokens of rows, one sequence after the other, and their mask."""
    array, path, lengths = side.values, side.path, rows.lengths
    if array.ndim == 1:
        if array.size != sum(lengths):
            got = f"contains {array.size:,} log-probabilities"
            fits = f"contain {sum(lengths):,}, one for each token of the {len(lengths):,} sequences of {rows.path}"
            refuse(path, got, fits)
        return array, side.mask
    if array.ndim != 2 or len(array) != len(lengths):
        fits = f"have ({len(lengths)}, T), a row for each sequence of {rows.path}, or one dimension"
        refuse(path, f"has shape {array.shape}", fits)
    values, masks = [np.empty(0)], [np.empty(0, np.bool_)]
    for i, (row, length) in enumerate(zip(array, lengths, strict=True)):
        tail, head = row[length:], row[: max(row.size - length, 0)]
        fits_left = length <= row.size and (np.isnan(tail).all() or not tail.any())
        fits_right = 0 < length < row.size and bool(np.isnan(head).all())
        if fits_left == fits_right:
            got = f"row {i} has {row.size} numbers, {np.count_nonzero(np.isnan(row))} of them nan"
            fits = f"have {length} log-probabilities, one per token on line {rows.rows[i].line} of {rows.path}, "
            fits += "followed by nan or 0, or preceded by nan"
            refuse(path, got, fits)
        part = slice(length) if fits_left else slice(row.size - length, None)
        values.append(row[part])
        masks.append(side.mask[i, part])
    return np.concatenate(values), np.concatenate(masks)
