"""Sums of losses over sequences: documents, answers, texts of a batch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss import _core, _workers
from tokenloss._dtypes import FLOATS, as_array, bfloat16_to_float32, dtype_name
from tokenloss._errors import raise_error
from tokenloss._exact import ExactMoments, ExactRatio
from tokenloss._validation import check_mask, check_sample_weight
from tokenloss.scores import TokenScores

if TYPE_CHECKING:
    from tokenloss._types import Array, ArrayLike, BoolArray, Float64Array, IntArray


@dataclass(frozen=True, eq=False, repr=False)
class SequenceLosses:
    """Result of `sequence_losses`: sums over each sequence, in arrays of one shape.

    `LossMeter.update` takes it, and then knows which tokens belong together.

    Attributes
    ----------
    ids : array of int64
        Number of each sequence.
    count : array of int64
        Number of its included tokens.
    nll : array of float64
        Sum of their losses in nats, or of weight times loss: minus the log-likelihood of the sequence.
    weight : array of float64 or None
        Sum of their weights; None without `sample_weight`.
    n_bytes, n_words : arrays of int64 or None
        Length of the sequence's text; None if not given.
    is_greedy : array of bool or None
        Whether each included token is the most likely class; False without any. None if losses alone were given.

    Examples
    --------
    >>> from tokenloss import sequence_losses
    >>> sequence_losses([[0.5, 1.5, 1.0], [2.0, 0.0, 0.0]], where=[[True, True, True], [True, False, False]])
    SequenceLosses(sequences=2, tokens=4)
    """

    ids: IntArray
    count: IntArray
    nll: Float64Array
    weight: Float64Array | None
    n_bytes: IntArray | None
    n_words: IntArray | None
    is_greedy: BoolArray | None
    _tokens: ExactRatio = field(default_factory=ExactRatio)  # of all included tokens, each by itself

    @property
    def loss(self) -> Float64Array:
        """The mean loss of each sequence in nats per token; nan without tokens."""
        return _quotient(self.nll, self.count if self.weight is None else self.weight)

    @property
    def perplexity(self) -> Float64Array:
        """``exp(loss)``; inf where that is beyond a float."""
        with np.errstate(over="ignore"):
            return np.exp(self.loss)

    @property
    def bits_per_byte(self) -> Float64Array | None:
        """The sum of the losses in bits over the bytes of the text; None if these are not known."""
        if self.n_bytes is None:
            return None
        with np.errstate(over="ignore"):
            return _quotient(self.nll, self.n_bytes) / math.log(2)

    def to_dict(self) -> dict[str, Array]:
        """Columns of a table that has a row for each sequence.

        Returns
        -------
        dict of 1-D arrays
            By name: the attributes that are known, and `loss`, `perplexity` and `bits_per_byte`.

        Examples
        --------
        >>> from tokenloss import sequence_losses
        >>> sequence_losses([[0.5, 1.5], [2.0, 1.0]]).to_dict()["loss"]
        array([1. , 1.5])
        """
        names = ("ids", "count", "nll", "loss", "perplexity", "weight", "n_bytes", "n_words", "bits_per_byte",
                 "is_greedy")  # fmt: skip
        columns = {name: getattr(self, name) for name in names}
        return {name: column.reshape(-1) for name, column in columns.items() if column is not None}

    def __repr__(self) -> str:
        """Show how many there are."""
        return f"SequenceLosses(sequences={self.ids.size}, tokens={int(self.count.sum())})"


def sequence_losses(
    nll: ArrayLike | TokenScores,
    *,
    where: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    n_bytes: ArrayLike | None = None,
    n_words: ArrayLike | None = None,
) -> SequenceLosses:
    """Exact sums of losses over each sequence: a document, an answer, a text of a batch.

    No bit of a sequence's sum depends on how the batch was padded, packed or ordered.

    Parameters
    ----------
    nll : TokenScores or array of shape (..., T)
        Result of `token_scores`, of which only the included tokens are added up; or losses in nats. Each row along the
        last axis is a sequence, unless `segment_ids` or `cu_seqlens` say otherwise.
    where : array of bool, optional
        Mask of the tokens to include, broadcast over `nll`. An array of losses needs it if some tokens were ignored or
        masked: their losses are 0.0 and would count as perfect.
    segment_ids : array of integers, optional
        Number of the sequence of each token, broadcast over `nll`, in any order. Tokens of negative numbers belong to
        no sequence, and are left out.
    cu_seqlens : array of integers, optional
        Bounds of packed sequences, such as [0, 7, 12] for two of 7 and 5 tokens of ``nll.ravel()``.
    sample_weight : array of floats, optional
        Weight of each token, broadcast over `nll`. Those of weight 0 are left out, as by `where`.
    n_bytes, n_words : arrays of integers, optional
        Length of the text of each sequence, broadcast to the shape of the result.

    Returns
    -------
    SequenceLosses
        With arrays of the batch's shape: that of `nll` without its last axis. With `segment_ids` or `cu_seqlens` they
        have one dimension; `segment_ids` are in ascending order then.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it, what came and what fits.

    See Also
    --------
    LossMeter : Mean loss over all sequences, with a standard error that takes them as they are.

    Notes
    -----
    Sums are those of `math.fsum`. Contiguous losses in float64 are read where they are, without the GIL.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import sequence_losses, token_scores
    >>> logits = np.log([[[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]], [[0.3, 0.3, 0.4], [0.5, 0.4, 0.1]]])
    >>> answers = sequence_losses(token_scores(logits, [[0, 1], [2, 1]]), n_bytes=[3, 5])
    >>> answers.nll.round(4), answers.bits_per_byte.round(4), answers.is_greedy
    (array([0.5798, 1.8326]), array([0.2788, 0.5288]), array([ True, False]))
    """
    losses, kept, is_greedy = _tokens(nll)
    shape = losses.shape
    if not shape:
        raise_error("shape", name="nll", got=(), fits="(..., T)")
    if where is not None:
        mask = check_mask(where, shape)
        kept = mask if kept is None else kept & mask
    weight = None if sample_weight is None else check_sample_weight(sample_weight, shape)
    if weight is not None:
        kept = weight != 0 if kept is None else kept & (weight != 0)
    layout = _layout(shape, segment_ids, cu_seqlens)
    lengths = [_text_lengths(name, value, layout.batch) for name, value in (("n_bytes", n_bytes), ("n_words", n_words))]
    return _sums({"nll": losses, "weight": weight, "kept": kept, "is_greedy": is_greedy}, layout, *lengths)


def sums_by_segment(losses: Array, is_greedy: Array, numbers: Array) -> SequenceLosses:
    """As `sequence_losses`, of tokens that all count, with the numbers of their sequences."""
    tokens = {"nll": losses, "weight": None, "kept": None, "is_greedy": is_greedy}
    return _sums(tokens, _layout(losses.shape, numbers, None), None, None)


def _sums(
    tokens: dict[str, Array | None], layout: _Layout, n_bytes: IntArray | None, n_words: IntArray | None
) -> SequenceLosses:
    """Sums over sequences, by the core."""
    batch = layout.batch
    count, greedy = np.zeros(batch, np.int64), np.zeros(batch, np.bool_)
    nll, weight = np.zeros(batch), np.zeros(batch)
    results: dict[str, Array] = {"count": count, "nll": nll, "weight": weight, "is_greedy": greedy.view(np.uint8)}
    flat = {name: _flat(array) for name, array in tokens.items()}
    results = {name: array.reshape(-1) for name, array in results.items()}
    job = _core.SequenceSums(flat, layout.first, layout.start, layout.stop, results)
    _workers.run(job, None)
    losses, weights, products = job.totals()
    of_tokens = ExactRatio.of_equals(ExactMoments(int(count.sum()), *losses))
    if tokens["weight"] is not None:
        of_tokens = ExactRatio(of_tokens.numerators, ExactMoments(of_tokens.count, *weights), products)
    return SequenceLosses(
        layout.ids, count, nll, weight if tokens["weight"] is not None else None, n_bytes, n_words,
        greedy if tokens["is_greedy"] is not None else None, of_tokens,
    )  # fmt: skip


def next_token(logits: Any, ids: Any, attention_mask: Any = None) -> tuple[Any, Any, Any]:
    """Logits of a causal model and the ids that they predict: the logits at position j are those of token j + 1.

    Parameters
    ----------
    logits : array of shape (..., T, V)
        Logits of the model, for each of its input tokens: an array or a tensor of any library.
    ids : array of integers of shape (..., T)
        Its input ids.
    attention_mask : array of shape (..., T), optional
        Its mask: 1 or True for tokens, 0 or False for padding, at either end.

    Returns
    -------
    logits : array of shape (..., T - 1, V)
        Those that predict a token; a view.
    targets : array of integers of shape (..., T - 1)
        The tokens that they predict; a view.
    where : array of bool of shape (..., T - 1), or None
        Where both tokens are no padding: the argument `where` of all functions. None without a mask.

    Raises
    ------
    TypeError, ValueError
        If an argument is no array, or their shapes do not fit together.

    See Also
    --------
    token_scores : Takes all three.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import next_token
    >>> logits, ids = np.zeros((2, 4, 10)), np.array([[5, 6, 7, 8], [3, 4, 0, 0]])
    >>> logits, targets, where = next_token(logits, ids, [[1, 1, 1, 1], [1, 1, 0, 0]])
    >>> targets[where]
    array([6, 7, 8, 4])
    """
    logits, ids = (np.asarray(value) if isinstance(value, list | tuple) else value for value in (logits, ids))
    shapes = []
    for name, value in (("logits", logits), ("ids", ids)):
        if not hasattr(value, "shape"):
            raise_error("array", name=name, got=type(value).__name__)
        shapes.append(tuple(value.shape))
    if len(shapes[0]) < 2:
        raise_error("shape", name="logits", got=shapes[0], fits="(..., T, V)")
    if shapes[1] != shapes[0][:-1]:
        raise_error("shape", name="ids", got=shapes[1], fits=f"{shapes[0][:-1]}, to fit logits")
    if attention_mask is None:
        return logits[..., :-1, :], ids[..., 1:], None
    mask = np.asarray(attention_mask) if isinstance(attention_mask, list | tuple) else attention_mask
    if tuple(getattr(mask, "shape", ())) != shapes[1]:
        got = tuple(getattr(mask, "shape", ()))
        raise_error("shape", name="attention_mask", got=got, fits=f"{shapes[1]}, to fit ids")
    is_token = mask != 0
    return logits[..., :-1, :], ids[..., 1:], is_token[..., :-1] & is_token[..., 1:]


def _quotient(numerator: Array, denominator: Array) -> Float64Array:
    """Quotients, nan over 0."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient: Float64Array = np.where(denominator == 0, np.nan, numerator / denominator)
    return quotient


