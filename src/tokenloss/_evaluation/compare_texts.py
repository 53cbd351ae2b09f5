"""`compare_texts`: the losses of two models with different tokenizers, mapped to the bytes of one text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._comparison.text_comparison import span_columns, text_comparison_of
from tokenloss._comparison.text_spans import TextTokens, document_bytes, spans_of
from tokenloss._core.advice import Advice, advice, not_finite_notes, white_space_notes
from tokenloss._core.arguments import as_path, refuse_given
from tokenloss._core.errors import named, raise_error, refuse, warn
from tokenloss._core.text import count_of
from tokenloss._core.threads import check_workers
from tokenloss._core.validation import check_integer
from tokenloss._evaluation.evaluate import evaluated
from tokenloss._evaluation.options import Options, by_identity
from tokenloss._evaluation.plan import planned
from tokenloss._evaluation.run import Settings, opened
from tokenloss._evaluation.sink import Block, Sink, checked_sinks, schema_of
from tokenloss._evaluation.token_bytes import (
    NEXT_TOKENS,
    ids_before,
    leaves_out_spaces,
    masked_texts,
    most_repeated,
    repeats_special,
)
from tokenloss.formats.base import open_regular
from tokenloss.formats.content import as_source
from tokenloss.formats.scores import Scores
from tokenloss.formats.scores_file import checked_mask
from tokenloss.formats.sources import Source, require
from tokenloss.formats.tokenizers import AlignedText, open_tokenizer

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from typing import TypeAlias

    from tokenloss._comparison.text_comparison import TextComparison
    from tokenloss._core.types import Array, IntArray
    from tokenloss._evaluation.shards import Handles, Shard
    from tokenloss.formats.tokenizers import Tokenizer

    _Path: TypeAlias = str | os.PathLike[str]
    _Source: TypeAlias = Source | _Path | Sequence[_Path]

_ROWS = 1 << 20  # whose ids are compared with the text at a time
_ROWS_OF_BLOCK = 1 << 16  # spans that sinks get at a time
_SPANS = (
    "document", "start", "stop", "kind", "script", "text", "kept", "n_tokens_a", "n_tokens_b", "nll_a", "nll_b",
    "difference",
)  # fmt: skip
_DOCUMENTS = (
    "document", "n_bytes", "n_tokens_a", "n_tokens_b", "nll_a", "nll_b", "bits_per_byte_a", "bits_per_byte_b",
    "difference",
)  # fmt: skip


def compare_texts(
    a: _Source,
    b: _Source,
    *,
    text: _Path,
    names: tuple[str, str] | None = None,
    shift: bool | None = None,
    top: int = 5,
    sinks: Sequence[Sink] = (),
    progress: bool = False,
    workers: int | None = None,
) -> TextComparison:
    r"""Compare two models with different tokenizers on the same text, by their bits per byte.

    This is ``tokenloss compare A B --text TEXT --tokenizer-a DIR --tokenizer-b DIR``. Losses per token of such models
    cannot be compared because their tokens have different lengths. Instead, the losses are mapped to the bytes of the
    text, and the text is cut into spans wherever both models have a boundary. Each span is the same text for both.

    Parameters
    ----------
    a, b : source, path or paths
        Files of scores of each model, with the ids of its own tokens, opened by `tokenloss.formats.open_scores` or
        `tokenloss.formats.open_hidden_states` with ``tokenizer``. Each sequence is a document, and both models must
        have the same documents in the order of the text. Without sequences, there is one document.
    text : path
        The text in UTF-8: the bytes of the tokens of all documents in order, with any white space between documents.
    names : two str, optional
        Names of the models; by default the names of their files.
    shift : bool, optional
        Whether targets are the input ids of a causal model, as in `evaluate`.
    top : int, default 5
        Number of spans to list in each direction, by the largest difference.
    sinks : sequence of Sink, optional
        Files to write, such as ``TokenTable("spans.parquet")``; see `tokenloss.sinks`. Tokens are spans there, and
        sequences are documents.
    progress, workers
        As in `evaluate`.

    Returns
    -------
    TextComparison
        Exact sums of both models' losses over the same bytes, with errors clustered by document.

    Raises
    ------
    IndexError, TypeError, ValueError
        If an argument or a file is invalid, if the bytes of a model's tokens differ from the text, or if the models
        have different documents. All of this is checked before any scores are read or files are written.
    OSError
        If a file cannot be read or written.

    Warns
    -----
    ShiftWarning
        If a model's targets were not shifted but seem to need it, or were shifted but seem to be the next tokens
        already, as in `evaluate`.
    UserWarning
        If losses are nan or infinite, if a tokenizer drops white space (which its model then does not have to predict),
        or if scored tokens seem to be padding.

    See Also
    --------
    compare_files : Compare models that share a tokenizer, token by token.

    Notes
    -----
    *Spans.* A span ends where both models have a boundary between two tokens and between two characters. A token
    without bytes, such as an end-of-document token, belongs to the span that ends at its position, so its loss counts
    in bits per byte. If either model has an unscored token in a span, such as the first token of a document, the span
    is left out for both models. An unscored special token has no bytes and does not exclude its span. If all tokens are
    scored, the sum over the spans is the exact sum of all losses of each model. Tokens that are ignored or masked are
    not part of the text.

    *Errors.* Let D be the sum over a document of b's losses minus a's, and n its number of bytes. The standard error of
    the difference ``mu`` over G documents is ``sqrt(G / (G - 1) * sum((D - mu * n)**2)) / sum(n)``. Intervals use
    Student's t with G - 1 degrees of freedom, or a similar distribution if n differs between documents (see
    `LossMeter.interval_factor`). With one document, this error does not exist: spans are treated as independent, which
    makes errors too small if the losses of neighboring spans are correlated.

    *Kinds of spans.* The kind of a span is the kind of most of its characters; in a tie, the first one in this list:
    *words* (letters of the Latin script), *digits* (decimal digits of any script), *punctuation*, *code symbols* (rare
    in prose: ``# $ % & * + / < = > @ [ \ ] ^ _ ` { | } ~``) and *other scripts* (letters of other scripts, and all
    other characters). *White space* is the kind only of spans that contain nothing else. The loss of an end-of-text
    token, which has no bytes, counts in the kind of the last span.

    Examples
    --------
    A model of single letters and a model of pairs, each with its tokens' ranks in tiktoken's format:

    >>> import base64, pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss import compare_texts
    >>> from tokenloss.formats import open_scores
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "t.txt").write_text("abab")
    >>> for name, pieces, ids in ("a", ["a", "b"], [0, 1, 0, 1]), ("b", ["a", "b", "ab"], [2, 2]):
    ...     lines = [f"{base64.b64encode(piece.encode()).decode()} {i}" for i, piece in enumerate(pieces)]
    ...     _ = (folder / f"{name}.tiktoken").write_text("\n".join(lines))
    ...     np.savez(folder / f"{name}.npz", logits=np.zeros((len(ids), len(pieces))), targets=ids)
    >>> a, b = (open_scores(folder / f"{name}.npz", tokenizer=folder / f"{name}.tiktoken") for name in "ab")
    >>> result = compare_texts(a, b, text=folder / "t.txt")
    >>> round(result.bits_per_byte_a, 4), round(result.bits_per_byte_b, 4)  # log2(2), and log2(3) for two bytes
    (1.0, 0.7925)
    """
    top = check_integer("top", top, "an integer >= 0", least=0)
    outputs = checked_sinks(sinks)
    settings = Settings(progress=progress, workers=check_workers(workers))
    path = as_path("text", text)
    if names is not None and not (len(names) == 2 and all(isinstance(name, str) for name in names)):
        raise_error("option", name="names", got=names, fits="two names, for a and for b")
    sides = [_side(*one, shift) for one in zip("ab", (a, b), names or (None, None), strict=True)]
    with opened([side.source for side in sides], Settings(outputs), {"command": "compare"}, by_identity([path])) as run:
        content = _read(path)
        try:
            texts = [_laid_over(side, path, run.handles) for side in sides]
        except (IndexError, ValueError) as error:
            swapped = [one._replace(tokenizer=two.tokenizer) for one, two in zip(sides, sides[::-1], strict=True)]
            if not _fit(swapped, path, run.handles):
                raise
            kind_of_error = IndexError if isinstance(error, IndexError) else ValueError
            raise kind_of_error(f"{error}; the ids are of the text with the two tokenizers swapped") from error
        _check_documents(sides, texts, content)
        run.sinks.open(schema_of(_SPANS, _DOCUMENTS, widths={"kind": 17, "script": 17}))  # as Katakana-hiragana has
        messages = [_score(side, tokens, settings) for side, tokens in zip(sides, texts, strict=True)]
        spans = spans_of(texts[0].tokens(), texts[1].tokens(), np.frombuffer(content, np.uint8))
        model_names = {"name_a": sides[0].name, "name_b": sides[1].name}
        result = text_comparison_of(spans, content, **model_names, path=path, top=top)
        counts = result.n_bytes_without_token_a, result.n_bytes_without_token_b
        for side, hints, count in zip(sides, messages, counts, strict=True):
            hints += [Advice(f"{side.name}: {note}") for note in white_space_notes(count, result.n_bytes)]
        if (emit := run.sinks.emitter()) is not None:
            for first in range(0, len(spans.kept), _ROWS_OF_BLOCK):
                emit(Block(span_columns(result, first, first + _ROWS_OF_BLOCK)))
        run.sinks.finish(result, lambda: Block(result.documents))
    for one in [one for hints in messages for one in hints]:
        warn(one.message, one.category)
    return result


class _Side(NamedTuple):
    """A model: its name, its files, and its tokenizer."""

    name: str
    source: Scores
    tokenizer: Tokenizer
    options: Options


def _side(letter: str, value: Any, name: str | None, shift: bool | None) -> _Side:
    """The checked arguments of a model."""
    source = as_source(value, shift=shift, name=letter)
    for need in ("plan", "rows", "tokenizer"):
        require(source, need, "compare_texts")
    assert isinstance(source, Scores)
    refuse_given({"window": source.token_options.window or None}, "left out where models are compared by text")
    tokenizer = open_tokenizer(str(source.token_options.tokenizer))
    # the tokens are laid over the text here, and bytes are counted there
    return _Side(name or source.name, source, tokenizer, Options.of(source.token_options, top=0))


def _read(path: str) -> bytes:
    """The bytes of a text in UTF-8."""
    with open_regular(path) as file:
        content: bytes = file.read()
    try:
        content.decode()
    except UnicodeDecodeError as error:
        got = f"{content[error.start : error.start + 4]!r} is not UTF-8"
        raise_error("file", path=path, byte=error.start, got=got, fits="be text in UTF-8")
    return content


class _LaidTokens(NamedTuple):
    """The rows of all files of a model: the place of each row's token in the text, and its loss."""

    files: list[int]  # the first row of each file
    step: int  # rows between the prediction of a token and the token
    rows: TextTokens  # with document -1 outside the text
    repeated: IntArray  # the id of a special token that repeats the token before it, -1 for others

    def tokens(self) -> TextTokens:
        """The tokens of the text."""
        return self.rows.at(self.rows.document >= 0)


