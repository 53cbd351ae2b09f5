"""The rows of a table that show the metrics of losses."""

from __future__ import annotations

from typing import Any

from tokenloss._core.rows import Row

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
