"""The comparison of samples as tables on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenloss._core.text import count_of, printable
from tokenloss._evaluation.sink import Sink
from tokenloss._output.tables import Table, known_error, show_tables
from tokenloss._statistics.distributions import student_quantile
from tokenloss._statistics.ratio import guess_note

if TYPE_CHECKING:
    from tokenloss._comparison.samples import SampleComparison, SampleMetric

_ARROW = "\N{RIGHTWARDS ARROW}"


class SampleTables(Sink):
    """The summary of `tokenloss compare` of samples."""

    writes_file = False

    def finish(self, summary: dict[str, Any], result: Any) -> None:
        by = count_of(result.n_clusters, "document" if result.cluster is None else "group")
        by += "" if result.cluster is None else f" of {result.cluster}"
        note = f"{count_of(result.count, 'sample')}, errors by {by}"
        if result.n_clusters > 1:
            note += guess_note(student_quantile(0.025, result.n_clusters - 1))
        if result.n_other_prompts:
            note += f"; {result.n_other_prompts:,} prompts differ"
        show_tables(f"{summary['other']} vs {summary['base']}", printable(note), sample_tables(result))


def sample_tables(comparison: SampleComparison) -> list[Table]:
    """Tables of metrics, flips and equivalence."""
    several = len({metric.filter for metric in comparison.metrics}) > 1
    labels = [printable(f"{one.name} ({one.filter})" if several else one.name) for one in comparison.metrics]
    named = list(zip(labels, comparison.metrics, strict=True))
    is_clustered = any(metric.count > metric.n_clusters for metric in comparison.metrics)
    tables = [
        Table([_differences(*one) for one in named], ("metric", "base", "other", "difference", "±", "95 % interval")),
        Table(
            [_ratios(*one) for one in named if one[1].ratio_interval],
            ("metric", "ln(other/base)", "±", "other/base", "95 % interval"),
            "ratios of perplexities",
        ),
        Table(
            [
                (label, f"{one.right_to_wrong:,}", f"{one.wrong_to_right:,}", f"{one.mcnemar_p:.4g}")
                for label, one in named
                if one.mcnemar_p is not None
            ],
            ("metric", f"right {_ARROW} wrong", f"wrong {_ARROW} right", "p"),
            "flips, with McNemar's exact test" + (", as if samples were independent" if is_clustered else ""),
        ),
        Table(
            [_equivalence(*one) for one in named if one[1].equivalence_p is not None],
            ("metric", "p", "equivalent", "note"),
            f"equivalence within {comparison.margin}, by two one-sided tests at 5 %",
        ),
        Table([(printable(name), printable(reason)) for name, reason in comparison.left_out.items()], (), "left out"),
        Table([(printable(note),) for note in comparison.notes], (), "notes"),
    ]
    return [table for table in tables if table.rows]


def _differences(label: str, metric: SampleMetric) -> tuple[str, ...]:
    low, high = metric.difference_interval
    derived = ", from responses" if metric.is_derived else ""
    numbers = f"{metric.base:.6g}", f"{metric.other:.6g}", f"{metric.difference:+.4g}"
    error = known_error(metric.difference_stderr, f"{metric.difference_stderr:.3g}")
    return (label + derived, *numbers, error, known_error(low, f"{low:+.4g} to {high:+.4g}"))


def _ratios(label: str, metric: SampleMetric) -> tuple[str, ...]:
    low, high = metric.ratio_interval or (0.0, 0.0)
    error = known_error(low, f"{metric.log_ratio_stderr:.3g}")
    interval = known_error(low, f"{low:.5g} to {high:.5g}")
    return label, f"{metric.log_ratio:+.4g}", error, f"{metric.ratio:.6g}", interval


def _equivalence(label: str, metric: SampleMetric) -> tuple[str, ...]:
    verdict = {True: "yes", False: "no", None: "not known"}[metric.is_equivalent]
    why = ""
    if metric.discordance_bound is not None:
        why = f"no sample differs, so at most {100 * metric.discordance_bound:.3g} % do (95 % confidence)"
    return label, f"{metric.equivalence_p:.4g}", verdict, why
