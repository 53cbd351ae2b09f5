"""`compare_files`: it tells by their content what files hold, and calls the comparison that fits."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tokenloss._core.arguments import as_paths, is_given
from tokenloss._core.errors import raise_error, warn
from tokenloss._core.files import identity
from tokenloss._core.text import title
from tokenloss._evaluation.compare_logprobs import are_logprobs, compare_logprobs
from tokenloss._evaluation.compare_responses import compare_responses
from tokenloss._evaluation.compare_samples import compare_samples
from tokenloss._evaluation.compare_scores import compare_scores
from tokenloss._evaluation.options import NOISE, check_different, is_folder_of_responses, resolved
from tokenloss._evaluation.sink import checked_sinks
from tokenloss._statistics.advice import advice, not_finite_notes
from tokenloss.formats.responses import is_responses
from tokenloss.formats.sample_folders import is_samples_folder
from tokenloss.formats.samples import is_samples

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Literal, TypeAlias

    from tokenloss._comparison.comparisons import Comparisons
    from tokenloss._core.types import Kind
    from tokenloss._evaluation.sink import Sink

    _Path: TypeAlias = str | os.PathLike[str]
    _Paths: TypeAlias = _Path | Sequence[_Path]

_NOT_OF_RESPONSES = "does not apply to responses: they give a lower bound"
_NOT_OF_LOGPROBS = "does not apply to log-probabilities of tokens alone"
_NOT_OF_SAMPLES = "does not apply to samples of lm-evaluation-harness"
_LISTED_IN_PYTHON = "; in Python, columns() of each of the result's metrics lists the questions"
_OF_ALL = ("workers", "progress")  # options that may be given though they have no effect
# by option that only some files take, why others do not
_REASONS = {
    "margin": (
        "is for samples of lm-evaluation-harness; others have gates, such as --max-perplexity-ratio "
        "(max_perplexity_ratio of check)"
    ),
    **dict.fromkeys(("cluster", "run"), "is for samples of lm-evaluation-harness"),
    **dict.fromkeys(("part", "skip_failed"), "is for responses of servers"),
}


def compare_files(
    base: _Paths,
    others: _Paths | Mapping[str, _Paths],
    targets: _Paths = (),
    *,
    segment_ids: _Paths = (),
    base_array: str | None = None,
    array: str | None = None,
    targets_array: str | None = None,
    base_kind: Kind | None = None,
    kind: Kind | None = None,
    base_lm_head: _Path | None = None,
    lm_head: _Paths | None = None,
    base_hidden: str | None = None,
    hidden: str | None = None,
    logit_scale: float | None = None,
    softcap: float | None = None,
    classes: int | None = None,
    definitions: Literal["exact", "llama.cpp"] = "exact",
    divergences: Sequence[str] = ("kl",),
    draft: bool = False,
    temperature: float | None = None,
    cost_ratio: float | None = None,
    ignore_index: int | None = -100,
    shift: bool | None = None,
    part: Literal["prompt", "generated", "all"] | None = None,
    skip_failed: bool = False,
    margin: float | None = None,
    cluster: str | None = None,
    run: str | Sequence[str] = (),
    sizes: Mapping[str, int | _Path] | None = None,
    noise: _Paths | None = None,
    sinks: Sequence[Sink] = (),
    state: _Path | None = None,
    scheduler: str | None = None,
    progress: bool = False,
    workers: int | None = None,
) -> Comparisons[Any]:
    """Compare models, say quantised ones, with their base, from files of scores, of responses or of samples.

    This is the command ``tokenloss compare``. What files hold is told by their content: scores or hidden states of the
    same rows; responses of servers to the same requests; samples that lm-evaluation-harness logged (``--log_samples``);
    or log-probabilities of the same tokens alone, of a trainer and of the engine that sampled. Scores of the base are
    read once for all candidates, and no file of scores is loaded whole, so they may be larger than memory.

    Parameters
    ----------
    base : path or paths
        Files of the base, shards of one text: of scores as `tokenloss.formats.open_scores` reads them, or of hidden
        states. Or a pattern of their names, or their directory. Or one file of responses, as
        `tokenloss.formats.open_responses` reads them, or of samples; or the folder of a model's samples, as
        lm-evaluation-harness writes it (``--output_path``). Or the file of a trainer's log-probabilities.
    others : path or paths, or mapping of names to a path or paths
        The candidates; one without a name has its path. Each has as many shards as the base, of the same rows in the
        same order (shards come with a name, or as a pattern or directory); responses to the same requests; or samples
        of the same task, or of tasks of the same names. Responses may be compared with scores. Or the one file of the
        engine that sampled. Two candidates must not share a file unless they have different heads.
    targets : path or paths, optional
        A .npy file of class ids for each shard, or one for all; by default, the base or a candidate holds them. All
        that are held must be the same. Without any, scores are compared by their divergences alone.
    segment_ids : path or paths, optional
        .npy files of the number of each token's sequence: one for each shard, whose numbers are its own; or one for
        all, where a sequence may go on in the next shard. By default those that files hold.
    base_array, array : str, optional
        Name of the array of scores, of the base and of all candidates, if it is not the name of a kind.
    targets_array : str, optional
        Name of the array of targets in the files of the base, if it is neither ``targets`` nor ``labels``.
    base_kind, kind : {"logits", "log_probs", "probs"}, optional
        Kind of the scores of the base and of all candidates; by default the name of their array, or logits.
    base_lm_head, lm_head : path or paths, optional
        Files hold hidden states, and this is their projection onto the vocabulary, as
        `tokenloss.formats.open_hidden_states` takes it. `lm_head` is that of all candidates, or there is one for each;
        a single one is also that of the base, unless it has its own, or `base_kind` or `base_array` is given.
    base_hidden, hidden : str, optional
        Name of the array of hidden states; that of the base is `hidden` by default.
    logit_scale, softcap : float, optional
        Transform of the logits of hidden states, as in `evaluate`, in place of that of each model, which
        ``config.json`` beside its projection says. Only for files that all hold hidden states.
    classes : int, optional
        Number of classes to compare, from the first, where vocabularies differ, as in `compare`.
    definitions : {"exact", "llama.cpp"}, default "exact"
        Formulas of the figures, as in `compare`.
    divergences : sequence of {"kl", "reverse_kl", "js", "tv", "hellinger"}, default ("kl",)
        Divergences of each position, as `kl_divergence` defines them. "kl" is always computed: the others need its
        logsumexps. Those beside it take a second pass, over rows that lie in a cache.
    draft : bool, default False
        The candidates are drafts of speculative decoding, and the base is their target: compare what
        `draft_acceptance` tells, in place of divergences. Vocabularies may differ in their last classes, and targets
        are not needed: where files hold them, those that are ignored mask rows.
    temperature : float, optional
        Of drafts: the temperature of all models, as in `draft_acceptance`; by default 1.
    cost_ratio : float, optional
        Of drafts: the time of a step of the draft over that of a call of the target, for the speed-up.
    ignore_index : int or None, default -100
        Target value that marks tokens to ignore, such as padding.
    shift : bool, optional
        Whether targets are the input ids of a causal model, as in `evaluate`.
    part : {"prompt", "generated", "all"}, optional
        The tokens of responses to read, as in `evaluate`.
    skip_failed : bool, default False
        Leave out requests that failed in one of the files of responses, and count them, rather than raise an error.
    margin : float, optional
        For samples: test whether metrics between 0 and 1, such as accuracies, are equal within this margin (e.g. 0.01).
    cluster : str, optional
        For samples: the field of a document that names its group, such as "meta.passage". Errors are clustered by this
        group; by default, by document.
    run : str or sequence of str, optional
        For folders of samples: read only the runs whose date in the file names begins with one of these, such as
        "2026-11-28T09". By default, each task is read from its newest run.
    sizes : mapping of names to int or path, optional
        Sizes of the candidates' models: bytes, a file or a directory of them, or text such as "4.9G".
    noise : path or paths, optional
        A second run of the base, say with another batch size or by another engine, which is read as the base is:
        `Comparisons.noise` compares it with the base, tables show figures as multiples of its own, and
        `Comparisons.check` tells which gates it does not pass itself. In `sinks` it is one more candidate, "noise". It
        must not be the base itself, nor a candidate.
    sinks : sequence of Sink, optional
        Files to write; `Sink.add` gets a `ComparedBlock`, and `Sink.finish` the figures and the result.
    state : path, optional
        Checkpoint, as in `evaluate`: the result of each shard is appended to it.
    scheduler : str, optional
        Address of a Dask scheduler, on whose workers the shards are compared.
    progress : bool, default False
        Whether to draw the progress over files on stderr, if that is a terminal.
    workers : int, optional
        Number of threads, as in `cross_entropy`. No bit of the result depends on it.

    Returns
    -------
    Comparisons
        A dict of `Comparison`, `DraftAcceptance`, `ResponseComparison`, `SampleComparison` or `Mismatch`, by the name
        of the candidate, in the order given; a path without a name is its own. Each has the bits of a comparison of
        that candidate alone, unless logits of several models are scaled or capped differently. Arrays are of the tokens
        that are compared, of one dimension, except in a `Mismatch` of arrays, which keeps their shape. Numbers of
        sequences that are a shard's own are counted on from those of earlier shards.

    Raises
    ------
    IndexError, TypeError, ValueError
        If an argument or a file is invalid, if files do not fit together, or if an option does not apply to what they
        hold; the message names it, what came and what fits. Files are checked before any score is read, and no file is
        written then.
    OSError
        If a file cannot be read or written.
    ImportError
        If a format or a sink needs a package that is not installed.

    Warns
    -----
    ShiftWarning
        If targets were not shifted, and rows of the base give the next target more than four times the probability.
    NormWarning
        If hidden states seem to lack the final norm.
    UserWarning
        If divergences or losses are nan or infinite, if a candidate is identical to its base or to another one, or if
        a folder of samples has several runs of a task.

    See Also
    --------
    compare : The same of arrays.
    draft_acceptance : The acceptance of a draft, of arrays.
    ComparisonMeter : The same of blocks in memory.
    mismatch : A trainer's log-probabilities against those of the engine that sampled, in arrays.

    Notes
    -----
    *Responses* are matched by their ``custom_id`` where both files have these, else by their order, and token by token:
    by ids where both have them, else by text. Servers list only the most likely classes, so that a lower bound of the
    divergence is known (`topk_divergence_bound`), and the probability of the classes that it is computed from. Classes
    are matched by id where both files have ids, else by text; a text that is of a part of a character, or that comes
    twice in a list, names no class. Two classes may have the same text in different lists, which the files do not show.

    Rows of scores that are compared with responses are, in order, of the tokens that have a row before them: all but
    the first one of each prompt. Their targets must be the tokens' ids. Sequences of the scores, if there are any, are
    the responses in order; else rows that are ignored are left out.

    *Samples* are paired by filter and by ``doc_hash``, or by ``doc_id`` if there are no documents. A document may occur
    several times, but must occur equally often in both files. The values are the ones that the harness computed and
    wrote to the files. The metric is their mean, unless it is a perplexity or bits per byte. Metrics of all samples
    together, such as BLEU, are left out. If the files have multiple-choice accuracies but not ``acc_norm``, it is
    computed from the responses, and so is the log-likelihood of the right answer, but only if the responses and targets
    also reproduce the accuracies in the files. Let S be the sum of the differences over the n samples of a document (or
    group). The standard error of the mean difference ``mu`` over G documents is
    ``sqrt(G / (G - 1) * sum((S - mu * n)**2)) / sum(n)``. Intervals and tests of equivalence use Student's t with G - 1
    degrees of freedom, or a similar distribution if n differs between documents (`LossMeter.interval_factor`).

    For *folders of samples*, each task is read from the newest run in its folder (see `run`). Tasks that only one
    folder has are listed in `SampleComparison.left_out`. Groups of tasks come from the newest ``results_*.json`` of the
    base, and their means are weighted to match the value there. Errors of groups treat tasks as independent; their
    intervals and tests use Student's t with Satterthwaite's degrees of freedom.

    *Log-probabilities of tokens* are those of a .npy file of one dimension, of an array ``logprobs`` in a .npz file, or
    of lines of JSON with a list ``logprobs`` (null for what has no number), or with those of verl
    (``rollout_log_probs``, ``response_mask``), TRL (``sampling_per_token_logps``, ``completion_mask``) or prime-rl
    (``completion_logprobs``, ``completion_mask``); masks may be missing. Two files of lines or responses are paired by
    ``custom_id``, and the ``choice`` of a line (0 by default), if both have these, else by their order. Beside
    responses, whose generated tokens are read by default, a .npy file of two dimensions holds log-probabilities, too,
    if it has a row for each response and not for each token. Rows are in the order of the responses, as long as these,
    and followed by nan or 0, or preceded by nan. Two arrays have one shape, and their padding is nan in both; .npy
    files of two dimensions without any are scores.

    Examples
    --------
    >>> import json, pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss import compare_files
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> base, q8, q4 = (folder / name for name in ("base.npz", "q8.npy", "q4.npy"))
    >>> logits = 3 * np.eye(4)
    >>> np.savez(base, logits=logits, targets=np.arange(4))
    >>> np.save(q8, 0.9 * logits)
    >>> np.save(q4, 0.5 * logits)
    >>> found = compare_files(base, {"Q8": q8, "Q4": q4})
    >>> {name: round(comparison.mean_kl, 6) for name, comparison in found.items()}
    {'Q8': 0.005476, 'Q4': 0.178325}

    Of two servers' responses:

    >>> def response(*logprobs):
    ...     tops = [{"token": text, "logprob": logprob} for text, logprob in zip(("Yes", "No"), logprobs)]
    ...     content = [{"token": "Yes", "logprob": logprobs[0], "top_logprobs": tops}]
    ...     return {"choices": [{"message": {"content": "Yes"}, "logprobs": {"content": content}}]}
    >>> base, other = folder / "base.json", folder / "other.json"
    >>> _ = base.write_text(json.dumps(response(-0.25, -1.75)))
    >>> _ = other.write_text(json.dumps(response(-0.5, -1.25)))
    >>> one = compare_files(base, {"other": other})["other"]
    >>> one.nll, one.kl_bound.round(4), one.base_mass.round(4), one.same_top
    (array([0.5]), array([0.0624]), array([0.9526]), 1.0)

    Of samples of lm-evaluation-harness:

    >>> for path, values in (base, [1, 1, 0, 1]), (other, [1, 0, 0, 1]):
    ...     samples = [{"doc_id": i, "filtered_resps": [], "acc": value} for i, value in enumerate(values)]
    ...     _ = path.write_text(json.dumps(samples))
    >>> (acc,) = compare_files(base, {"other": other}, margin=0.1)["other"].metrics
    >>> acc.difference, acc.difference_stderr, acc.mcnemar_p, acc.is_equivalent
    (-0.25, 0.25, 1.0, False)
    """
    options = {name: value for name, value in locals().items() if name not in ("base", "others")}
    of_base, of_others = _sources("base", base), _candidates(others)
    models = of_others if noise is None else _with_noise(of_others, noise)
    function, reason = _comparison_of(resolved([path for paths in (of_base, *models.values()) for path in paths]), part)
    if function is not compare_scores:
        of_base, models = resolved(of_base), {name: resolved(paths) for name, paths in models.items()}
    taken = inspect.signature(function).parameters  # the options that apply
    for name, value in options.items():
        if name not in (*taken, *_OF_ALL) and is_given(value, _DEFAULTS[name]):
            if name == "sinks":
                name = checked_sinks(value, "compare_files", None, None)[0]._name
                reason += _LISTED_IN_PYTHON * (reason == _NOT_OF_SAMPLES)
            fits = reason if reason.startswith((_NOT_OF_SAMPLES, _NOT_OF_LOGPROBS)) else _REASONS.get(name, reason)
            raise_error("not for", name=name, fits=fits)
    _refuse_twins(of_base, models, noise, lm_head)
    found: Comparisons[Any] = function(of_base, models, **{name: options[name] for name in options if name in taken})
    if noise is not None:
        found.noise = found.pop(NOISE)
    for one in advice(hints_of(found)):
        warn(one.message, one.category)
    return found


def hints_of(found: Comparisons[Any]) -> dict[str, Any]:
    """Figures that hint at a mistake, for `advice`."""
    every = found if found.noise is None else found | {NOISE: found.noise}
    of_scores = {name: vars(one) for name, one in every.items() if hasattr(one, "n_nan")}
    notes = [
        f"{name}: {note}"
        for name, figures in of_scores.items()
        for note in not_finite_notes(figures, figures["count"], "divergence or loss")
    ]
    notes += found._identical()
    notes += dict.fromkeys(note for one in every.values() for note in getattr(one, "runs", ()))
    return found._hints() | {"notes": notes}


_DEFAULTS = {name: one.default for name, one in inspect.signature(compare_files).parameters.items()}


def _comparison_of(paths: list[str], part: Any) -> tuple[Callable[..., Any], str]:
    """The function that compares what these files hold, and why options of others do not apply."""
    for path in filter(is_folder_of_responses, paths):
        fits = "be one file, with a response on each line (.jsonl), in the order of the other's"
        raise_error("content", path=path, got="is a folder of responses", fits=fits)
    of_responses = [is_responses(path) for path in paths]
    if any(map(is_samples_folder, paths)) or (all(of_responses) and any(map(is_samples, paths))):
        return compare_samples, _NOT_OF_SAMPLES
    if are_logprobs(paths, part):
        return compare_logprobs, _NOT_OF_LOGPROBS
    if any(of_responses):
        return compare_responses, _NOT_OF_RESPONSES
    return compare_scores, ""


def _sources(name: str, value: Any) -> list[str]:
    """The paths that were given for a model; at least one."""
    paths = as_paths(name, value)
    if not paths:
        raise_error("empty", name=name, fits="a path, or paths")
    return paths


def _with_noise(others: dict[str, list[str]], noise: Any) -> dict[str, list[str]]:
    """The candidates, and as the last one a second run of the base."""
    if NOISE in others:
        raise_error("option", name="a name of others", got=NOISE, fits="another one, where noise is given")
    return others | {NOISE: _sources("noise", noise)}


def _refuse_twins(base: list[str], models: dict[str, list[str]], noise: Any, lm_head: Any) -> None:
    """Raise an error if two candidates with the same head share a file, or if the second run is the base itself."""
    if noise is not None and {*map(identity, resolved(base))} & {*map(identity, resolved(models[NOISE]))}:
        raise_error("content", path=title(models[NOISE]), got="is the base itself", fits="be a second run of it")
    if lm_head is None or len(as_paths("lm_head", lm_head)) < 2:
        check_different([path for paths in models.values() for path in resolved(paths)])


def _candidates(others: Any) -> dict[str, list[str]]:
    """The paths that were given for each candidate, by its name."""
    if not isinstance(others, Mapping):
        paths = as_paths("others", others)
        for path in paths:
            if paths.count(path) > 1:
                raise_error("option", name="others", got=path, fits="given once, or with a name of its own")
        others = {path: path for path in paths}
    for name in others:
        if not isinstance(name, str):
            raise_error("type", name="a name of others", got=name, fits="text")
        if not name:
            raise_error("empty", name="a name of others", fits="text")
    if not others:
        raise_error("empty", name="others", fits="a path, or a mapping of names to paths")
    return {name: _sources(f"others[{name!r}]", value) for name, value in others.items()}
