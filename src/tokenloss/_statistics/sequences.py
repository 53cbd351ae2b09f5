"""Sums of losses over sequences: documents, answers, texts of a batch."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core import _core, threads
from tokenloss._core.dtypes import as_array, bfloat16_to_float32, dtype_name, refuse_container, refuse_dtype
from tokenloss._core.errors import labels_to_ids, raise_error
from tokenloss._core.estimate import Errors, Estimate
from tokenloss._core.exact import ExactMoments, exp
from tokenloss._core.result import Result, Shown, rows_of
from tokenloss._core.validation import broadcast, check_losses, check_mask, check_sample_weight
from tokenloss._scores.token_scores import TokenScores
from tokenloss._statistics.ratio import ExactRatio

if TYPE_CHECKING:
    from tokenloss._core.types import Array, ArrayLike, BoolArray, Float64Array, IntArray

_MAX_SHOWN = 5  # sequences of the highest losses


@dataclass(frozen=True, eq=False, repr=False)
class SequenceLosses(Result):
    """Result of `sequence_losses`: sums over each sequence, in arrays of one shape.

    Given to `LossMeter.update`, standard errors are clustered by sequence.

    Attributes
    ----------
    sequence : array of int64
        Index of each sequence, or its number in `segment_ids`.
    count : array of int64
        Number of its included tokens.
    nll : array of float64
        Sum of their losses in nats, or of weight times loss: minus the log-likelihood of the sequence.
    sample_weight : array of float64 or None
        Sum of their weights; None without `sample_weight`.
    n_bytes, n_words : arrays of int64 or None
        Length of the sequence's text; None if not given.
    is_greedy : array of bool or None
        Whether every included token is the most likely class; False without tokens. None if only losses were given.

    Examples
    --------
    >>> from tokenloss import sequence_losses
    >>> sequence_losses([[0.5, 1.5, 1.0], [2.0, 0.0, 0.0]], where=[[True, True, True], [True, False, False]])
    SequenceLosses(n_sequences=2, count=[3 1], loss=[1.0000 2.0000])
    """

    sequence: IntArray
    count: IntArray
    nll: Float64Array
    sample_weight: Float64Array | None
    n_bytes: IntArray | None
    n_words: IntArray | None
    is_greedy: BoolArray | None
    _tokens: ExactRatio = field(default_factory=ExactRatio)  # exact sums over all included tokens, for `LossMeter`

    @property
    def loss(self) -> Float64Array:
        """The mean loss of each sequence in nats per token; nan without tokens."""
        return _quotient(self.nll, self.count if self.sample_weight is None else self.sample_weight)

    @property
    def perplexity(self) -> Float64Array:
        """``exp(loss)``; inf where that is beyond a float."""
        with np.errstate(over="ignore"):
            return np.exp(self.loss)

    @property
    def bits_per_byte(self) -> Float64Array | None:
        """The sum of each sequence's losses in bits over the bytes of its text; None if these are not known."""
        if self.n_bytes is None:
            return None
        with np.errstate(over="ignore"):
            return _quotient(self.nll, self.n_bytes) / math.log(2)

    def columns(self) -> dict[str, Array]:
        """Return the columns of a table that has a row for each sequence.

        Returns
        -------
        dict of 1-D arrays
            By name: the known attributes, and `loss`, `perplexity` and `bits_per_byte`.

        Examples
        --------
        >>> from tokenloss import sequence_losses
        >>> sequence_losses([[0.5, 1.5], [2.0, 1.0]]).columns()["loss"]
        array([1. , 1.5])
        """
        names = ("sequence", "count", "nll", "loss", "perplexity", "sample_weight", "n_bytes", "n_words",
                 "bits_per_byte", "is_greedy")  # fmt: skip
        columns = {name: getattr(self, name) for name in names}
        return {name: column.reshape(-1) for name, column in columns.items() if column is not None}

    @property
    def n_sequences(self) -> int:
        """The number of sequences, including those without tokens."""
        return self.sequence.size

    def _main(self) -> dict[str, str]:
        def text(array: Array, decimals: int) -> str:
            return np.array2string(
                array.reshape(-1), threshold=4, edgeitems=2, floatmode="fixed", precision=decimals, max_line_width=200
            )

        return {"n_sequences": str(self.n_sequences), "count": text(self.count, 0), "loss": text(self.loss, 4)}

    def _facts(self) -> dict[str, Any]:
        sums, tokens = self._groups(), self._tokens
        facts = {"n_sequences": self.n_sequences, "count": int(self.count.sum()), "loss": tokens.ratio}
        facts |= {"stderr": (sums if sums.count > 1 else tokens).stderr, "perplexity": exp(tokens.ratio)}
        lengths = {"n_bytes": self.n_bytes, "n_words": self.n_words}
        return facts | {name: int(array.sum()) for name, array in lengths.items() if array is not None}

    def _groups(self) -> ExactRatio:
        """Sums over the sequences with at least one token."""
        columns = self.columns()
        mask, tokens = columns["count"] > 0, columns.get("sample_weight", columns["count"])
        return ExactRatio.of(columns["nll"][mask], tokens[mask].astype(np.float64))

    def _shown(self) -> Shown:
        from tokenloss._statistics.tables import sequence_tables

        columns = {name: column[self.count.reshape(-1) > 0] for name, column in self.columns().items()}
        chosen = highest(columns["loss"], _MAX_SHOWN)
        items = rows_of({name: column[chosen] for name, column in columns.items()})
        facts = self._facts()
        facts["loss"] = Estimate(facts["loss"], Errors(facts["stderr"]))
        return Shown("sequence losses", "", sequence_tables(facts, items))


