"""`evaluate`: the command `tokenloss score` in Python, for any source."""

from __future__ import annotations

import functools
import hashlib
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenloss._core.advice import advice, not_finite_notes
from tokenloss._core.arguments import as_path, refuse_given
from tokenloss._core.errors import named, raise_error, refuse, warn, worded
from tokenloss._core.validation import check_integer
from tokenloss._evaluation.blocks import block_units, score_block
from tokenloss._evaluation.calibrated import calibration_of_files
from tokenloss._evaluation.options import WORDS, Options, by_identity, text_length
from tokenloss._evaluation.parts import Parts, summed
from tokenloss._evaluation.plan import planned
from tokenloss._evaluation.responses import FilesUnit, check_names, check_parts, lengths_of_text, score_file
from tokenloss._evaluation.results import Evaluation
from tokenloss._evaluation.run import Settings, opened
from tokenloss._evaluation.score import score_shard
from tokenloss._evaluation.shards import Facts
from tokenloss._evaluation.sink import Block, checked_sinks, schema_of
from tokenloss._evaluation.token_bytes import pieces_of, with_text, with_token_bytes
from tokenloss._statistics.groups import check_by
from tokenloss._statistics.sequences import check_lengths
from tokenloss.formats.content import as_source, grouped
from tokenloss.formats.logprobs import Logprobs
from tokenloss.formats.readers import check_different
from tokenloss.formats.responses import Responses, each_file
from tokenloss.formats.scores import Scores
from tokenloss.formats.sketch import Sketch
from tokenloss.formats.sources import Blocks, require
from tokenloss.formats.tokenizers import open_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Literal, TypeAlias

    from tokenloss._core.types import ArrayLike, IntArray
    from tokenloss._evaluation.run import Run
    from tokenloss._evaluation.sink import Schema, Sink
    from tokenloss.formats.sources import Source
    from tokenloss.formats.tokenizers import Tokenizer

    _Path: TypeAlias = str | os.PathLike[str]
    _Block: TypeAlias = tuple[ArrayLike, ...]

# columns of tokens and of sequences, which all sources have, those with rows, and those that list tokens
_SCORED = ("target", "kept", "nll", "probability", "rank", "argmax", "is_greedy")
_WITH_ROWS = ("entropy", "file", "row", "sequence", "position")
_WITH_LISTS = ("file", "sequence", "position", "is_greedy_known", "is_prompt")
_SEQUENCES = ("file", "sequence", "count", "nll", "loss", "perplexity", "is_greedy")


