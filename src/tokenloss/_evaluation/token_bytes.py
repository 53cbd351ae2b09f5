"""The bytes that targets write into a text, from a tokenizer; all ids are first checked against a given text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tokenloss._core.errors import named, raise_error, refuse, with_file_names
from tokenloss.formats.scores_file import checked_mask
from tokenloss.formats.tokenizers import AlignedText

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenloss._core.types import Array, BoolArray, IntArray
    from tokenloss._evaluation.options import Options
    from tokenloss._evaluation.results import ShardResult
    from tokenloss._evaluation.shards import Handles, OpenShard, Shard
    from tokenloss.formats.tokenizers import Tokenizer

_UNKNOWN = -1  # in place of the bytes of an id that has none that are known
WRITTEN = 1 << 24  # more than any count of hidden ids: marks that an id has written text
_PIECE = 1 << 18  # rows whose bytes are found at a time
_MOST_IN_ROW = 1 << 20  # texts that a model's mask numbers
NEXT_TOKENS = (  # follows an error; what shifts targets replaces {}
    "; targets that are already the next tokens lack the first token of each text: store the input ids and add {}"
)


def with_token_bytes(
    shards: Sequence[Shard], options: Options, handles: Handles, tokenizer: Tokenizer, text: str | None
) -> list[Shard]:
    """Give each shard the bytes of the tokens that its rows predict, before any score is read.

    All ids are checked against the text, if given, in the order of the shards.
    """
    if text is not None:  # which proves what special ids write
        tokenizer = tokenizer.with_special(max((shard.shape[-1] for shard in shards), default=0))
    aligned = None if text is None else AlignedText(text, tokenizer)
    begun: dict[int, int] = {}  # per text number: hidden ids so far, or WRITTEN
    lengths: list[tuple[Array, BoolArray]] = []  # the bytes of the ids of each shard, and which rows are scored
    planned = []
    for shard in shards:
        opened = handles.open_shard(shard, options)
        if opened.ids is None or opened.ids.ndim == len(shard.shape):
            refuse(shard.targets_path, "targets are distributions", "be class ids, where there is a tokenizer")
        if len(shard.shape) > 3 and opened.sequences.exist and not opened.sequences.are_given:
            raise_error("shape", name=f"{shard.path}: {shard.spec.kind}", got=shard.shape, fits="(N, T, V) for N texts")
        may_go_on = shard.shares_numbers or shard.windows is not None or not opened.sequences.exist
        own = _bytes_of_shard(shard, opened, opened.ids, options, tokenizer, begun if may_go_on else {}, aligned)
        lengths.append((own, scored_rows(opened, options.ignore_index)))
        planned.append(shard._replace(padding=padding_of(opened, opened.ids, lengths[-1][1], options, tokenizer)))
    if aligned is not None:
        aligned.end()
    following = lengths[-1][0]
    for number in reversed(range(len(shards))):
        shard, (own, scored) = planned[number], lengths[number]
        rows = np.roll(own.reshape(shard.shape[:-1]), -1, -1).reshape(-1) if options.shift else own
        if shard.next_id is not None:
            rows[-1] = following[0]
        following = own if len(own) else following
        if len(wrong := np.flatnonzero(scored & (rows == _UNKNOWN))):
            name = "shifted targets" if options.shift else "targets"
            with with_file_names(shard.path, shard.targets and shard.targets.path):
                refuse_unknown(name, handles.open_shard(shard, options).targets, wrong, tokenizer)
        without = 0
        if leaves_out_spaces(tokenizer):
            ids = handles.open_shard(shard, options).targets.reshape(-1)[scored].astype(np.int64)
            without = int(np.maximum(rows[scored] - tokenizer.lengths_of(ids), 0).sum())
        planned[number] = shard._replace(token_bytes=compact(rows, scored), n_bytes_without_token=without)
    return planned


def leaves_out_spaces(tokenizer: Tokenizer) -> bool:
    """Whether no token contains the space between words, as in WordPiece, so that the model need not predict it."""
    return tokenizer.drops_spaces and not any(piece.startswith(b" ") for piece in tokenizer.pieces)


def padding_of(
    opened: OpenShard, stored: Array, scored: BoolArray, options: Options, tokenizer: Tokenizer
) -> dict[str, int] | None:
    """The special token that most scored rows predict after itself, given the ids as they are stored."""
    ids = opened.targets.reshape(-1).astype(np.int64)
    numbers = opened.sequences.numbers(0, len(ids))
    before = stored.reshape(-1).astype(np.int64) if options.shift else ids_before(ids, numbers)
    return most_repeated(ids[scored & repeats_special(ids, before, tokenizer)])


def ids_before(ids: IntArray, texts: IntArray) -> IntArray:
    """The id before each one in texts of these numbers; -1 where a text begins."""
    before = np.full(len(ids), -1)
    goes_on = texts[1:] == texts[:-1]
    before[1:][goes_on] = ids[:-1][goes_on]
    return before


def repeats_special(ids: IntArray, before: IntArray, tokenizer: Tokenizer) -> BoolArray:
    """Mask of the special tokens that repeat the token before them, as padding does."""
    repeats: BoolArray = (ids == before) & (ids >= 0) & (ids < len(tokenizer.pieces))
    repeats &= tokenizer.is_special[np.where(repeats, ids, 0)]
    return repeats


def most_repeated(ids: IntArray) -> dict[str, int] | None:
    """The id that occurs most often, and its count; None without ids."""
    distinct, counts = np.unique(ids, return_counts=True)
    return {"token": int(distinct[counts.argmax()]), "count": int(counts.max())} if len(ids) else None


def _bytes_of_shard(
    shard: Shard, stored: OpenShard, ids: Array, options: Options, tokenizer: Tokenizer, begun: dict[int, int],
    aligned: AlignedText | None,
) -> Array:  # fmt: skip
    """The number of bytes that each id of a shard writes into its text, or into the file of all texts if given."""
    n_bytes, flat, path = np.zeros(shard.rows, np.int32), ids.reshape(-1), shard.targets_path
    mask = None if stored.file.attention_mask is None else checked_mask(stored.file).reshape(-1)
    for start in range(0, shard.rows, _PIECE):
        rows = np.arange(start, min(start + _PIECE, shard.rows))
        texts, included = _texts(shard, stored, rows, None if mask is None else mask[rows])
        lengths, is_first = bytes_of_ids(flat[rows], texts, included, tokenizer, begun, bool(options.shift))
        if aligned is not None:
            is_ignored = flat[rows] == options.ignore_index
            with with_file_names(path):
                refuse_unknown("targets", ids, rows[included & ~is_ignored & (lengths == _UNKNOWN)], tokenizer)
            held = np.where(is_ignored, -1, flat[rows].astype(np.int64))
            try:
                starts, stops = aligned.update(held[included], is_first[included], path)
            except ValueError as error:
                if options.shift:
                    raise
                raise ValueError(f"{error}{NEXT_TOKENS.format(named('shift', True))}, or leave the text out") from error
            lengths[included] = stops - starts
        n_bytes[rows] = lengths
    return n_bytes


def _texts(shard: Shard, stored: OpenShard, rows: IntArray, mask: Array | None) -> tuple[IntArray, BoolArray]:
    """The number of the text that each row's id belongs to, and a mask of the ids that belong to any.

    Windows are parts of one text, in which each token counts once; a model's mask may number the texts of a row.
    """
    texts, included = stored.sequences.numbers(int(rows[0]), int(rows[-1]) + 1), np.ones(len(rows), np.bool_)
    if shard.windows:
        texts, included = np.full(len(rows), -1), shard.windows.new(rows, 0)
    if mask is not None:
        texts, included = masked_texts(texts, mask, shard.path), included & (mask != 0)
    return texts, included


def masked_texts(numbers: IntArray, mask: Array, path: str) -> IntArray:
    """Numbers of the texts that a model's mask separates within sequences of these numbers, the same in each file."""
    texts: IntArray = numbers * _MOST_IN_ROW
    if (mask >= _MOST_IN_ROW).any() or (texts // _MOST_IN_ROW != numbers).any():
        got = f"numbers texts up to {mask.max()} by its mask, in sequences up to {numbers.max()}"
        refuse(path, got, f"stay below {_MOST_IN_ROW} and {(1 << 63) // _MOST_IN_ROW}")
    return texts + mask.astype(np.int64)


def bytes_of_ids(
    ids: Array, texts: IntArray, included: BoolArray, tokenizer: Tokenizer, begun: dict[int, int], has_bos: bool
) -> tuple[IntArray, BoolArray]:
    """The number of bytes that each id writes into its text, or `_UNKNOWN`, and a mask of the first that does.

    A text may lack the space that its first token begins with. `begun` has the hidden ids of each text before, or
    `WRITTEN`, and is updated. Ids that are not included are padding; those that the tokenizer lacks, such as -100,
    have unknown text: a single one at the start of a text is its BOS, if texts may have one, and if a special id comes
    after them, they are padding.
    """
    ids = ids.reshape(-1)
    is_in = included & (ids >= 0) & (ids < len(tokenizer.pieces))
    known = np.where(is_in, ids, 0).astype(np.int64)
    rows = np.flatnonzero(included)
    rows = rows[np.argsort(texts[rows], kind="stable")]
    is_known = is_in & ~tokenizer.unknown[known]
    is_first = np.zeros(len(ids), np.bool_)
    before, writes = _before(known[rows], ~is_in[rows], texts[rows], tokenizer, begun)
    is_first[rows] = writes & (before <= has_bos)
    is_first &= is_known
    n_bytes = np.full(len(ids), _UNKNOWN)
    n_bytes[is_known] = tokenizer.lengths(known[is_known], is_first[is_known])
    return n_bytes, is_first


def _before(
    ids: IntArray, is_hidden: BoolArray, texts: IntArray, tokenizer: Tokenizer, begun: dict[int, int]
) -> tuple[IntArray, BoolArray]:
    """For each token: the number of hidden tokens before it in its text, and whether it writes any bytes.

    The number is at least `WRITTEN` after a token that writes bytes. Texts come one after the other. `begun` has the
    numbers at the end of earlier parts of the texts.
    """
    numbers, starts = np.unique(texts, return_index=True)
    is_special = ~is_hidden & tokenizer.is_special[ids]
    writes = ~is_hidden & ~tokenizer.is_special[ids]
    weights = np.where(writes, WRITTEN, is_hidden)
    came = np.zeros(len(ids), np.int64)
    came[starts] = [begun.get(number, 0) for number in numbers.tolist()]
    before = _sums_before(weights, came, starts)
    is_end = (~is_hidden & tokenizer.restarts[ids]) | (is_special & (before < WRITTEN))  # a text may begin after it
    stops = np.append(starts[1:], len(ids)) - 1  # the last of each text
    before = _sums_before(weights, came, np.union1d(starts, 1 + np.setdiff1d(np.flatnonzero(is_end), stops)))
    sums = np.where(is_end, 0, np.minimum(before + weights, WRITTEN))[stops[: len(numbers)]]
    begun.update(zip(numbers.tolist(), sums.tolist(), strict=True))
    return before, writes


def _sums_before(weights: IntArray, came: IntArray, starts: IntArray) -> IntArray:
    """The sums of the weights before each row of a part, given where parts start and their sums so far."""
    before = np.cumsum(weights) - weights
    sums: IntArray = before + np.repeat(came[starts] - before[starts], np.diff(np.append(starts, len(weights))))
    return sums


def scored_rows(opened: OpenShard, ignore_index: int | None) -> BoolArray:
    """Mask of the rows of a shard that are scored."""
    scored: BoolArray = opened.targets.reshape(-1) != ignore_index
    return scored if opened.counted is None else scored & opened.counted.reshape(-1)


def compact(n_bytes: Array, scored: BoolArray) -> IntArray:
    """The bytes of the scored tokens, and 0 for others, in the smallest dtype that fits."""
    n_bytes = np.where(scored, n_bytes, 0)
    result: IntArray = n_bytes.astype(np.min_scalar_type(n_bytes.max(initial=0)))
    return result


def refuse_unknown(name: str, targets: Array, rows: IntArray, tokenizer: Tokenizer) -> None:
    """Refuse the target of the first of these rows, if any: the tokenizer does not determine its bytes."""
    for row in rows[:1].tolist():
        position = [int(i) for i in np.unravel_index(row, targets.shape)]
        got = int(targets.reshape(-1)[row])
        if not 0 <= got < len(tokenizer.pieces):
            raise_error("class", name=name, position=position, got=got, fits=tokenizer.range_of_ids)
        fits = f"an id whose text is in {tokenizer.path}; mask or ignore this one"
        raise_error("option", name=f"{name}{position}", got=got, fits=fits)


def pieces_of(ids: Array, tokenizer: Tokenizer) -> list[bytes | None]:
    """The bytes of class ids; None for an id that writes no text, or unknown text."""
    size = len(tokenizer.pieces)
    return [(tokenizer.pieces[i] or None) if 0 <= i < size else None for i in ids.tolist()]


def cut_pieces(pieces: list[bytes | None], n_bytes: Array | None) -> list[bytes | None]:
    """The last `n_bytes` bytes of each token: its text may lack a space that the vocabulary has."""
    if n_bytes is None:
        return pieces
    return [piece and piece[-n:] if n > 0 else piece for piece, n in zip(pieces, n_bytes.tolist(), strict=True)]


def text_of_pieces(pieces: list[bytes | None]) -> Array:
    """The text of tokens, with escapes for bytes that are not whole characters; None if unknown."""
    text = np.empty(len(pieces), np.object_)
    text[:] = [piece and piece.decode("utf-8", "backslashreplace") for piece in pieces]
    return text


def with_text(result: ShardResult, tokenizer: Tokenizer | None) -> ShardResult:
    """The result, whose highest-loss tokens get their text from a tokenizer."""
    if tokenizer is None:
        return result
    tokens = result.highest_loss_tokens
    texts = text_of_pieces(pieces_of(np.array([token.target for token in tokens], np.int64), tokenizer))
    return result._replace(
        highest_loss_tokens=[token._replace(text=text) for token, text in zip(tokens, texts.tolist(), strict=True)]
    )