SequenceLosses.__module__ = "tokenloss.results"


def highest(loss: Float64Array, top: int) -> IntArray:
    """The indices of the highest losses; nan counts as highest."""
    return np.argsort(-np.where(np.isnan(loss), np.inf, loss), kind="stable")[:top]


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
    """Sum losses exactly over each sequence, such as a document, an answer or a text of a batch.

    A sequence's sum is bitwise identical however the batch was padded, packed or ordered.

    Parameters
    ----------
    nll : TokenScores or array of shape (T,), (N, T) or (N, ...)
        The result of `token_scores`, from which only the included tokens are added up; or losses in nats, as
        `LossMeter.update` takes them. Each of the N elements of the first axis is a sequence, such as a text or the
        pixels of an image, unless `segment_ids` or `cu_seqlens` say otherwise. If each element has several texts,
        ``nll.reshape(-1, T)`` makes each text a sequence.
    where : array of bool, optional
        Mask of the tokens to include, broadcast over `nll`. An array of losses needs it if some tokens were ignored or
        masked: their losses are 0.0 and would count as perfect, or nan, which would make the mean nan.
    segment_ids : array of integers, optional
        Number of the sequence of each token, broadcast over `nll`, in any order. Tokens with negative numbers belong to
        no sequence, and are left out.
    cu_seqlens : array of integers, optional
        Bounds of packed sequences, such as [0, 7, 12] for two of 7 and 5 tokens of ``nll.ravel()``.
    sample_weight : array of floats, optional
        Weight of each token, broadcast over `nll`: from 0 to 1e100. Tokens with weight 0 are left out, as with `where`.
    n_bytes, n_words : arrays of integers, optional
        Length of the text of each sequence (with `segment_ids`, in ascending order of these), broadcast to the shape of
        the result. A single number is the length of a single sequence.

    Returns
    -------
    SequenceLosses
        With arrays of shape (N,), or () for a single sequence (T,). With `segment_ids` or `cu_seqlens` they have one
        dimension; each number in `segment_ids` then occurs once, in ascending order.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names the argument, the value given and what is accepted.

    See Also
    --------
    LossMeter : Mean loss over all sequences, with a standard error that is clustered by sequence.

    Notes
    -----
    Sums are exact and rounded once, like `math.fsum`; a sum too large for a float is inf. Contiguous losses in
    float64 are read without a copy, and without the GIL.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import sequence_losses, token_scores
    >>> logits = np.log([[[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]], [[0.3, 0.3, 0.4], [0.5, 0.4, 0.1]]])
    >>> answers = sequence_losses(token_scores(logits, [[0, 1], [2, 1]]), n_bytes=[3, 5])
    >>> answers.nll.round(4), answers.bits_per_byte.round(4), answers.is_greedy
    (array([0.5798, 1.8326]), array([0.2788, 0.5288]), array([ True, False]))
    """
    tokens = known_tokens(nll, where, sample_weight)
    shape = tokens["nll"].shape
    if not shape:
        raise_error("shape", name="nll", got=(), fits="(T,) or (N, ...)")
    layout = _layout(shape, segment_ids, cu_seqlens)
    lengths = [_text_lengths(name, value, layout.batch) for name, value in (("n_bytes", n_bytes), ("n_words", n_words))]
    return _sums(tokens, layout, *lengths)