def evaluate(
    source: Source | _Path | Iterable[_Path] | Iterable[_Block] | Callable[[int], Iterable[_Block]],
    *,
    shift: bool | None = None,
    n_bytes: ArrayLike = 0,
    n_words: ArrayLike = 0,
    text: _Path | None = None,
    words: Literal["whitespace", "lm-eval"] = "whitespace",
    by: str | None = None,
    calibration: bool = False,
    top: int = 5,
    sinks: Sequence[Sink] = (),
    state: _Path | None = None,
    scheduler: str | None = None,
    progress: bool = False,
    workers: int | None = None,
) -> Evaluation:
    """Score all tokens of files, servers' responses or blocks: loss, standard error, perplexity and accuracy.

    This is the command ``tokenloss score``. Nothing is loaded whole, so files may be larger than memory.

    Parameters
    ----------
    source : source, path, paths, iterable of blocks, or function that makes blocks
        The result of an opener of `tokenloss.formats`, such as `tokenloss.formats.open_scores`, whose options describe
        the files. Or paths, patterns of file names, or a directory; files are recognized by their content: as scores,
        as log-probabilities of tokens, or as responses of servers, where each choice is a sequence. Or blocks from an
        engine's loop, see `tokenloss.formats.blocks`.
    shift : bool, optional
        Whether targets are the input ids of a causal model, where row j predicts id j + 1 of its sequence, if the
        opener did not set it. By default, False, with a `ShiftWarning` if the targets seem to be input ids. Responses
        and log-probabilities are already aligned and stay as they are; for files of llama.cpp, whose targets are the
        next tokens, True is an error.
    n_bytes, n_words : int or array of integers, default 0
        Length of the whole text, for bits per byte and perplexity per word; or an array of the length of each
        sequence's text, in the order of `Evaluation.sequences`. With one length for the whole text, standard errors
        assume that the lengths of sequences are proportional to their tokens, and are often too small. For responses,
        bytes are counted by default.
    text : path, optional
        A file of the whole text, in place of its lengths. If the source has a tokenizer, the file contains all texts in
        order, perhaps with white space between them, and its bytes must be exactly those that the ids decode to: the
        first token that differs raises an error, before any score is read.
    words : {"whitespace", "lm-eval"}, default "whitespace"
        How words of `text` are counted: between white space, or as in lm-evaluation-harness, by `re.split` at white
        space, which counts one more word if the text ends in a blank.
    by : str, optional
        What to group tokens by, for a table of losses in `Evaluation.groups`: "position" in the sequence or window, in
        bins that double (0, 1, 2 to 3, 4 to 7, ...), or "position:512" for bins of 512; "file"; or the name of a field.
        In files of scores, a field is an array of text, integers or bool with a label for each row or sequence; with
        `shift`, a row has the label of the token that it predicts. In lines of JSON, it is a key of each record, whose
        value is one label, or a list with a label for each token; "metadata.topic" is a key of a nested object. Tokens
        whose record lacks the field form a group of their own. Errors are clustered by sequence, even if a sequence
        contributes to several groups. At most 10,000 groups.
    calibration : bool, default False
        Whether to measure the calibration of the probabilities, see `Evaluation.calibration`. The source must have
        scores of all classes and class ids. Files are read another three to six times for the best temperature, and
        again after a resumed run; blocks are read only once, so they have no temperature. It keeps 57 bytes for each
        token (33 for blocks), and for up to 10 classes 8 more for each class.
    top : int, default 5
        Number of the tokens and of the sequences with the highest losses to list.
    sinks : sequence of Sink, optional
        Files to write, such as ``TokenTable("tokens.parquet")``; see `tokenloss.sinks`.
    state : path, optional
        Checkpoint: the result of each file is appended to it at once, and a later call resumes from it. It is refused
        if the path, size, time or content of a file has changed (only some pieces of the content are compared). Blocks
        must then come from a function that takes the number of the first block to yield: a later call asks for the last
        finished block, whose shape, targets, mask and segment ids must be the same, and continues from there. Logits
        are not compared: a state belongs to one model. A state with a higher `top` is accepted.
    scheduler : str, optional
        Address of a Dask scheduler, on whose workers the files are scored.
    progress : bool, default False
        Whether to draw the progress over files or blocks on stderr, if that is a terminal.
    workers : int, optional
        Number of threads, as in `cross_entropy`. The result is bitwise identical for any number.

    Returns
    -------
    Evaluation
        Exact values, which do not depend on the sizes of blocks or shards, on padding or on order.

    Raises
    ------
    IndexError, TypeError, ValueError
        If an argument, a file or a block is invalid; the message names it, the value given and what is accepted. Files
        are checked before any score is read or file written.
    OSError
        If a file cannot be read or written.
    ImportError
        If a format or a sink needs a package that is not installed.

    Warns
    -----
    NormWarning
        If the root mean squares of hidden states vary as they do before a model's final norm, or do not fit the weight
        of that norm (if the head's model contains it).
    ShiftWarning
        If targets were not shifted, but rows give the next row's target more than four times the probability of their
        own, beyond chance; or if they were shifted, but rows do this for the unshifted targets.
    UserWarning
        If losses are nan or infinite, if every token has a probability of exactly 1, or if two files have the same
        targets, as files of two models do but parts of one text do not. With a tokenizer, also if it drops white space,
        so that the model does not have to predict it, or if scored tokens repeat a special token, as in padding.

    See Also
    --------
    sequence_losses : Sums over sequences, from losses.
    tokenloss.dask.score : The same for Dask arrays.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import evaluate
    >>> rng = np.random.default_rng(0)
    >>> def engine():  # logits (texts, tokens, vocabulary), ids, mask
    ...     for length in (7, 9):
    ...         ids = rng.integers(50, size=(4, length))
    ...         yield rng.standard_normal((4, length, 50)), ids, np.ones((4, length), bool)
    >>> evaluate(engine(), shift=True)
    Evaluation(loss=4.35980 ± 0.147, count=56, n_sequences=8, perplexity=78.2418, accuracy=0.0179)

    Bits per byte of three tokens with five bytes, from ranks in tiktoken's format:

    >>> import base64, pathlib, tempfile
    >>> from tokenloss.formats import blocks
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     ranks = pathlib.Path(directory) / "two.tiktoken"
    ...     with ranks.open("w") as file:
    ...         for i, piece in enumerate([b"a", b" b"]):
    ...             print(base64.b64encode(piece).decode(), i, file=file)
    ...     loop = blocks([(np.zeros((1, 3, 2)), np.array([[0, 1, 1]]))], tokenizer=ranks)
    ...     result = evaluate(loop)
    >>> result.n_bytes, round(result.bits_per_byte, 4)
    (5, 0.6)
    """
    top = check_integer("top", top, "an integer >= 0", least=0)
    length = _TextLength.checked(n_bytes, n_words, text, words)
    opened = grouped(as_source(source, shift=shift), check_by(by))
    outputs = checked_sinks(sinks, state is not None, scheduler)
    settings = Settings.checked(outputs, state, scheduler, progress, workers)
    require(opened, "rows" if isinstance(opened, Sketch) else "nll", worded("evaluate", "tokenloss score"))
    if calibration:
        require(opened, "rows", "calibration")
    if settings.state is not None:
        require(opened, "resume", "state")
    if scheduler is not None:
        require(opened, "plan", "scheduler")
    said, tokenizer = opened.token_options, None
    if said.tokenizer is not None:
        if not isinstance(length.n_bytes, int) or length.n_bytes:
            raise_error("together", name="tokenizer", got="n_bytes")
        if length.path is not None:
            require(opened, "plan", "text")
        tokenizer = _opened(said.tokenizer, length.path is not None)
    options = Options.of(
        said, top=top, by=by, calibration=bool(calibration), tokenizer=tokenizer and _tokenizer_hash(tokenizer)
    )
    evaluation = evaluated(opened, options, settings, length, tokenizer)
    for one in advice(evaluation.figures):
        warn(one.message, one.category)
    for message in not_finite_notes(evaluation.figures, evaluation.meter.count, "loss"):
        warn(message)
    return evaluation


