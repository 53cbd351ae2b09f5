"""`evaluate`, which checks its arguments for `files.py` and `blocks.py`: what `tokenloss score` does, for Python."""

from __future__ import annotations

import hashlib
import itertools
import os
from typing import TYPE_CHECKING, Any

from tokenloss._core._core import KINDS
from tokenloss._core.arguments import as_path, as_paths, check_choice, check_shift, refuse_content, refuse_given
from tokenloss._core.errors import raise_error, warn
from tokenloss._core.threads import check_workers
from tokenloss._core.validation import check_integer, head_transform
from tokenloss._evaluation.blocks import evaluate_blocks
from tokenloss._evaluation.files import evaluate_files
from tokenloss._evaluation.options import Inputs, Options, Settings, resolved
from tokenloss._evaluation.results import Evaluation
from tokenloss._evaluation.sink import checked_sinks
from tokenloss._evaluation.summary import WORDS
from tokenloss._statistics.advice import advice, not_finite_notes
from tokenloss._statistics.sequences import check_lengths
from tokenloss.formats.responses import PARTS_OF_RESPONSE, is_responses
from tokenloss.formats.tokenizers import open_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Literal, TypeAlias

    from tokenloss._core.types import ArrayLike, IntArray, Kind
    from tokenloss._evaluation.sink import Sink
    from tokenloss.formats.tokenizers import Tokenizer

    _Path: TypeAlias = str | os.PathLike[str]
    _Block: TypeAlias = tuple[ArrayLike, ...]