def sums_by_segment(
    losses: Array, is_greedy: Array | None, numbers: Array, n_bytes: Array | None = None
) -> SequenceLosses:
    """Sums over sequences of tokens that are all included, given the number of each token's sequence, and its bytes.

    With bytes, each token must belong to a sequence. Unlike `sequence_losses`, it takes any numbers, such as the
    differences of losses.
    """
    tokens = {"nll": losses, "weight": None, "mask": None, "is_greedy": is_greedy}
    layout = _layout(losses.shape, numbers, None)
    if n_bytes is not None:
        n_bytes = np.bincount(np.searchsorted(layout.ids, numbers), n_bytes, len(layout.ids)).astype(np.int64)
    return _sums(tokens, layout, n_bytes, None)


def _sums(
    tokens: dict[str, Any], layout: _Layout, n_bytes: IntArray | None, n_words: IntArray | None
) -> SequenceLosses:
    """Sums over sequences, by the core."""
    batch = layout.batch
    count, greedy = np.zeros(batch, np.int64), np.zeros(batch, np.bool_)
    nll, weight = np.zeros(batch), np.zeros(batch)
    results: dict[str, Array] = {"count": count, "nll": nll, "weight": weight, "is_greedy": greedy.view(np.uint8)}
    flat: dict[str, Any] = {name: None if array is None else _flat(array) for name, array in tokens.items()}
    results = {name: array.reshape(-1) for name, array in results.items()}
    job = _core.SequenceSums(flat, layout.first, layout.start, layout.stop, results)
    threads.run(job, None)
    losses, weights, products = job.totals()
    by_token = ExactRatio.from_mean(ExactMoments(int(count.sum()), *losses))
    if tokens["weight"] is not None:
        changes = np.zeros(flat["nll"].size + 1, np.int64)  # at each token, of how many sequences hold it
        np.add.at(changes, layout.start, 1)
        np.subtract.at(changes, layout.stop, 1)
        included = flat["weight"][(np.cumsum(changes[:-1]) > 0) & (flat["mask"] != 0)]
        sums = ExactMoments(by_token.count, *weights)
        by_token = ExactRatio.from_sums(by_token.numerators, sums, products, included)
    return SequenceLosses(
        layout.ids, count, nll, weight if tokens["weight"] is not None else None, n_bytes, n_words,
        greedy if tokens["is_greedy"] is not None else None, by_token,
    )  # fmt: skip