class _TextLength(NamedTuple):
    """The length of the whole text or of each sequence's text, or the file of the text."""

    n_bytes: int | IntArray = 0
    n_words: int | IntArray = 0
    path: str | None = None
    words: str | None = None  # how its words are counted, if there is a file

    @classmethod
    def checked(cls, n_bytes: Any, n_words: Any, text: Any, words: Any) -> _TextLength:
        """Checked arguments of `evaluate`."""
        if words not in WORDS:
            raise_error("option", name="words", got=words, fits=" or ".join(map(repr, WORDS)))
        sizes = _length("n_bytes", n_bytes), _length("n_words", n_words)
        if text is None:
            refuse_given({"words": words if words != "whitespace" else None}, "left out without {}", "text")
            return cls(*sizes)
        for name, size in zip(("n_bytes", "n_words"), sizes, strict=True):
            if not isinstance(size, int) or size:
                raise_error("together", name="text", got=name)
        return cls(path=as_path("text", text), words=words)

    def counted(self, by_token: bool) -> tuple[int | IntArray, int | IntArray]:
        """Bytes and words, counted if there is a file; 0 bytes if each token has its own."""
        if self.path is None:
            return self.n_bytes, self.n_words
        n_bytes, n_words = text_length(self.path, self.words or "whitespace")
        return 0 if by_token else n_bytes, n_words


def evaluated(
    source: Source, options: Options, settings: Settings, text: _TextLength | None = None,
    tokenizer: Tokenizer | None = None,
) -> Evaluation:  # fmt: skip
    """The evaluation of a source; sinks are opened before any token, and finished in order."""
    text = text or _TextLength()
    key = {
        "command": "score",
        **source.given(),
        "tokenizer": options.tokenizer,
        "by": options.by,
        "calibration": options.calibration,
        "top": options.top,
    }
    if text.path is not None:
        check_different([*source.paths, text.path])
    with opened([source], settings, key, by_identity(filter(None, [text.path]))) as run:
        function = next(function for types, function in _READERS.items() if isinstance(source, types))
        parts, lengths, shards = function(source, options, run, text, tokenizer)
        calibration = None
        if options.calibration and shards:
            calibration = calibration_of_files(shards, run, options, tokens=parts.calibrated_tokens())
        evaluation: Evaluation = parts.evaluation(lengths, run.seconds, run.n_read, (), calibration)
        run.sinks.finish(evaluation, lambda: Block(evaluation.sequences))
    return evaluation


_Read = tuple[Parts, tuple[Any, Any], Any]  # the parts, the lengths of the text, and the files of scores


