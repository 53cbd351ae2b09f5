"""Results of `compare_texts`: bits per byte of two models, their difference, and where in the text it is largest."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._comparison.text_spans import KINDS, kinds_of, script_of
from tokenloss._comparison.tiers import power_and_tiers
from tokenloss._core.estimate import Errors, Estimate
from tokenloss._core.exact import ExactMoments
from tokenloss._core.result import Result, Shown, Table, formatted, in_files
from tokenloss._core.rows import Row, table, table_of_several
from tokenloss._core.signature import signature_of
from tokenloss._core.text import count_of, shortened
from tokenloss._statistics.estimates import Measure
from tokenloss._statistics.groups import Groups
from tokenloss._statistics.power import detectable, needed_for
from tokenloss._statistics.ratio import ExactRatio, guess_note, interval_above_0
from tokenloss._statistics.sequences import highest

if TYPE_CHECKING:
    from tokenloss._comparison.text_spans import Spans
    from tokenloss._core.types import Array, Float64Array, IntArray

_LN2 = math.log(2)
_ERRORS_IN_FILES = {"difference": ("stderr", "interval")}  # of other estimates the standard error
_FIRST_IN_FILES = (
    "name_a", "name_b", "text", "n_documents", "n_spans", "n_bytes", "n_spans_left_out", "n_bytes_left_out"
)  # fmt: skip
_LAST_IN_FILES = "detectable", "is_clustered", "interval_factor", "tokens_per_byte_a", "tokens_per_byte_b", "signature"
_MOST_SHOWN = 40  # characters of a span, or of its tokens, in a table


class BytesRate(NamedTuple):
    """Bits per byte of two models over one kind of span, and their difference.

    Attributes
    ----------
    kind : str
        The kind of the spans: see the notes of `compare_texts`.
    n_spans, n_bytes : int
        Number of spans of this kind, and their bytes.
    bits_per_byte_a, bits_per_byte_b : float
        Loss of each model in bits, divided by the bytes.
    difference : Estimate
        Bits per byte of b minus bits per byte of a. Errors are paired, and clustered by the documents that have such
        spans.

    Examples
    --------
    >>> from tokenloss.results import BytesRate, Estimate
    >>> BytesRate("digits", 20, 45, 2.1, 1.6, Estimate(-0.5)).difference
    -0.5
    """

    kind: str
    n_spans: int
    n_bytes: int
    bits_per_byte_a: float
    bits_per_byte_b: float
    difference: Estimate

    @property
    def detectable(self) -> float:
        """The smallest `difference` that a two-sided test at 5 % finds in 80 % of samples of texts like these."""
        return detectable(self.difference)


BytesRate.__module__ = "tokenloss.results"


class TextSpan(NamedTuple):
    """A part of a text between two positions where both models have a token boundary.

    Attributes
    ----------
    start, stop : int
        Byte offsets in the text file.
    document : int
        Number of the document, from 0.
    text : str
        The text of the span, with escapes as in the tokens if its document starts or ends within a character.
    tokens_a, tokens_b : list of str
        Tokens of each model. Bytes that are only part of a character are shown as escapes, and special tokens as "".
    nll_a, nll_b : float
        Sum of the token losses of each model, in nats.

    Examples
    --------
    >>> from tokenloss.results import TextSpan
    >>> TextSpan(0, 3, 0, "the", ["the"], ["t", "he"], 1.5, 2.0).tokens_b
    ['t', 'he']
    """

    start: int
    stop: int
    document: int
    text: str
    tokens_a: list[str]
    tokens_b: list[str]
    nll_a: float
    nll_b: float


TextSpan.__module__ = "tokenloss.results"


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class TextComparison(Result):
    r"""Result of `compare_texts`: two models with different tokenizers on the same text.

    Errors are clustered by document if there are at least two documents. They are nan if they are unknown, or if the
    value is infinite or nan. Errors of differences and ratios are paired. Unless noted otherwise, all values are
    computed over the spans that both models scored.

    Attributes
    ----------
    name_a, name_b : str
        Names of the models.
    text : str
        The file of the text.
    n_tokens_a, n_tokens_b : int
        Number of tokens of each model.
    nll_a, nll_b : float
        Exact sum of the losses of each model, in nats.
    n_bytes_without_token_a, n_bytes_without_token_b : int
        Number of bytes of white space that are in no token of the model, for example because WordPiece drops them. The
        model does not have to predict them, so its bits per byte are too low to compare with a model that does.
    n_special_a, n_special_b : int
        Number of tokens without bytes, such as the end of a document, or a ``▁`` at its start.
    special_bits_per_byte_a, special_bits_per_byte_b : float
        Loss of these tokens in bits, divided by all bytes: the part of the bits per byte that is not due to the text.
    bits_per_byte_a, bits_per_byte_b : Estimate
        `nll_a` and `nll_b` in bits, divided by `n_bytes`.
    difference : Estimate
        Bits per byte of b minus bits per byte of a.
    ratio : Estimate
        Bits per byte of b divided by bits per byte of a.
    interval_factor : float
        Half-width of the interval in standard errors, by Student's t: see `LossMeter.interval_factor`.
    kinds : list of BytesRate
        Results for each kind of span in the text.
    b_worse, a_worse : list of TextSpan
        The spans in which b lost most compared with a, and a compared with b; the largest difference first.
    detect : float or None
        A difference in bits per byte, set by `dataclasses.replace`: the result then has the number `needed` of
        documents (or spans) that it takes to detect it.

    See Also
    --------
    compare_texts : Returns it.

    Examples
    --------
    >>> import base64, pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss import compare_texts
    >>> from tokenloss.formats import open_scores
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     text, ranks, a, b = (pathlib.Path(directory, name) for name in ("t.txt", "t.tiktoken", "a.npz", "b.npz"))
    ...     _ = text.write_text("abab")
    ...     lines = [f"{base64.b64encode(piece).decode()} {i}" for i, piece in enumerate((b"a", b"b", b"ab"))]
    ...     _ = ranks.write_text("\n".join(lines))
    ...     np.savez(a, logits=np.zeros((4, 3)), targets=[0, 1, 0, 1])
    ...     np.savez(b, logits=np.zeros((3, 3)), targets=[2, 0, 1])
    ...     result = compare_texts(*(open_scores(path, tokenizer=ranks) for path in (a, b)), text=text)
    >>> result
    TextComparison(difference=-0.396241 ± 0.297, bits_per_byte_a=1.58496, bits_per_byte_b=1.18872, n_bytes=4)
    >>> result.columns()["n_tokens_b"], result.a_worse[0].tokens_a
    (array([1, 1, 1]), ['a', 'b'])
    """

    detect: float | None = None
    name_a: str
    name_b: str
    text: str
    n_tokens_a: int
    n_tokens_b: int
    nll_a: float
    nll_b: float
    n_bytes_without_token_a: int
    n_bytes_without_token_b: int
    n_special_a: int
    special_bits_per_byte_a: float
    n_special_b: int
    special_bits_per_byte_b: float
    bits_per_byte_a: Estimate
    bits_per_byte_b: Estimate
    difference: Estimate
    ratio: Estimate
    interval_factor: float
    kinds: list[BytesRate]
    b_worse: list[TextSpan]
    a_worse: list[TextSpan]
    _kind: IntArray
    _spans: Spans = field(compare=False)  # below
    _bytes: bytes

    @property
    def n_documents(self) -> int:
        """The number of documents with any span that both models scored."""
        return _n_documents(self._spans)

    @property
    def n_spans(self) -> int:
        """The number of spans that both models scored."""
        return int(self._spans.kept.sum())

    @property
    def n_bytes(self) -> int:
        """The number of bytes in these spans."""
        return int(self._spans.n_bytes[self._spans.kept].sum())

    @property
    def n_spans_left_out(self) -> int:
        """The number of spans in which either model did not score a token, such as the first one of a document."""
        return int((~self._spans.kept).sum())

    @property
    def n_bytes_left_out(self) -> int:
        """The number of bytes in these spans."""
        return int(self._spans.n_bytes[~self._spans.kept].sum())

    @property
    def is_clustered(self) -> bool:
        """Whether errors are clustered by document; if not, there is one, and spans are treated as independent."""
        return self.n_documents > 1

    @property
    def detectable(self) -> float:
        """The smallest `difference` that a two-sided test at 5 % finds in 80 % of samples of texts like these."""
        return detectable(self.difference)

    @property
    def needed(self) -> int | None:
        """The number of documents (or spans) like these needed to detect a difference of `detect`; None if unknown."""
        n = self.n_documents if self.is_clustered else self.n_spans
        return None if self.detect is None else needed_for(self.difference, n, self.detect)

    @property
    def signature(self) -> str:
        """One line that describes how the values were computed, to be published with them."""
        unit = "document" if self.is_clustered else "span"
        text = f"{zlib.crc32(self._bytes):08x}"
        return signature_of(unit=unit, documents=self.n_documents, bytes=self.n_bytes, text=text)

    @property
    def tokens_per_byte_a(self) -> float:
        """Tokens of a per byte; nan if there are no bytes."""
        return self.n_tokens_a / self.n_bytes if self.n_bytes else math.nan

    @property
    def tokens_per_byte_b(self) -> float:
        """Tokens of b per byte; nan if there are no bytes."""
        return self.n_tokens_b / self.n_bytes if self.n_bytes else math.nan

    def columns(self) -> dict[str, Array]:
        """Return the columns of a table with one row per span, in the order of the text.

        Returns
        -------
        dict of 1-D arrays
            By name: `document`, `start`, `stop`, `kind`, `script` (first word of the Unicode name of the first letter,
            such as Latin or CJK; "" if there is no letter), `text`, `kept` (whether both models scored the span),
            `n_tokens_a`, `n_tokens_b`, `nll_a` and `nll_b` in nats, and `difference`, which is ``nll_b - nll_a``. The
            last three are nan for spans that are not kept.
        """
        return span_columns(self, 0, len(self._kind))

    @property
    def documents(self) -> dict[str, Array]:
        """A table of the documents in which both models scored at least one span, as columns by name.

        The columns are `document`, `n_bytes`, `n_tokens_a`, `n_tokens_b`, `nll_a` and `nll_b` in nats,
        `bits_per_byte_a`, `bits_per_byte_b`, and `difference`: bits per byte of b minus those of a.
        """
        spans, kept = self._spans, self._spans.kept
        groups = Groups(numbers := spans.document[kept], numbers)
        counts = [spans.n_bytes, *(np.diff(first) for first in spans.first)]
        n_bytes, *n_tokens = (groups.sums(one[kept]).astype(np.int64) for one in counts)
        nll = [groups.sums(losses[kept]) for losses in spans.nll]
        rates = [losses / np.where(n_bytes > 0, n_bytes, np.nan) / _LN2 for losses in nll]
        with np.errstate(invalid="ignore"):
            difference = rates[1] - rates[0]
        return {
            "document": groups.labels, "n_bytes": n_bytes, "n_tokens_a": n_tokens[0], "n_tokens_b": n_tokens[1],
            "nll_a": nll[0], "nll_b": nll[1], "bits_per_byte_a": rates[0], "bits_per_byte_b": rates[1],
            "difference": difference,
        }  # fmt: skip

    def _compared(self) -> dict[str, Any]:
        return super()._compared() | {"spans": tuple(self._spans)}

    def _main(self) -> dict[str, str]:
        main = {"difference": formatted(self.difference, self.difference.stderr)}
        main |= {name: formatted(getattr(self, name)) for name in ("bits_per_byte_a", "bits_per_byte_b")}
        return main | {"n_bytes": str(self.n_bytes)}

    def _facts(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in _FIRST_IN_FILES}
        values |= {name: value for name, value in vars(self).items() if name[0] != "_" and name != "interval_factor"}
        values |= {name: getattr(self, name) for name in _LAST_IN_FILES}
        values |= {"needed": self.needed} if values.pop("detect") is not None else {}
        lists = {name: values.pop(name) for name in ("kinds", "b_worse", "a_worse")}
        rows = {name: [in_files(one._asdict(), _ERRORS_IN_FILES) for one in each] for name, each in lists.items()}
        return in_files(values, _ERRORS_IN_FILES) | rows

    def _shown(self) -> Shown:
        basis = f"errors {'clustered by' if self.is_clustered else 'of'} {errors_by(self)}"
        note = f"{self.n_bytes:,} bytes of {self.text}, {basis}"
        models = []
        for name, side in (self.name_a, "a"), (self.name_b, "b"):
            model = {key: getattr(self, f"{key}_{side}") for key in ("bits_per_byte", "n_tokens", "tokens_per_byte")}
            models.append((model | {"model": f"{side}: {name}"},))
        tables = [
            table_of_several(_MODELS, models),
            table(_ROWS, self._values(), self),
            table_of_several(_KINDS, [(kind,) for kind in self.kinds], "by kind of span"),
        ]
        for worse, better, spans in (self.name_b, self.name_a, self.b_worse), (self.name_a, self.name_b, self.a_worse):
            if spans:
                tables.append(_spans_table(f"{worse} loses most against {better}", spans))
        tables += power_and_tiers({"": self}, self.detect)
        return Shown(f"{self.name_b} vs {self.name_a}", note, tables, self.signature)

    def _values(self) -> dict[str, Any]:
        """The values that `_ROWS` name besides the metrics."""
        low, high = self.difference.interval
        form, counts = _form(self.difference.stderr), (self.n_special_a, self.n_special_b)
        return {
            "difference_text": f"{self.difference:+{form}}",
            "ends": f"{low:+{form}} to {high:+{form}}",
            "cannot_tell": "; these texts do not show which is better" if low <= 0 <= high else "",
            "ratio_text": f"{self.ratio:{_form(self.ratio.stderr)}}",
            "special": "a {:,}, b {:,}".format(*counts) if any(counts) else None,
            "left_out": count_of(self.n_spans_left_out, "span"),
        }


TextComparison.__module__ = "tokenloss.results"
_MODELS = (
    Row("model", "model"),
    Row("bits per byte", "bits_per_byte"),
    Row("±", "bits_per_byte", "{stderr:.3g}"),
    Row("tokens", "n_tokens", "{:,}"),
    Row("tokens per byte", "tokens_per_byte", "{:.4f}"),
)
_UNTOKENIZED = "white space in no token of {}, which need not predict it: its bits per byte are too low"
_ROWS = (
    Row(
        "difference", "difference", "{difference_text}",
        ("± {stderr:.3g} bits per byte, 95 % interval {ends}{cannot_tell}",), "bits per byte",
    ),
    Row("ratio", "ratio", "{ratio_text}", ("± {stderr:.3g}",)),
    Row("tokens without bytes", "special", notes=(
        "which cost a {special_bits_per_byte_a:.4g} and b {special_bits_per_byte_b:.4g} bits per byte",
    )),
    *(
        Row("bytes without token", field, "{:,}", (_UNTOKENIZED.format(side),), when=field)
        for side in "ab" for field in (f"n_bytes_without_token_{side}",)
    ),
    Row(
        "bytes left out", "n_bytes_left_out", "{:,}", ("in {left_out} that one of the models did not score",),
        when="n_spans_left_out",
    ),
)  # fmt: skip
_KINDS = (
    Row("kind", "kind"),
    Row("bytes", "n_bytes", "{:,}"),
    Row("a", "bits_per_byte_a", "{:.4f}"),
    Row("b", "bits_per_byte_b", "{:.4f}"),
    Row("difference", "difference", "{:+.4f}"),
    Row("±", "difference", "{stderr:.2g}"),
    Row("95 % interval", "difference", "{low:+.4f} to {high:+.4f}"),
    Row("detectable", "detectable", "{known:.2g}"),
)


def _form(error: float) -> str:
    """The format of a value, with the decimals that its error has with three digits."""
    return f".{min(max(2 - math.floor(math.log10(error)), 0), 12)}f" if 0 < error < math.inf else ".6g"


def _spans_table(title: str, spans: list[TextSpan]) -> Table:
    """A table of spans and of both models' tokens in them."""
    rows = [
        (
            _visible(one.text), f"{one.start:,}", f"{one.nll_a / _LN2:.2f}",
            f"{one.nll_b / _LN2:.2f}", *(_visible(*tokens) for tokens in (one.tokens_a, one.tokens_b)),
        )
        for one in spans
    ]  # fmt: skip
    return Table(rows, ("text", "byte", "bits a", "bits b", "tokens a", "tokens b"), title)


