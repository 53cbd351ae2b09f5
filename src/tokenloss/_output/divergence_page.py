"""The page of HTML that shows a text, each token shaded by the divergence of a model from its base."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._comparison.tables import title_of
from tokenloss._core.arguments import DIVERGENCES, FURTHER_DIVERGENCES
from tokenloss._core.errors import raise_error
from tokenloss._core.rows import Row, table
from tokenloss._core.text import count_of
from tokenloss._core.validation import as_target_array
from tokenloss._evaluation.sink import Sink
from tokenloss._output import page
from tokenloss._statistics.ratio import guess_note
from tokenloss.formats.tokenizers.token_text import byte_encoder

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from tokenloss._comparison.comparison import Comparison
    from tokenloss._comparison.comparisons import Comparisons
    from tokenloss._core.types import Array, ArrayLike
    from tokenloss._evaluation.sink import ComparedBlock
    from tokenloss._scores.token_scores import TokenScores

_DIVERGENCES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_FINITE = Row("", "finite_mean_kl", notes=("{:.4g} ± {stderr:.2g}",), otherwise="{:.4g}")
_ROWS = (
    Row("tokens", "count", "{:,}"),
    Row("mean {quantity}", "mean", "{:.4g}", ("± {stderr:.2g} nats (by {by})",), "{finite_note}"),
    Row("99.9 % quantile", "quantile", "{:.4g}", ("95 % interval {low:.4g} to {high:.4g}",)),
    *(Row(f"mean {DIVERGENCES[one]}", f"mean_{one}", "{:.4g}", ("± {stderr:.2g}",)) for one in FURTHER_DIVERGENCES),
    Row("perplexity ratio", "perplexity_ratio", "{:.5g}", ("± {stderr:.2g}",), when="has_targets"),
    Row("same top token", "same_top", "{:.2f %}", ("± {stderr:.2g %}",)),
    Row("RMS Δp", "rms_delta_p", "{:.3g %}", ("± {stderr:.2g %}",), when="has_targets"),
)


class DivergencePage(Sink):
    """A page of HTML that shows the text, each token shaded by its divergence: ``tokenloss compare --html``.

    Parameters
    ----------
    path : path-like
        File to write. An existing file is replaced when the new one is complete.

    See Also
    --------
    tokenloss.page.write_comparison_page : The same of arrays.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss import compare_files, sinks
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     base, q4, path = (pathlib.Path(directory, name) for name in ("base.npz", "q4.npy", "page.html"))
    ...     np.savez(base, logits=4 * np.eye(4), targets=np.arange(4))
    ...     np.save(q4, 2 * np.eye(4))
    ...     _ = compare_files(base, q4, sinks=[sinks.DivergencePage(path)])
    ...     path.read_text(encoding="utf-8")[:15]
    '<!doctype html>'
    """

    __module__ = "tokenloss.sinks"

    option = "--html"
    _function = "compare_files"
    _takes_logprobs = False
    help = (
        "write a page that shows the text, each token shaded by its divergence; with --text, each span by the "
        "difference of both models' losses, with the tokens of both"
    )
    needs_tokens = True
    top_k = 5
    _made_by = "tokenloss.compare_files"

    def open(self, batch: tuple[int, ...] | None, rows: int | None, top_k: int) -> AbstractContextManager[object]:
        self._places: list[dict[str, Array]] = []  # ids, text and places: a part for each block, as in the next two
        self._base: list[dict[str, Array]] = []
        self._others: dict[str, list[dict[str, Array]]] = {}  # by candidate
        self._seen: dict[str, int] = {}  # its tokens
        return contextlib.nullcontext()

    def add(self, block: ComparedBlock) -> None:
        others = self._others.setdefault(block.name, [])
        left = max(0, page.MOST_TOKENS // len(self._others) - self._seen.get(block.name, 0))
        if others and not left:
            return
        self._seen[block.name] = self._seen.get(block.name, 0) + min(left, len(block.target))
        others.append(_tops(block.scores, block.top_tokens, left))
        if block.name == next(iter(self._others)):
            text = np.full(len(block.target), None) if block.text is None else block.text.astype(object)
            of_file = np.full(len(block.target), block.file)
            places = {"id": block.target, "text": text, "file": of_file}
            places |= {} if block.row is None else {"row": block.row}
            places |= {"sequence": block.sequence, "position": block.position}
            self._places.append({name: column[:left] for name, column in places.items()})
            self._base.append(_tops(block.base_scores, block.base_top_tokens, left))

    def finish(self, summary: dict[str, Any], result: Comparisons[Any]) -> None:
        first = next(iter(result.values()))
        for name, one in result.items():
            if self._of_responses and not np.array_equal(one._segment_ids, first._segment_ids):
                got, fits = f"other tokens in {name}", "the same in all files"
                raise_error("option", name=self._name, got=got, fits=fits)
        places = _joined(self._places)
        size = min(len(places["id"]), page.MOST_TOKENS // len(result))
        text = places.pop("text")[:size].tolist()
        ids = places.pop("id")[:size]
        known = page.known_places({name: place[:size] for name, place in places.items()})
        known_ids = page.known_ids(ids) if self._of_responses else ids.tolist()
        base, others = _joined(self._base), {name: _joined(parts) for name, parts in self._others.items()}
        listed = [side["top_tokens"].reshape(-1).tolist() for side in (base, *others.values()) if "top_tokens" in side]
        _write_comparison(
            self.path,
            result,
            page.Tokens(text, byte_encoder([*text, *itertools.chain(*listed)]), known_ids, known),
            base,
            others,
            page.class_names(None, ids, text),
            page.heading(first._quantity, first.count, "token", title_of(result, are_short=True)),
            self._made_by,
        )


def _tops(scores: TokenScores | None, top_tokens: Array | None, size: int) -> dict[str, Array]:
    """Ranks and most likely classes of the first `size` tokens of a block, as far as they are known."""
    columns = {} if scores is None else vars(scores) | {"top_tokens": top_tokens}
    names = ("rank", "argmax", "top_ids", "top_logprobs", "top_tokens")
    return {name: columns[name][:size] for name in names if columns.get(name) is not None}


def _joined(parts: list[dict[str, Array]]) -> dict[str, Array]:
    """The columns of all blocks, joined."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


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
    side by side; jumps, search and links are those of `write_page`. Of several models, one is chosen on the page, at
    first that of the smallest mean divergence.

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
    tokens, vocabulary, title
        As in `write_page`.

    Raises
    ------
    TypeError, ValueError, OSError
        As in `write_page`.

    Notes
    -----
    A page holds 300,000 tokens (``MOST_TOKENS``) of all models together: of three, the first 100,000 of the text. It
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
    ...     "<p>to be</p>" in path.read_text("utf-8")
    True
    """
    if not comparisons:
        raise_error("option", name="comparisons", got=comparisons, fits="a mapping of names to at least one comparison")
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
    ids = ids[: page.MOST_TOKENS // len(comparisons)]
    shown = page.tokens_of(ids, tokens, vocabulary, shape)
    _write_comparison(
        path,
        comparisons,
        shown,
        None if base_scores is None else vars(base_scores),
        None if scores is None else {name: vars(side) for name, side in scores.items()},
        page.class_names(vocabulary, ids, shown.text),
        title,
        "tokenloss.page.write_comparison_page",
    )


def _write_comparison(
    path: str | os.PathLike[str], comparisons: Mapping[str, Comparison], tokens: page.Tokens,
    base: Mapping[str, Array | None] | None, others: Mapping[str, Mapping[str, Array | None]] | None,
    names_of_classes: Callable[[list[int]], Iterable[str | None]], title: str, made_by: str,
) -> None:  # fmt: skip
    """Write a page of these tokens, which may be the first of many; of both models, columns of `TokenScores`."""
    size, classes = len(tokens.ids), page.Classes()
    names = sorted(comparisons, key=lambda name: comparisons[name]._rank())

    def side(nll: Array, scores: Mapping[str, Array | None] | None) -> dict[str, str]:
        """JSON of what a model predicted, in columns."""
        columns = {"nll": page.numbers(nll.reshape(-1)[:size])}
        if not scores:
            return columns
        top_tokens = scores.get("top_tokens")
        if top_tokens is None:
            return columns | page.predictions(scores, size, classes, names_of_classes)
        cut = {name: column[:size] for name, column in scores.items() if column is not None}
        return columns | page.predictions_of_responses(cut, top_tokens[:size], tokens.encode, classes)

    heads, models = [], []
    for number, name in enumerate(names):
        one = comparisons[name]
        kl, css_class = one._kl.reshape(-1)[:size], page.css_classes(one._kl, one.kept, _DIVERGENCES)
        columns = {"name": page.as_json(name), "quantity": page.as_json(one._quantity), "kl": page.numbers(kl)}
        columns["shades"] = page.shade_letters(css_class[:size])
        columns["worst"] = page.worst(kl, one.kept.reshape(-1)[:size])
        models.append(page.as_object(columns | side(one.nll, others[name] if others else None)))
        fractions = np.bincount(css_class[one.kept.reshape(-1)], minlength=len(_DIVERGENCES) + 1) / max(one.count, 1)
        notes = [page.percent(fraction) for fraction in fractions[: len(_DIVERGENCES) + 1].tolist()]
        shades = page.legend(css_class, "divergence from", _DIVERGENCES, "of the tokens", notes, "infinite")
        heads.append(f"<div class=model{' hidden' * (number > 0)}>{_comparison_summary(one)}\n{shades}</div>")
    base_columns = side(comparisons[names[0]].base_nll, base)
    data = {"models": f"[{','.join(models)}]", "base": page.as_object(base_columns)}
    why = f", since {len(names)} models share {page.MOST_TOKENS:,}" if len(names) > 1 else ""
    note = page.excerpt_note(size, comparisons[names[0]].kept.size, why)
    page.write(
        path, title, "\n".join([*_model_choice(names, comparisons), *heads]) + note, tokens, classes, data, made_by
    )


def _comparison_summary(comparison: Any) -> str:
    """HTML of a model's metrics."""
    by = count_of(comparison.n_sequences, "sequence") if comparison.is_clustered else "tokens, taken as independent"
    known, mean = vars(comparison), comparison._mean_kl
    values = {
        "quantity": comparison._quantity,
        "by": by + guess_note(comparison.interval_factor),
        "mean": mean,
        "quantile": known[f"{comparison._divergence}_quantiles"][0.999],
        **{f"mean_{name}": one for name, one in known.get("divergences", {}).items()},
    }
    if left_out := known.get("n_infinite", 0) + known.get("n_nan", 0):
        ((*_, finite),) = table([_FINITE], comparison).rows
        note = f"{finite} nats without {left_out:,} that are not finite"
        values |= {"mean": float(mean), "finite_note": note}
    return page.summary(_ROWS, values, known)


def _model_choice(names: Sequence[str], comparisons: Mapping[str, Comparison]) -> Iterator[str]:
    """HTML for choosing one of several models; `autocomplete` keeps browsers from restoring an earlier choice."""
    if len(names) > 1:
        least = "at least " if comparisons[names[0]]._divergence == "kl_bound" else ""
        means = [f"{least}{comparisons[name]._mean_kl:.4g}" for name in names]
        labels = [f"{page.escaped(name)} (mean divergence {mean})" for name, mean in zip(names, means, strict=True)]
        options = "".join(f"<option value={number}>{label}</option>" for number, label in enumerate(labels))
        yield f'<p class="choice"><label>Model <select id="model" autocomplete="off">{options}</select></label></p>'
