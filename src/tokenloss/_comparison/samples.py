"""Results of `compare_files` of samples: each metric of two models, of samples that lm-evaluation-harness logged."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._comparison.tables import metric_shown, samples_shown
from tokenloss._core.result import Result, columns_of, formatted, in_files
from tokenloss._core.signature import signature_of
from tokenloss._core.text import shortened
from tokenloss._statistics.power import detectable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenloss._core.estimate import Estimate
    from tokenloss._core.result import Shown
    from tokenloss._core.types import Array, Float64Array, IntArray

# the errors that files have of each estimate, if not only the standard error, or if it may be None
_ERRORS_IN_FILES = {"difference": ("stderr", "interval"), "log_ratio": ("stderr",), "ratio": ("stderr", "interval")}
LEVEL = 0.05  # of tests
_MAX_NAMES = 3  # of metrics that `repr` shows


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SampleMetric(Result):
    """A metric of two models on the same samples.

    Errors are clustered by document or group, and nan if there are fewer than two of them. Errors of differences and
    ratios are paired.

    Attributes
    ----------
    task : str or None
        The task, if folders were compared, or the group of tasks.
    name, filter : str
        The metric, and the harness's filter that was applied to the responses ("none" without a filter).
    is_derived : bool
        Whether the metric was computed from the responses because the files do not contain it.
    count, n_clusters : int
        Number of samples with this metric, and number of documents or groups that errors treat as independent.
    base, other : Estimate
        The metric of both models: the mean over samples. A perplexity is exp of the mean loss, per word or byte if its
        name says so; bits per byte are the mean over bytes.
    difference : Estimate
        ``other - base``. If all values are between 0 and 1 and both models have the same value for each sample, the
        standard error is 0 although the true difference may not be; the interval is then plus or minus
        `discordance_bound`.
    log_ratio, ratio : Estimate or None
        ``log(other / base)`` and ``other / base`` of a perplexity; None for other metrics.
    right_to_wrong, wrong_to_right : int or None
        Number of samples that only the base, and that only the other model gets right; None if not all values are 0 or
        1.
    mcnemar_p : float or None
        p-value of McNemar's exact two-sided test of whether `right_to_wrong` and `wrong_to_right` are equally likely.
        The test treats samples as independent.
    discordance_bound : float or None
        If all values are between 0 and 1 and both models have the same value for each sample: the upper bound of the
        rate at which they differ, ``1 - 0.05**(1 / n_clusters)``, with 95 % confidence.
    equivalence_p : float or None
        p-value of two one-sided tests of whether the difference is within the margin. If both models have the same
        value for each sample, it is ``(1 - margin)**n_clusters``. None without a margin, or if not all values are
        between 0 and 1.
    doc_ids : array of object
        The `doc_id` of each sample in the base's file. This array and the next three are empty for a group of tasks.
    base_values, other_values, sample_weight : array of float64
        Value of each sample for both models, and its weight: words or bytes, or 1. The values of perplexities are
        losses in nats; the values of bits per byte are in bits.

    Examples
    --------
    >>> import json, pathlib, tempfile
    >>> from tokenloss import compare_samples
    >>> paths = [pathlib.Path(tempfile.mkdtemp(), name) for name in ("base.json", "other.json")]
    >>> for path, values in zip(paths, ([1, 1, 0, 1], [1, 0, 0, 1])):
    ...     samples = [{"doc_id": i, "filtered_resps": [], "acc": value} for i, value in enumerate(values)]
    ...     _ = path.write_text(json.dumps(samples))
    >>> (acc,) = compare_samples(paths[0], {"q4": paths[1]})["q4"].metrics
    >>> acc
    SampleMetric(name='acc', difference=-0.2500 ± 0.250, base=0.7500, other=0.5000)
    >>> acc.right_to_wrong, acc.doc_ids[acc.base_values > acc.other_values]
    (1, array([1], dtype=object))
    """

    task: str | None
    name: str
    filter: str
    is_derived: bool
    count: int
    n_clusters: int
    base: Estimate
    other: Estimate
    difference: Estimate
    log_ratio: Estimate | None = None
    ratio: Estimate | None = None
    right_to_wrong: int | None = None
    wrong_to_right: int | None = None
    mcnemar_p: float | None = None
    discordance_bound: float | None = None
    equivalence_p: float | None = None
    doc_ids: Array
    base_values: Float64Array
    other_values: Float64Array
    sample_weight: Float64Array
    _clusters: IntArray  # the number of the document or group of each sample

    @property
    def is_equivalent(self) -> bool | None:
        """Whether `equivalence_p` is below 0.05; None if it is not known."""
        p = self.equivalence_p
        return None if p is None or math.isnan(p) else p < LEVEL

    @property
    def detectable(self) -> float:
        """The smallest difference, or for perplexities `log_ratio`, that a test at 5 % finds in 80 % of samples."""
        return detectable(self.difference if self.log_ratio is None else self.log_ratio)

    def _facts(self) -> dict[str, Any]:
        """All values except the arrays, by their names in files."""
        values = {name: value for name, value in vars(self).items() if not isinstance(value, np.ndarray)}
        return in_files(values, _ERRORS_IN_FILES) | {
            "is_equivalent": self.is_equivalent, "detectable": self.detectable
        }  # fmt: skip

    def columns(self) -> dict[str, Array]:
        """Return the columns of a table with one row per sample.

        Returns
        -------
        dict of 1-D arrays
            `doc_id` (as text if any of them is text), `base` and `other` (the values of both models), and
            `sample_weight`.
        """
        ids = self.doc_ids.tolist()
        doc_ids = np.array(ids) if all(isinstance(one, int) for one in ids) else np.array([*map(str, ids)])
        columns = {"doc_id": doc_ids, "base": self.base_values, "other": self.other_values}
        return columns | {"sample_weight": self.sample_weight}

    def _main(self) -> dict[str, str]:
        task = {} if self.task is None else {"task": repr(shortened(self.task))}
        main = task | {
            "name": repr(shortened(self.name)),
            "difference": formatted(self.difference, self.difference.stderr, 4),
        }
        return main | {name: formatted(getattr(self, name), digits=4) for name in ("base", "other")}

    def _shown(self) -> Shown:
        return metric_shown(self)


SampleMetric.__module__ = "tokenloss.results"


@dataclass(frozen=True, eq=False, repr=False)
class SampleComparison(Result):
    """Result of `compare_files` for samples of lm-evaluation-harness.

    Attributes
    ----------
    count : int
        Number of pairs of samples.
    n_documents : int
        Number of documents in these pairs.
    n_clusters : int
        Number of documents, or of groups of documents, that errors treat as independent.
    cluster : str or None
        The field of a document that names its group, if given.
    margin : float or None
        The margin of equivalence, if given.
    n_other_prompts : int
        Number of pairs whose prompts differ, for example in few-shot examples or template.
    metrics : list of SampleMetric
        Metrics in the order of the base's file, for each filter; then "target_loglikelihood", the log-likelihood of the
        right answer in nats, which detects smaller differences than accuracies do.
    groups : list of SampleMetric
        If folders were compared: metrics of groups of tasks, aggregated as the harness does, by number of samples or
        with equal weights. Errors treat tasks as independent and are nan if tasks share documents.
    left_out : dict of str
        The reason why a metric or a task is not compared, by its name.
    notes : list of str
        Metrics whose values in the files differ from those computed from the responses.
    runs : list of str
        Which run was read, for each folder that contains several runs of a task.

    Examples
    --------
    >>> import json, pathlib, tempfile
    >>> from tokenloss import compare_samples
    >>> base, q4 = (pathlib.Path(tempfile.mkdtemp(), "samples.jsonl") for _ in range(2))
    >>> for path in (base, q4):
    ...     _ = path.write_text(json.dumps({"doc_id": 0, "filtered_resps": ["4"], "exact_match": 1.0}))
    >>> compare_samples(base, {"q4": q4})["q4"]
    SampleComparison(metrics=['exact_match': 1.000 (0.00)], count=1)
    """

    GATES = ()
    _why_no_gate = "does not apply to samples of lm-evaluation-harness; {margin} tests them for equality"
    _of_base = ("base", "cluster", "margin")  # the same for all candidates of one base

    count: int
    n_documents: int
    n_clusters: int
    cluster: str | None
    margin: float | None
    n_other_prompts: int
    metrics: list[SampleMetric]
    groups: list[SampleMetric]
    left_out: dict[str, str]
    notes: list[str]
    runs: list[str]
    _about: dict[str, Any] = field(default_factory=dict, compare=False)  # the names of the files

    @staticmethod
    def _shown_of(comparisons: Mapping[str, Any]) -> Shown:
        return samples_shown(comparisons)

    @property
    def _equals_base(self) -> bool:
        """Whether both models have the same value of every metric for every sample."""
        return all(np.array_equal(one.base_values, one.other_values, equal_nan=True) for one in self.metrics)

    @property
    def _can_tell(self) -> bool:
        """Whether equal values show that models are equal: not if all values are 0 or 1."""
        return any(not np.isin(one.base_values, (0, 1)).all() for one in self.metrics)

    @property
    def signature(self) -> str:
        """One line that describes how the values were computed, to be published with them."""
        return signature_of(unit=self.cluster or "document", samples=self.count, documents=self.n_documents)

    def _facts(self) -> dict[str, Any]:
        """All values; those of each metric are in a list."""
        fields = {name: value for name, value in vars(self).items() if name != "_about"}
        return (
            self._about
            | fields
            | {"signature": self.signature}
            | {name: [metric._facts() for metric in vars(self)[name]] for name in ("metrics", "groups")}
        )

    def _rank(self) -> int:
        """Sort key: samples stay in the order given."""
        return 0

    def _rows(self) -> list[dict[str, Any]]:
        """The values of each metric, as rows of a table with its name as "metric"."""
        return [{"metric": metric.name} | metric._facts() for metric in (*self.metrics, *self.groups)]

    def _shown(self) -> Shown:
        """Tables of metrics, flips and equivalence."""
        return samples_shown({"": self})

    def columns(self) -> dict[str, Array]:
        """Return the columns of a table with one row per metric, followed by the metrics of groups of tasks.

        Returns
        -------
        dict of 1-D arrays
            The attributes of `SampleMetric` by name, with nan for None. Each interval becomes two columns, such as
            `difference_low` and `difference_high`.
        """
        return columns_of([metric._facts() for metric in (*self.metrics, *self.groups)])

    def _main(self) -> dict[str, str]:
        each = []
        for metric in self.metrics[:_MAX_NAMES]:
            change = formatted(metric.difference, metric.difference.stderr, 3)
            each.append(f"{shortened(metric.name)!r}: {formatted(metric.other, digits=4)} ({change})")
        each += ["..."] * (len(self.metrics) > _MAX_NAMES)
        return {"metrics": f"[{'; '.join(each)}]", "count": str(self.count)}


SampleComparison.__module__ = "tokenloss.results"