def _read_scores(source: Scores, options: Options, run: Run, text: _TextLength, tokenizer: Tokenizer | None) -> _Read:
    """The parts of an evaluation of files of scores, and the lengths of the text."""
    shards = planned(source, (), options, run.handles)
    if tokenizer is not None:
        shards = with_token_bytes(shards, options, run.handles, tokenizer, text.path)
    lengths = text.counted(tokenizer is not None)
    has_text = any(spec.has_text for spec in source.specs)
    schema = _schema_of_rows(run, shards[0].shape[-1], tokenizer, has_text)
    results = run.map(functools.partial(score_shard, options=options), shards, schema)
    results = [with_text(result, tokenizer) for result in results]
    return Parts([shard.facts() for shard in shards], results, options, text.words), lengths, shards


def _read_files(
    source: Responses | Logprobs, options: Options, run: Run, text: _TextLength, tokenizer: Tokenizer | None
) -> _Read:
    """The same for files that list tokens."""
    del tokenizer
    files = [*each_file(source)] if isinstance(source, Responses) else [source]
    n_bytes, n_words = text.counted(False)
    names = (*_SCORED, *_WITH_LISTS, *(["text"] * isinstance(source, Responses)))
    sequences = (*_SEQUENCES, "line", "choice", "is_greedy_known")
    function = functools.partial(score_file, by=options.by)
    results = run.map(function, [*map(FilesUnit, files)], schema_of(names, sequences, top_k=run.sinks.top_k))
    check_parts(files, results)
    check_names(source.paths, results)
    if isinstance(n_bytes, int) and not n_bytes:
        n_bytes = lengths_of_text(results)
    counts = [result.n_tokens + result.n_ignored for result in results]
    kind = "responses" if isinstance(source, Responses) else "logprobs"
    facts = [Facts(path, kind, (n,), "", n_scored_rows=n) for path, n in zip(source.paths, counts, strict=True)]
    return Parts(facts, results, options, text.words), (n_bytes, n_words), ()


def _read_blocks(source: Blocks, options: Options, run: Run, text: _TextLength, tokenizer: Tokenizer | None) -> _Read:
    """The same for blocks."""
    lengths = text.counted(tokenizer is not None)
    units = functools.partial(block_units, source=source, options=options, tokenizer=tokenizer)
    results = run.map(
        functools.partial(score_block, options=options), units,
        lambda unit: _schema_of_rows(run, unit.block.scores.shape[-1], tokenizer),
    )  # fmt: skip
    blocks = summed(results, options.top, options.by)
    blocks = blocks._replace(result=with_text(blocks.result, tokenizer))
    return Parts.from_blocks(blocks, options, text.words), lengths, ()


def _schema_of_rows(run: Run, classes: int, tokenizer: Tokenizer | None, has_text: bool = False) -> Schema:
    """The rows that sinks get from a source with all classes."""
    has_bytes = tokenizer is not None
    tokens = (*_SCORED, *_WITH_ROWS, *(["n_bytes"] * has_bytes), *(["text"] * (has_text or has_bytes)), "logsumexp")
    sequences = (*_SEQUENCES, *(["n_bytes", "bits_per_byte"] if has_bytes else []))
    bytes_of = None if tokenizer is None else functools.partial(pieces_of, tokenizer=tokenizer)
    return schema_of(tokens, sequences, top_k=min(run.sinks.top_k, classes), bytes_of=bytes_of)


_READERS: dict[Any, Callable[..., _Read]] = {
    Scores: _read_scores, (Responses, Logprobs): _read_files, Blocks: _read_blocks,
}  # fmt: skip


def _opened(path: str, has_text: bool) -> Tokenizer:
    """The open tokenizer, which gives the bytes of tokens with the text or without it."""
    tokenizer = open_tokenizer(path)
    if tokenizer.drops_spaces and not has_text:
        got = "drops the white space between tokens or changes a text, so bytes of tokens are known only from the text"
        refuse(tokenizer.path, got, f"come with {named('text', ...)}, or be left out")
    return tokenizer


def _tokenizer_hash(tokenizer: Tokenizer) -> str:
    """A hash of everything on which the bytes of tokens depend."""
    said = tokenizer.said
    ids = [sorted(numbers) for numbers in (said.restarts, said.special, said.unknown)]
    rules = (said.prefix, said.drops_spaces, said.lacks_special, *ids, tokenizer.pieces)
    return hashlib.blake2b(repr(rules).encode(), digest_size=16).hexdigest()


def _length(name: str, value: Any) -> int | IntArray:
    """Length of the whole text, or of the text of each sequence."""
    if isinstance(value, int):
        return check_integer(name, value, "an integer >= 0", least=0)
    lengths = check_lengths(name, value)
    return int(lengths) if lengths.ndim == 0 else lengths
