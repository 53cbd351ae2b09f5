"""`compare_files`: sources are compared at the highest level that all of them reach."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from tokenloss._comparison.columns import check_definitions
from tokenloss._comparison.comparisons import NOISE, Comparisons, hints_of
from tokenloss._comparison.drafts import check_temperature
from tokenloss._core.advice import advice
from tokenloss._core.arguments import further_divergences, refuse_given
from tokenloss._core.errors import named, raise_error, refuse, warn, worded
from tokenloss._core.files import identity
from tokenloss._core.validation import check_integer
from tokenloss._evaluation.compare import compare_rows
from tokenloss._evaluation.listed_pairs import compare_lists
from tokenloss._evaluation.options import Options, by_identity, checked_sizes
from tokenloss._evaluation.run import Settings, opened
from tokenloss._evaluation.served import compare_served
from tokenloss._evaluation.sink import checked_sinks
from tokenloss._evaluation.token_pairs import compare_losses
from tokenloss._statistics.groups import check_by
from tokenloss.formats.content import as_source, grouped
from tokenloss.formats.readers import check_different
from tokenloss.formats.scores import Scores
from tokenloss.formats.sketch import Sketch
from tokenloss.formats.sources import DEFAULT, LEVELS, Source, require
from tokenloss.formats.tokenizers import open_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal, TypeAlias

    from tokenloss._comparison.compared_tokens import About
    from tokenloss._comparison.comparisons import Comparisons
    from tokenloss._evaluation.sink import Sink
    from tokenloss.formats.responses import Responses

    _Path: TypeAlias = str | os.PathLike[str]
    _Source: TypeAlias = Source | _Path | Sequence[_Path]


def compare_files(
    base: _Source,
    others: _Source | Mapping[str, _Source],
    *,
    shift: bool | None = None,
    classes: int | Literal["all"] | None = None,
    definitions: Literal["exact", "llama.cpp"] = "exact",
    divergences: Sequence[str] = ("kl",),
    temperature: float | None = None,
    by: str | None = None,
    calibration: bool = False,
    sizes: Mapping[str, int | _Path] | None = None,
    noise: _Source | None = None,
    sinks: Sequence[Sink] = (),
    state: _Path | None = None,
    scheduler: str | None = None,
    progress: bool = False,
    workers: int | None = None,
) -> Comparisons[Any]:
    """Compare models, such as quantized ones, with their base, from files of scores, responses or log-probabilities.

    This is the command ``tokenloss compare``. Two sources are compared in the most detail that both allow: all classes
    of each token (scores and hidden states); the most likely classes (responses of servers); or only the
    log-probability of each token (a trainer and the engine that sampled). Scores of the base are read only once for all
    candidates, and no file of scores is loaded whole, so files may be larger than memory.

    Parameters
    ----------
    base : source, path or paths
        The result of an opener of `tokenloss.formats`, such as `tokenloss.formats.open_scores`, whose options describe
        the files. Or paths (the shards of one text), a pattern of their names, or their directory, which are recognized
        by their content: as scores, as responses of a server, or as a trainer's log-probabilities of tokens.
    others : source, path or paths, or mapping of names to a source, a path or paths
        The candidates; without a name, a candidate is named by its path. Each has as many shards as the base, with the
        same rows in the same order (a candidate of several shards needs a name, unless it is a pattern or directory);
        or responses to the same requests; or, for log-probabilities, the single file of the engine that sampled.
        Responses may be compared with scores. Two candidates must not share a file unless they have different heads.
        All targets in the files must be the same; without targets, scores are compared only by their divergences. The
        base's options for targets, sequences and windows apply to all.
    shift : bool, optional
        Whether targets are the input ids of a causal model, as in `evaluate`.
    classes : int or "all", optional
        Number of classes to compare, from the first, if vocabularies differ, as in `compare`. With "all", a class that
        a model lacks has probability 0: the divergence of a candidate that lacks classes of the base is infinite, and
        so is its loss where the target is such a class. Targets are classes of the base.
    definitions, divergences
        As in `compare`.
    temperature : float, optional
        Divide the logits of all models by this, from 1e-6 to 1e6, and add "tv" to the divergences:
        `Comparison.acceptance` then shows how many tokens drafted by a candidate the base accepts (use
        ``classes="all"`` if vocabularies differ). 0 means greedy decoding, with losses and divergences at temperature
        1. The default is 1.
    by : str, optional
        What to group tokens by, for a table of divergences and losses in `Comparison.groups`, as in `evaluate`; fields
        are read from the base, or from the responses that are compared with it.
    calibration : bool, default False
        Whether to measure the calibration of each model over all its classes (see `Comparison.calibration`), as
        `evaluate` does; it needs scores with class ids. Each model's files are read another four to seven times for it.
    sizes : mapping of names to int or path, optional
        Sizes of the candidates' models: bytes, their file or directory, or text such as "4.9G".
    noise : source, path or paths, optional
        A second run of the base, such as with another batch size or engine; a path is opened like the base.
        `Comparisons.noise` compares it with the base, tables also show values as multiples of this run's, and
        `Comparisons.check` names the gates that the run itself fails. In `sinks`, it is one more candidate, "noise". It
        must be neither the base nor a candidate.
    sinks, state, scheduler, progress, workers
        As in `evaluate`; the result of each shard is saved in `state`.

    Returns
    -------
    Comparisons
        A dict of `Comparison`, `ResponseComparison` or `Mismatch`, by the name of the candidate, in the order given.
        Each is bitwise identical to a comparison with only that candidate, unless logits of several models are scaled
        or capped differently. Arrays are one-dimensional, over the compared tokens, except in a `Mismatch` of arrays,
        which keeps their shape. Sequence numbers that start again in each shard are shifted to be unique.

    Raises
    ------
    IndexError, TypeError, ValueError, OSError, ImportError
        As in `evaluate`; also if files do not fit together, or if a source lacks what an option needs.

    Warns
    -----
    ShiftWarning
        If targets were not shifted, but rows of the base give more than four times the probability to the next target.
    NormWarning
        If hidden states seem to lack the final norm.
    UserWarning
        If divergences or losses are nan or infinite, or if a candidate is identical to its base or to another one.

    See Also
    --------
    compare : The same for arrays.
    compare_samples : The same for samples of lm-evaluation-harness.
    Comparison.acceptance : How many tokens drafted by a candidate the base accepts.
    ComparisonMeter : The same for blocks in memory.
    mismatch : The same for log-probabilities of tokens, in arrays.

    Notes
    -----
    *Responses* are matched by their ``custom_id`` if both files have it, else by order, and their tokens by id if both
    files have ids, else by text. Servers list only the most likely classes, so the result is a lower bound on the
    divergence (`topk_divergence_bound`), along with the total probability of the classes from which it is computed.
    Classes are matched like tokens; a text that is part of a character, or that occurs twice in a list, identifies no
    class. Different classes of the two models may have the same text, which the files do not reveal. Responses that are
    compared with a sketch must list its classes and their own model's most likely one; the result is a `Comparison`.

    Rows of scores that are compared with responses belong, in order, to all tokens except the first of each prompt.
    Their targets must be the ids of the tokens. Sequences of the scores, if present, are the responses in order;
    otherwise, ignored rows are left out.

    *Log-probabilities of tokens*: two files of lines or responses are paired by ``custom_id``, and the ``choice`` of a
    line (0 by default), if both have these, else by order. For responses, the generated tokens are read by default. An
    array compared with lines or responses has a row for each, padded with nan or 0 on the right or with nan on the
    left, or is flat, with one number for each token. Two arrays must have the same shape, with nan as padding.

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
    >>> comparisons = compare_files(base, {"Q8": q8, "Q4": q4})
    >>> {name: round(comparison.mean_kl, 6) for name, comparison in comparisons.items()}
    {'Q8': 0.005476, 'Q4': 0.178325}

    Responses of two servers:

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
    """
    wanted = further_divergences(divergences, check_definitions(definitions))
    if classes not in (None, "all"):
        classes = check_integer("classes", classes, "a positive integer, 'all' or None", least=1)
    if temperature is not None:
        refuse_given({} if definitions == "exact" else {"temperature": temperature}, f"left out of {definitions}")
        temperature, wanted = check_temperature(temperature), further_divergences([*wanted, "tv"])
    source, models = sources_of(base, others, noise, shift)
    source, models = grouped(source, check_by(by)), {name: _labeled(one, by) for name, one in models.items()}
    level = _level_of(source, models)
    row_options = {"temperature": temperature is not None, "classes": classes, "definitions": definitions != "exact",
               "divergences": wanted, "calibration": calibration}  # fmt: skip
    for name, value in ({"noise": noise, "sizes": sizes} | row_options).items():
        for one in (source, *models.values()) if value else ():
            is_estimated = name == "divergences" and isinstance(source, Sketch)
            require(one, "rows" if name in row_options and not is_estimated else "tops", name)
    if level in ("rows", "sketch"):
        _check_transforms([source, *models.values()])
        models = {name: _with_tokens_of(one, source) for name, one in models.items()}
    names = [name for name in models if noise is None or name != NOISE]
    checked = checked_sizes(sizes or {}, names)
    abouts: list[About] = [
        {"base": source.name, "name": name, "file": one.name, "size": checked.get(name)} for name, one in models.items()
    ]
    outputs = checked_sinks(sinks, state is not None, scheduler)
    settings = Settings.checked(outputs, state, scheduler, progress, workers)
    said = source.token_options
    measures: Any = {"definitions": definitions, "divergences": wanted, "classes": classes}
    measures["temperature"] = 1.0 if temperature is None else temperature
    options = Options.of(said, **measures, by=by, calibration=bool(calibration))
    key = {"command": "compare", **source.given(), **measures, "divergences": [*wanted], "by": by}
    for number, one in enumerate(models.values()):
        key |= {f"candidate {number}: {name}": value for name, value in one.given().items()}
    with opened([source, *models.values()], settings, key, by_identity([], sizes)) as run:
        comparisons: Comparisons[Any]
        second = "" if noise is None else NOISE
        if level in ("rows", "sketch"):
            tokenizer = None if said.tokenizer is None else open_tokenizer(said.tokenizer)
            scores, others_scores = cast("Scores", source), cast("dict[str, Scores]", models)
            comparisons = compare_rows(scores, others_scores, abouts, options, run, tokenizer, second)
        elif isinstance(source, Sketch):
            comparisons = compare_served(source, cast("dict[str, Responses]", models), abouts, options, run)
        elif level == "tops":
            comparisons = compare_lists(source, models, abouts, run, by, second)
        else:
            comparisons = compare_losses(source, models, abouts, run, by)
    if noise is not None:
        comparisons.noise = comparisons.pop(NOISE)
    for hint in advice(hints_of(comparisons)):
        warn(hint.message, hint.category)
    return comparisons


def sources_of(
    base: Any, others: Any, noise: Any = None, shift: bool | None = None
) -> tuple[Source, dict[str, Source]]:
    """The base and the candidates, with an optional second run of the base as the last one."""
    source = _opened(base, "base", shift)
    models = {name: _opened(one, f"others[{name!r}]", shift) for name, one in candidates(others).items()}
    if noise is not None:
        if NOISE in models:
            raise_error("option", name="a name of others", got=NOISE, fits="another name, because noise is given")
        models[NOISE] = noise if isinstance(noise, Source) else source.like(noise)
        if {*map(identity, source.paths)} & {*map(identity, models[NOISE].paths)}:
            refuse(models[NOISE].name, "is the base itself", "be a second run of it")
    by_head: dict[object, list[str]] = {}  # files may be compared with themselves, projected by another head
    for one in models.values():
        by_head.setdefault(one.specs[0].head if isinstance(one, Scores) else None, []).extend(one.paths)
    for paths in by_head.values():
        check_different(paths)
    return source, models


def _opened(value: Any, name: str, shift: bool | None) -> Source:
    """The source of an argument, which must have tokens, in files."""
    source = as_source(value, shift=shift, name=name)
    require(source, "nll", worded("compare_files", "tokenloss compare"))
    require(source, "plan", name)
    return source


def candidates(others: Any) -> dict[str, Any]:
    """The value given for each candidate, by name."""
    if isinstance(others, Source):
        return {others.name: others}
    if not isinstance(others, Mapping):
        several = isinstance(others, Iterable) and not isinstance(others, str)
        given = [*others] if several else [others]
        others = {}
        for one in given:
            name = one.name if isinstance(one, Source) else os.fspath(one) if isinstance(one, os.PathLike) else one
            if not isinstance(name, str):
                raise_error("type", name="others", got=type(one).__name__, fits="a source or a path")
            if name in others:
                raise_error("option", name="others", got=name, fits="given once, or with a name of its own")
            others[name] = one
    for name in others:
        if not isinstance(name, str):
            raise_error("type", name="a name of others", got=name, fits="text")
        if not name:
            raise_error("empty", name="a name of others", fits="text")
    if not others:
        raise_error("empty", name="others", fits="a path, or a mapping of names to paths")
    return dict(others)


def _labeled(source: Source, by: str | None) -> Source:
    """The candidate, whose labels are used if the base has none; labels of scores are the base's own."""
    labeled: Source = source if isinstance(source, Scores) else grouped(source, by)
    return labeled


