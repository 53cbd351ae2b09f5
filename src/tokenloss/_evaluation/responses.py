"""Files that list tokens, as responses or as log-probabilities, become scores of tokens."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core.errors import raise_error, refuse
from tokenloss._evaluation.results import ResponseFigures, ShardResult
from tokenloss._evaluation.score import TopLosses
from tokenloss._evaluation.sequences import (
    NO_SOURCES,
    GroupCodes,
    RowSequences,
    SequenceCollector,
    Sources,
    greedy_by_segment,
    joined,
)
from tokenloss._evaluation.sink import Block, scored_block
from tokenloss._scores.token_scores import COLUMNS, TokenScores
from tokenloss._statistics.groups import is_by_position, position_bins
from tokenloss._statistics.meter import LossMeter
from tokenloss.formats.logprobs import Logprobs
from tokenloss.formats.responses import Responses, refuse_without_number
from tokenloss.formats.responses.columns import join
from tokenloss.formats.rounding import Rounding
from tokenloss.formats.scores import Scores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from tokenloss._comparison.comparisons import Comparisons
    from tokenloss._core.types import Array, IntArray
    from tokenloss._evaluation.run import Work
    from tokenloss.formats.responses import Response
    from tokenloss.formats.sources import Source

_COUNTS = (
    "n_responses", "n_without_number", "n_sentinels", "n_greedy_known", "n_short_lists", "n_uncovered_bytes",
)  # fmt: skip
_BLOCK_ENTRIES = 1 << 16  # tokens and alternatives of short responses that are scored together


class FilesUnit(NamedTuple):
    """A file that lists tokens, or a base and a candidate, one of which lists tokens: a `Unit`."""

    base: Any  # its source, as that of the candidate
    other: Any = None
    name: str = ""  # of the candidate

    @property
    def _sources(self) -> list[Source]:
        """The source, or both."""
        return [self.base] if self.other is None else [self.base, self.other]

    @property
    def n_bytes(self) -> int:
        """Size of the files."""
        return sum(Path(path).stat().st_size for source in self._sources for path in source.paths)

    def n_read(self, result: Any) -> int:
        """Size of the files, whatever the result."""
        del result
        return self.n_bytes

    def fingerprint(self, file_fingerprint: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
        """Everything that its result depends on, except options."""
        specs = [spec for source in self._sources if isinstance(source, Scores) for spec in source.specs]
        return {
            "path": self.name or file_fingerprint(self.base.path)["path"],
            "files": [file_fingerprint(path) for source in self._sources for path in source.files],
            "heads": [[*spec.head, spec.head_facts] for spec in specs if spec.head is not None],
        }

    def absolute(self) -> FilesUnit:
        """The unit with absolute paths, for a process in another directory."""
        return self._replace(base=self.base.absolute(), other=self.other and self.other.absolute())


def units_of(base: Source, models: Mapping[str, Source]) -> list[FilesUnit]:
    """The units of candidates; each source must be one file."""
    for source in (base, *models.values()):
        if len(source.paths) > 1 and source.level != "sketch":
            got = f"contains {source.given()['source']} in {len(source.paths)} files"
            fits = "be one file" if isinstance(source, Scores) else "be one file, with one response per line (.jsonl)"
            fits += ", in the same order as the other's"
            refuse(source.name, got, fits)
    return [FilesUnit(base, one, name) for name, one in models.items()]


def sequences_of(comparisons: Comparisons[Any]) -> Block:
    """The sequences of all candidates, each of which is one file; without one, a sequence has line -1."""
    tables = {name: one.sequences for name, one in comparisons.items() if one.sequences is not None}
    unknown = {name: np.full(len(table["sequence"]), -1) for name, table in tables.items()}
    return Block({}, {name: {"file": unknown[name] + 1, "line": unknown[name]} | tables[name] for name in tables})


def score_file(unit: FilesUnit, work: Work, by: str | None = None) -> ShardResult:
    """The same as `score_shard` returns, for a file that lists tokens."""
    file = unit.base
    are_sequences = not isinstance(file, Logprobs) or file.are_sequences
    collector, highest = SequenceCollector(RowSequences((0,)), (), by), TopLosses(work.top)
    counts, greedy, rounding, sources = Counter[str](dict.fromkeys(_COUNTS, 0)), LossMeter(), Rounding(), []
    n_infinite = 0
    for responses in _gathered(file):
        block = columns_of_responses(responses, work.top_k)
        numbers, mask = block["numbers"] + counts["n_responses"], block["kept"]
        if not are_sequences:
            numbers = np.full(len(numbers), -1)
        scores = scores_of_responses(block, work.top_k)
        is_missed = np.bincount(block["numbers"][block["is_sentinel"]], minlength=len(responses)) > 0
        is_greedy = scores.is_greedy & ~is_missed[block["numbers"]]  # what is below all that is returned is not greedy
        groups, positions = None, np.where(numbers < 0, -1, block["positions"])
        if by is not None:
            groups = group_codes(by, positions, *zip(*((one.label, len(one.ids)) for one in responses), strict=True))
        n_bytes = None if by is None else _known_bytes(responses, block)
        collector.update(dataclasses.replace(scores, is_greedy=is_greedy), numbers, n_bytes, groups, is_length=False)
        highest.update(scores.nll, block["ids"], mask, None, numbers, block["positions"], block["tokens"])
        known = mask & block["is_greedy_known"]
        greedy.update(greedy_by_segment(scores.is_greedy[known], numbers[known]))
        rounding += Rounding.of(block["logprobs"][mask])
        sources += [_sources(responses, block)] if are_sequences else []
        n_infinite += int(np.isinf(scores.nll).sum())
        counts.update(
            n_responses=len(responses),
            n_without_number=int(np.count_nonzero(~mask & ~block["is_sentinel"])),
            n_sentinels=int(np.count_nonzero(~mask & block["is_sentinel"])),
            n_greedy_known=int(np.count_nonzero(known)),
            n_short_lists=sum(response.n_short_lists for response in responses),
            n_uncovered_bytes=sum(response.n_uncovered_bytes for response in responses),
        )
        if work.emit:
            places = {
                "target": block["ids"], "text": block["tokens"], "sequence": numbers,
                "position": block["positions"], "is_greedy_known": block["is_greedy_known"],
                "is_prompt": block["is_prompt"],
            }  # fmt: skip
            work.emit(scored_block(scores, places, block["top_tokens"][:, : work.top_k]))
    work.advance(unit.n_bytes)
    meter, sequences, _ = collector.result()
    failed, table = list(file.failed), joined(NO_SOURCES, sources)
    counted = ResponseFigures(file.dialect, file.part, **counts, rounding=rounding, failed=failed, sources=table)
    ignored = counts["n_without_number"] + counts["n_sentinels"]
    top = highest.tokens
    own = collector.groups.result() if collector.groups else None
    return ShardResult(meter, ignored, greedy, top, sequences, responses=counted, n_infinite=n_infinite, groups=own)


def group_codes(by: str, positions: IntArray, labels: Iterable[Any] = (), lengths: Iterable[int] = ()) -> GroupCodes:
    """The group of each token: by its position, or by the label of its sequence, or a list of labels of its tokens.

    A group by file has no label yet.
    """
    if is_by_position(by):
        return GroupCodes(position_bins(by, positions))
    if by == "file":
        return GroupCodes(np.zeros(len(positions), np.int64), [""])
    every: list[Any] = []
    for label, length in zip(labels, lengths, strict=True):
        own = label if isinstance(label, list) else [label] * length
        if len(own) != length:
            fits = f"a field with one label, or one for each token; one of {len(own)} is of {length} tokens"
            raise_error("option", name="by", got=by, fits=fits)
        every += own
    numbers = {label: i for i, label in enumerate(dict.fromkeys(every))}
    return GroupCodes(np.array([numbers[label] for label in every], np.int64), [*numbers])


def _known_bytes(responses: Sequence[Response], block: dict[str, Any]) -> IntArray:
    """The bytes of each token; -1 if unknown, or in a response if only a part of a character is scored."""
    is_cut = np.array([_has_cut_character(response) for response in responses])
    return np.where(is_cut[block["numbers"]], -1, block["n_bytes"])


def check_parts(files: Sequence[Responses | Logprobs], results: Sequence[ShardResult]) -> None:
    """Refuse files without any log-probability, and results in a state that are for another part."""
    n_known = 0  # tokens with a number, and failed lines
    for file, result in zip(files, results, strict=True):
        counted = result.responses
        assert counted is not None
        n_known += result.n_tokens + counted.n_sentinels + len(counted.failed)
        if file.dialect and counted.part != file.part:
            got = f"was scored with the part {counted.part!r} in the state"
            refuse(file.path, got, f"be scored with the part {file.part!r} and a new state")
    if not n_known:
        refuse_without_number(files[0].path, results[0].responses.part if results[0].responses else "")


def check_names(paths: Sequence[str], results: Sequence[ShardResult]) -> None:
    """Refuse a request whose name comes twice, in one file or in two: its tokens would count twice."""
    parts = [result.responses.sources for result in results if result.responses]
    sources = joined(NO_SOURCES, parts)
    named = np.flatnonzero([name is not None for name in sources.custom_id])
    keys = zip(sources.custom_id[named], map(int, sources.choice[named]), strict=True)
    hashes = np.fromiter(map(hash, keys), np.int64, len(named))  # which take less memory than a set of keys
    order = np.argsort(hashes, kind="stable")
    again = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    pairs = zip(named[order[again + 1]].tolist(), named[order[again]].tolist(), strict=True)
    for second, first in sorted(pairs):
        name = sources.custom_id[second]
        if (name, sources.choice[second]) == (sources.custom_id[first], sources.choice[first]):
            ends = np.cumsum([len(source.line) for source in parts])
            path, other = (paths[np.searchsorted(ends, i, "right")] for i in (second, first))
            got = f"the custom_id {name!r} is also on line {sources.line[first]} of {other}"
            fits = "come once in all files, since its tokens would count twice"
            raise_error("record", path=path, line=sources.line[second], got=got, fits=fits)


def lengths_of_text(results: Sequence[ShardResult]) -> int | IntArray:
    """Number of bytes of each sequence's scored tokens; 0 if the bytes of any are unknown."""
    n_bytes = joined(NO_SOURCES, [result.responses.sources for result in results if result.responses]).n_bytes
    return n_bytes if (n_bytes >= 0).all() else 0