def _laid_over(side: _Side, text: str, handles: Handles) -> _LaidTokens:
    """The tokens of a model, mapped to the text; ValueError at the first token whose bytes differ."""
    shards, options = planned(side.source, (), side.options, handles), side.options
    most = max((shard.shape[-1] for shard in shards), default=0)
    side = side._replace(tokenizer=side.tokenizer.with_special(most))  # the text proves what special ids write
    files = np.cumsum([0, *(shard.rows for shard in shards)]).tolist()
    start, stop, document, repeated = (np.full(files[-1], -1) for _ in range(4))
    aligned, last, count = AlignedText(text, side.tokenizer), -1, 0
    for number, shard in enumerate(shards):
        ids, documents, goes_on = _ids_of(shard, options, handles)
        last = last if goes_on else -1
        rows = np.flatnonzero(documents >= 0)
        own = ids[rows].astype(np.int64)
        repeats = repeats_special(own, ids_before(own, documents[rows]), side.tokenizer)
        repeated[files[number] + rows[repeats]] = own[repeats]
        for first in range(0, rows.size, _ROWS):
            part = rows[first : first + _ROWS]
            is_first = np.diff(documents[part], prepend=last) != 0
            last = int(documents[part[-1]])
            text_numbers = count + np.cumsum(is_first) - 1
            _refuse_unknown(ids[part].astype(np.int64), text_numbers, side, shard.path)
            try:
                starts, stops = aligned.update(ids[part], is_first, shard.path)
            except ValueError as error:
                raise ValueError(f"{error}{_hint(ids, options)}") from error
            document[files[number] + part] = text_numbers
            if leaves_out_spaces(side.tokenizer):  # which is in no token: here a token has what it writes
                starts = np.maximum(starts, stops - side.tokenizer.lengths_of(ids[part]))
            start[files[number] + part], stop[files[number] + part] = starts, stops
            count += int(is_first.sum())
    aligned.end()
    tokens = TextTokens(start, stop, document, np.full(files[-1], np.nan), np.zeros(files[-1], np.bool_))
    return _LaidTokens(files, int(bool(options.shift)), tokens, repeated)


