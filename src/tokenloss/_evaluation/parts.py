"""The parts of an evaluation, files or blocks, from which its values and those of merged evaluations follow."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core.errors import raise_error
from tokenloss._core.result import facts_of, in_files
from tokenloss._core.signature import head_fields
from tokenloss._evaluation.calibrated import calibration_of_tokens
from tokenloss._evaluation.checkpoint import record
from tokenloss._evaluation.responses import check_names, response_summary
from tokenloss._evaluation.results import Evaluation, ShardResult
from tokenloss._evaluation.rows import norm_seems_missing
from tokenloss._evaluation.sequences import NO_SEQUENCES, NO_SOURCES, check_labels, joined, joined_tokens
from tokenloss._evaluation.shards import Facts
from tokenloss._statistics.groups import rows_of_meters
from tokenloss._statistics.meter import LossMeter, add_lengths
from tokenloss._statistics.sequences import highest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenloss._core.types import Array, Columns, IntArray
    from tokenloss._evaluation.options import Options
    from tokenloss._evaluation.sequences import SequenceColumns
    from tokenloss._statistics.reliability import Calibration

_TYPES = {"dtype": "dtype", "targets": "target_type"}  # facts about scores, and the fields of shards that they list


@record
class ScoredBlock(NamedTuple):
    """A block and its result, or several as if they were one.

    Rows are numbered from the first one of the block, and so are sequences without ids.
    """

    facts: Facts
    n_sequences: int  # without ids: the N of a block (N, T, V), else 0
    ids: IntArray | None  # of its sequences, if they have some
    n_rows: IntArray | None  # of each of these
    result: ShardResult
    begun: IntArray | None = None  # with a tokenizer: numbers of texts, each before its hidden ids so far, or WRITTEN


def summed(blocks: Sequence[ScoredBlock], top: int, by: str | None = None) -> ScoredBlock:
    """One or more blocks, as if they were one."""
    results, counts = list[ShardResult](), dict[int, int]()  # by the number of a sequence with an id: its rows
    facts = blocks[0].facts._replace(path="", shape=(0, blocks[0].facts.shape[-1]), n_scored_rows=0)
    n_sequences, has_ids, padding = 0, blocks[0].ids is not None, None
    for block in blocks:
        tokens = [
            token._replace(
                row=(token.row or 0) + facts.rows,
                sequence=None if token.sequence is None else token.sequence + n_sequences,
            )
            for token in block.result.highest_loss_tokens
        ]
        sequences = block.result.sequences._replace(ids=block.result.sequences.ids + n_sequences)
        calibrated = block.result.calibrated
        if calibrated is not None:
            ids = calibrated["segment_ids"]
            calibrated = calibrated | {"segment_ids": np.where(ids < 0, ids, ids + n_sequences)}
        own: dict[str, Any] = {"highest_loss_tokens": tokens, "sequences": sequences, "calibrated": calibrated}
        results.append(block.result._replace(**own))
        n_sequences += block.n_sequences
        if block.ids is not None and block.n_rows is not None:
            for number, n in zip(block.ids.tolist(), block.n_rows.tolist(), strict=True):
                counts[number] = counts.get(number, 0) + n
        one, padding = block.facts, _joined_padding(padding, block.facts.padding)
        facts = facts._replace(
            shape=(facts.rows + one.rows, one.shape[-1]),
            n_scored_rows=facts.n_scored_rows + one.n_scored_rows,
            shares_numbers=has_ids,
            dtype=_listed(facts.dtype, one.dtype),
            target_type=_listed(facts.target_type, one.target_type),
            padding=padding,
        )
    ids, n_rows = (np.array([*column], np.int64) for column in (counts, counts.values()))
    total = ScoredBlock(facts, n_sequences, None, None, ShardResult.total(results, top, by))
    return total._replace(ids=ids, n_rows=n_rows) if has_ids else total


def _joined_padding(one: dict[str, int] | None, other: dict[str, int] | None) -> dict[str, int] | None:
    """The counts of a special token together; for two tokens, the one that is counted more often."""
    if not one or not other:
        return one or other
    if one["token"] == other["token"]:
        return one | {"count": one["count"] + other["count"]}
    return max(one, other, key=lambda each: each["count"])


def _listed(words: str, others: str) -> str:
    """Words of both lists, each once."""
    return ", ".join(dict.fromkeys([*words.split(", "), *others.split(", ")]))


class Parts(NamedTuple):
    """The parts of an evaluation: the facts and results of shards, or of blocks as one shard."""

    shards: Sequence[Facts]
    results: Sequence[ShardResult]
    options: Options
    words: str | None = None  # how the words of a text were counted, if there was one
    blocks: ScoredBlock | None = None

    @classmethod
    def from_blocks(cls, blocks: ScoredBlock, options: Options, words: str | None = None) -> Parts:
        """The parts of an evaluation of blocks in memory."""
        return cls([blocks.facts], [blocks.result], options, words, blocks)

    def evaluation(
        self, lengths: tuple[Any, Any], seconds: float, n_read: int, merged: Sequence[Evaluation] = (),
        calibration: Calibration | None = None,
    ) -> Evaluation:  # fmt: skip
        """The evaluation; lengths are the bytes and words of the text, or of each sequence's text.

        `merged` are the evaluations of its parts, if it is made of some: they have the metrics of each shard, and the
        lengths of the text, if the bytes are known for all or for none.
        """
        total = ShardResult.total(self._labeled(), by=self.options.by)
        meter, greedy, split = total.meters()
        sequences = self._sequences(split)
        if len({bool(one.meter.n_bytes) for one in merged}) == 1:
            meter = sum((one.meter for one in merged), LossMeter())
        else:
            _add_lengths(meter, sequences, *lengths)
        rows = sum(shard.rows for shard in self.shards)
        windows = window_counts(self.shards, self.options)
        speed = n_read / seconds / 1e9 if seconds else math.nan
        metrics = {
            **self._content(rows),
            **meter._facts(),
            **_common_metrics(total, meter, greedy),
            "n_without_sequence": meter.count - int(sequences["count"].sum()),
            "n_without_next": rows - sum(one.n_scored_rows for one in self.shards) - windows.get("n_context", 0),
            **windows,
            **self._hints(total),
            **self._highest(sequences),
            "shards": [metrics for one in merged for metrics in one.figures["shards"]],
            "sequences": self._rows(sequences, np.arange(len(sequences["file"]))),
            "seconds": seconds, "n_bytes_read": n_read, "gb_per_second": speed, "words": self.words,
        }  # fmt: skip
        if not merged and self.blocks is None:  # sequences that continue in other shards are cut
            metrics["shards"] = [
                {"file": shard.path, "shape": shard.shape, **_common_metrics(part, *part.meters()[:2])}
                for shard, part in zip(self.shards, self.results, strict=True)
            ]
        if self.are_responses:
            metrics |= response_summary([shard.path for shard in self.shards], self.results)
        if total.groups is not None:
            by_label = total.groups.by_label(total.split)
            check_labels(str(self.options.by), by_label, self.shards[0].path)
            metrics |= {"by": self.options.by, "groups": rows_of_meters(by_label)}
        if calibration is None and (tokens := self.calibrated_tokens()) is not None:
            note = "parts have it one by one" if merged else "blocks are read only once"
            calibration = calibration_of_tokens(tokens, note=note)
        if calibration is not None:
            metrics["calibration"] = facts_of(calibration)
        metrics["signature"] = self._signature(meter, metrics, total.ids_sum)
        return Evaluation(meter, sequences, metrics, self, calibration)

    def calibrated_tokens(self) -> Columns | None:
        """The columns of all tokens for calibration; None if it was not asked for."""
        parts = (result.calibrated for result in self.results)
        return joined_tokens(parts, are_numbered=self.shards[0].shares_numbers)

    def _labeled(self) -> Sequence[ShardResult]:
        """The results, in which a group by file has the path of its file, as given here, as its label."""
        if self.options.by != "file":
            return self.results
        groups = [result.groups and result.groups._replace(labels=[shard.path] * len(result.groups.labels))
                  for shard, result in zip(self.shards, self.results, strict=True)]  # fmt: skip
        pairs = zip(self.results, groups, strict=True)
        return [result._replace(groups=one) for result, one in pairs]

    def _sequences(self, split: SequenceColumns) -> dict[str, Array]:
        """The table of all sequences; `file` counts from 0, and is -1 for sequences in several files."""
        parts = [*(result.sequences for result in self.results), split]
        files = np.repeat([*range(len(self.results)), -1], [len(part.ids) for part in parts])
        columns = joined(NO_SEQUENCES, parts)
        sources = [result.responses.sources for result in self.results if result.responses]
        origins = joined(NO_SOURCES, sources)._asdict() if sources else {}
        origins.pop("n_bytes", None)  # which are those of the text, not of a tokenizer's tokens
        loss = columns.nll / columns.tokens
        with np.errstate(over="ignore"):
            perplexity = np.exp(loss)
        byte_columns = {}
        if self.options.tokenizer:
            bits_per_byte = columns.nll / np.where(columns.n_bytes > 0, columns.n_bytes, np.nan) / math.log(2)
            byte_columns = {"n_bytes": columns.n_bytes, "bits_per_byte": bits_per_byte}
        return {
            "file": files, "sequence": columns.ids, "count": columns.tokens, "nll": columns.nll, "loss": loss,
            "perplexity": perplexity, "is_greedy": columns.is_greedy,
        } | origins | byte_columns  # fmt: skip

    def _content(self, rows: int) -> dict[str, Any]:
        """The content of the files or blocks; `rows` is their total number of rows."""
        shard, shape = self.shards[0], (rows,) if self.are_responses else (rows, self.shards[0].shape[-1])
        types = {name: [getattr(one, field) for one in self.shards] for name, field in _TYPES.items()}
        return {
            "files": [path for one in self.shards for path in (one.path, one.targets, one.segments) if path],
            "kind": shard.kind,
            "shape": shard.shape if len(self.shards) == 1 else shape,
        } | {name: ", ".join(dict.fromkeys(dtypes)) for name, dtypes in types.items() if not self.are_responses}

    def _hints(self, total: ShardResult) -> dict[str, Any]:
        """Values that hint at a mistake: in hidden states, in the ids of a tokenizer, or in the order of targets."""
        shard, hints = self.shards[0], dict[str, Any]()
        if shard.head:
            missing = norm_seems_missing(total.rms, shard.head["norm"] is not None)
            hints = {"lm_head": shard.head_spec, "head": shard.head, "norm_seems_missing": missing}
        if self.options.tokenizer:  # the file in which most special tokens repeat
            worst = max(self.shards, key=lambda one: one.padding["count"] if one.padding else 0)
            hints["n_bytes_without_token"] = sum(one.n_bytes_without_token for one in self.shards)
            hints["padding"] = worst.padding and {"file": worst.path or None, **worst.padding}
        fits_better = total.shift_sample.fits_better
        return hints | {
            "targets_repeat": any(one.repeats for one in self.shards),
            "fits_better_shifted": fits_better and not self.options.shift,
            "fits_better_unshifted": fits_better and bool(self.options.shift),
        }

    def _highest(self, sequences: dict[str, Array]) -> dict[str, Any]:
        """The tokens and the sequences with the highest losses."""
        pairs, top = zip(self.shards, self.results, strict=True), self.options.top
        tokens = [(token, shard.path) for shard, part in pairs for token in part.highest_loss_tokens]
        tokens.sort(key=lambda token: -token[0].sort_key)
        return {
            "highest_loss_tokens": [
                {"file": path or None, **token._asdict(), "probability": _probability(token.nll)}
                | {"target": None if self.are_responses and token.target < 0 else token.target}
                for token, path in tokens[:top]
            ],
            "highest_loss_sequences": self._rows(sequences, highest(sequences["loss"], top)),
        }

    def _rows(self, columns: dict[str, Array], rows: Array) -> list[dict[str, Any]]:
        """Some rows of the table of sequences; unknown values are None, as is the file of a sequence in several."""
        names = [*(shard.path or None for shard in self.shards), None]
        lists = {name: column[rows].tolist() for name, column in columns.items()}
        lists["file"] = [names[file] for file in lists["file"]]
        if "is_greedy_known" in lists:
            known = zip(lists["is_greedy"], lists.pop("is_greedy_known"), strict=True)
            lists["is_greedy"] = [is_greedy if is_known else None for is_greedy, is_known in known]
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]

    @staticmethod
    def merged(evaluations: Sequence[Evaluation]) -> Evaluation:
        """The evaluation of all parts, as a single call returns it; the time is linear in their number.

        There must be at least one.
        """
        every: list[Parts] = [one._parts for one in evaluations]
        first = every[0]
        _check(evaluations)
        top = min(parts.options.top for parts in every)
        merged = first._replace(options=first.options._replace(top=top))
        if first.blocks is not None:
            blocks = [parts.blocks for parts in every if parts.blocks is not None]
            merged = Parts.from_blocks(summed(blocks, top, first.options.by), merged.options, merged.words)
        else:
            shards = [shard for parts in every for shard in parts.shards]
            merged = merged._replace(shards=shards, results=[result for parts in every for result in parts.results])
        if merged.are_responses:
            check_names([shard.path for shard in merged.shards], merged.results)
        seconds, n_read = (sum(one.figures[name] for one in evaluations) for name in ("seconds", "n_bytes_read"))
        n_words = sum(one.meter.n_words for one in evaluations)
        return merged.evaluation((0, n_words), seconds, n_read, evaluations)

    def _signature(self, meter: LossMeter, metrics: dict[str, Any], ids: int) -> str:
        """The signature of the values of all parts."""
        known = {name: metrics.get(name) for name in ("kind", "dtype", "part", "window", "stride")}
        known["words"] = f"{meter.n_words}({self.words})" if self.words else meter.n_words or None
        known |= head_fields(metrics.get("head"))
        if not self.are_responses:  # their tokens may have no ids
            known |= {"shift": "yes" if self.options.shift else None, "ignored": metrics["n_ignored"]}
            known["ids"] = ids
        return meter._signature(**known)

    @property
    def are_responses(self) -> bool:
        """Whether the parts are files of responses."""
        return not self.shards[0].has_classes

    def shared_numbers(self, sequences: dict[str, Array]) -> Array:
        """The numbers that mean the same sequence in all parts, since segment ids give them to all files or blocks."""
        # the last one is for sequences in several files, which have the number -1
        are_shared = [*(shard.shares_numbers for shard in self.shards), True]
        shared: Array = sequences["sequence"][np.array(are_shared)[sequences["file"]]]
        return shared

    def described(self, meter: LossMeter) -> dict[str, Any]:
        """The properties that evaluations must share to be merged, by name."""
        shard, options = self.shards[0], self.options
        source = "blocks" if self.blocks is not None else "files of responses" if self.are_responses else "files"
        parts = [result.responses.part for result in self.results if result.responses and result.responses.dialect]
        return {
            "source": source,
            "kind": shard.kind,
            "the number of classes": shard.shape[-1] if not self.are_responses else None,
            "shift": bool(options.shift),
            "window": options.window,
            "stride": options.stride,
            "ignore_index": options.ignore_index,
            "by": options.by,
            "lm_head": shard.head,
            "part": parts[0] if parts else None,
            "segment_ids": None if self.blocks is None else "given" if self.blocks.ids is not None else "not given",
            "words": self.words,
            "tokenizer": options.tokenizer,
            "calibration": options.calibration,
            "n_bytes": "given" if meter.n_bytes or options.tokenizer else "not given",
            "n_words": "given" if meter.n_words else "not given",
        }


def _check(evaluations: Sequence[Evaluation]) -> None:
    """Refuse evaluations that do not fit, or that would count tokens twice."""
    first: Parts = evaluations[0]._parts
    ours = first.described(evaluations[0].meter)
    results: dict[str, ShardResult] = {}  # by the path of the shard
    for number, one in enumerate(evaluations):
        parts: Parts = one._parts
        if number:
            theirs = parts.described(one.meter)
            if first.are_responses and parts.are_responses:
                theirs["n_bytes"] = ours["n_bytes"]  # may be known only for some files
                ours["part"], theirs["part"] = ours["part"] or theirs["part"], theirs["part"] or ours["part"]
            for name, value in ours.items():
                if value != theirs[name]:
                    raise_error("merge", got=f"{name} is {value!r} in one and {theirs[name]!r} in the other")
        by_path = [(shard.path, part) for shard, part in zip(parts.shards, parts.results, strict=True) if shard.path]
        for path, result in by_path:
            same = results.get(path)  # perhaps another file of this name, on another machine
            if same is not None and result.n_tokens and same.meters()[0] == result.meters()[0]:
                raise_error("merge", got=f"{path} is in both, with the same losses")
        results.update(by_path)
    numbers = [one._parts.shared_numbers(one.sequences) for one in evaluations]
    distinct, counts = np.unique(np.concatenate(numbers), return_counts=True)
    if len(again := distinct[counts > 1]):
        fits = "their numbers must differ, or one call score both"
        raise_error("merge", got=f"sequence {again[0]} of segment_ids is in both; {fits}")


def _add_lengths(meter: LossMeter, sequences: dict[str, Array], n_bytes: Any, n_words: Any) -> None:
    """Add the length of the whole text, or of the text of each sequence."""
    for name, value in (("n_bytes", n_bytes), ("n_words", n_words)):
        if isinstance(value, int):
            meter.update([], **{name: value})
            continue
        if value.shape != sequences["nll"].shape:
            fits = f"{sequences['nll'].shape}, one for each sequence"
            raise_error("shape", name=name, got=value.shape, fits=fits)
        add_lengths(meter, name, sequences["nll"], value)


def window_counts(shards: Iterable[Facts], options: Options) -> dict[str, int]:
    """Values of windows, if used; `n_context` is the number of rows whose token an earlier window predicted."""
    if not options.window:
        return {}
    n_context = sum(shard.n_context for shard in shards)
    return {"window": options.window, "stride": options.stride, "n_context": n_context}


def _common_metrics(result: ShardResult, meter: LossMeter, greedy: LossMeter) -> dict[str, Any]:
    """The values that each shard has, and the total, too."""
    return {
        "count": meter.count,
        "n_sequences": meter.n_sequences,
        "n_ignored": result.n_ignored,
        "n_nan": result.n_nan,
        "n_infinite": result.n_infinite,
        **in_files({"loss": meter.loss}),
        "is_clustered": meter.is_clustered,
        "interval_factor": meter.interval_factor,
        "perplexity": float(meter.perplexity),
        "accuracy": float(greedy.loss),
    }


def _probability(nll: float) -> float:
    """Probability of a token with this loss."""
    with np.errstate(over="ignore"):
        return float(np.exp(-nll))