# -- blocks of tokens --------------------------------------------------------------------------------------------------


def _gathered(file: Iterable[Response]) -> Iterator[list[Response]]:
    """Responses, with several short ones at a time."""
    responses: list[Response] = []
    entries = 0
    for response in file:
        responses.append(response)
        entries += len(response.ids) + response.top_ids.size
        if entries >= _BLOCK_ENTRIES:
            yield responses
            responses, entries = [], 0
    if responses:
        yield responses


def columns_of_responses(responses: Sequence[Response], top_k: int) -> dict[str, Any]:
    """Columns of the tokens of responses; their numbers count from 0."""
    names = ("tokens", "n_bytes", "ids", "logprobs", "is_sentinel", "is_prompt", "rank", "is_greedy", "is_greedy_known",
             "top_tokens", "top_ids", "top_logprobs")  # fmt: skip
    columns = join([{name: getattr(response, name) for name in names} for response in responses], top_k)
    lengths = np.array([len(response.ids) for response in responses])
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    columns["numbers"] = np.repeat(np.arange(len(responses)), lengths)
    columns["positions"] = np.arange(len(starts)) - starts
    columns["kept"] = ~np.isnan(columns["logprobs"]) & ~columns["is_sentinel"]
    return columns


def scores_of_responses(block: dict[str, Any], top_k: int) -> TokenScores:
    """Scores of the tokens of a block as far as they are known; unknown ones are nan, or a rank or class of -1."""
    mask, ids = block["kept"], block["ids"]
    is_greedy = mask & block["is_greedy"]
    top_ids, top_logprobs = block["top_ids"], block["top_logprobs"]
    argmax = np.where(is_greedy & (ids >= 0), ids, _lowest_of_likeliest(top_ids, top_logprobs))
    columns: dict[str, Any] = {name: np.full(len(ids), column.masked, column.dtype) for name, column in COLUMNS.items()}
    columns |= {
        "nll": np.where(mask, 0.0 - block["logprobs"], np.nan),
        "logsumexp": np.where(mask, 0.0, np.nan),
        "rank": np.where(mask, block["rank"], -1),
        "argmax": np.where(mask, argmax, -1),
        "is_greedy": is_greedy,
        "kept": mask,
        "top_ids": top_ids[:, :top_k] if top_k else None,
        "top_logprobs": top_logprobs[:, :top_k] if top_k else None,
    }
    return TokenScores(**columns)


