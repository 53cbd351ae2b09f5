"""`compare_files`, which checks its arguments for `compare.py`: what `tokenloss compare` does, for Python."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tokenloss._core._core import KINDS
from tokenloss._core.arguments import as_path, as_paths, check_choice, check_shift, refuse_given
from tokenloss._core.errors import raise_error
from tokenloss._core.files import files_of, identity
from tokenloss._core.text import title
from tokenloss._core.threads import check_workers
from tokenloss._core.validation import check_integer, head_transform
from tokenloss._evaluation.compare import Given, compare_sides
from tokenloss._evaluation.evaluate import advice, not_finite_notes
from tokenloss._evaluation.options import Inputs, Options, Settings, resolved
from tokenloss._evaluation.sink import checked_sinks

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal, TypeAlias

    from tokenloss._comparison.comparison import Comparison
    from tokenloss._core.types import Kind
    from tokenloss._evaluation.sink import Sink

    _Path: TypeAlias = str | os.PathLike[str]
    _Paths: TypeAlias = _Path | Sequence[_Path]


def compare_files(
    base: _Paths,
    others: _Path | Mapping[str, _Paths],
    targets: _Paths = (),
    *,
    segment_ids: _Paths = (),
    base_array: str | None = None,
    array: str | None = None,
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
    ignore_index: int | None = -100,
    shift: bool | None = None,
    sizes: Mapping[str, int | _Path] | None = None,
    sinks: Sequence[Sink] = (),
    state: _Path | None = None,
    scheduler: str | None = None,
    progress: bool = False,
    workers: int | None = None,
) -> dict[str, Comparison]:
    """Compare models, say quantised ones, with their base, from files of their scores or hidden states.

    This is the command ``tokenloss compare``. The base is read once for all candidates. Nothing is loaded whole, so
    files may be larger than memory.

    Parameters
    ----------
    base : path or paths
        Files of the base, shards of one text: of scores as `tokenloss.formats.open_scores` reads them, or of hidden
        states. Or a pattern of their names, or their directory.
    others : path, or mapping of names to a path or paths
        The candidates. Each has as many shards as the base, of the same rows in the same order.
    targets : path or paths, optional
        A .npy file of class ids for each shard, or one for all; by default, the base or a candidate holds them. All
        that are held must be the same.
    segment_ids : path or paths, optional
        .npy files of the number of each token's sequence: one for each shard, whose numbers are its own; or one for
        all, where a sequence may go on in the next shard. By default those that files hold.
    base_array, array : str, optional
        Name of the array of scores, of the base and of all candidates, if it is not the name of a kind.
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
        ``config.json`` beside its projection says.
    classes : int, optional
        Number of classes to compare, from the first, where vocabularies differ, as in `compare`.
    definitions : {"exact", "llama.cpp"}, default "exact"
        Formulas of the figures, as in `compare`.
    ignore_index : int or None, default -100
        Target value that marks tokens to ignore, such as padding.
    shift : bool, optional
        Whether targets are the input ids of a causal model, as in `evaluate`.
    sizes : mapping of names to int or path, optional
        Sizes of the candidates' models: bytes, a file or a directory of them, or text such as "4.9G".
    sinks : sequence of Sink, optional
        Files to write; `Sink.add` gets a `ComparedBlock`, and `Sink.finish` a list of `Candidate`.
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
    dict of Comparison
        By the name of the candidate, in the order given; a path without a name is its own. Each has the bits of a
        comparison of that candidate alone, unless logits of several models are scaled or capped differently. Arrays are
        of the tokens that are compared, of one dimension. Numbers of sequences that are a shard's own are counted on
        from those of earlier shards.

    Raises
    ------
    IndexError, TypeError, ValueError
        If an argument or a file is invalid, or files do not fit together; the message names it, what came and what
        fits. Files are checked before any score is read, and no file is written then.
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
        If divergences or losses are nan or infinite.

    See Also
    --------
    compare : The same of arrays.
    ComparisonMeter : The same of blocks in memory.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss import compare_files
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     base, q8, q4 = (pathlib.Path(directory) / name for name in ("base.npz", "q8.npy", "q4.npy"))
    ...     logits = 3 * np.eye(4)
    ...     np.savez(base, logits=logits, targets=np.arange(4))
    ...     np.save(q8, 0.9 * logits)
    ...     np.save(q4, 0.5 * logits)
    ...     found = compare_files(base, {"Q8": q8, "Q4": q4})
    >>> {name: round(comparison.mean_kl, 6) for name, comparison in found.items()}
    {'Q8': 0.005476, 'Q4': 0.178325}
    """
    check_choice("base_kind", base_kind, KINDS)
    check_choice("kind", kind, KINDS)
    check_choice("definitions", str(definitions), ("exact", "llama.cpp"))  # which cannot be None
    check_shift(shift)
    if classes is not None:
        classes = check_integer("classes", classes, "a positive integer or None", least=1)
    sources = [("base", _sources("base", base)), *_candidates(others).items()]
    names = [name for name, _ in sources[1:]]
    heads = _heads((base_array, base_kind, base_lm_head), (array, kind, lm_head), len(names))
    scale, cap = head_transform(logit_scale, softcap)
    of_hidden = {"hidden": hidden, "softcap": cap, "logit_scale": scale}
    refuse_given({} if any(heads) else of_hidden, "left out without lm_head")
    refuse_given({} if heads[0] else {"base_hidden": base_hidden}, "left out where the base has no lm_head")
    shared = Options(ignore_index=ignore_index, shift=shift, logit_scale=scale, softcap=cap)
    options = shared._replace(
        array=base_array, kind=base_kind, lm_head=heads[0], hidden=base_hidden or hidden, definitions=definitions,
        classes=classes,
        others=tuple(shared._replace(array=array, kind=kind, lm_head=head, hidden=hidden) for head in heads[1:]),
    )  # fmt: skip
    of_sizes = _sizes(sizes or {}, names)
    named = [Given(name, title(paths), of_sizes.get(name)) for name, paths in sources]
    state = None if state is None else as_path("state", state)
    outputs = checked_sinks(sinks, state, scheduler)
    models = [os.fspath(size) for size in (sizes or {}).values() if isinstance(size, str | os.PathLike)]
    exists = os.path.exists  # pathlib slows the import of the package down
    of_models = {identity(file): str(file) for path in models if exists(path) for file in files_of(path)}
    of_rows = {"targets": targets, "segment_ids": segment_ids}
    ids, segments = (resolved(as_paths(name, value)) for name, value in of_rows.items())
    sides = [
        Inputs(resolved(paths, are_scores=True), [], [], lm_head=head)
        for (_, paths), head in zip(sources, heads, strict=True)
    ]
    sides[0] = sides[0]._replace(targets=ids, segment_ids=segments)
    settings = Settings(state=state, scheduler=scheduler, workers=check_workers(workers), progress=progress)
    summary, found = compare_sides(sides, of_models, named, options, settings, outputs)
    for message, category in advice(summary):
        warnings.warn(message, category, stacklevel=2)
    for candidate in found:
        comparison = candidate.comparison
        for message in not_finite_notes(vars(comparison), comparison.count, "divergence or loss"):
            warnings.warn(f"{candidate.name}: {message}", stacklevel=2)
    return {candidate.name: candidate.comparison for candidate in found}


def _sources(name: str, value: Any) -> list[str]:
    """The paths that were given for a model; at least one."""
    paths = as_paths(name, value)
    if not paths:
        raise_error("empty", name=name, fits="a path, or paths")
    return paths


def _candidates(others: Any) -> dict[str, list[str]]:
    """The paths that were given for each candidate, by its name."""
    if not isinstance(others, Mapping):
        path = as_path("others", others)
        return {path: [path]}
    for name in others:
        if not isinstance(name, str):
            raise_error("type", name="a name of others", got=name, fits="text")
        if not name:
            raise_error("empty", name="a name of others", fits="text")
    if not others:
        raise_error("empty", name="others", fits="a path, or a mapping of names to paths")
    return {name: _sources(f"others[{name!r}]", value) for name, value in others.items()}


def _heads(of_base: tuple[Any, Any, Any], of_others: tuple[Any, Any, Any], n: int) -> list[str | None]:
    """The projection of the base and of each candidate; None for those that have scores."""
    (base_array, base_kind, base_head), (array, kind, value) = of_base, of_others
    heads: list[str | None] = [] if value is None else [*as_paths("lm_head", value)]
    if heads:
        refuse_given({"array": array, "kind": kind}, "left out where there is lm_head")
    if value is not None and len(heads) not in (1, n):
        fits = f"one, or one for each of {n} candidates"
        raise_error("option", name="lm_head", got=f"{len(heads)} paths", fits=fits)
    if base_head is not None:
        refuse_given({"base_array": base_array, "base_kind": base_kind}, "left out where there is base_lm_head")
        base_head = as_path("base_lm_head", base_head)
    elif len(heads) == 1 and base_array is None and base_kind is None:
        base_head = heads[0]
    return [base_head, *(heads * n if len(heads) == 1 else heads or [None] * n)]


def _sizes(sizes: Mapping[str, Any], names: Sequence[str]) -> dict[str, int]:
    """Size of each candidate's model in bytes, where it is given."""
    for name in sizes:
        if name not in names:
            raise_error("option", name="a name of sizes", got=name, fits=f"that of a candidate: {', '.join(names)}")
    return {name: _size(name, value) for name, value in sizes.items()}


def _size(name: str, value: Any) -> int:
    """Bytes of a model, which is given as a number, a file, a directory, or a number with a unit."""
    import re

    word = f"sizes[{name!r}]"
    if hasattr(value, "__index__"):
        size: int = check_integer(word, value, "an integer of at least 0", least=0)
        return size
    path = as_path(word, value)
    if os.path.exists(path):  # noqa: PTH110 -- Path.exists raises if a text is too long for a path
        return sum(file.stat().st_size for file in files_of(path))
    number = re.fullmatch(r"([0-9]{1,20}\.?[0-9]*) ?(?:([KMGT])(i?))?B?", path, re.IGNORECASE)
    if number is None:
        raise_error("option", name=word, got=path, fits="a file, a directory, or a number of bytes such as 4.9G")
    units: dict[str, int] = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
    factor = (1024.0 if number[3] else 1000.0) ** units[(number[2] or "").upper()]
    return round(float(number[1]) * factor)