def _fit(sides: Sequence[_Side], text: str, handles: Handles) -> bool:
    """Whether the ids of both models spell the text."""
    try:
        return all(_laid_over(side, text, handles) for side in sides)
    except (IndexError, ValueError):
        return False


def _refuse_unknown(ids: Array, documents: IntArray, side: _Side, path: str) -> None:
    """Refuse ids of unknown text; `documents` are the numbers of their documents."""
    is_unknown = np.append(side.tokenizer.unknown, False)[np.clip(ids, -1, len(side.tokenizer.pieces))]
    for i in np.flatnonzero(is_unknown)[:1].tolist():
        got = f"has id {ids[i]} in document {documents[i]}, the mark of text that its tokenizer cannot write ([UNK])"
        refuse(path, got, "have tokens for the whole text; leave that document out of the text and of both models")


def _hint(ids: Array, options: Options) -> str:
    """Words that follow an error: the likely reason why ids do not spell the text."""
    ignored = 0 if options.ignore_index is None else int(np.count_nonzero(ids == options.ignore_index))
    hint = "" if options.shift else NEXT_TOKENS.format(named("shift", True))
    return f"; {count_of(ignored, 'ignored id')} of the file cannot be of the text{hint}" if ignored else hint


def _ids_of(shard: Shard, options: Options, handles: Handles) -> tuple[Array, IntArray, bool]:
    """The id of each row of a file, its document's number, and whether the first document began in an earlier file.

    Rows outside the text have the number -1: padding, ignored ids, and tokens in no sequence. A model's mask may number
    the texts packed into a row.
    """
    stored = handles.open_shard(shard, options)
    if stored.ids is None or shard.target_type != "class ids":
        refuse(shard.path, "contains distributions as targets", "contain class ids")
    ids, documents = stored.ids.reshape(-1), np.zeros(shard.rows, np.int64)
    is_part = np.ones(shard.rows, np.bool_) if options.ignore_index is None else ids != options.ignore_index
    if stored.sequences.exist:
        documents = stored.sequences.numbers(0, shard.rows)
        is_part &= documents >= 0
    if stored.file.attention_mask is not None:
        mask = checked_mask(stored.file).reshape(-1)
        is_part &= mask != 0
        documents = masked_texts(documents, mask, shard.path)
    documents = np.where(is_part, documents, -1)
    numbers = documents[is_part]
    if np.count_nonzero(np.diff(numbers, prepend=-1)) > np.unique(numbers).size:
        refuse(shard.path, "has sequences whose tokens are mixed", "have them one after the other, as in the text")
    return ids, documents, shard.shares_numbers or not stored.sequences.exist