def _tokens(nll: ArrayLike | TokenScores) -> tuple[Array, Array | None, Array | None]:
    """Losses as float64, and what is known of each: whether it is included, and whether it is the likeliest class."""
    if isinstance(nll, TokenScores):
        return nll.nll, nll.kept, nll.is_greedy
    array, code = as_array("nll", nll)
    if code is None:
        raise_error("dtype", name="nll", got=array.dtype, fits=FLOATS)
    if code == _core.DTYPES["bfloat16"]:
        array = bfloat16_to_float32(array)
    with np.errstate(invalid="ignore"):  # a nan that signals is a nan
        return array.astype(np.float64, copy=False), None, None


def _flat(array: Array | None) -> Array | None:
    """One dimension of contiguous, aligned numbers, those of bool as uint8; a copy only where they do not lie so."""
    if array is None:
        return None
    flat: Array = np.require(array, requirements=["C", "A"]).reshape(-1)
    return flat.view(np.uint8) if flat.dtype == np.bool_ else flat


# -- which tokens make a sequence --------------------------------------------------------------------------------------


class _Layout(NamedTuple):
    """Which tokens make each sequence."""

    batch: tuple[int, ...]
    ids: IntArray
    first: IntArray  # sequence i is made of the runs of tokens [first[i], first[i + 1])
    start: IntArray  # where each run starts, and stops
    stop: IntArray