def next_token(logits: Any, ids: Any, attention_mask: Any = None) -> tuple[Any, Any, Any]:
    """Align a causal model's logits with the ids that they predict: position j predicts token j + 1.

    Parameters
    ----------
    logits : array of shape (..., T, V)
        Logits of the model for each of its input tokens: an array or a tensor of any library.
    ids : array of integers of shape (..., T)
        Input ids of the model.
    attention_mask : array of shape (..., T), optional
        Mask of the input ids: 0 or False for padding, and 1 or True for other tokens. For texts packed into one
        row, the number of each token's text, such as [1, 1, 1, 2, 2, 0]: no text predicts the first token of the next.

    Returns
    -------
    logits : array of shape (..., T - 1, V)
        Logits that predict a token; a view.
    targets : array of integers of shape (..., T - 1)
        Ids of the predicted tokens; a view.
    where : array of bool of shape (..., T - 1), or None
        True where the token and the one before it belong to the same text, not to padding: the argument `where` of all
        functions. None without a mask.

    Raises
    ------
    TypeError, ValueError
        If an argument is not an array, their shapes do not fit together, or the mask contains a negative number, a
        fraction or nan.

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
            refuse_container(name, value)
            raise_error("array", name=name, got=type(value).__name__)
        shapes.append(tuple(value.shape))
    if len(shapes[0]) < 2:
        raise_error("shape", name="logits", got=shapes[0], fits="(..., T, V)")
    if shapes[1] != shapes[0][:-1]:
        raise_error("shape", name="ids", got=shapes[1], fits=f"{shapes[0][:-1]}, to fit logits")
    if attention_mask is None:
        return logits[..., :-1, :], ids[..., 1:], None
    mask = np.asarray(attention_mask) if isinstance(attention_mask, list | tuple) else attention_mask
    mask_shape = tuple(getattr(mask, "shape", ()))
    if mask_shape != shapes[1]:
        raise_error("shape", name="attention_mask", got=mask_shape, fits=f"{shapes[1]}, to fit ids")
    with np.errstate(invalid="ignore"):  # of nan and infinity
        is_wrong = (mask < 0) | (mask % 1 != 0)  # such as what is added to attention scores, which is 0 for tokens
    if bool(is_wrong.any()):
        fits = "1 for tokens and 0 for padding, or the number of each token's text"
        raise_error("option", name="attention_mask", got=float(mask[is_wrong][0]), fits=fits)
    return logits[..., :-1, :], ids[..., 1:], (mask[..., :-1] == mask[..., 1:]) & (mask[..., 1:] != 0)


def _quotient(numerator: Array, denominator: Array) -> Float64Array:
    """Quotients, nan over 0."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient: Float64Array = np.where(denominator == 0, np.nan, numerator / denominator)
    return quotient


def known_tokens(
    nll: ArrayLike | TokenScores, where: ArrayLike | None, sample_weight: ArrayLike | None
) -> dict[str, Any]:
    """Checked arrays of one shape by name: nll in float64, and weight, mask and is_greedy, which may be None."""
    mask = is_greedy = None
    if isinstance(nll, TokenScores):
        losses, mask, is_greedy = nll.nll, nll.kept, nll.is_greedy
    else:
        losses = _as_losses(nll)
    weight = None if sample_weight is None else check_sample_weight(sample_weight, losses.shape)
    masks = [] if mask is None else [mask]
    masks += [] if where is None else [check_mask(where, losses.shape)]
    masks += [] if weight is None else [weight != 0]
    mask = functools.reduce(np.logical_and, masks) if masks else None
    check_losses(losses, True if mask is None else mask)
    return {"nll": losses, "weight": weight, "mask": mask, "is_greedy": is_greedy}


def _as_losses(nll: ArrayLike) -> Array:
    """An array of losses as float64."""
    array, code = as_array("nll", nll)
    if code is None or array.dtype == np.bool_:
        refuse_dtype("nll", nll, array.dtype)
    if code == _core.DTYPES["bfloat16"]:
        array = bfloat16_to_float32(array)
    with np.errstate(invalid="ignore"):  # a nan that signals is a nan
        return array.astype(np.float64, copy=False)


def _flat(array: Array) -> Array:
    """The array in one dimension, contiguous and aligned, bool as uint8; copied only if it has another layout."""
    flat: Array = np.require(array, requirements=["C", "A"]).reshape(-1)
    return flat.view(np.uint8) if flat.dtype == np.bool_ else flat


# -- which tokens make a sequence --------------------------------------------------------------------------------------


class _Layout(NamedTuple):
    """The tokens of each sequence."""

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
        batch = shape[: min(1, len(shape) - 1)]
        offsets = np.arange(math.prod(batch) + 1, dtype=np.int64) * math.prod(shape[len(batch) :])
    first = np.arange(math.prod(batch) + 1, dtype=np.int64)
    return _Layout(batch, first[:-1].reshape(batch), first, offsets[:-1], offsets[1:])


def _segments(segment_ids: IntArray) -> _Layout:
    """The sequences of tokens, given the number of each token's sequence."""
    numbers = _flat(segment_ids)
    start = np.empty(_core.starts_of_runs(numbers, np.empty(0, np.int64)), np.int64)
    start = start[: _core.starts_of_runs(numbers, start)]  # fewer if the numbers changed meanwhile
    stop = np.append(start[1:], numbers.size)[: start.size]
    run_numbers = numbers[start]
    order = np.argsort(run_numbers, kind="stable")
    order = order[run_numbers[order] >= 0]  # negative numbers are of no sequence
    ids, first = np.unique(run_numbers[order], return_index=True)
    return _Layout(ids.shape, ids, np.append(first, order.size).astype(np.int64), start[order], stop[order])


