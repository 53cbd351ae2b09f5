"""The page of HTML that shows a text, each token shaded by the divergence of a model from its base."""

from __future__ import annotations

import hashlib
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._comparison.comparisons import divergence_of, nearest_first
from tokenloss._comparison.tables import tables_by, title_of
from tokenloss._core.arguments import DIVERGENCES, FURTHER_DIVERGENCES
from tokenloss._core.errors import raise_error
from tokenloss._core.rows import Row, table
from tokenloss._core.text import count_of
from tokenloss._core.validation import as_target_array
from tokenloss._evaluation.sink import Sink
from tokenloss._output import page
from tokenloss._output.calibration_plot import reliability_panel
from tokenloss._output.shared import Collected
from tokenloss._statistics.ratio import guess_note
from tokenloss.formats.tokenizers.token_text import byte_encoder

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from tokenloss._comparison.comparison import Comparison
    from tokenloss._comparison.comparisons import Comparisons
    from tokenloss._core.types import Array, ArrayLike
    from tokenloss._evaluation.sink import Block, Needs, Schema
    from tokenloss._scores.token_scores import TokenScores

_OF_TOKENS = ("target", "text", *page.PLACES)
_DIVERGENCES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_FINITE = Row("", "finite_mean_kl", notes=("{:.4g} ± {stderr:.2g}",), otherwise="{:.4g}")
_ROWS = (
    Row("tokens", "count", "{:,}"),
    Row("mean {quantity}", "mean", "{:.4g}", ("± {stderr:.2g} nats (by {by})",), "{finite_note}"),
    Row("99.9 % quantile", "quantile", "{:.4g}", ("95 % interval {low:.4g} to {high:.4g}",), when="quantile"),
    *(Row(f"mean {DIVERGENCES[one]}", f"mean_{one}", "{:.4g}", ("± {stderr:.2g}",)) for one in FURTHER_DIVERGENCES),
    Row("perplexity ratio", "perplexity_ratio", "{:.5g}", ("± {stderr:.2g}",), when="has_targets"),
    Row("top-1 agreement", "same_top", "{:.2f %}", ("± {stderr:.2g %}",)),
    Row("RMS Δp", "rms_delta_p", "{:.3g %}", ("± {stderr:.2g %}",), when="has_targets"),
    Row("parity", "parity", "{}", ("{parity_reason}",), when="count"),
    Row("bitwise identical rows", "n_identical", "{:,}"),
    Row("largest |Δ ln p|", "max_abs_logprob", "{known:.4g}", when="has_targets"),
    Row("flips of the top token", "decisive_flips", "{:,} decisive", ("{tied_flips:,} ties",)),
)


