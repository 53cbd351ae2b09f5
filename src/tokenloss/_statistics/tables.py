"""The tables of losses, imported only when they are shown: most programs only need the numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenloss._core.result import rows_of
from tokenloss._core.rows import Row, table, table_of_several

if TYPE_CHECKING:
    from tokenloss._core.result import Table

_FAR_FROM_2 = 2.2  # with a larger interval_factor (12 sequences or fewer), tables show the interval of the loss
_INTERVAL = "95 % interval {low:.5g} to {high:.5g}"
LOSS_ROWS = (
    Row("loss", "loss", notes=("± {stderr:.3g} nats (n = {basis})", "{few}" + _INTERVAL), otherwise="nats{single}"),
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
_CALIBRATION_ROWS = (
    Row("tokens", "count", "{:,}"),
    Row("sequences", "n_sequences", "{:,}", when="n_sequences"),
    Row("accuracy", "accuracy", "{:.2f %}", ("± {stderr:.2f %}",)),
    Row("mean confidence", "mean_confidence", "{:.2f %}", ("± {stderr:.2f %}",)),
    Row("calibration error, {bins_note}", "ece", "{:.5f}", ("± {stderr:.2g}", "95 % interval {low:.4f} to {high:.4f}")),
    Row("  minus effect of chance", "ece_debiased", "{:.5f}"),
    Row("  in {other_note}", "other_ece", "{:.5f}"),
    Row("  in the worst bin", "mce", "{:.5f}", ("± {stderr:.2g}", "95 % interval {low:.4f} to {high:.4f}")),
    Row("  mean over classes", "classwise_ece", "{:.5f}", ("± {stderr:.2g}",)),
    Row("Brier score", "brier", "{:.5f}", ("± {stderr:.2g}",)),
    Row("  reliability", "brier_reliability", "{:.5f}"),
    Row("  resolution", "brier_resolution", "{:.5f}"),
    Row("  uncertainty", "brier_uncertainty", "{:.5f}"),
    Row("  within bins", "brier_within_bins", "{:.5f}"),
    Row("loss", "loss", notes=("± {stderr:.3g} nats",), otherwise="nats"),
    Row("log loss explained (D²)", "d2", "{:.2f %}", ("± {stderr:.2g %}",)),
    Row("area under risk-coverage", "aurc", "{:.5f}", ("± {stderr:.2g}",)),
    Row("best temperature", "temperature", "{:.5g}", ("± {stderr:.2g}", "95 % interval {low:.4g} to {high:.4g}")),
    Row("best temperature", "temperature_note", "not fitted", ("{temperature_note}",), when="temperature_note"),
    Row("  loss", "scaled_loss", notes=("± {stderr:.3g} nats",)),
    Row("  calibration error", "scaled_ece", "{:.5f}", ("± {stderr:.2g}",)),
)
_RELIABILITY = (
    Row("confidence above", "low", "{:.4f}"),
    Row("up to", "high", "{:.4f}"),
    Row("tokens", "count", "{:,}"),
    Row("mean confidence", "confidence", "{:.4f}"),
    Row("accuracy", "accuracy", "{:.4f}"),
    Row("±", "accuracy_stderr", "{known:.4f}"),
)


CALIBRATIONS = (
    Row("model", "name"),
    Row("calibration error", "ece", "{:.5f}"),
    Row("±", "ece", "{stderr:.2g}"),
    Row("less chance", "ece_debiased", "{:.5f}"),
    Row("worst bin", "mce", "{:.4f}"),
    Row("confidence", "mean_confidence", "{:.2f %}"),
    Row("accuracy", "accuracy", "{:.2f %}"),
    Row("Brier", "brier", "{:.5f}"),
    Row("D²", "d2", "{:.2f %}"),
    Row("risk-coverage", "aurc", "{:.5f}"),
    Row("best temperature", "temperature", "{:.4g}"),
    Row("±", "temperature", "{stderr:.2g}"),
    Row("error there", "scaled_ece", "{:.5f}"),
)  # of several models


def calibration_tables(result: Any, title: str = "") -> list[Table]:
    """The tables of `Calibration`: its metrics, and its bins."""
    names = [f"bins of equal {mass}" for mass in ("mass", "width")]
    is_width = result.binning == "equal_width"
    notes = {"bins_note": names[is_width], "other_note": names[not is_width]}
    notes["other_ece"] = result.ece_equal_mass if is_width else result.ece_equal_width
    bins = [(one,) for one in rows_of(result.bins)]
    return [
        table(_CALIBRATION_ROWS, result, notes, title=title),
        *([table_of_several(_RELIABILITY, bins, "bins")] if bins else []),
    ]


def loss_table(meter: object, facts: dict[str, Any], basis: str) -> Table:
    """The table of a `LossMeter`."""
    rows = (Row("tokens", "count", "{:,}"), *LOSS_ROWS, *LENGTH_ROWS)
    return table(rows, loss_values(facts, basis), meter)


def sequence_tables(facts: dict[str, Any], highest: list[dict[str, Any]]) -> list[Table]:
    """The tables of `SequenceLosses`: its metrics, and its sequences of the highest losses if it has several."""
    several = [table_of_several(_HIGHEST, [(one,) for one in highest], "highest-loss sequences")]
    return [table(_SEQUENCE_ROWS, facts), *(several if len(highest) > 1 else [])]


def loss_values(facts: dict[str, Any], basis: str) -> dict[str, Any]:
    """The values that these rows name besides the metrics of a `LossMeter`.

    `basis` describes what standard errors treat as independent.
    """
    values = {"basis": basis, "has_sequences": facts["n_sequences"] > 1}
    values["single"] = "; no interval from one token" if facts["count"] == 1 else ""
    if facts["interval_factor"] > _FAR_FROM_2:
        values["few"] = ""  # without it, the note is left out
    for unit in ("bytes", "words"):  # errors treat what is not known by sequence as proportional to tokens
        is_guess = facts["is_clustered"] and not facts[f"{unit}_are_by_sequence"]
        values[f"{unit}_note"] = ", text in proportion to tokens" if is_guess else ""
    return values