def evaluate(
    source: _Path | Iterable[_Path] | Iterable[_Block] | Callable[[int], Iterable[_Block]],
    targets: _Path | Sequence[_Path] = (),
    *,
    segment_ids: _Path | Sequence[_Path] = (),
    array: str | None = None,
    targets_array: str | None = None,
    kind: Kind | None = None,
    shift: bool | None = None,
    window: int | None = None,
    stride: int | None = None,
    ignore_index: int | None = -100,
    lm_head: _Path | None = None,
    hidden: str | None = None,
    logit_scale: float | None = None,
    softcap: float | None = None,
    part: Literal["prompt", "generated", "all"] | None = None,
    skip_failed: bool = False,
    n_bytes: ArrayLike = 0,
    n_words: ArrayLike = 0,
    text: _Path | None = None,
    tokenizer: _Path | None = None,
    words: Literal["whitespace", "lm-eval"] = "whitespace",
    top: int = 5,
    sinks: Sequence[Sink] = (),
    state: _Path | None = None,
    scheduler: str | None = None,
    progress: bool = False,
    workers: int | None = None,
) -> Evaluation:
    """Score all tokens of files, of servers' responses, or of blocks: loss, standard error, perplexity, accuracy.

    This is the command ``tokenloss score``. Nothing is loaded whole, so files may be larger than memory.

    Parameters
    ----------
    source : path, paths, iterable of blocks, or function that makes blocks
        Files of scores as `tokenloss.formats.open_scores` reads them, shards of one text; or patterns of their names,
        or their directory. Or blocks ``(logits, targets)``, ``(logits, targets, where)`` or ``(logits, targets, where,
        segment_ids)`` as an engine's loop makes them, with arrays or tensors as in `cross_entropy`. Each of N texts
        (N, T, V) or images (N, H, W, V) is a sequence, and tokens (N, V) are taken as independent, unless `segment_ids`
        or `cu_seqlens` say otherwise: arrays of these names in a file, whose numbers are its own, or the last part of a
        block, whose numbers are those of all blocks. Or files of responses (.json, .jsonl, or a stream of one), or
        their directory, as `tokenloss.formats.open_responses` reads them: each choice is a sequence, and no `custom_id`
        may come twice; `targets` to `ignore_index` do not apply to them.
    targets : path or paths, optional
        A .npy file of targets for each file of scores, or one for all; by default, the files hold them.
    segment_ids : path or paths, optional
        .npy files of the number of each token's sequence: one for each file of scores, whose numbers are its own; or
        one for all, where a sequence may go on in the next file.
    array : str, optional
        Name of the array of scores, if it is not the name of a kind.
    targets_array : str, optional
        Name of the array of targets, if it is neither ``targets`` nor ``labels``. A file without targets may hold
        ``token_ids`` or ``input_ids``, with `shift`. Where it holds ``attention_mask``, padding is left out if targets
        are shifted; else targets must be ignored where the mask is 0.
    kind : {"logits", "log_probs", "probs"}, optional
        Kind of the scores; by default the name of their array, or logits.
    shift : bool, optional
        Whether targets are the input ids of a causal model, of which row j predicts id j + 1 of its sequence. By
        default they are not, and a `ShiftWarning` is given if they seem to be. The last row of a file of shape (N, V)
        predicts the first id of the next file, but a block without `segment_ids` ends its sequences.
    window : int, optional
        Number of tokens of each window, where the files hold a text longer than a model's context, window by window:
        each token is scored in the first window that holds it, as by `windows`. Rows of shape (N, T, V) are N windows,
        and those of all files are in order; the last one may be shorter, or padded. Targets are input ids, which are
        shifted: those of each window, or in a .npy file those of the text without padding. Each window is a sequence.
    stride : int, optional
        Number of tokens from the start of a window to that of the next one, with `window`.
    ignore_index : int or None, default -100
        Target value that marks tokens to ignore, such as padding.
    lm_head : path, optional
        The projection onto the vocabulary, ``FILE`` or ``FILE:NAME`` as `tokenloss.formats.open_hidden_states` takes
        it: the files then hold hidden states after the model's final norm, instead of scores. What ``config.json``
        beside it says of the logits is taken, and is ``head`` of `Evaluation.figures`.
    hidden : str, optional
        Name of the array of hidden states, if it is neither ``hidden_states`` nor ``hidden``.
    logit_scale : float, optional
        Multiplier of the logits (1 / temperature), in place of the model's own; by default what ``config.json`` beside
        `lm_head` says, or 1.
    softcap : float, optional
        Logits become ``softcap * tanh(logit_scale * logits / softcap)``, or with 0 stay as they are, whatever
        ``config.json`` says; logits of -inf stay -inf.
    part : {"prompt", "generated", "all"}, optional
        The tokens to read: those of the prompt, those that were generated, or both. By default the prompt where the
        file holds any log-probability of one, else what was generated. With "all", an echo that nothing divides counts
        as a prompt.
    skip_failed : bool, default False
        Leave failed lines of a batch out, and list them in `Evaluation.figures`, rather than raise an error.
    n_bytes, n_words : int or array of integers, default 0
        Length of the whole text, for bits per byte and perplexity per word; or an array of the length of the text of
        each sequence, in the order of `Evaluation.sequences`. Given that of the whole text alone, standard errors take
        the lengths of sequences as proportional to their tokens, and are often too small. Of responses, bytes are
        counted if not given.
    text : path, optional
        A file of the whole text, in place of its lengths. With `tokenizer`, it is that of all texts in their order, and
        must be what the ids write, byte by byte; between texts there may be white space. Else the first token that
        differs is an error, before any score is read.
    tokenizer : path, optional
        The tokenizer's own file, or the folder of its model, as `token_bytes` takes it, for bits per byte of the tokens
        that are scored: each counts with its own bytes, and each sequence with their sum. The loss of a special token
        counts, too, but it has no bytes: mask or ignore it, to leave it out. Where the tokenizer adds a space before a
        text (SentencePiece), that of the first token of each sequence does not count, unless several ids before it are
        ignored, as those of a prompt are. With one that drops white space (WordPiece), `text` must be given. Tables and
        pages have the text of tokens from it, in place of what files hold.
    words : {"whitespace", "lm-eval"}, default "whitespace"
        How its words are counted: those between white space, or as lm-evaluation-harness does, by `re.split` at white
        space, which counts a blank at the end as a word, too.
    top : int, default 5
        Number of the tokens and of the sequences with the highest losses to list.
    sinks : sequence of Sink, optional
        Files to write, such as ``TokenTable("tokens.parquet")``; see `tokenloss.sinks`.
    state : path, optional
        Checkpoint: the result of each file is appended to it at once, and a later call resumes from it. It is refused
        if a file has another path, size, time or content, of which some pieces are compared. Of blocks, `source` is
        then a function of the number of the first block to make, which returns an iterable of the blocks from there on:
        a later call asks for the last one that is done, whose shape, targets, mask and segment ids must be the same,
        and goes on from there. Logits are not compared: a state belongs to one model. A state with a higher `top` fits.
    scheduler : str, optional
        Address of a Dask scheduler, on whose workers the files are scored.
    progress : bool, default False
        Whether to draw the progress over files or blocks on stderr, if that is a terminal.
    workers : int, optional
        Number of threads, as in `cross_entropy`. No bit of the result depends on it.

    Returns
    -------
    Evaluation
        Exact figures, which do not depend on the sizes of blocks or shards, on padding or on order.

    Raises
    ------
    IndexError, TypeError, ValueError
        If an argument, a file or a block is invalid; the message names it, what came and what fits. Files are checked
        before any score is read, and no file is written then.
    OSError
        If a file cannot be read or written.
    ImportError
        If a format or a sink needs a package that is not installed.

    Warns
    -----
    NormWarning
        If the root mean squares of hidden states vary as they do before a model's final norm, or do not fit the weight
        of that norm, where `lm_head` is a model that holds it.
    ShiftWarning
        If targets were not shifted, and rows give the next target more than four times the probability, beyond chance;
        or if they were shifted, and rows give that to the targets that they would have without.
    UserWarning
        If losses are nan or infinite, if every token has a probability of exactly 1, or if two files have the same
        targets, as those of two models do, and parts of one text do not. With `tokenizer`, if it drops white space,
        which the model then need not predict, or if scored tokens repeat a special token, as padding does.

    See Also
    --------
    sequence_losses : Sums over sequences, from losses.
    tokenloss.dask.score : The same of Dask arrays.

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

    Bits per byte of three tokens of five bytes, by their ranks in the layout of tiktoken:

    >>> import base64, pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     ranks = pathlib.Path(directory) / "two.tiktoken"
    ...     with ranks.open("w") as file:
    ...         for i, piece in enumerate([b"a", b" b"]):
    ...             print(base64.b64encode(piece).decode(), i, file=file)
    ...     found = evaluate([(np.zeros((1, 3, 2)), np.array([[0, 1, 1]]))], tokenizer=ranks)
    >>> found.n_bytes, round(found.bits_per_byte, 4)
    (5, 0.6)

    An engine that stops and goes on, here after its third batch:

    >>> batches = np.arange(4 * 2 * 5).reshape(4, 2, 5) % 50  # ids of four batches of two texts
    >>> def engine(first, fails=False):
    ...     for number, ids in enumerate(batches[first:], first):
    ...         if fails and number == 3:
    ...             raise RuntimeError("out of memory")
    ...         yield 5 * np.eye(50)[ids], ids  # the logits take long to make
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     state = pathlib.Path(directory) / "engine.state"
    ...     try:
    ...         evaluate(lambda first: engine(first, fails=True), shift=True, state=state)
    ...     except RuntimeError:
    ...         evaluate(engine, shift=True, state=state) == evaluate(engine(0), shift=True)
    True
    """
    top = check_integer("top", top, "an integer of at least 0", least=0)
    of_bytes, of_words = (_length(name, value) for name, value in (("n_bytes", n_bytes), ("n_words", n_words)))
    if words not in WORDS:
        raise_error("option", name="words", got=words, fits=" or ".join(map(repr, WORDS)))
    check_choice("kind", kind, KINDS)
    check_shift(shift)
    check_choice("part", part, PARTS_OF_RESPONSE)
    scale, cap = head_transform(logit_scale, softcap)
    head, state, text = (
        None if path is None else as_path(name, path)
        for name, path in (("lm_head", lm_head), ("state", state), ("text", text))
    )
    if tokenizer is not None and (not isinstance(of_bytes, int) or of_bytes):
        raise_error("together", name="tokenizer", got="n_bytes")
    opened = None if tokenizer is None else _opened(tokenizer, text is not None)
    refuse_given({} if text else {"words": words if words != "whitespace" else None}, "left out without text")
    of_hidden = {"hidden": hidden, "logit_scale": scale, "softcap": cap}
    if head is None:
        refuse_given(of_hidden, "left out without lm_head")
    else:
        refuse_given({"array": array, "kind": kind}, "left out where there is lm_head")
    of_windows = _checked_windows(window, stride, shift, segment_ids)
    options = Options(
        array, kind, ignore_index, shift if window is None else True, top, part, bool(skip_failed), head, hidden,
        targets_array, scale, cap, *of_windows, None if opened is None else _tokenizer_hash(opened),
    )  # fmt: skip
    sinks = checked_sinks(sinks, "evaluate", state, scheduler)
    settings = Settings(of_bytes, of_words, words, opened, state, scheduler, check_workers(workers), progress)
    first, items = _first_of(source)
    of_scores: dict[str, Any] = {"targets": targets, "segment_ids": segment_ids, "array": array, "lm_head": head}
    of_scores |= {"targets_array": targets_array, "window": window, "stride": stride}
    of_responses = {"part": part, "skip_failed": skip_failed or None}
    if isinstance(first, str | os.PathLike):
        for name, size in (("n_bytes", of_bytes), ("n_words", of_words)):
            if text is not None and (not isinstance(size, int) or size):
                raise_error("together", name="text", got=name)
        files = {"source": items, "targets": targets, "segment_ids": segment_ids}
        scores, ids, segments = (resolved(as_paths(name, value), name == "source") for name, value in files.items())
        inputs = Inputs(scores, ids, segments, text, head, None if opened is None else opened.path)
        if any(map(is_responses, scores)):
            given = of_scores | {"kind": kind, "shift": shift, "tokenizer": tokenizer}
            given |= {"ignore_index": None if ignore_index == -100 else "given"}
            refuse_given(given, "left out where the source is responses of servers")
        else:
            refuse_given(of_responses, "left out where the source is no responses of servers")
        evaluation = evaluate_files(inputs, options, settings, sinks)
    else:
        given = of_scores | {"text": text, "scheduler": scheduler} | of_responses
        refuse_given(given, "left out where the source is blocks, not paths")
        if state is not None and not callable(source):
            fits = "a function of the number of the first block, which returns the blocks from there on, to have state"
            raise_error("type", name="source", got=type(source).__name__, fits=fits)
        evaluation = evaluate_blocks(items, options, settings, sinks)
    for one in advice(evaluation.figures):
        warn(one.message, one.category)
    for message in not_finite_notes(evaluation.figures, evaluation.meter.count, "loss"):
        warn(message)
    return evaluation