_SIGNS = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥"})  # as on pages


def _visible(*tokens: str) -> str:
    """Tokens with spaces between them, white space as signs, and a sign for a token without text."""
    return shortened(" ".join(token.translate(_SIGNS) or "∅" for token in tokens), _MOST_SHOWN)


def span_columns(comparison: TextComparison, first: int, last: int) -> dict[str, Array]:
    """The columns of some of the spans, as in `TextComparison.columns`."""
    part, spans = slice(first, last), comparison._spans
    start, stop = spans.start[part], spans.stop[part]
    kinds = np.array(KINDS, object)[comparison._kind[part]]
    texts = texts_of_bytes(start, stop, comparison._bytes)
    (a, b), counts = spans.nll, [np.diff(tokens[first : last + 1]) for tokens in spans.first]
    with np.errstate(invalid="ignore"):
        difference = b[part] - a[part]
    return {
        "document": spans.document[part], "start": start, "stop": stop, "kind": kinds,
        "script": np.array([*map(script_of, texts), None], object)[:-1],
        "text": np.array([*texts, None], object)[:-1], "kept": spans.kept[part], "n_tokens_a": counts[0],
        "n_tokens_b": counts[1], "nll_a": a[part], "nll_b": b[part], "difference": difference,
    }  # fmt: skip


