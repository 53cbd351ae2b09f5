"""Comparisons of the samples that lm-evaluation-harness logged."""

from __future__ import annotations

import numbers
import os

from tokenloss._comparison.sample_metrics import metrics_of, paired
from tokenloss._comparison.samples import SampleComparison, SampleMetric
from tokenloss._core.errors import raise_error
from tokenloss.formats.samples import read_samples


def compare_samples(
    base: str | os.PathLike[str],
    other: str | os.PathLike[str],
    *,
    margin: float | None = None,
    cluster: str | None = None,
) -> SampleComparison:
    """Compare two models by the samples that lm-evaluation-harness logged (`--log_samples`).

    Samples are paired by `doc_hash`, or by `doc_id` where there are no documents, and by filter. The same document may
    occur several times, as often in both files; errors are clustered by document.

    Parameters
    ----------
    base, other : str or path
        Files of samples of the same task, .jsonl or .json, perhaps compressed by gzip: of the base model, and of the
        model.
    margin : float, optional
        Test whether metrics between 0 and 1, such as accuracies, are equal within this margin, say 0.01.
    cluster : str, optional
        Field of a document that names its group, such as "meta.passage": errors are clustered by it. By default by
        document.

    Returns
    -------
    SampleComparison
        The metrics of both models, and their differences with paired errors.

    Raises
    ------
    TypeError, ValueError
        If a file is damaged or does not hold samples, if the files do not hold the same documents and targets, or if an
        argument is invalid; the message names the file and the line.
    OSError
        If a file cannot be read.

    See Also
    --------
    compare : Compares the logits of two models.

    Notes
    -----
    Values are those of the files, as the harness computed them, and their mean is the metric, unless that is a
    perplexity or bits per byte. Metrics of all samples at once, such as BLEU, are left out. Where the files hold
    accuracies of multiple choice but not `acc_norm`, it is computed from the responses, and so is the log-likelihood of
    the right answer, but only where responses and targets give the accuracies that the files hold, too.

    With S the sum over a document (or group) of n samples of, say, their differences, the error of the mean difference
    ``mu`` over G of them is ``sqrt(G / (G - 1) * sum((S - mu * n)**2)) / sum(n)``. Intervals and tests of equivalence
    are by Student's t with G - 1 degrees of freedom, or where n differ by its like (`LossMeter.interval_factor`).

    Examples
    --------
    >>> import json, pathlib, tempfile
    >>> from tokenloss import compare_samples
    >>> paths = [pathlib.Path(tempfile.mkdtemp(), name) for name in ("base.json", "other.json")]
    >>> for path, values in zip(paths, ([1, 1, 0, 1], [1, 0, 0, 1])):
    ...     samples = [{"doc_id": i, "filtered_resps": [], "acc": value} for i, value in enumerate(values)]
    ...     _ = path.write_text(json.dumps(samples))
    >>> (acc,) = compare_samples(*paths, margin=0.1).metrics
    >>> acc.difference, acc.difference_stderr, acc.mcnemar_p, acc.is_equivalent
    (-0.25, 0.25, 1.0, False)
    """
    if margin is not None and not (isinstance(margin, numbers.Real) and 0 < margin < 1):
        raise_error("option", name="margin", got=margin, fits="a number between 0 and 1")
    if not isinstance(cluster, str | None):
        raise_error("type", name="cluster", got=cluster, fits="a string")

    paths = os.fspath(base), os.fspath(other)
    samples = list(read_samples(paths[0], cluster)), list(read_samples(paths[1]))
    has_hashes = all(sample.doc_hash for file in samples for sample in file)
    pairs = paired(paths, samples, lambda sample: sample.doc_hash if has_hashes else sample.doc_id)
    documents = [sample.doc_hash if has_hashes else sample.doc_id for sample, _ in pairs]
    groups = documents if cluster is None else [sample.group for sample, _ in pairs]
    figures, left_out, notes = metrics_of(paths, pairs, groups, margin)
    metrics = [SampleMetric(**fields) for fields in figures]
    if margin is not None and all(metric.equivalence_p is None for metric in metrics):
        got, fits = "holds no metric between 0 and 1", "hold one where a margin is given"
        raise_error("content", path=paths[0], got=got, fits=fits)
    return SampleComparison(
        count=len(pairs),
        n_documents=len(set(documents)),
        n_clusters=len(set(groups)),
        cluster=cluster,
        margin=None if margin is None else float(margin),
        n_other_prompts=sum(a.prompt_hash != b.prompt_hash for a, b in pairs if a.prompt_hash and b.prompt_hash),
        metrics=metrics,
        left_out=left_out,
        notes=notes,
        _about={"base": paths[0], "other": paths[1]},
    )
