"""Pages of HTML that show a text, each token shaded by its loss, or by the divergence of a model from its base."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tokenloss._comparison.paired import nan_last
from tokenloss._core.errors import raise_error
from tokenloss._core.text import count_of
from tokenloss._core.validation import as_target_array
from tokenloss._output.page_frame import (
    as_json,
    as_object,
    css_classes,
    escaped,
    excerpt_note,
    legend,
    numbers,
    paragraphs,
    percent,
    shade_letters,
    summary,
    write_frame,
)
from tokenloss._statistics.meter import LossMeter
from tokenloss._statistics.ratio import guess_note

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from tokenloss._comparison.comparison import Comparison
    from tokenloss._core.types import Array, ArrayLike
    from tokenloss._scores.token_scores import TokenScores

MOST_TOKENS = 100_000  # that a page holds: about 10 MB, which a browser opens within two seconds

# nats at which the next colour of page.css begins
_LOSSES = (0.1, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)
_DIVERGENCES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


def write_page(
    path: str | os.PathLike[str],
    scores: TokenScores,
    targets: ArrayLike,
    *,
    tokens: Sequence[str | None] | Array | None = None,
    vocabulary: Sequence[str] | None = None,
    title: str = "tokenloss",
    meter: LossMeter | None = None,
    accuracy: float | None = None,
) -> None:
    """Write a page of HTML that shows a text, each token shaded by its loss.

    A token that is pointed at, tapped or reached by the keyboard shows its rank, probability, loss, entropy and the
    most likely alternatives. The page is a single file and needs no network.

    Parameters
    ----------
    path : path-like
        File to write. An existing file is replaced when the new one is complete.
    scores : TokenScores
        Result of `token_scores`, for positions of any shape: each row of the last axis is a paragraph. Its ``top_k`` is
        the number of alternatives that are listed.
    targets : array of integers
        Class ids that were scored, of the shape of `scores`.
    tokens : array of str, optional
        Text of the tokens, of the shape of `scores`; None where it is unknown. The marks of byte-level BPE (``Ġ`` for a
        space, ``Ċ`` for a newline, one for each byte) and of SentencePiece (``▁``, ``<0x0A>``) are decoded.
    vocabulary : sequence of str, optional
        Text of each class id: for the alternatives, and for the targets if `tokens` is not given. Without it,
        alternatives have the text of the tokens with the same id. Where the text is unknown, the id is shown.
    title : str, default "tokenloss"
        Title.
    meter : LossMeter, optional
        Meter for the summary at the top, if `scores` are only the first part of the text, or for bits per byte. By
        default the meter of `scores`.
    accuracy : float, optional
        Fraction of greedy tokens for the summary; it belongs to `meter`.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it, what came and what fits. Nothing is written then.
    OSError
        If the file cannot be written; an existing file is unchanged.

    Notes
    -----
    A page holds the first 100,000 tokens (``MOST_TOKENS``), and says so when there are more; its summary is of all.
    The colours begin at 0, 0.1, 0.5, 1, 2, 3, 4, 6, 8 and 10 nats on every page.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from tokenloss import token_scores
    >>> from tokenloss.page import write_page
    >>> scores = token_scores([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]], [0, 1], top_k=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "page.html")
    ...     write_page(path, scores, [0, 1], vocabulary=["to", " be", " not"])
    ...     "<i class=s1>to</i><i class=s0> be</i>" in path.read_text("utf-8")
    True
    """
    shape = scores.nll.shape
    ids = as_target_array("targets", targets, (), shape, "scores", False)[0].reshape(-1)[:MOST_TOKENS]
    if tokens is None:
        given = None
        text = [_token_text(vocabulary, i) for i in ids.tolist()]
    else:
        given = text = _as_strings(tokens, shape)
    if meter is None:
        meter, accuracy = LossMeter(), scores.accuracy
        meter.update(scores.nll, where=scores.kept)
    total = max(math.prod(shape), meter.count)
    data = _data(scores, ids, given, vocabulary)
    _write(path, scores, ids, text, _bounds(shape, len(ids)), title, _summary(meter, accuracy), total, data)


def write_comparison_page(
    path: str | os.PathLike[str],
    comparisons: Mapping[str, Comparison],
    targets: ArrayLike,
    *,
    base_scores: TokenScores | None = None,
    scores: Mapping[str, TokenScores] | None = None,
    tokens: Sequence[str | None] | Array | None = None,
    vocabulary: Sequence[str] | None = None,
    title: str = "tokenloss",
) -> None:
    """Write a page of HTML that shows a text, each token shaded by the divergence of a model from its base.

    A token that is pointed at, tapped or reached by the keyboard shows its divergence, and what both models predicted,
    side by side. Of several models, one is chosen on the page, at first that of the smallest mean divergence.

    Parameters
    ----------
    path : path-like
        File to write. An existing file is replaced when the new one is complete.
    comparisons : mapping of str to Comparison
        Results of `compare` by the names of the models, with one base and of one shape: each row of the last axis is a
        paragraph.
    targets : array of integers
        Class ids that were scored, of the shape of the comparisons.
    base_scores : TokenScores, optional
        Result of `token_scores` of the base: its ranks and, by its ``top_k``, its alternatives.
    scores : mapping of str to TokenScores, optional
        The same of the models, by their names.
    tokens : array of str, optional
        Text of the tokens, as `write_page` takes it.
    vocabulary : sequence of str, optional
        Text of each class id, as `write_page` takes it.
    title : str, default "tokenloss"
        Title.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it, what came and what fits. Nothing is written then.
    OSError
        If the file cannot be written; an existing file is unchanged.

    Notes
    -----
    A page holds 100,000 tokens (``MOST_TOKENS``) of all models together: of three, the first 33,333 of the text. It
    says so when there are more; its figures are of all. The colours begin at 0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1,
    3 and 10 nats on every page.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from tokenloss import compare
    >>> from tokenloss.page import write_comparison_page
    >>> comparison = compare([[2.0, 1.0], [0.0, 3.0]], [[2.0, 0.0], [0.0, 3.0]], [0, 1])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "page.html")
    ...     write_comparison_page(path, {"q4": comparison}, [0, 1], vocabulary=["to", " be"])
    ...     "<i class=s4>to</i><i class=s0> be</i>" in path.read_text("utf-8")
    True
    """
    if not comparisons:
        raise_error("option", name="comparisons", got=comparisons, fits="a mapping that holds any")
    first, *_ = comparisons.values()
    shape = first.kl.shape
    for name, one in comparisons.items():
        if one.kl.shape != shape:
            raise_error("shape", name=f"comparisons[{name!r}]", got=one.kl.shape, fits=f"{shape}, as the first")
        if not np.array_equal(one.base_nll, first.base_nll, equal_nan=True):
            raise_error("option", name="comparisons", got=[*comparisons], fits="of one base, with the same base_nll")
    ids = as_target_array("targets", targets, (), shape, "comparisons", False)[0].reshape(-1)
    if scores is not None and scores.keys() != comparisons.keys():
        raise_error("option", name="scores", got=[*scores], fits=f"of the same names as comparisons: {[*comparisons]}")
    sides = {} if scores is None else {f"scores[{name!r}]": side for name, side in scores.items()}
    for name, side in {"base_scores": base_scores, **sides}.items():
        if side is not None and side.nll.shape != shape:
            raise_error("shape", name=name, got=side.nll.shape, fits=f"{shape}, as comparisons")
    given = None if tokens is None else _as_strings(tokens, shape)
    size = min(len(ids), MOST_TOKENS // len(comparisons))
    _write_comparison(
        path,
        comparisons,
        {"id": ids},
        None if base_scores is None else vars(base_scores),
        None if scores is None else {name: vars(side) for name, side in scores.items()},
        given,
        vocabulary,
        _bounds(shape, size),
        title,
    )


def _write_responses(
    path: str | os.PathLike[str], columns: dict[str, Array], scores: TokenScores, title: str, meter: LossMeter,
    accuracy: float, known: int, total: int,
) -> None:  # fmt: skip
    """As `write_page`, of responses of servers, each a paragraph.

    Columns are the ids, text, sequences and positions of tokens, and the text of their alternatives; whether a token is
    greedy is known of so many, and the page may hold the first of a total.
    """
    ids, bounds = columns["ids"], np.append(np.flatnonzero(columns["positions"] == 0), len(columns["ids"])).tolist()
    text = ["\N{REPLACEMENT CHARACTER}" if i < 0 and word is None else word
            for i, word in zip(ids.tolist(), columns["text"].tolist(), strict=True)]  # fmt: skip
    assert scores.top_ids is not None
    assert scores.top_logprobs is not None
    top_ids, top_logprobs = scores.top_ids, scores.top_logprobs
    note = f"of {count_of(known, 'token')} where it is known" if known < meter.count else ""
    head = _summary(meter, accuracy if known else None, note)
    data = {
        "k": str(top_ids.shape[-1]),
        "id": _known(ids),
        "rank": _known(scores.rank, least=1),
        "loss": numbers(scores.nll),
        "top": _known(top_ids),
        "logprob": numbers(top_logprobs.reshape(-1)),
        "token": as_json(columns["text"].tolist()),
        "named": as_json(columns["top_tokens"].reshape(-1).tolist()),
        "sequence": as_json(columns["sequences"].tolist()),
        "position": as_json(columns["positions"].tolist()),
    }
    _write(path, scores, ids, text, bounds, title, head, total, data)


def _write(
    path: str | os.PathLike[str], scores: TokenScores, ids: Array, text: list[str | None], bounds: list[int],
    title: str, head: str, total: int, data: dict[str, str],
) -> None:  # fmt: skip
    """Write a page of tokens, whose paragraphs have these bounds."""
    css_class = css_classes(scores.nll, scores.kept, _LOSSES)
    shares = [percent(math.exp(-loss)) for loss in (0.0, *_LOSSES)]
    shades = legend(css_class, "loss from<br>probability to", _LOSSES, shares, "infinite loss")
    head = f"{head}\n{shades}{excerpt_note(len(ids), total)}"
    write_frame(path, title, head, paragraphs(ids, text, css_class, bounds), data)


def _write_comparison(
    path: str | os.PathLike[str], comparisons: Mapping[str, Comparison], places: Mapping[str, Array],
    base: Mapping[str, Array | None] | None, others: Mapping[str, Mapping[str, Array | None]] | None,
    tokens: Sequence[str | None] | None, vocabulary: Sequence[str] | None, bounds: list[int], title: str,
) -> None:  # fmt: skip
    """Write a page of the first tokens, whose paragraphs have these bounds.

    Places are the class ids and, if any, what says where a token is, -1 of nowhere; of both models, columns of
    `TokenScores`.
    """
    size = bounds[-1]
    ids = places["id"][:size]
    given = None if tokens is None else [*tokens[:size]]
    names = sorted(comparisons, key=lambda name: nan_last(comparisons[name].mean_kl))
    tops: list[Array] = []

    def side(nll: Array, scores: Mapping[str, Array | None] | None) -> dict[str, str]:
        """JSON of what a model predicted."""
        columns = {"loss": numbers(nll.reshape(-1)[:size])}
        if scores is None:
            return columns
        top, found = _alternatives(scores, size)
        tops.append(top)
        return columns | found

    heads, models = [], []
    shown = np.empty(0, np.intp)
    for number, name in enumerate(names):
        one = comparisons[name]
        css_class = css_classes(one.kl, one.kept, _DIVERGENCES)
        columns = {"name": as_json(name), "shades": shade_letters(css_class[:size])}
        columns["kl"] = numbers(one.kl.reshape(-1)[:size])
        models.append(as_object(columns | side(one.nll, others[name] if others else None)))
        shares = np.bincount(css_class[one.kept.reshape(-1)], minlength=len(_DIVERGENCES) + 1) / max(one.count, 1)
        notes = [percent(share) for share in shares[: len(_DIVERGENCES) + 1].tolist()]
        shades = legend(css_class, "divergence from<br>of the tokens", _DIVERGENCES, notes, "infinite")
        heads.append(f"<section{' hidden' if number else ''}>{_comparison_summary(one)}\n{shades}</section>")
        shown = shown if number else css_class
    data = {
        "id": as_json(ids.tolist()),
        "token": as_json(given),
        "base": as_object(side(comparisons[names[0]].base_nll, base)),
        "models": f"[{','.join(models)}]",
    }
    data["text"] = as_json(_class_text(ids, given, vocabulary, tops))
    if len(places) > 1:
        data["places"] = as_json({name: place[:size].tolist() for name, place in places.items() if name != "id"})
    why = f", since {len(names)} models share {MOST_TOKENS:,}" if len(names) > 1 else ""
    head = "\n".join([*_model_choice(names, comparisons), *heads]) + excerpt_note(size, shown.size, why)
    text = [_token_text(vocabulary, i) for i in ids.tolist()] if given is None else given
    write_frame(path, title, head, paragraphs(ids, text, shown, bounds), data)


def _bounds(shape: tuple[int, ...], size: int) -> list[int]:
    """Bounds of the paragraphs of the first tokens: the rows of the last axis."""
    return [*range(0, size, (shape[-1] if shape else 1) or 1), size]


def _as_strings(tokens: Sequence[str | None] | Array, shape: tuple[int, ...]) -> list[str | None]:
    """Checked text of the tokens."""
    array = np.asarray(tokens)
    if array.shape != shape:
        raise_error("shape", name="tokens", got=array.shape, fits=f"{shape}, to fit scores")
    if array.dtype.kind not in "UTO":
        raise_error("dtype", name="tokens", got=array.dtype, fits="text")
    return [None if token is None else str(token) for token in array.reshape(-1)[:MOST_TOKENS].tolist()]


def _token_text(vocabulary: Sequence[str] | None, i: int) -> str | None:
    """Text of a class id, if it is known."""
    return str(vocabulary[i]) if vocabulary is not None and 0 <= i < len(vocabulary) else None


# -- data of the tokens -----------------------------------------------------------------------------------------------


def _data(
    scores: TokenScores, ids: Array, tokens: list[str | None] | None, vocabulary: Sequence[str] | None
) -> dict[str, str]:
    """JSON of everything that the script shows, in columns."""
    size = len(ids)
    top, columns = _alternatives(vars(scores), size)
    return columns | {
        "id": as_json(ids.tolist()),
        "loss": numbers(scores.nll.reshape(-1)[:size]),
        "entropy": numbers(scores.entropy.reshape(-1)[:size]),
        "text": as_json(_class_text(ids, tokens, vocabulary, [top])),
        "token": as_json(tokens),
    }


def _alternatives(scores: Mapping[str, Array | None], size: int) -> tuple[Array, dict[str, str]]:
    """The most likely classes of the first tokens, and JSON of these, of their log-probabilities and of the ranks."""
    top, logprobs = scores.get("top_ids"), scores.get("top_logprobs")
    argmax, rank = scores["argmax"], scores["rank"]
    assert argmax is not None
    assert rank is not None
    if top is not None and logprobs is not None:
        k = top.shape[-1]
        top, logprobs = top.reshape(-1)[: size * k], logprobs.reshape(-1)[: size * k]
    else:
        k, top, logprobs = 1, argmax.reshape(-1)[:size], np.full(size, np.nan)
    columns = {"k": str(k), "rank": as_json(rank.reshape(-1)[:size].tolist())}
    return top, columns | {"top": as_json(top.tolist()), "logprob": numbers(logprobs)}


def _class_text(
    ids: Array, tokens: list[str | None] | None, vocabulary: Sequence[str] | None, tops: list[Array]
) -> dict[str, str]:
    """Text of the class ids that the page names, where it is known."""
    if vocabulary is None:
        return {str(i): token for i, token in zip(ids.tolist(), tokens or (), strict=False) if token is not None}
    named = np.unique(np.concatenate([ids, *tops])).tolist()
    return {str(i): token for i in named if (token := _token_text(vocabulary, i)) is not None}


def _known(values: Array, least: int = 0) -> str:
    """JSON of integers, null where they are not known and therefore lower."""
    return as_json([None if number < least else number for number in values.reshape(-1).tolist()])


# -- the head of the page ---------------------------------------------------------------------------------------------


def _summary(meter: LossMeter, accuracy: float | None, note: str = "") -> str:
    """HTML of the summary; the note is about the accuracy."""
    low, high = meter.perplexity_interval
    sure = not math.isnan(low)
    figures = [
        ("tokens", f"{meter.count:,}", ""),
        ("loss", f"{meter.loss:.5g}", f"± {meter.stderr:.3g} nats ({meter._basis()})" if sure else "nats"),
        ("perplexity", f"{meter.perplexity:.5g}", f"95 % interval {low:.4g} to {high:.4g}" if sure else ""),
        ("bits per token", f"{meter.bits_per_token:.5g}", ""),
    ]
    if meter.n_bytes:
        figures.append(("bits per byte", f"{meter.bits_per_byte:.5g}", f"{meter.n_bytes:,} bytes"))
    if accuracy is not None:
        figures.append(("greedy accuracy", f"{100 * accuracy:.2f} %", note))
    return summary(figures)


def _comparison_summary(comparison: Comparison) -> str:
    """HTML of the figures of a model."""

    def error(name: str, scale: float = 1, unit: str = "") -> str:
        stderr = scale * vars(comparison)[name + "_stderr"]
        return "" if math.isnan(stderr) else f"± {stderr:.2g}{unit}"

    by = count_of(comparison.n_sequences, "sequence") if comparison.is_clustered else "tokens, taken as independent"
    by += guess_note(comparison.interval_factor)
    note = error("mean_kl", unit=f" nats (by {by})")
    if left_out := comparison.n_infinite + comparison.n_nan:
        finite = f"{comparison.finite_mean_kl:.4g} {error('finite_mean_kl')}".rstrip()
        note = f"{finite} nats without {left_out:,} that are not finite"
    low, high = comparison.kl_quantile_intervals[0.999]
    interval = "" if math.isnan(low) else f"95 % interval {low:.4g} to {high:.4g}"
    figures = [
        ("tokens", f"{comparison.count:,}", ""),
        ("mean KL divergence", f"{comparison.mean_kl:.4g}", note),
        ("99.9 % quantile", f"{comparison.kl_quantiles[0.999]:.4g}", interval),
        ("perplexity ratio", f"{comparison.perplexity_ratio:.5g}", error("perplexity_ratio")),
        ("same top token", f"{100 * comparison.same_top:.2f} %", error("same_top", 100, " %")),
        ("RMS Δp", f"{100 * comparison.rms_delta_p:.3g} %", error("rms_delta_p", 100, " %")),
    ]
    return summary(figures)


def _model_choice(names: Sequence[str], comparisons: Mapping[str, Comparison]) -> Iterator[str]:
    """HTML by which one of several models is chosen; browsers must not restore an earlier choice by themselves."""
    if len(names) > 1:
        labels = [f"{escaped(name)} (mean divergence {comparisons[name].mean_kl:.4g})" for name in names]
        options = "".join(f"<option value={number}>{label}</option>" for number, label in enumerate(labels))
        yield f'<p class="choice"><label>Model <select id="model" autocomplete="off">{options}</select></label></p>'
