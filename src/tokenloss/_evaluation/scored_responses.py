"""A file of scores paired with a file of responses: each token that a response lists gets its row."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._comparison.responses import Pair, matched
from tokenloss._core import jobs
from tokenloss._core.errors import raise_error, refuse, with_file_names, worded
from tokenloss._evaluation.compare import bytes_per_row, projected
from tokenloss._evaluation.options import Options
from tokenloss._evaluation.plan import planned, rows_per_block
from tokenloss._evaluation.rows import SHIFT_SAMPLE, RowReader, log
from tokenloss._evaluation.shards import refuse_without_targets
from tokenloss._scores.class_log_probs import class_log_probs
from tokenloss._scores.token_scores import token_scores
from tokenloss.formats.mapped import check_map

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenloss._core.types import Array, Columns, IntArray
    from tokenloss._evaluation.run import Work
    from tokenloss.formats.responses import Response, Responses
    from tokenloss.formats.scores import Scores


class RowsOfResponses:
    """A file of scores and a file of responses: the rows belong, in order, to the tokens with a row before them.

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
        self.scores, self._responses = scores, responses
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

    def each(self) -> Iterator[tuple[int, Response, IntArray, IntArray]]:
        """The number of each response, the response, its tokens that count, and their rows."""
        for number, response in enumerate(self._responses):
            self._pass_failed()
            yield number, response, *self._tokens_of(response)
        self._pass_failed()
        left = len(self._rows[self._next :])
        if self._runs is not None and self._next < len(self._runs):
            left = int(np.count_nonzero(self._counted[self._runs[self._next][0] :]))
        if left:
            got = f"has {left} more rows with targets"
            refuse(self.scores.path, got, f"end where {self._responses.path} does")

    def _pass_failed(self) -> None:
        """Leave out the sequences of requests that failed."""
        new = len(self._responses.failed) - self.skipped
        self.skipped += new
        self._next += new
        if new and self._runs is None:
            got = "requests failed, and it is not known which rows are theirs"
            refuse(self._responses.path, got, f"have no failed requests, or {self.scores.path} must contain sequences")

    def _tokens_of(self, response: Response) -> tuple[IntArray, IntArray]:
        """The tokens of a response that count, and their rows."""
        n = len(response.ids)
        tokens = np.arange(int(n > 0 and bool(response.is_prompt[0])), n)
        rows = self._rows_of(response, len(tokens))
        targets = self._ids[rows].astype(np.int64)
        counted = self._counted[rows]
        wrong = counted & (targets != response.ids[tokens])
        for i in np.flatnonzero(wrong)[:1].tolist():
            number = response.ids[tokens[i]]
            got = f"token {tokens[i]} has {f'id {number}' if number >= 0 else 'no id'}"
            fits = f"have id {targets[i]}, the target of row {rows[i]} of {self.scores.path}"
            raise_error("record", path=self._responses.path, line=response.line, got=got, fits=fits)
        return tokens[counted], rows[counted]

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
            got, fits = f"has {n_rows} rows with targets {place}", f"have {n}, as {self._responses.path} does on line"
            refuse(self.scores.path, got, f"{fits} {response.line}")
        return rows

    def read(self, rows: IntArray) -> Iterator[tuple[slice, Array]]:
        """Read rows, in ascending order only: slices of them, and their logits."""
        first = 0
        while first < len(rows):
            while rows[first] >= self._start + len(self._block):
                self._start, self._block, *_ = next(self._blocks)
            last = int(np.searchsorted(rows, self._start + len(self._block)))
            block: Any = self._block[rows[first:last] - self._start]
            with with_file_names(self.scores.path):
                if self.scores.lm_head is not None:
                    block = projected(block, self.scores.lm_head)
                yield slice(first, last), log(block) if self.scores.kind == "probs" else block
            first = last


class ScoredResponses(RowsOfResponses):
    """Pairs of responses and rows of scores, either of which may be the base."""

    def __iter__(self) -> Iterator[Pair]:
        """Match the responses with their rows."""
        for number, response, tokens, rows in self.each():
            by_response, _ = matched(response, response, by_id=True)
            by_scores = self._columns(response, by_response["top_ids"], tokens, rows)
            sides = (by_scores, by_response) if self._is_base else (by_response, by_scores)
            origin = response.line, response.line, response.custom_id, response.label
            responses = (None, response) if self._is_base else (response, None)
            yield Pair(number, origin, (response.ids, response.tokens), responses, *sides)

    def _columns(self, response: Response, classes: IntArray, tokens: IntArray, rows: IntArray) -> Columns:
        """Log-probabilities, under the scores, of a response's tokens and of the classes that it lists."""
        n = len(classes)
        if classes.max(initial=-1) >= self.scores.shape[-1]:
            got, fits = f"it lists class {classes.max()}", f"have classes of {self.scores.path}"
            raise_error("record", path=self._responses.path, line=response.line, got=got, fits=fits)
        columns: Columns = {
            "logprobs": np.full(n, np.nan),
            "best": np.full(n, -1),
            "top_ids": classes,
            "top_logprobs": np.full(classes.shape, np.nan),
            **{name: np.zeros(n, np.bool_) for name in ("is_sentinel", "is_greedy", "is_greedy_known")},
        }
        for part, block in self.read(rows):
            at = tokens[part]
            scores = token_scores(block, response.ids[at], kind="logits", workers=self._workers)
            for row in rows[part][np.isnan(scores.nll)][:1].tolist():
                refuse(self.scores.path, f"row {row} has no probabilities", "contain no nan")
            listed = jobs.with_known_kind(class_log_probs)(block, np.maximum(classes[at], 0), workers=self._workers)
            columns["logprobs"][at], columns["best"][at] = -scores.nll, scores.argmax
            columns["is_greedy"][at], columns["is_greedy_known"][at] = scores.is_greedy, True
            columns["top_logprobs"][at] = np.where(classes[at] < 0, np.nan, listed)
        return columns


def runs(path: str, numbers: IntArray) -> list[tuple[int, int]]:
    """Start and stop of the rows of each sequence, in the order of the file."""
    bounds = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1, append=numbers[-1:] + 1))
    runs = [(int(a), int(b)) for a, b in itertools.pairwise(bounds) if numbers[a] >= 0]
    if len({int(numbers[start]) for start, _ in runs}) < len(runs):
        refuse(path, "has the rows of a sequence in several places", "have the rows of each sequence together")
    return runs