def tokens_of_spans(comparison: TextComparison, side: int, size: int) -> tuple[IntArray, list[str], Float64Array]:
    """For the first spans: the number of a model's first token in each, and the texts and losses of the tokens."""
    first = comparison._spans.first[side][: size + 1]
    tokens = comparison._spans.tokens[side].at(slice(0, int(first[-1])))
    texts = texts_of_bytes(tokens.start, tokens.stop, comparison._bytes)
    return first, texts, np.where(tokens.is_scored, tokens.nll, math.nan)


def errors_by(comparison: TextComparison) -> str:
    """Words for the units that errors treat as independent."""
    by = count_of(comparison.n_documents, "document") if comparison.is_clustered else "spans, assumed independent"
    return by + guess_note(comparison.interval_factor)


def texts_of_bytes(start: IntArray, stop: IntArray, text: bytes) -> list[str]:
    """The text of tokens or spans; bytes of incomplete characters are escaped, as at the end of a cut document."""
    pairs = zip(start.tolist(), stop.tolist(), strict=True)
    return [text[i:j].decode("utf-8", "backslashreplace") for i, j in pairs]


# -- metrics -----------------------------------------------------------------------------------------------------------


def text_comparison_of(spans: Spans, text: bytes, *, name_a: str, name_b: str, path: str, top: int) -> TextComparison:
    """The comparison of spans of a text, with the `top` spans of the greatest differences each way."""
    kind = kinds_of(text.decode(), spans.start, spans.stop)
    kept = spans.kept
    is_clustered = _n_documents(spans) > 1
    documents = spans.document[kept] if is_clustered else None
    n_bytes = int(spans.n_bytes[kept].sum())
    everything, kinds = (_Rates.of(spans, Groups(labels[kept], documents)) for labels in (np.zeros_like(kind), kind))
    overall = everything.get(0) or _Rates(0, *[ExactRatio()] * 4)
    tokens = [spans.kept_tokens(side) for side in (0, 1)]
    totals = [ExactMoments.of(side.nll) for side in tokens]
    special = [ExactMoments.of(side.nll[side.start == side.stop]) for side in tokens]
    without = [max(n_bytes - int((side.stop - side.start).sum()), 0) for side in tokens]
    rates = [one.sum_over(n_bytes) / _LN2 for one in totals]
    a, b = totals
    change = ExactMoments(b.count, b.finite - a.finite, b.special - a.special).sum_over(n_bytes) / _LN2
    unit = "documents" if is_clustered else "spans"
    with np.errstate(invalid="ignore"):
        loss = np.where(kept, spans.nll[1] - spans.nll[0], 0.0)
    return TextComparison(
        name_a=name_a, name_b=name_b, text=path,
        n_tokens_a=totals[0].count, n_tokens_b=totals[1].count, nll_a=totals[0].sum, nll_b=totals[1].sum,
        n_bytes_without_token_a=without[0], n_bytes_without_token_b=without[1],
        n_special_a=special[0].count, special_bits_per_byte_a=special[0].sum_over(n_bytes) / _LN2,
        n_special_b=special[1].count, special_bits_per_byte_b=special[1].sum_over(n_bytes) / _LN2,
        bits_per_byte_a=_in_bits(rates[0], overall.a, unit), bits_per_byte_b=_in_bits(rates[1], overall.b, unit),
        difference=_in_bits(change, overall.difference, unit, is_signed=True),
        ratio=Measure(overall.ratio.ratio, overall.ratio, unit).estimate(),
        interval_factor=overall.difference.interval_factor,
        kinds=[_rate_of_kind(KINDS[number], rates, unit) for number, rates in kinds.items()],
        b_worse=_worst(spans, loss, top, text), a_worse=_worst(spans, -loss, top, text),
        _kind=kind, _spans=spans, _bytes=text,
    )  # fmt: skip