def _level_of(base: Source, models: Mapping[str, Source]) -> str:
    """The highest level that the base and each candidate reach, which must be the same for all candidates."""
    for name, one in {"base": base, **models}.items():
        if isinstance(one, Sketch) and (name != "base" or "nll" in {other.level for other in models.values()}):
            got, fits = "is a sketch", "be the base, and come with scores, hidden states or responses of the others"
            refuse(one.name, got, fits)
    levels = {name: min(base.level, one.level, key=LEVELS.index) for name, one in models.items()}
    first = next(iter(levels))
    for name, level in levels.items():
        if level != levels[first]:
            words = {
                "rows": "by all classes",
                "sketch": "by all classes",
                "tops": "by the most likely classes",
                "nll": "only by their tokens",
            }
            got = f"can be compared {words[level]}"
            refuse(models[name].name, got, f"be compared {words[levels[first]]}, like {models[first].name}, or apart")
    return levels[first]


def _with_tokens_of(source: Source, base: Source) -> Source:
    """The candidate with the token options of the base; a candidate opened with different ones is refused."""
    own, said = source.token_options, base.token_options
    if isinstance(base, Sketch):  # whose targets are aligned already
        own = own._replace(shift=None)
    is_default = own._replace(shift=None, tokenizer=None) == DEFAULT
    names = [name for name in own._fields if name not in ("shift", "tokenizer") and not is_default]
    for name in names + ["shift"] * (own.shift is not None):
        value, base_value = getattr(own, name), getattr(said, name)
        are_paths = isinstance(value, tuple)
        if [*map(identity, value)] != [*map(identity, base_value)] if are_paths else value != base_value:
            got = f"was opened with {named(name, ...)}{value!r}"
            fits = f"have {base_value!r}, as the base has, or be opened without it: the base's value is used for all"
            refuse(source.name, got, fits)
    return replace(source, token_options=said)


def _check_transforms(sources: Sequence[Any]) -> None:
    """Refuse a transform of logits that was given for only some models, or for scores."""
    sources = [source for source in sources if not isinstance(source, Sketch)]
    heads = [source.specs[0].head for source in sources]
    for i, (name, neutral) in enumerate((("logit_scale", 1.0), ("softcap", 0.0)), 1):
        given = [None if head is None or head[i] == neutral else head[i] for head in heads]
        for source, value in zip(sources, given, strict=True):
            if value != given[0]:
                score_files = [one.name for one, head in zip(sources, heads, strict=True) if head is None]
                got, fits = f"has {name} {value}", f"have {given[0]}, as {sources[0].name} does"
                if score_files:
                    got = f"contains scores, to which {named(name)} does not apply"
                    fits = "contain hidden states like the other models"
                fits += f"; {name} may come from the config.json of a head"
                refuse([*score_files, source.name][0], got, fits)
