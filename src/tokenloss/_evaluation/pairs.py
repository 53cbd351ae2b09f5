"""Comparisons of sources that list tokens: the likeliest classes, or only the log-probability of each token."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._comparison.comparisons import Comparisons
from tokenloss._comparison.mismatch import EPSILON, Mismatch, mismatch_of
from tokenloss._comparison.responses import (
    TOKEN_COLUMNS,
    Pair,
    PairedFiles,
    ResponseComparison,
    compare_pairs,
    matched,
    response_comparison_of,
)
from tokenloss._core import jobs
from tokenloss._core.errors import raise_error, refuse, with_file_names, worded
from tokenloss._evaluation.checkpoint import record
from tokenloss._evaluation.compare import bytes_per_row, projected
from tokenloss._evaluation.options import Options
from tokenloss._evaluation.plan import planned, rows_per_block
from tokenloss._evaluation.responses import FilesUnit, columns_of_responses, group_codes, scores_of_responses
from tokenloss._evaluation.rows import SHIFT_SAMPLE, RowReader, log
from tokenloss._evaluation.score import score_shard
from tokenloss._evaluation.sequences import groups_of
from tokenloss._evaluation.shards import refuse_without_targets
from tokenloss._evaluation.sink import Block, schema_of, tops_of
from tokenloss._scores.class_log_probs import class_log_probs
from tokenloss._scores.token_scores import token_scores
from tokenloss.formats.logprobs import Logprobs, read_array, read_lines, read_segment_ids, refuse_padding, seems_padded
from tokenloss.formats.mapped import check_map
from tokenloss.formats.responses import Responses, open_responses, response_of
from tokenloss.formats.scores import Scores

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tokenloss._comparison.compared_tokens import About
    from tokenloss._core.types import Array, BoolArray, Columns, Float64Array, IntArray
    from tokenloss._evaluation.run import Run, Work
    from tokenloss.formats.responses import Response
    from tokenloss.formats.sources import Source


_PLACES = ("sequence", "position", "target")
_SEQUENCES = (
    "file", "sequence", "count", "loss", "base_loss", "loss_difference", "kl_bound", "delta_p", "same_top", "line",
    "base_line",
)  # fmt: skip
_MISMATCHES = ("kept", "logprobs", "base_logprobs", "difference", "ratio")
_MISMATCHES_OF_SEQUENCES = (
    "file", "sequence", "count", "line", "difference", "k3", "log_ratio", "ratio", "geometric_ratio",
)  # fmt: skip


def _units(base: Source, models: Mapping[str, Source]) -> list[FilesUnit]:
    """The units of candidates; each source must be one file."""
    for source in (base, *models.values()):
        if len(source.paths) > 1:
            got = f"holds {source.given()['source']} in {len(source.paths)} files"
            fits = "be one file" if isinstance(source, Scores) else "be one file, with a response on each line (.jsonl)"
            fits += ", in the order of the other's"
            refuse(source.name, got, fits)
    return [FilesUnit(base, one, name) for name, one in models.items()]


def _sequences(found: Comparisons[Any]) -> Block:
    """The sequences of all candidates, each of which is one file; without one, a sequence has line -1."""
    tables = {name: one.sequences for name, one in found.items() if one.sequences is not None}
    unknown = {name: np.full(len(table["sequence"]), -1) for name, table in tables.items()}
    return Block({}, {name: {"file": unknown[name] + 1, "line": unknown[name]} | tables[name] for name in tables})


# -- the likeliest classes ---------------------------------------------------------------------------------------------


@record
class ComparedLists(NamedTuple):
    """Result of a pair: columns of its tokens, and the origins of its sequences."""

    columns: Columns
    origins: list[Any]  # the number, both lines and the name of each sequence
    words: list[str]  # how the numbers of both are rounded
    n_skipped: int
    part: str


def compare_lists(
    base: Source, models: Mapping[str, Source], abouts: Sequence[About], run: Run, by: str | None = None
) -> Comparisons[ResponseComparison]:
    """The comparisons of responses with a base of responses or scores, or of scores with a base of responses."""
    schema = schema_of(("file", *_PLACES, "text", *TOKEN_COLUMNS), _SEQUENCES, (*models,), run.sinks.top_k)
    results = run.map(_compare_lists, _units(base, models), schema, are_candidates=True)
    found: Comparisons[ResponseComparison] = Comparisons()
    for about, result in zip(abouts, results, strict=True):
        origins = {number: origin for number, *origin in result.origins}
        found[about["name"]] = one = response_comparison_of(
            result.columns, origins, part=result.part, base_rounding=result.words[0],
            rounding=result.words[1], n_skipped=result.n_skipped, _about=about,
        )  # fmt: skip
        if by is not None:
            numbers, lengths = np.unique(result.columns["sequence"], return_counts=True)
            labels = [origins[number][-1] for number in numbers.tolist()]
            codes = group_codes(by, result.columns["position"], labels, lengths.tolist())
            about |= groups_of(one, by, [codes], base.paths[0])
    run.sinks.finish(found, lambda: _sequences(found))
    return found


def _compare_lists(unit: FilesUnit, work: Work) -> ComparedLists:
    """The compared tokens of a base and a model; one of the two may be scores."""
    sides, words = (unit.base, unit.other), ["", ""]
    files = [source for source in sides if isinstance(source, Responses)]
    pairs: PairedFiles | ScoredResponses
    if len(files) == len(sides):
        pairs = PairedFiles(*files)
    else:
        side = int(isinstance(unit.base, Responses))
        pairs = of_scores = ScoredResponses(sides[side], files[0], side == 0, work)
        words[side] = of_scores.words
    paths = unit.base.paths[0], unit.other.paths[0]
    every, seen = itertools.tee(pairs) if work.top_k else (iter(pairs), ())  # tops are of pairs that were read
    columns, origins, roundings = compare_pairs(every, paths)
    words = [word or str(rounding) for word, rounding in zip(words, roundings, strict=True)]
    if work.emit:
        shared = {name: columns[name] for name in (*_PLACES, "text", "kept", "base_nll")}
        own = {name: columns[name] for name in TOKEN_COLUMNS if name not in shared}
        work.emit(Block(shared, {unit.name: own}, _tops(seen, unit.name, work.top_k)))
    work.advance(unit.n_bytes)
    rows = [(number, *origin) for number, origin in origins.items()]
    return ComparedLists(columns, rows, words, pairs.skipped, files[0].part)


def _tops(every: Iterable[Pair], name: str, top_k: int) -> dict[str, Columns]:
    """The most likely classes of the base and of the candidate, for those of the two that are responses."""
    tops: dict[str, Columns] = {}
    pairs = sorted(every, key=lambda pair: pair.number)
    for side, model in enumerate(("", name)):
        responses = [response for pair in pairs if (response := pair.responses[side]) is not None]
        if responses:
            block = columns_of_responses(responses, top_k)
            tops |= tops_of({model: scores_of_responses(block, top_k)}, block["top_tokens"][:, :top_k])
    return tops


# -- the log-probability of each token ---------------------------------------------------------------------------------


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
        found = mismatch_of(ours, theirs, mask, self.segment_ids, EPSILON, about)
        if self.lines is not None and found.sequences is not None:
            found.sequences["line"] = self.lines[found.sequences["sequence"]]
        return found


def compare_losses(
    base: Source, models: Mapping[str, Source], abouts: Sequence[About], run: Run, by: str | None = None
) -> Comparisons[Mismatch]:
    """The comparison of a trainer (the base) with the engine that sampled the tokens, by log-probabilities."""
    units = _units(base, models)
    if len(units) > 1:
        fits = "one file, of the engine that sampled, where files hold log-probabilities of tokens"
        raise_error("option", name="the list of others", got=f"{len(units)} files", fits=fits)
    (unit,), (given,) = units, abouts
    about: About = {"name": given["name"], "trainer": unit.base.paths[0], "sampler": unit.other.paths[0]}
    if isinstance(unit.base, Responses):
        next(iter(unit.base), None)  # raises an error if it contains something else
        got = "holds responses of the engine that sampled"
        refuse(unit.base.paths[0], got, f"come second, after those of the trainer, {unit.other.paths[0]}")
    if isinstance(unit.other, Responses):
        part: Any = unit.other.options["part"] or "generated"
        read = open_responses(unit.other.paths, part=part, skip_failed=unit.other.options["skip_failed"])
        unit, about["part"] = unit._replace(other=read), part
    text = ["text"] * isinstance(unit.other, Responses)
    schema = schema_of(("file", *_PLACES, *text, *_MISMATCHES), _MISMATCHES_OF_SEQUENCES, (unit.name,))
    (result,) = run.map(_compare_losses, [unit], schema, are_candidates=True)
    found = Comparisons({unit.name: (one := result.mismatch(about))})
    if by is not None:
        positions = one.columns().get("position", np.full(one.kept.size, -1))
        codes = group_codes(by, positions, result.labels or (), result.lengths or ())
        about |= groups_of(one, by, [codes], base.paths[0])
    run.sinks.finish(found, lambda: _sequences(found))
    return found


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
    """Log-probabilities without sequences of their own, or with those of the rows of an array."""

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
        fits = "give each token the number of a sequence, or none of them"
        refuse(path, "holds tokens outside of all sequences", fits)
    rows = [
        dataclasses.replace(response_of(number, None, 0, logprobs[start:stop]), ids=ids[start:stop])
        for number, (start, stop) in enumerate(runs(path, numbers), 1)
    ]
    return _Rows(path, rows)


def _compared_arrays(base: _Array, other: _Array) -> tuple[ComparedLosses, list[Logprobs]]:
    """The log-probabilities of two arrays of one shape, padded with nan, and the sources where zeros may be padding."""
    shape, paths = base.values.shape, (base.path, other.path)
    if other.values.shape != shape or not shape:
        got, fits = f"has shape {other.values.shape}", f"have {shape}, as {paths[0]}"
        refuse(paths[1], got, fits if shape else "be of tokens")
    mask = base.mask & other.mask
    ours, theirs = (np.where(mask, side.values, np.nan) for side in (base, other))
    lengths = [_lengths(array) for array in (ours, theirs)]
    for row in np.flatnonzero(lengths[0] != lengths[1])[:1].tolist():
        got = f"row {row} has {lengths[1][row]} tokens before its padding of nan"
        refuse(paths[1], got, f"have {lengths[0][row]}, as {paths[0]}")
    sources = [(side.source, values) for side, values in ((base, ours), (other, theirs))]
    arrays = [(source, values) for source, values in sources if isinstance(source, Logprobs)]
    padded = [source for source, values in arrays if seems_padded(source, values)]
    if len(padded) == len(sources) and not any(source.array is not None for source in padded):
        refuse_padding(padded[0])
    numbers = [ids for source, _ in arrays if (ids := read_segment_ids(source, shape)) is not None]
    if len(numbers) > 1 and not np.array_equal(numbers[0], numbers[1]):
        own, others = (side.source.token_options.segment_ids[0] for side in (base, other))
        refuse(others, "has other sequences", f"have those of {own}")
    ids = base.ids if other.ids is None else other.ids
    segment_ids = numbers[0] if numbers else None
    flat = ours.reshape(-1), theirs.reshape(-1), mask.reshape(-1)
    return ComparedLosses(*flat, shape, segment_ids, ids=ids), padded


def _lengths(array: Float64Array) -> IntArray:
    """The length of each row along the last axis without the nan at its end."""
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
        refuse(side.path, f"holds {len(side.rows)} sequences", f"hold {len(rows.rows)}, as {rows.path}")
    for row, other in zip(side.rows, rows.rows, strict=True):
        if len(row.logprobs) != len(other.logprobs):
            fits = f"have {len(other.logprobs)}, as line {other.line} of {rows.path}"
            raise_error("record", path=side.path, line=row.line, got=f"it has {len(row.logprobs)} tokens", fits=fits)


def _fitted(side: _Array, rows: _Rows) -> tuple[Float64Array, BoolArray]:
    """The numbers of an array that belong to the tokens of rows, one sequence after the other, and their mask."""
    array, path, lengths = side.values, side.path, rows.lengths
    if array.ndim == 1:
        if array.size != sum(lengths):
            got = f"holds {array.size:,} log-probabilities"
            fits = f"hold {sum(lengths):,}, one for each token of the {len(lengths):,} sequences of {rows.path}"
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
            fits = f"hold {length} log-probabilities, as many as line {rows.rows[i].line} of {rows.path} has tokens, "
            fits += "and then nan or 0, or nan before them"
            refuse(path, got, fits)
        part = slice(length) if fits_left else slice(row.size - length, None)
        values.append(row[part])
        masks.append(side.mask[i, part])
    return np.concatenate(values), np.concatenate(masks)


# -- rows of scores for the tokens of responses ------------------------------------------------------------------------


class ScoredResponses:
    """A file of scores and a file of responses: rows, in order, are of the tokens that have a row before them.

    Those are all but the first of each prompt. Sequences, if the scores have any, are the responses in order.
    """

    def __init__(self, source: Scores, responses: Responses, is_base: bool, work: Work) -> None:
        options = Options.of(source.token_options)
        # as if compared with itself, so that targets that the file holds must be those that are given
        (shard,) = planned(source, [source], options, work.handles)
        opened = work.handles.open_shard(shard, options)
        scores, sequences = opened.file, opened.sequences
        if not opened.has_targets:
            refuse_without_targets(scores.path)
        self._ids: Array = opened.targets.reshape(-1)
        self._is_scored: Array = np.ones(scores.rows, np.bool_) if opened.scored is None else opened.scored.reshape(-1)
        self._counted = self._is_scored & (self._ids != options.ignore_index)
        self._runs = runs(scores.path, sequences.numbers(0, scores.rows)) if sequences.exist else None
        self._rows = np.flatnonzero(self._counted) if self._runs is None else np.empty(0, np.int64)
        self._next = 0  # of the runs, or of the rows
        self.words = f"{scores.kind} of {scores.dtype}"
        self._scores, self._responses = scores, responses
        self._is_base, self._workers = is_base, work.workers
        self._blocks = iter(
            RowReader(
                shard._replace(models=shard.models[:1]), opened._replace(others=()), options,
                rows_per_block(bytes_per_row(scores)), lambda n_bytes: None,
                worded("kind", "base_kind") if is_base else "kind", sampled=SHIFT_SAMPLE,
            )
        )  # fmt: skip
        self._start, self._block = 0, np.empty((0, 0))
        self.skipped = 0

    def __iter__(self) -> Iterator[Pair]:
        """Match the responses with their rows."""
        for number, response in enumerate(self._responses):
            self._pass_failed()
            yield self._pair(number, response)
        self._pass_failed()
        left = len(self._rows[self._next :])
        if self._runs is not None and self._next < len(self._runs):
            left = int(np.count_nonzero(self._counted[self._runs[self._next][0] :]))
        if left:
            got = f"holds {left} more rows with targets"
            refuse(self._scores.path, got, f"end where {self._responses.path} does")

    def _pass_failed(self) -> None:
        """Leave out the sequences of requests that failed."""
        new = len(self._responses.failed) - self.skipped
        self.skipped += new
        self._next += new
        if new and self._runs is None:
            got = "requests failed, and nothing says which rows are theirs"
            refuse(self._responses.path, got, f"have none that failed, or {self._scores.path} hold sequences")

    def _pair(self, number: int, response: Response) -> Pair:
        """A response and its rows."""
        n = len(response.ids)
        tokens = np.arange(int(n > 0 and bool(response.is_prompt[0])), n)
        rows = self._rows_of(response, len(tokens))
        targets = self._ids[rows].astype(np.int64)
        counted = self._counted[rows]
        wrong = counted & (targets != response.ids[tokens])
        for i in np.flatnonzero(wrong)[:1].tolist():
            number = response.ids[tokens[i]]
            got = f"token {tokens[i]} has {f'id {number}' if number >= 0 else 'no id'}"
            fits = f"have id {targets[i]}, the target of row {rows[i]} of {self._scores.path}"
            raise_error("record", path=self._responses.path, line=response.line, got=got, fits=fits)
        by_response, _ = matched(response, response, by_id=True)
        by_scores = self._columns(response, by_response["top_ids"], tokens[counted], rows[counted])
        sides = (by_scores, by_response) if self._is_base else (by_response, by_scores)
        origin = response.line, response.line, response.custom_id, response.label
        responses = (None, response) if self._is_base else (response, None)
        return Pair(number, origin, (response.ids, response.tokens), responses, *sides)

    def _rows_of(self, response: Response, n: int) -> IntArray:
        """The rows of the next response."""
        check_map(self._ids)
        if self._runs is None:
            rows = self._rows[self._next : self._next + n]
            n_rows, place = len(rows), "left"
            self._next += n_rows
        else:
            start, stop = self._runs[self._next] if self._next < len(self._runs) else (0, 0)
            every = start + np.flatnonzero(self._is_scored[start:stop])
            rows = start + np.flatnonzero(self._counted[start:stop])
            n_rows, place = len(rows), f"in sequence {self._next}"
            if len(rows) != n and len(every) == n + 1 and not self._counted[every[-1]]:
                rows = every[:-1]
            elif len(rows) != n and len(every) == n:
                rows = every
            if n == 0 and n_rows:  # a prompt of one token may have no row
                return rows[:0]
            self._next += 1
        if len(rows) != n:
            got, fits = f"holds {n_rows} rows with targets {place}", f"hold {n}, as {self._responses.path} does in line"
            refuse(self._scores.path, got, f"{fits} {response.line}")
        return rows

    def _columns(self, response: Response, classes: IntArray, tokens: IntArray, rows: IntArray) -> Columns:
        """Log-probabilities, by the scores, of a response's tokens and of the classes that it lists."""
        n = len(classes)
        if classes.max(initial=-1) >= self._scores.shape[-1]:
            got, fits = f"it lists class {classes.max()}", f"have classes of {self._scores.path}"
            raise_error("record", path=self._responses.path, line=response.line, got=got, fits=fits)
        columns: Columns = {
            "logprobs": np.full(n, np.nan),
            "best": np.full(n, -1),
            "top_ids": classes,
            "top_logprobs": np.full(classes.shape, np.nan),
            **{name: np.zeros(n, np.bool_) for name in ("is_sentinel", "is_greedy", "is_greedy_known")},
        }
        for part, block in self._read(rows):
            at = tokens[part]
            scores = token_scores(block, response.ids[at], kind="logits", workers=self._workers)
            for row in rows[part][np.isnan(scores.nll)][:1].tolist():
                refuse(self._scores.path, f"row {row} has no probabilities", "hold no nan")
            listed = jobs.of_known_kind(class_log_probs)(block, np.maximum(classes[at], 0), workers=self._workers)
            columns["logprobs"][at], columns["best"][at] = -scores.nll, scores.argmax
            columns["is_greedy"][at], columns["is_greedy_known"][at] = scores.is_greedy, True
            columns["top_logprobs"][at] = np.where(classes[at] < 0, np.nan, listed)
        return columns

    def _read(self, rows: IntArray) -> Iterator[tuple[slice, Array]]:
        """Read rows, which only ever ascend: slices of them, and their logits."""
        first = 0
        while first < len(rows):
            while rows[first] >= self._start + len(self._block):
                self._start, self._block, *_ = next(self._blocks)
            last = int(np.searchsorted(rows, self._start + len(self._block)))
            block: Any = self._block[rows[first:last] - self._start]
            with with_file_names(self._scores.path):
                if self._scores.lm_head is not None:
                    block = projected(block, self._scores.lm_head)
                yield slice(first, last), log(block) if self._scores.kind == "probs" else block
            first = last


def runs(path: str, numbers: IntArray) -> list[tuple[int, int]]:
    """Start and stop of the rows of each sequence, in the order of the file."""
    bounds = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1, append=numbers[-1:] + 1))
    runs = [(int(a), int(b)) for a, b in itertools.pairwise(bounds) if numbers[a] >= 0]
    if len({int(numbers[start]) for start, _ in runs}) < len(runs):
        refuse(path, "holds sequences in pieces", "hold the rows of each together")
    return runs
