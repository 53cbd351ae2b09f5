"""The rows of a table that show figures of losses."""

from __future__ import annotations

from typing import Any

from tokenloss._core.result import known_error
from tokenloss._statistics.ratio import interval_above_0

_FAR_FROM_2 = 2.2  # with a larger interval_factor (12 sequences or fewer), tables show the interval of the loss


def loss_rows(figures: dict[str, Any], basis: str) -> list[tuple[str, ...]]:
    """Rows of the figures of a `LossMeter`; `basis` says what standard errors take as independent."""
    stderr, by_byte, by_sequence = (
        figures[name] for name in ("stderr", "bits_per_byte_stderr", "sequence_loss_stderr")
    )
    low, high = figures["perplexity_interval"]
    no_error = "nats; no interval from one token" if figures["count"] == 1 else "nats"
    factor = figures["interval_factor"]
    ends = "; 95 % interval {:.5g} to {:.5g}".format(*interval_above_0(figures["loss"], stderr, factor))
    ends *= factor > _FAR_FROM_2
    rows: list[tuple[Any, str, str, str]] = [
        (
            True, "loss", f"{figures['loss']:.6g}",
            known_error(stderr, f"± {stderr:.3g} nats ({basis}){ends}") or no_error,
        ),
        (
            True, "perplexity", f"{figures['perplexity']:.6g}",
            known_error(low, f"95 % interval {low:.5g} to {high:.5g}"),
        ),
        (True, "bits per token", f"{figures['bits_per_token']:.6g}", ""),
        (
            figures["n_bytes"], "bits per byte", f"{figures['bits_per_byte']:.6g}",
            known_error(by_byte, f"± {by_byte:.3g}{_proportion_note(figures, 'bytes')}"),
        ),
        (figures["n_words"], "perplexity per word", f"{figures['word_perplexity']:.6g}", _words_note(figures)),
        (
            figures["n_sequences"] > 1, "loss per sequence", f"{figures['sequence_loss']:.6g}",
            known_error(by_sequence, f"± {by_sequence:.3g} nats") or "nats",
        ),
    ]  # fmt: skip
    return [(*row,) for is_shown, *row in rows if is_shown]


def _words_note(figures: dict[str, Any]) -> str:
    """The interval of the perplexity per word, and how words are counted."""
    low, high = figures["word_perplexity_interval"]
    interval = known_error(low, f"95 % interval {low:.5g} to {high:.5g}{_proportion_note(figures, 'words')}")
    return "; ".join(filter(None, (interval, f"words by {figures['words']}" if figures.get("words") else "")))


def _proportion_note(figures: dict[str, Any], unit: str) -> str:
    """Note where the bytes or words of each sequence are not known: errors take them as proportional to its tokens."""
    is_guess = figures["is_clustered"] and not figures[f"{unit}_are_by_sequence"]
    return ", text in proportion to tokens" if is_guess else ""