def _lowest_of_likeliest(top_ids: Array, top_logprobs: Array) -> Array:
    """The lowest id of the likeliest classes; -1 if an id is unknown or no class is listed."""
    if not top_ids.shape[1]:
        return np.full(len(top_ids), -1)
    is_likeliest = top_logprobs == top_logprobs[:, :1]  # nan is not
    lowest = np.where(is_likeliest, top_ids, np.iinfo(np.int64).max).min(1)
    return np.where(is_likeliest.any(1), np.maximum(lowest, -1), -1)


def _has_cut_character(response: Response) -> bool:
    """Whether only some tokens of a character are scored, so that the length of the scored text is unknown.

    Texts of its first parts are empty; that of the last one is the whole character.
    """
    are_scored: list[bool] = []  # of the tokens of a character
    for text, is_scored in zip(response.tokens, (~np.isnan(response.logprobs)).tolist(), strict=True):
        are_scored.append(is_scored)
        if text and text > "\x7f" and len(set(are_scored)) > 1:
            return True
        if text != "":
            are_scored = []
    return False


def _sources(responses: Sequence[Response], block: dict[str, Any]) -> Sources:
    """The table of the sequences that have a token to score."""
    mask, known, is_greedy = block["kept"], block["is_greedy_known"], block["is_greedy"]

    def count(tokens: Array) -> IntArray:
        return np.bincount(block["numbers"][tokens], minlength=len(responses))

    tokens = count(mask)
    sizes = np.bincount(block["numbers"][mask], block["n_bytes"][mask], len(responses)).astype(np.int64)
    is_cut = np.array([_has_cut_character(response) for response in responses])
    columns: list[Any] = [
        np.array([response.line for response in responses], np.int64),
        np.array([response.choice for response in responses], np.int64),
        np.where((count(mask & (block["n_bytes"] < 0)) > 0) | is_cut, -1, sizes),
        (count(known & ~is_greedy) > 0) | (count(mask & known) == tokens),
        np.array([response.custom_id for response in responses], np.object_),
    ]
    return Sources(*(column[tokens > 0] for column in columns))


def response_summary(paths: Sequence[str], results: Sequence[ShardResult]) -> dict[str, Any]:
    """Statistics of all files of responses together."""
    files = [result.responses for result in results if result.responses]
    totals = {name: sum(getattr(counted, name) for counted in files) for name in _COUNTS}
    failed = [
        {"file": path, "line": entry.line, "custom_id": entry.custom_id, "reason": entry.reason}
        for path, counted in zip(paths, files, strict=True)
        for entry in counted.failed
    ]
    return {
        "dialect": ", ".join(dict.fromkeys(counted.dialect for counted in files if counted.dialect)),
        "part": next((counted.part for counted in files if counted.dialect), files[0].part),
        "rounding": str(sum((counted.rounding for counted in files), Rounding())) or None,
        **totals,
        "n_unscored": totals["n_responses"] - sum(len(counted.sources.line) for counted in files),
        "n_skipped": len(failed),
        "failed": failed,
    }