class _Losses(Sink):
    """Stores the losses of tokens with their places in the text."""

    rows = "tokens"

    def __init__(self, laid: _LaidTokens) -> None:
        super().__init__()
        self._laid = laid

    def write(self, block: Block) -> None:
        columns, laid = block.columns, self._laid
        at = np.array(laid.files)[columns["file"]] + columns["row"] + laid.step
        laid.rows.nll[at], laid.rows.is_scored[at] = columns["nll"], columns["kept"]


def _score(side: _Side, laid: _LaidTokens, settings: Settings) -> list[Advice]:
    """Fill in the losses of a model; return its warnings."""
    evaluation = evaluated(side.source, side.options, settings._replace(sinks=[_Losses(laid)]))
    notes = not_finite_notes(evaluation.figures, evaluation.meter.count, "loss")
    padding = most_repeated(laid.repeated[laid.rows.is_scored & (laid.repeated >= 0)])
    padding_fact: dict[str, Any] = {"padding": padding and {"file": None, **padding}}
    warnings = [*advice(evaluation.figures | padding_fact), *map(Advice, notes)]
    return [one._replace(message=f"{side.name}: {one.message}") for one in warnings]


def _check_documents(sides: Sequence[_Side], texts: Sequence[_LaidTokens], content: bytes) -> None:
    """Refuse models whose documents differ, except in surrounding white space."""
    ranges = [document_bytes(one.tokens()) for one in texts]
    for side, (start, _) in zip(sides, ranges, strict=True):
        if not start.size or start.min() < 0:
            got = f"has no text in its document {int(np.argmin(start))}" if start.size else "has no tokens"
            refuse(side.source.paths[0], got, "have text in each document")
    (a_ranges, b_ranges), path = ranges, sides[1].source.paths[0]
    fits = f"have the same documents as {sides[0].name}: each sequence is one, in the order of the text"
    if a_ranges[0].size != b_ranges[0].size:
        if 1 in (a_ranges[0].size, b_ranges[0].size):
            fits += f"; if texts are packed, {named('segment_ids')} separates them"
        refuse(path, f"contains {b_ranges[0].size} documents, not {a_ranges[0].size}", fits)
    for document in np.flatnonzero((a_ranges[0] != b_ranges[0]) | (a_ranges[1] != b_ranges[1])).tolist():
        for first, last in (sorted((int(a[document]), int(b[document]))) for a, b in zip(*ranges, strict=True)):
            if content[first:last].decode("utf-8", "replace").strip():
                places = [f"{one[0][document]} to {one[1][document]}" for one in (b_ranges, a_ranges)]
                got = f"contains a document {document} of bytes {places[0]}, not {places[1]}"
                refuse(path, got, fits)
