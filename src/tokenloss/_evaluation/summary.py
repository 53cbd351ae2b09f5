"""The summary of an evaluation: one meter of all shards, and the figures that the command prints."""

from __future__ import annotations

import codecs
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._errors import raise_error
from tokenloss.meter import LossMeter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenloss._evaluation.plan import Options, Shard
    from tokenloss._evaluation.run import ShardResult

_TEXT_BYTES = 1 << 20  # read at a time


def merge_meters(results: Sequence[ShardResult], n_bytes: int, n_words: int) -> LossMeter:
    """Meter of all shards, of a text of this length."""
    meter = LossMeter()
    meter.update([], n_bytes=n_bytes, n_words=n_words)
    for result in results:
        meter.merge(result.meter)
    return meter


def text_length(path: str) -> tuple[int, int]:
    """Number of bytes and of words of a text."""
    n_bytes = n_words = 0
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    ends_inside_word = False
    with Path(path).open("rb") as file:  # may be a pipe, whose length is not known
        while True:
            data = file.read(_TEXT_BYTES)
            text = decoder.decode(data, final=not data)
            n_bytes += len(data)
            if text:
                n_words += len(text.split()) - (ends_inside_word and not text[0].isspace())
                ends_inside_word = not text[-1].isspace()
            if not data:
                break
    if not n_bytes:
        raise_error("content", path=path, got="is empty", fits="hold a text")
    return n_bytes, n_words


def summary(
    shards: Sequence[Shard], results: Sequence[ShardResult], meter: LossMeter, options: Options
) -> dict[str, Any]:
    """Figures of all shards together, and of each."""
    rows = sum(shard.rows for shard in shards)
    pairs = list(zip(shards, results, strict=True))
    tokens = [(token, shard.path) for shard, part in pairs for token in part.highest_loss_tokens]
    tokens.sort(key=lambda token: -token[0].sort_key)
    return {
        "files": [path for shard in shards for path in (shard.path, shard.targets) if path],
        "kind": shards[0].kind,
        "shape": shards[0].shape if len(shards) == 1 else (rows, shards[0].shape[-1]),
        "dtype": ", ".join(dict.fromkeys(shard.dtype for shard in shards)),
        "targets": ", ".join(dict.fromkeys(shard.target_type for shard in shards)),
        **_common_figures(results, meter),
        "without_next": rows - sum(shard.scored_rows(options) for shard in shards),
        "perplexity_interval": meter.perplexity_interval,
        "bits_per_token": meter.bits_per_token,
        "n_bytes": meter.n_bytes,
        "n_words": meter.n_words,
        "bits_per_byte": meter.bits_per_byte,
        "word_perplexity": meter.word_perplexity,
        "highest_loss_tokens": [
            {"file": path, "position": token.position, "target": token.target, "text": token.text}
            | {"loss": token.loss, "probability": _probability(token.loss)}
            for token, path in tokens[: options.top]
        ],
        "shards": [
            {"file": shard.path, "shape": shard.shape, **_common_figures([part], part.meter)} for shard, part in pairs
        ],
    }


def _common_figures(results: Sequence[ShardResult], meter: LossMeter) -> dict[str, Any]:
    """Figures that a shard and the total both have."""
    return {
        "tokens": meter.count,
        "ignored": sum(part.ignored for part in results),
        "loss": meter.loss,
        "stderr": meter.stderr,
        "perplexity": meter.perplexity,
        "accuracy": sum(part.greedy for part in results) / meter.count if meter.count else math.nan,
    }


def _probability(loss: float) -> float:
    """Probability of a token of this loss."""
    with np.errstate(over="ignore"):
        return float(np.exp(-loss))