def sequence_numbers(segment_ids: Any, cu_seqlens: Any, shape: tuple[int, ...]) -> IntArray | None:
    """The number of the sequence of each token, flat, if sequences are given in either way; otherwise None."""
    if cu_seqlens is None:
        return None if segment_ids is None else check_segment_ids(segment_ids, shape).flatten()
    if segment_ids is not None:
        raise_error("together", name="segment_ids", got="cu_seqlens")
    lengths = np.diff(check_offsets(cu_seqlens, math.prod(shape)))
    return np.repeat(np.arange(lengths.size), lengths)


def places_of(segment_ids: IntArray) -> dict[str, Array]:
    """Columns with each token's sequence, given its number, and its place in it; both are -1 outside any sequence."""
    order = np.argsort(segment_ids, kind="stable")
    ordered = segment_ids[order]
    position = np.empty_like(order)
    position[order] = np.arange(order.size) - np.searchsorted(ordered, ordered)
    return {"sequence": np.maximum(segment_ids, -1), "position": np.where(segment_ids < 0, -1, position)}


def check_segment_ids(value: Any, shape: tuple[int, ...]) -> Array:
    """Numbers of sequences as int64, broadcast over tokens of this shape."""
    return broadcast("segment_ids", _integers("segment_ids", value), shape)


def check_offsets(value: Any, size: int) -> Array:
    """Bounds of the sequences that make up `size` tokens."""
    offsets = np.array(_integers("cu_seqlens", value), order="C")  # a copy: another thread may change them
    if offsets.ndim != 1 or not offsets.size:
        raise_error("shape", name="cu_seqlens", got=offsets.shape, fits="(G + 1,), for G sequences")
    if offsets[0] != 0:
        raise_error("option", name="cu_seqlens[0]", got=int(offsets[0]), fits="0")
    falls = np.flatnonzero(offsets[1:] < offsets[:-1])
    if falls.size:
        at = int(falls[0]) + 1
        fits = f"at least {offsets[at - 1]}, the one before"
        raise_error("option", name=f"cu_seqlens[{at}]", got=int(offsets[at]), fits=fits)
    if offsets[-1] != size:
        raise_error("option", name="cu_seqlens[-1]", got=int(offsets[-1]), fits=f"{size}, the number of tokens")
    return offsets


def _text_lengths(name: str, value: Any, batch: tuple[int, ...]) -> Array | None:
    """Length of the text of each sequence, or None."""
    if value is None:
        return None
    array = check_lengths(name, value)
    if array.size == 1 < math.prod(batch):  # it may be the length of all texts, or of each
        raise_error("shape", name=name, got=array.shape, fits=f"{batch}, one for each sequence")
    return broadcast(name, array, batch).copy()


def check_lengths(name: str, value: Any) -> IntArray:
    """Lengths of texts."""
    array: IntArray = _integers(name, value)
    bad = np.argwhere(array < 0)
    if len(bad):
        raise_error("option", name=f"{name}{bad[0].tolist() or ''}", got=int(array[tuple(bad[0])]), fits="at least 0")
    return array


def _integers(name: str, value: Any) -> Array:
    """An array of integers as int64."""
    array, code = as_array(name, value, "an integer")
    if array.size == 0 and isinstance(value, list | tuple):  # an empty list has no dtype of its own
        return array.astype(np.int64)
    if array.dtype.kind not in "iu" or dtype_name(code, array) == "bfloat16":
        is_text = array.dtype.kind in "OSTU" and name == "segment_ids"
        fits = "an integer" + f"; pass labels as {labels_to_ids(name)}" * is_text
        raise_error("dtype", name=name, got=dtype_name(code, array), fits=fits)
    for place in np.argwhere(array > np.iinfo(np.int64).max)[:1].tolist() if array.dtype == np.uint64 else ():
        got, fits = int(array[tuple(place)]), f"at most {np.iinfo(np.int64).max}"
        raise_error("option", name=f"{name}{place or ''}", got=got, fits=fits)
    return array.astype(np.int64, copy=False)