def _layout(shape: tuple[int, ...], segment_ids: Any, cu_seqlens: Any) -> _Layout:
    """The sequences of tokens of this shape."""
    if segment_ids is not None:
        if cu_seqlens is not None:
            raise_error("together", name="segment_ids", got="cu_seqlens")
        return _segments(check_segment_ids(segment_ids, shape))
    if cu_seqlens is not None:
        offsets = check_offsets(cu_seqlens, math.prod(shape))
        batch: tuple[int, ...] = (len(offsets) - 1,)
    else:
        batch = shape[:-1]
        offsets = np.arange(math.prod(batch) + 1) * shape[-1]
    first = np.arange(math.prod(batch) + 1)
    return _Layout(batch, first[:-1].reshape(batch), first, offsets[:-1], offsets[1:])


def _segments(segment_ids: IntArray) -> _Layout:
    """The sequences of tokens that have the numbers of theirs."""
    numbers = np.ascontiguousarray(segment_ids).reshape(-1)
    start = np.empty(0, np.int64)
    while (runs := _core.starts_of_runs(numbers, start)) > start.size:
        start = np.empty(runs, np.int64)
    start = start[:runs]  # fewer if the numbers changed meanwhile
    stop = np.append(start[1:], numbers.size)[: start.size]
    order = np.argsort(numbers[start], kind="stable")
    order = order[np.searchsorted(numbers[start], 0, sorter=order) :]  # negative numbers are of no sequence
    start, stop = start[order], stop[order]
    ids, first = np.unique(numbers[start], return_index=True)
    return _Layout(ids.shape, ids, np.append(first, start.size), start, stop)


