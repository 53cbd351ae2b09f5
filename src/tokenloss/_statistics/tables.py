"""The tables of losses, which are imported when they are shown: most programs only want the numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenloss._core.rows import Row, table, table_of_several

if TYPE_CHECKING:
    from tokenloss._core.result import Table

_FAR_FROM_2 = 2.2  # with a larger interval_factor (12 sequences or fewer), tables show the interval of the loss
_INTERVAL = "95 % interval {low:.5g} to {high:.5g}"
LOSS_ROWS = (
    Row("loss", "loss", notes=("± {stderr:.3g} nats ({basis})", "{few}" + _INTERVAL), otherwise="nats{alone}"),
    Row("perplexity", "perplexity", notes=(_INTERVAL,)),
    Row("bits per token", "bits_per_token"),
)
LENGTH_ROWS = (
    Row("bits per byte", "bits_per_byte", notes=("± {stderr:.3g}{bytes_note}",), when="n_bytes"),
    Row(
        "perplexity per word", "word_perplexity", notes=(_INTERVAL + "{words_note}", "words by {words}"), when="n_words"
    ),
    Row("loss per sequence", "sequence_loss", notes=("± {stderr:.3g} nats",), otherwise="nats", when="has_sequences"),
)
_SEQUENCE_ROWS = (
    Row("sequences", "n_sequences", "{:,}"),
    Row("tokens", "count", "{:,}"),
    Row("loss", "loss", notes=("± {stderr:.3g} nats",), otherwise="nats"),
    Row("perplexity", "perplexity"),
)
_HIGHEST = (
    Row("sequence", "sequence", "{}"),
    Row("tokens", "count", "{:,}"),
    Row("loss", "loss", "{:.4f}"),
    Row("perplexity", "perplexity"),
)


def loss_table(meter: object, figures: dict[str, Any], basis: str) -> Table:
    """The table of a `LossMeter`."""
    rows = (Row("tokens", "count", "{:,}"), *LOSS_ROWS, *LENGTH_ROWS)
    return table(rows, loss_values(figures, basis), meter)


def sequence_tables(figures: dict[str, Any], highest: list[dict[str, Any]]) -> list[Table]:
    """The tables of `SequenceLosses`: its metrics, and its sequences of the highest losses if it has several."""
    several = [table_of_several(_HIGHEST, [(one,) for one in highest], "highest-loss sequences")]
    return [table(_SEQUENCE_ROWS, figures), *(several if len(highest) > 1 else [])]


def loss_values(figures: dict[str, Any], basis: str) -> dict[str, Any]:
    """The values that these rows name besides the metrics of a `LossMeter`.

    `basis` describes what standard errors treat as independent.
    """
    values = {"basis": basis, "has_sequences": figures["n_sequences"] > 1}
    values["alone"] = "; no interval from one token" if figures["count"] == 1 else ""
    if figures["interval_factor"] > _FAR_FROM_2:
        values["few"] = ""  # without it, the note is left out
    for unit in ("bytes", "words"):  # errors treat what is not known by sequence as proportional to tokens
        is_guess = figures["is_clustered"] and not figures[f"{unit}_are_by_sequence"]
        values[f"{unit}_note"] = ", text in proportion to tokens" if is_guess else ""
    return values
