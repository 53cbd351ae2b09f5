"""The file of logits that llama.cpp's `llama-perplexity --kl-divergence-base` writes and reads.

All numbers are little-endian: the magic, int32 n_ctx, n_vocab and n_chunk, the tokens as int32, and for each row that
is scored float32 scale, float32 min_log_prob and uint16 q for each class, padded to an even number of them. The
log-probability of a class is scale * q + min_log_prob. The first half of each chunk of n_ctx tokens is only context:
row j predicts token n_ctx // 2 + 1 + j.

ik_llama.cpp writes the same, with scales for 24 nats below the largest logit where llama.cpp has 16; its divergence is
llama.cpp's, of log-probabilities above -16.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from tokenloss._core.dtypes import FLOATS
from tokenloss._core.errors import raise_error, refuse
from tokenloss._core.files import replacing
from tokenloss._core.validation import check_integer
from tokenloss._scores.softmax import logsumexp
from tokenloss.formats.base import check_file_size, is_float, open_regular, stamp
from tokenloss.formats.mapped import ArrayLocation
from tokenloss.formats.scores_file import Format, ScoresFile, reject_array_name

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator
    from typing import Literal

    import numpy.typing as npt

    from tokenloss._core.types import Array

MAGIC = b"_logits_"
_HEADER = struct.Struct("<8s3i")
_INT32_MAX = 2**31 - 1
_RANGES = (16, 24)  # nats below the largest logit that are stored: by llama.cpp, and by ik_llama.cpp
_STEPS = np.float32(65535)
_MIN_SCALE = np.finfo(np.float32).tiny  # smaller ones have no finite inverse
_PIECE = 1 << 20  # logits, converted at a time
_CACHED = 1 << 16  # log-probabilities that stay in a core's cache


def _rows(n_ctx: int) -> int:
    """Number of rows of a chunk that are scored."""
    return n_ctx - 1 - n_ctx // 2


def _words(n_vocab: int) -> int:
    """Number of uint16 in a row: two floats, a number for each class, padding."""
    return 4 + n_vocab + n_vocab % 2


def open_scores(path: str, array: str | None, kind: str | None, targets_array: str | None) -> ScoresFile:
    """Open a file of logits of llama.cpp: log-probabilities, and the targets that they predict."""
    reject_array_name(path, array, targets_array)
    if kind not in (None, "log_probs"):
        refuse(path, "contains log_probs of llama.cpp", f"contain {kind} to be read as such")
    with open_regular(path) as file:
        start, status = file.read(_HEADER.size), stamp(file)
    if len(start) < _HEADER.size:
        check_file_size(path, len(start), _HEADER.size)
    _, n_ctx, n_vocab, n_chunk = _HEADER.unpack(start)
    for byte, name, number, least in (8, "n_ctx", n_ctx, 1), (12, "n_vocab", n_vocab, 1), (16, "n_chunk", n_chunk, 0):
        if number < least:
            raise_error("file", path=path, byte=byte, got=f"{name} is {number}", fits=f"be at least {least}")
    ids = ArrayLocation(path, _HEADER.size, np.dtype("<i4"), (n_chunk, n_ctx), stamp=status)
    words = n_chunk * _rows(n_ctx), _words(n_vocab)
    data = ArrayLocation(path, ids.offset + ids.n_bytes, np.dtype("<u2"), words, stamp=status)
    check_file_size(path, status.size, data.offset + data.n_bytes)
    tokens = ids.load()
    for i in np.flatnonzero((tokens < 0) | (tokens >= n_vocab))[:1]:
        byte, fits = ids.offset + 4 * int(i), f"be in [0, {n_vocab})"
        raise_error("file", path=path, byte=byte, got=f"the token is {tokens.flat[i]}", fits=fits)

    def blocks(most_rows: int) -> Iterator[Array]:
        for start, block in zip(range(0, data.shape[0], most_rows), data.blocks(most_rows), strict=True):
            yield _log_probs(data, start, block, n_vocab)

    shape = n_chunk, _rows(n_ctx), n_vocab
    targets = tokens[:, n_ctx // 2 + 1 :]
    return ScoresFile(path, "log_probs", shape, np.dtype(np.float32), targets, None, blocks, is_shifted=True)


def _log_probs(data: ArrayLocation, start: int, words: Array, n_vocab: int) -> Array:
    """Log-probabilities of stored rows in the float32 steps of llama.cpp; the first row is at `start`."""
    numbers = np.ascontiguousarray(words[:, :4]).view("<f4")
    valid = np.isfinite(numbers) & (numbers >= np.array([0, -np.inf], np.float32))
    for row, column in np.argwhere(~valid)[:1]:
        byte = data.offset + (start + int(row)) * words.strides[0] + 4 * int(column)
        name, fits = (("scale", "be finite and at least 0"), ("min_log_prob", "be finite"))[column]
        raise_error("file", path=data.path, byte=byte, got=f"{name} is {numbers[row, column]}", fits=fits)
    scale, min_log_prob = np.hsplit(numbers, 2)
    log_probs = np.empty((len(words), n_vocab), np.float32)
    step = max(1, _CACHED // n_vocab)
    with np.errstate(over="ignore"):
        for first in range(0, len(words), step):
            rows = slice(first, first + step)
            piece = log_probs[rows]
            piece[:] = words[rows, 4 : 4 + n_vocab]
            piece *= scale[rows]
            piece += min_log_prob[rows]
    return log_probs


def write(
    path: str | os.PathLike[str],
    tokens: npt.ArrayLike,
    logits: Iterable[npt.ArrayLike],
    n_ctx: int,
    *,
    range_nats: Literal[16, 24] = 16,
) -> None:
    """Write a file of logits as llama.cpp does, for its ``llama-perplexity --kl-divergence`` or for `open_scores`.

    A row becomes log-probabilities in 65536 equal steps, from its largest logit down to its smallest or to `range_nats`
    below the largest; logits below that are raised to it.

    Parameters
    ----------
    path : str or path
        File to write. An existing file is replaced when the new one is complete.
    tokens : array of integers
        Ids of all tokens, `n_ctx` for each chunk.
    logits : iterable of arrays of shape (n, V)
        Logits of the rows that are scored, of any float dtype, in order and in blocks of any length: from each chunk,
        positions ``n_ctx // 2`` to ``n_ctx - 2``, which predict the tokens after them.
    n_ctx : int
        Length of a chunk, at least 3.
    range_nats : {16, 24}, default 16
        Nats that are kept below the largest logit: 16 by llama.cpp, 24 by ik_llama.cpp. Both read either, as
        `open_scores` does.

    Raises
    ------
    IndexError, TypeError, ValueError
        If an argument is invalid, or a row has no finite maximum; no file is written then.

    Notes
    -----
    The steps are the same as in llama.cpp's ``log_softmax`` in float32. A log-probability is within
    ``range_nats / 65535 / 2`` nats of that of the logits that were given, and some units of float32's last place,
    unless it was raised.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from tokenloss.formats import llama_cpp, open_scores
    >>> with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
    ...     path = pathlib.Path(directory) / "base.kld"
    ...     llama_cpp.write(path, [7, 3, 0, 1], [np.float32([[0, 2, 1, 0, 0, 0, 0, 0]])], n_ctx=4)
    ...     scores = open_scores(path)
    ...     print(scores.targets, next(scores.blocks(1))[0, :3].round(3))
    [[1]] [-2.779 -0.779 -1.779]
    """
    if range_nats not in _RANGES:
        raise_error("option", name="range_nats", got=range_nats, fits="16 (llama.cpp) or 24 (ik_llama.cpp)")
    n_ctx = check_integer("n_ctx", n_ctx, f"an integer from 3 to {_INT32_MAX}", least=3, most=_INT32_MAX)
    ids = np.asarray(tokens)
    if ids.dtype.kind not in "iu":
        raise_error("dtype", name="tokens", got=ids.dtype, fits="integer")
    n_chunk, left = divmod(ids.size, n_ctx)
    if not n_chunk or left:
        raise_error("shape", name="tokens", got=ids.shape, fits=f"of a multiple of n_ctx, {n_ctx}")
    rows = n_chunk * _rows(n_ctx)
    n_vocab = written = 0
    with replacing(path) as file:
        for value in logits:
            block = np.asarray(value)
            if not is_float(block.dtype):
                raise_error("dtype", name="logits", got=block.dtype, fits=FLOATS)
            if block.ndim != 2 or not block.shape[1] or n_vocab not in (0, block.shape[1]):
                raise_error("shape", name="a block of logits", got=block.shape, fits=f"(n, {n_vocab or 'V'})")
            if not n_vocab:
                n_vocab = block.shape[1]
                for i in np.flatnonzero((ids < 0) | (ids >= n_vocab))[:1]:
                    raise_error("class", name="tokens", position=f"[{i}]", got=ids.flat[i], fits=f"[0, {n_vocab})")
                file.write(_HEADER.pack(MAGIC, n_ctx, n_vocab, n_chunk))
                file.write(ids.astype("<i4").tobytes())
            written += len(block)
            if written > rows:
                break
            step = max(1, _PIECE // n_vocab)
            for start in range(0, len(block), step):
                piece = block[start : start + step].astype(np.float32)
                file.write(_stored(piece, written - len(block) + start, range_nats).tobytes())
        if written != rows:
            raise_error("shape", name="logits", got=(written, n_vocab), fits=f"({rows}, V): {rows} rows are scored")


def _stored(logits: npt.NDArray[np.float32], start: int, range_nats: int) -> Array:
    """Rows of logits as they are stored; the first row is at `start`."""
    top = logits.max(-1)
    for i in np.flatnonzero(~np.isfinite(top))[:1]:
        raise_error("option", name=f"the largest of logits[{start + i}]", got=float(top[i]), fits="finite")
    least = np.maximum(logits.min(-1), top - np.float32(range_nats))
    log_sum = logsumexp(logits - top[:, None]).astype(np.float32)
    scale = (top - least) / _STEPS
    scale[scale < _MIN_SCALE] = 0
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    with np.errstate(invalid="ignore"):  # of -inf, which is below the least
        q = np.rint(inverse[:, None] * (logits - least[:, None]))
    n, n_vocab = logits.shape
    words = np.zeros((n, _words(n_vocab)), "<u2")
    words[:, :4] = np.stack([scale, least - top - log_sum], -1).astype("<f4").view("<u2")
    words[:, 4 : 4 + n_vocab] = np.where(logits > least[:, None], np.minimum(q, _STEPS), 0)
    return words


FORMAT = Format("logits of llama.cpp", (), MAGIC, open_scores=open_scores)