class _Rates(NamedTuple):
    """Sums over a group of spans: their number, and the losses of both models and their difference by byte."""

    n_spans: int
    a: ExactRatio
    b: ExactRatio
    difference: ExactRatio
    ratio: ExactRatio  # of the losses of b to those of a; nan where one of a is not finite

    @classmethod
    def of(cls, spans: Spans, groups: Groups) -> dict[int, _Rates]:
        """The rates of each group of the spans that are kept, by label."""
        n_bytes, a, b = (groups.sums(column[spans.kept]) for column in (spans.n_bytes, *spans.nll))
        with np.errstate(invalid="ignore"):
            change = b - a
        models = (b, a) if np.isfinite(a).all() else (np.zeros_like(a), np.zeros_like(a))
        rates = [groups.ratios(*sums) for sums in ((a, n_bytes), (b, n_bytes), (change, n_bytes), models)]
        columns = zip(groups.labels.tolist(), groups.count.tolist(), *rates, strict=True)
        return {label: cls(*one) for label, *one in columns}


def _n_documents(spans: Spans) -> int:
    """The number of documents with any span that both models scored."""
    return int(np.count_nonzero(np.diff(spans.document[spans.kept], prepend=-1)))


def _in_bits(value: float, rate: ExactRatio, unit: str, *, is_signed: bool = False) -> Estimate:
    """Bits per byte with the errors of a rate in nats; with `is_signed`, the difference of two rates."""

    def errors() -> Errors:
        stderr = rate.stderr / _LN2
        radius = stderr * rate.interval_factor
        ends = (value - radius, value + radius)
        return Errors(stderr, ends if is_signed else interval_above_0(value, stderr, rate.interval_factor), unit)

    return Estimate(value, errors)


def _rate_of_kind(kind: str, rates: _Rates, unit: str) -> BytesRate:
    """The statistics of one kind of span."""
    a, b, difference = (one.ratio / _LN2 for one in (rates.a, rates.b, rates.difference))
    change = _in_bits(difference, rates.difference, unit, is_signed=True)
    return BytesRate(kind, rates.n_spans, int(rates.a.denominators.sum), a, b, change)


def _worst(spans: Spans, loss: Float64Array, top: int, text: bytes) -> list[TextSpan]:
    """The spans with the greatest losses above 0, and nan, the greatest first."""
    chosen = [span for span in highest(loss, top).tolist() if not loss[span] <= 0]
    worst = []
    texts = texts_of_bytes(spans.start[chosen], spans.stop[chosen], text)
    for span, own in zip(chosen, texts, strict=True):
        start, stop, document = (int(column[span]) for column in (spans.start, spans.stop, spans.document))
        tokens_a, tokens_b = (texts_of_bytes(*spans.tokens_of(side, span)[:2], text) for side in (0, 1))
        a, b = (float(nll[span]) for nll in spans.nll)
        worst.append(TextSpan(start, stop, document, own, tokens_a, tokens_b, a, b))
    return worst