def _first_of(source: Any) -> tuple[Any, Any]:
    """The first item of a source, and all of its items; a function that makes blocks as it is."""
    refuse_content("source", source, "paths, or blocks such as [(logits, targets)]")
    if isinstance(source, str | os.PathLike):
        return source, [source]
    if callable(source):
        return None, source
    if hasattr(source, "__array__") or hasattr(source, "__dlpack__"):
        raise_error(
            "type", name="source", got=type(source).__name__, fits="paths, or blocks such as [(logits, targets)]"
        )
    try:
        items = iter(source)
    except TypeError:
        raise_error("type", name="source", got=type(source).__name__, fits="paths or blocks")
    first = next(items, None)
    if first is None:
        raise_error("empty", name="source", fits="paths or blocks")
    return first, itertools.chain([first], items)


def _checked_windows(window: Any, stride: Any, shift: bool | None, segment_ids: Any) -> tuple[int, int]:
    """Length and distance of windows; 0 if the files hold none."""
    if window is None or stride is None:
        refuse_given({"stride": stride}, "left out without window")
        refuse_given({"window": window}, "left out without stride")
        return 0, 0
    refuse_given({"segment_ids": segment_ids}, "left out where there is window")
    if shift is False:
        raise_error("option", name="shift", got=shift, fits="True, or left out, where there is window")
    window = check_integer("window", window, "an integer of at least 2", least=2)
    fits = f"an integer from 1 to {window}, the window"
    return window, check_integer("stride", stride, fits, least=1, most=window)


def _opened(path: str | os.PathLike[str], has_text: bool) -> Tokenizer:
    """A tokenizer, of which bytes of tokens can be told, with a text or without."""
    tokenizer = open_tokenizer(path)
    if tokenizer.drops_spaces and not has_text:
        got = "drops the white space between tokens or changes a text, so that only the text tells their bytes"
        raise_error("content", path=tokenizer.path, got=got, fits="come with --text (text=), or be left out")
    return tokenizer


def _tokenizer_hash(tokenizer: Tokenizer) -> str:
    """A hash of all that bytes of tokens depend on."""
    said = tokenizer.said
    ids = [sorted(numbers) for numbers in (said.restarts, said.special, said.unknown)]
    rules = (said.prefix, said.drops_spaces, said.lacks_special, *ids, tokenizer.pieces)
    return hashlib.blake2b(repr(rules).encode(), digest_size=16).hexdigest()


def _length(name: str, value: Any) -> int | IntArray:
    """Length of the whole text, or of the text of each sequence."""
    if isinstance(value, int):
        return check_integer(name, value, "an integer of at least 0", least=0)
    lengths = check_lengths(name, value)
    return int(lengths) if lengths.ndim == 0 else lengths
