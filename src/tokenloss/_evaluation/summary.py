"""Makes the figures of an evaluation: one meter of all shards, and all that the command prints."""

from __future__ import annotations

import codecs
import math
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._core.errors import raise_error
from tokenloss._core.result import in_files
from tokenloss._evaluation.checks import norm_seems_missing
from tokenloss._evaluation.sequences import NO_SEQUENCES, NO_SOURCES, joined
from tokenloss._statistics.sequences import highest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tokenloss._core.types import Array
    from tokenloss._evaluation.options import Options
    from tokenloss._evaluation.results import ShardResult
    from tokenloss._evaluation.sequences import SequenceColumns
    from tokenloss._evaluation.shards import Facts
    from tokenloss._statistics.meter import LossMeter

_TEXT_BYTES = 1 << 20  # of a text are read at a time


def add_lengths(meter: LossMeter, sequences: dict[str, Array], n_bytes: Any, n_words: Any) -> None:
    """Add the length of the whole text, or of the text of each sequence."""
    for name, value in (("n_bytes", n_bytes), ("n_words", n_words)):
        if isinstance(value, int):
            meter.update([], **{name: value})
            continue
        if value.shape != sequences["nll"].shape:
            fits = f"{sequences['nll'].shape}, one for each sequence"
            raise_error("shape", name=name, got=value.shape, fits=fits)
        meter._add_lengths(name, sequences["nll"], value)


def _count_by_whitespace(text: str, continues: bool) -> int:
    """Number of words that begin in a piece of a text; `continues` if a word goes on from the piece before."""
    return len(text.split()) - (continues and not text[0].isspace())


def _count_as_lm_eval(text: str, continues: bool) -> int:
    """Number of runs of white space that begin in a piece: one less than the parts that `re.split` makes."""
    return len(re.findall(r"\s+", text)) - (not continues and text[0].isspace())


# functions that count words, and what is added to the count of a whole text
WORDS: dict[str, tuple[Callable[[str, bool], int], int]] = {
    "whitespace": (_count_by_whitespace, 0),
    "lm-eval": (_count_as_lm_eval, 1),
}


def text_length(path: str, words: str = "whitespace") -> tuple[int, int]:
    """Number of bytes and of words of a text."""
    count, n_words = WORDS[words]
    n_bytes = 0
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    ends_inside_word = count is _count_as_lm_eval  # white space at the start of a text splits it, too
    with Path(path).open("rb") as file:  # may be a pipe, whose length is not known
        if stat.S_ISCHR(mode := os.fstat(file.fileno()).st_mode) or stat.S_ISBLK(mode):
            raise_error("content", path=path, got="is a device, which may never end", fits="be a file or a pipe")
        while True:
            data = file.read(_TEXT_BYTES)
            text = decoder.decode(data, final=not data)
            n_bytes += len(data)
            if text:
                n_words += count(text, ends_inside_word)
                ends_inside_word = not text[-1].isspace()
            if not data:
                break
    if not n_bytes:
        raise_error("content", path=path, got="is empty", fits="hold a text")
    return n_bytes, n_words


def sequence_columns(results: Sequence[ShardResult], split: SequenceColumns, options: Options) -> dict[str, Array]:
    """A table of all sequences; `file` counts from 0, and is -1 for sequences in several files."""
    parts = [*(result.sequences for result in results), split]
    files = np.repeat([*range(len(results)), -1], [len(part.ids) for part in parts])
    columns = joined(NO_SEQUENCES, parts)
    sources = [result.responses.sources for result in results if result.responses]
    of_sources = joined(NO_SOURCES, sources)._asdict() if sources else {}
    of_sources.pop("n_bytes", None)  # which are those of the text, not of a tokenizer's tokens
    loss = columns.nll / columns.tokens
    with np.errstate(over="ignore"):
        perplexity = np.exp(loss)
    of_bytes = {}
    if options.tokenizer:
        bits_per_byte = columns.nll / np.where(columns.n_bytes > 0, columns.n_bytes, np.nan) / math.log(2)
        of_bytes = {"n_bytes": columns.n_bytes, "bits_per_byte": bits_per_byte}
    return {
        "file": files, "sequence": columns.ids, "count": columns.tokens, "nll": columns.nll, "loss": loss,
        "perplexity": perplexity, "is_greedy": columns.is_greedy,
    } | of_sources | of_bytes  # fmt: skip


def shard_figures(shards: Sequence[Facts], results: Sequence[ShardResult]) -> list[dict[str, Any]]:
    """Figures of each shard; sequences that go on in other shards are cut."""
    return [
        {"file": shard.path, "shape": shard.shape, **_common_figures(part, *part.meters()[:2])}
        for shard, part in zip(shards, results, strict=True)
    ]