class DivergencePage(Sink):
    """A page of HTML that shows the text, each token shaded by its divergence: ``tokenloss compare --html``.

    Parameters
    ----------
    path
        As in `HtmlPage`.

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
    help = (
        "write a page that shows the text, each token shaded by its divergence; with --text, each span by the "
        "difference between the two models' losses, with the tokens of both models"
    )
    rows = "tokens"
    needs: Needs = ({"nll", "base_nll", "kl"}, {"nll", "base_nll", "kl_bound"})
    top_k = 5
    made_by = "tokenloss.compare_files"

    def open(self, schema: Schema) -> AbstractContextManager[object]:
        most = page.MOST_TOKENS // len(schema.models)
        self._tokens = Collected((one for one in schema.tokens if one.name in _OF_TOKENS), most)
        # of the base, which has no name, and of the candidates
        self._tops = {name: Collected(most=most, top_k=schema.top_k) for name in ("", *schema.models)}
        self._sequences = {name: hashlib.sha256() for name in schema.models}
        return super().open(schema)

    def write(self, block: Block) -> None:
        for name in block.models:
            self._sequences[name].update(block.columns["sequence"].tobytes())
            self._tops[name].add({}, block.tops.get(name))
        if next(iter(self._sequences)) in block.models:
            self._tokens.add(block.columns)
            self._tops[""].add({}, block.tops.get(""))

    def finish(self, result: Comparisons[Any]) -> None:
        first, *others = self._sequences
        for name in others:
            if self._sequences[name].digest() != self._sequences[first].digest():
                got, fits = f"other tokens in {name}", "the same in all files"
                raise_error("option", name=self._name, got=got, fits=fits)
        columns, count = self._tokens.joined(), self._tokens.count
        tops = {name: one.joined() if one.count == count else {} for name, one in self._tops.items()}
        ids, base = columns["target"], tops.pop("")
        text = columns["text"].tolist() if "text" in columns else [None] * len(ids)
        places = page.known_places({name: columns[name] for name in page.PLACES if name in columns})
        listed = [side["top_tokens"].reshape(-1).tolist() for side in (base, *tops.values()) if "top_tokens" in side]
        known_ids = page.known_ids(ids) if listed else ids.tolist()
        one, names = result[first], title_of(result, are_short=True)
        _write_comparison(
            self.path,
            result,
            page.Tokens(text, byte_encoder([*text, *itertools.chain(*listed)]), known_ids, places),
            base,
            tops,
            page.class_names(None, ids, text),
            page.heading(divergence_of(one).quantity, one.count, "token", names),
            self.made_by,
        )


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
    side by side; jumps, search and links work as in `write_page`. With several models, one is chosen on the page, at
    first the one with the smallest mean divergence.

    Parameters
    ----------
    comparisons : mapping of str to Comparison
        Results of `compare` by the names of the models, with one base and of one shape: each row of the last axis is a
        paragraph.
    targets : array of integers
        Class ids that were scored, in the shape of the comparisons.
    base_scores : TokenScores, optional
        Result of `token_scores` of the base: its ranks and, by its ``top_k``, its alternatives.
    scores : mapping of str to TokenScores, optional
        The same of the models, by their names.
    path, tokens, vocabulary, title
        As in `write_page`.

    Raises
    ------
    TypeError, ValueError, OSError
        As in `write_page`.

    Notes
    -----
    A page holds 300,000 tokens (``MOST_TOKENS``) of all models together: of three, the first 100,000 of the text. It
    says so when there are more; its numbers are for all. The colors begin at 0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1,
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
    """Write a page of these tokens, which may be the first of many, from columns of `TokenScores` of both models."""
    size, classes = len(tokens.ids), page.Classes()
    names = nearest_first(comparisons)

    def side(nll: Array, scores: Mapping[str, Array | None] | None) -> dict[str, str]:
        """A model's predictions as JSON, in columns."""
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
        one, divergence = comparisons[name], divergence_of(comparisons[name])
        kl = divergence.values.reshape(-1)[:size]
        css_class = page.css_classes(divergence.values, one.kept, _DIVERGENCES)
        columns = {"name": page.as_json(name), "quantity": page.as_json(divergence.quantity), "kl": page.numbers(kl)}
        columns["shades"] = page.shade_letters(css_class[:size])
        columns["worst"] = page.worst(kl, one.kept.reshape(-1)[:size])
        models.append(page.as_object(columns | side(one.nll, others[name] if others else None)))
        fractions = np.bincount(css_class[one.kept.reshape(-1)], minlength=len(_DIVERGENCES) + 1) / max(one.count, 1)
        notes = [page.percent(fraction) for fraction in fractions[: len(_DIVERGENCES) + 1].tolist()]
        shades = page.legend(css_class, "divergence from", _DIVERGENCES, "of the tokens", notes, "infinite")
        heads.append(f"<div class=model{' hidden' * (number > 0)}>{_comparison_summary(one, name)}\n{shades}</div>")
    base_columns = side(comparisons[names[0]].base_nll, base)
    data = {"models": f"[{','.join(models)}]", "base": page.as_object(base_columns)}
    why = f", since {len(names)} models share {page.MOST_TOKENS:,}" if len(names) > 1 else ""
    note = page.excerpt_note(size, comparisons[names[0]].kept.size, why)
    page.write(
        path, title, "\n".join([*_model_choice(names, comparisons), *heads]) + note, tokens, classes, data, made_by
    )


def _comparison_summary(comparison: Any, name: str) -> str:
    """HTML of a model's metrics."""
    by = count_of(comparison.n_sequences, "sequence") if comparison.is_clustered else "tokens, assumed independent"
    known, divergence = vars(comparison), divergence_of(comparison)
    values = {
        "quantity": divergence.quantity,
        "by": by + guess_note(comparison.interval_factor),
        "mean": divergence.mean,
        "quantile": known[f"{divergence.name}_quantiles"].get(0.999),
        **{f"mean_{name}": one for name, one in known.get("divergences", {}).items()},
    }
    if left_out := known.get("n_infinite", 0) + known.get("n_nan", 0):
        ((*_, finite),) = table([_FINITE], comparison).rows
        note = f"{finite} nats without {left_out:,} that are not finite"
        values |= {"mean": float(divergence.mean), "finite_note": note}
    both = {"base": known.get("base_calibration"), name: known.get("calibration")}
    return page.summary(_ROWS, values, known) + page.tables(tables_by({"": comparison})) + reliability_panel(both)


def _model_choice(names: Sequence[str], comparisons: Mapping[str, Comparison]) -> Iterator[str]:
    """HTML for choosing one of several models; `autocomplete` keeps browsers from restoring an earlier choice."""
    if len(names) > 1:
        divergences = [divergence_of(comparisons[name]) for name in names]
        means = [f"{'at least ' * one.quantity.startswith('lower bound')}{one.mean:.4g}" for one in divergences]
        labels = [f"{page.escaped(name)} (mean divergence {mean})" for name, mean in zip(names, means, strict=True)]
        options = "".join(f"<option value={number}>{label}</option>" for number, label in enumerate(labels))
        yield f'<p class="choice"><label>Model <select id="model" autocomplete="off">{options}</select></label></p>'