def check_segment_ids(value: Any, shape: tuple[int, ...], name: str = "segment_ids") -> Array:
    """Numbers of sequences as int64, broadcast over tokens of this shape."""
    array = _integers(name, value)
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise_error("shape", name=name, got=array.shape, fits=f"{shape}, or broadcast to it")


def check_offsets(value: Any, size: int, name: str = "cu_seqlens") -> Array:
    """Bounds of sequences that fill so many tokens."""
    offsets = np.array(_integers(name, value), order="C")  # a copy, lest they change after they were checked
    if offsets.ndim != 1:
        raise_error("shape", name=name, got=offsets.shape, fits="(G + 1,), for G sequences")
    if not offsets.size or offsets[0] != 0:
        raise_error("option", name=f"{name}[0]", got=int(offsets[0]) if offsets.size else "nothing", fits="0")
    falls = np.flatnonzero(offsets[1:] < offsets[:-1])
    if falls.size:
        at = int(falls[0]) + 1
        fits = f"at least {offsets[at - 1]}, the one before"
        raise_error("option", name=f"{name}[{at}]", got=int(offsets[at]), fits=fits)
    if offsets[-1] != size:
        raise_error("option", name=f"{name}[-1]", got=int(offsets[-1]), fits=f"{size}, the number of tokens")
    return offsets


def _text_lengths(name: str, value: Any, batch: tuple[int, ...]) -> Array | None:
    """Length of the text of each sequence."""
    if value is None:
        return None
    array = _integers(name, value)
    bad = np.argwhere(array < 0)
    if len(bad):
        raise_error("option", name=f"{name}{bad[0].tolist() or ''}", got=int(array[tuple(bad[0])]), fits="at least 0")
    try:
        return np.broadcast_to(array, batch).copy()
    except ValueError:
        raise_error("shape", name=name, got=array.shape, fits=f"{batch}, one for each sequence")


def _integers(name: str, value: Any) -> Array:
    """An array of integers as int64."""
    array, code = as_array(name, value, "an integer")
    if array.size == 0 and isinstance(value, list | tuple):  # an empty list has no dtype of its own
        return array.astype(np.int64)
    if array.dtype.kind not in "iu" or dtype_name(code, array) == "bfloat16":
        raise_error("dtype", name=name, got=dtype_name(code, array), fits="an integer")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise_error("option", name=name, got=int(array.max()), fits=f"at most {np.iinfo(np.int64).max}")
    return array.astype(np.int64, copy=False)