def summary(
    shards: Sequence[Facts], results: Sequence[ShardResult], total: ShardResult, meter: LossMeter, greedy: LossMeter,
    sequences: dict[str, Array], options: Options, of_shards: list[dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """Figures of all shards together; those of each are given."""
    rows = sum(shard.rows for shard in shards)
    of_windows = window_figures(shards, options)
    pairs = zip(shards, results, strict=True)
    tokens = [(token, shard.path) for shard, part in pairs for token in part.highest_loss_tokens]
    tokens.sort(key=lambda token: -token[0].sort_key)
    fits_better = total.shift_sample.fits_better
    paths, of_responses = [shard.path or None for shard in shards], not shards[0].has_classes
    return {
        "files": [path for shard in shards for path in (shard.path, shard.targets, shard.segments) if path],
        "kind": shards[0].kind,
        "shape": shards[0].shape if len(shards) == 1 else (rows,) if of_responses else (rows, shards[0].shape[-1]),
        **({} if of_responses else _types(shards)),
        **meter._figures(),
        **_common_figures(total, meter, greedy),
        "n_without_sequence": meter.count - int(sequences["count"].sum()),
        "n_without_next": rows - sum(shard.n_scored_rows for shard in shards) - of_windows.get("n_context", 0),
        **of_windows,
        **(_hidden_figures(shards[0], total) if shards[0].head else {}),
        **(_tokenizer_figures(shards) if options.tokenizer else {}),
        "targets_repeat": any(shard.repeats for shard in shards),
        "fits_better_shifted": fits_better and not options.shift,
        "fits_better_unshifted": fits_better and bool(options.shift),
        "highest_loss_tokens": [
            {"file": path or None, **token._asdict(), "probability": _probability(token.nll)}
            | {"target": None if of_responses and token.target < 0 else token.target}
            for token, path in tokens[: options.top]
        ],
        "highest_loss_sequences": _rows(sequences, highest(sequences["loss"], options.top), paths),
        "shards": of_shards,
        "sequences": _rows(sequences, np.arange(len(sequences["file"])), paths),
    }


def window_figures(shards: Iterable[Facts], options: Options) -> dict[str, int]:
    """Figures of windows alone; `n_context` is the number of rows that predict what an earlier window did."""
    if not options.window:
        return {}
    n_context = sum(shard.n_context for shard in shards)
    return {"window": options.window, "stride": options.stride, "n_context": n_context}


def _tokenizer_figures(shards: Sequence[Facts]) -> dict[str, Any]:
    """Figures of a tokenizer alone: what it drops, and the file in which most special tokens repeat."""
    worst = max(shards, key=lambda shard: shard.padding["count"] if shard.padding else 0)
    padding: dict[str, Any] | None = worst.padding and {"file": worst.path or None, **worst.padding}
    return {"n_bytes_without_token": sum(shard.n_bytes_without_token for shard in shards), "padding": padding}


def _hidden_figures(shard: Facts, total: ShardResult) -> dict[str, Any]:
    """Figures of hidden states alone."""
    assert shard.head is not None
    missing = norm_seems_missing(total.rms, shard.head["norm"] is not None)
    return {"lm_head": shard.head_spec, "head": shard.head, "norm_seems_missing": missing}


def _types(shards: Sequence[Facts]) -> dict[str, str]:
    """The dtypes of scores, and the types of targets."""
    return {
        "dtype": ", ".join(dict.fromkeys(shard.dtype for shard in shards)),
        "targets": ", ".join(dict.fromkeys(shard.target_type for shard in shards)),
    }


def _common_figures(result: ShardResult, meter: LossMeter, greedy: LossMeter) -> dict[str, Any]:
    """Figures that each shard has, and the total, too."""
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


def _rows(columns: dict[str, Array], rows: Array, paths: Sequence[str | None]) -> list[dict[str, Any]]:
    """Some rows of the table of sequences. The file is None for sequences in several, as is what is not known."""
    names = [*paths, None]
    lists = {name: column[rows].tolist() for name, column in columns.items()}
    lists["file"] = [names[file] for file in lists["file"]]
    if "is_greedy_known" in lists:
        known = zip(lists["is_greedy"], lists.pop("is_greedy_known"), strict=True)
        lists["is_greedy"] = [is_greedy if is_known else None for is_greedy, is_known in known]
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def _probability(nll: float) -> float:
    """Probability of a token with this loss."""
    with np.errstate(over="ignore"):
        return float(np.exp(-nll))
