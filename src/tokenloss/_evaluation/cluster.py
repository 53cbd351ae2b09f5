"""Losses of Dask arrays by blocks, and of files by shards, on as many machines as Dask has."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from tokenloss._core import threads
from tokenloss._core.errors import contextmanager, raise_bad_class, raise_error
from tokenloss._core.exact import UNIT, ExactMoments, quotient
from tokenloss._core.validation import (
    as_positions,
    as_scores,
    check_axis,
    check_reduction,
    check_sample_weight,
    loss_options,
)
from tokenloss._scores.losses import cross_entropy as _cross_entropy
from tokenloss._statistics.meter import LossMeter
from tokenloss._statistics.ratio import ExactRatio
from tokenloss._statistics.sequences import sequence_losses

try:
    import dask.array as da
except ImportError:
    raise_error("missing", name="tokenloss.dask", got="dask[distributed]")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Literal

    from tokenloss._core import _core
    from tokenloss._core.types import Array, ArrayLike  # arrays of Dask count as these


_TOTAL = operator.attrgetter("numerators.sum")  # the loss by "sum"
_MERGED_AT_ONCE = 32  # meters; Dask adds objects up by their `+`, in a tree

ShardT = TypeVar("ShardT")
ResultT = TypeVar("ResultT")


def score(
    logits: da.Array,
    targets: ArrayLike,
    *,
    axis: int = -1,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    workers: int | None = 1,
) -> LossMeter:
    """Add up the cross-entropy of logits in a meter, wherever Dask computes: on threads or on a cluster.

    Each block of rows becomes losses on the machine that holds it, these become meters, and meters are added in a
    tree, so that only one reaches the caller. It is bitwise identical to the meter from one machine, however the arrays
    are cut into chunks. Each row (..., T) of the batch is a sequence, by which errors are clustered, as in
    `sequence_losses`; in a batch of one axis, tokens are assumed independent.

    Parameters
    ----------
    logits : dask array of shape (..., V)
        As in `tokenloss.dask.cross_entropy`.
    targets, where, sample_weight : dask arrays or arrays
        As in `tokenloss.cross_entropy`.
    axis, ignore_index, label_smoothing, z_loss, logit_scale, softcap
        As in `tokenloss.cross_entropy`.
    workers : int or None, default 1
        As in `tokenloss.dask.cross_entropy`.

    Returns
    -------
    LossMeter
        The meter of the included positions. There is no `weight` here, since a meter does not record classes.

    Raises
    ------
    IndexError, TypeError, ValueError
        As in `tokenloss.dask.cross_entropy`.

    See Also
    --------
    tokenloss.dask.cross_entropy : The loss of each position, lazily.

    Examples
    --------
    >>> import dask.array as da
    >>> from tokenloss.dask import score
    >>> logits = da.random.default_rng(0).standard_normal((1000, 500), chunks=(100, 200))
    >>> score(logits, da.zeros(1000, dtype=int)).count
    1000
    """
    options: dict[str, Any] = {
        "axis": axis, "ignore_index": ignore_index, "label_smoothing": label_smoothing, "z_loss": z_loss,
        "logit_scale": logit_scale, "softcap": softcap, "workers": workers,
    }  # fmt: skip
    positions, sample_weight = _checked(logits, targets, where, None, sample_weight, **options)
    batch = positions.batch
    kept = da.ones(batch, dtype=np.bool_) if where is None else da.broadcast_to(where, batch)
    if sample_weight is not None:
        kept = kept & (sample_weight != 0)
    nll = cross_entropy(logits, targets, where=kept, reduction="none", **options)
    if positions.by_class and ignore_index is not None:
        kept = kept & (targets != ignore_index)
    if len(batch) > 1:  # each sequence must be in one chunk: only its losses are moved, not its logits
        nll = nll.rechunk(dict.fromkeys(range(1, len(batch)), -1))
    axes = tuple(range(len(batch)))
    arrays: list[Any] = [nll, axes, _rechunk(kept, nll.chunks), axes]
    weights = None if sample_weight is None else _rechunk(da.broadcast_to(sample_weight, batch), nll.chunks)
    arrays += [weights, None if weights is None else axes, *_starts(nll.chunks, axes)]
    meters = da.blockwise(
        _meter, axes, *arrays, align_arrays=False, adjust_chunks=dict.fromkeys(axes, 1), dtype=object,
        meta=np.empty((0,) * len(batch), object),
    )  # fmt: skip
    meter: LossMeter = meters.sum(split_every=_MERGED_AT_ONCE).compute()
    return meter


def cross_entropy(
    logits: da.Array,
    targets: ArrayLike,
    *,
    axis: int = -1,
    weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
    workers: int | None = 1,
) -> da.Array:
    """Compute the cross-entropy of logits lazily, as a Dask array.

    The result is bitwise equal to that of `tokenloss.cross_entropy` for the same arrays in memory.

    Parameters
    ----------
    logits : dask array of shape (..., V)
        Logits (unnormalized log-probabilities): float16, bfloat16, float32 or float64, in chunks of any sizes. Where
        the classes are in several chunks, Dask moves them together, in blocks of its option ``array.chunk-size``.
    targets, where, sample_weight : dask arrays or arrays
        As in `tokenloss.cross_entropy`.
    workers : int or None, default 1
        Number of threads for each block. Dask computes as many blocks at once as a machine's worker has threads, and
        none of them waits for the GIL, so one thread for each block uses them all. With None, the number is the default
        of `tokenloss.cross_entropy`.
    axis, weight, ignore_index, label_smoothing, z_loss, logit_scale, softcap, reduction
        As in `tokenloss.cross_entropy`.

    Returns
    -------
    dask array of float64
        The loss in nats: without dimensions, or for "none" of the batch's shape, in the chunks of `logits`.

    Raises
    ------
    IndexError
        If an included target is out of range, while blocks are computed. The message names its position in the whole
        array.
    TypeError, ValueError
        If an argument is invalid, before anything is computed; for integer distributions that are not one-hot, while
        blocks are computed.

    See Also
    --------
    tokenloss.dask.score : The mean loss with its standard error, perplexity and more.

    Examples
    --------
    >>> import dask.array as da
    >>> from tokenloss.dask import cross_entropy
    >>> logits = da.from_array([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]], chunks=(1, 2))
    >>> cross_entropy(logits, [0, 1], reduction="none").compute().round(6)
    array([0.407606, 0.094923])
    """
    each = check_reduction(reduction) == "none"
    result: da.Array = _by_block(
        _losses if each else _sums, logits, targets, axis=axis, where=where, weight=weight, sample_weight=sample_weight,
        ignore_index=ignore_index, label_smoothing=label_smoothing, z_loss=z_loss, logit_scale=logit_scale,
        softcap=softcap, workers=workers, is_mean=reduction == "mean",
    )  # fmt: skip
    if each:
        result = result.squeeze(axis)
    else:
        sums = result.sum(split_every=_MERGED_AT_ONCE)
        result = da.map_blocks(_mean if reduction == "mean" else _TOTAL, sums, dtype=np.float64, meta=np.empty(()))
    return result


def _checked(
    logits: Any, targets: Any, where: Any, weight: Any, sample_weight: Any, *, axis: int, **options: Any
) -> tuple[_core.Positions, Any]:
    """Check all arguments, with zeros in place of Dask arrays; return the positions, and their weights."""
    if not isinstance(logits, da.Array):
        raise_error("type", name="logits", got=type(logits).__name__, fits="a Dask array")
    scores = as_scores("logits", _meta_zeros("logits", logits), axis)
    mask = None if where is None else _meta_zeros("where", where)
    positions = as_positions("targets", _meta_zeros("targets", targets), scores, options["ignore_index"], mask, weight)
    if sample_weight is not None:  # the values of a Dask array are checked when blocks are computed
        checked = check_sample_weight(_meta_zeros("sample_weight", sample_weight), positions.batch)
        sample_weight = sample_weight if isinstance(sample_weight, da.Array) else checked
    loss_options(*(options[name] for name in ("label_smoothing", "z_loss", "logit_scale", "softcap")))
    threads.check_workers(options["workers"])
    return positions, sample_weight


def _by_block(
    function: Any, logits: Any, targets: Any, *, axis: int, where: Any, weight: Any, sample_weight: Any, is_mean: bool,
    **options: Any,
) -> Any:  # fmt: skip
    """Call `_losses` or `_sums` with each block of rows; arguments are checked before."""
    positions, sample_weight = _checked(logits, targets, where, weight, sample_weight, axis=axis, **options)
    axis = check_axis("logits", logits.ndim, axis)
    if logits.numblocks[axis] > 1:
        logits = logits.rechunk({i: -1 if i == axis else "auto" for i in range(logits.ndim)})
    axes = tuple(range(logits.ndim))
    batch = axes[:axis] + axes[axis + 1 :]
    chunks = tuple(logits.chunks[i] for i in batch)
    arrays: list[Any] = [logits, axes]
    arrays += [_rechunk(targets, chunks), batch] if positions.by_class else [_rechunk(targets, logits.chunks), axes]
    for value in (where, sample_weight):
        arrays += [None, None] if value is None else [_rechunk(np.broadcast_to(value, positions.batch), chunks), batch]
    weight = None if weight is None else np.asarray(weight)
    if is_mean and weight is not None and positions.by_class and options["z_loss"]:
        sums = da.blockwise(
            _weights, batch, *arrays[2:], align_arrays=False, adjust_chunks=dict.fromkeys(batch, 1), dtype=object,
            meta=np.empty((0,) * len(batch), object), weight=weight, ignore_index=options["ignore_index"],
        ).sum(split_every=_MERGED_AT_ONCE)  # fmt: skip
        scaled = da.map_blocks(_scaled_z_loss, sums, options["z_loss"], dtype=np.float64, meta=np.empty(()))
        options["z_loss"] = scaled
    arrays += _starts(chunks, batch)
    dtype, lengths = (np.float64, {axis: 1}) if function is _losses else (object, dict.fromkeys(axes, 1))
    return da.blockwise(
        function, axes, *arrays, align_arrays=False,
        adjust_chunks=lengths, dtype=dtype, meta=np.empty((0,) * logits.ndim, dtype),
        axis=axis, weight=weight, **options,
    )  # fmt: skip


def _meta_zeros(name: str, value: Any) -> Any:
    """Zeros with the shape and dtype of a Dask array, to check in its place; any other value as it is."""
    if not isinstance(value, da.Array):
        return value
    if any(map(math.isnan, value.shape)):
        raise_error("shape", name=name, got=value.shape, fits="known; its compute_chunk_sizes() finds it")
    return np.broadcast_to(np.zeros_like(value._meta, shape=()), value.shape, subok=True)


def _rechunk(value: Any, chunks: tuple[tuple[int, ...], ...]) -> Any:
    """Cut an array into these chunks; an ordinary array becomes a Dask array."""
    return value.rechunk(chunks) if isinstance(value, da.Array) else da.from_array(np.asarray(value), chunks=chunks)


def _starts(chunks: tuple[tuple[int, ...], ...], axes: tuple[int, ...]) -> list[Any]:
    """Arguments of `blockwise`: where each block starts along each axis."""
    pairs = zip(chunks, axes, strict=True)
    return [arg for sizes, i in pairs for arg in (da.from_array(np.cumsum([0, *sizes[:-1]]), chunks=1), (i,))]


# -- in a worker ------------------------------------------------------------------------------------------------------


def _mean(sums: ExactRatio) -> float:
    """Loss by "mean", rounded as in the core; there are no denominators without weights of classes or positions."""
    losses, weights = sums.numerators, sums.denominators
    if not weights.count and math.isinf(losses.sum) and not losses.special:
        return quotient(losses.finite, UNIT << 64) / losses.count * 2.0**64
    return _ratio(losses.sum, weights.sum if weights.count else losses.count)


def _ratio(numerator: float, denominator: float) -> float:
    """The quotient of two numbers; inf or nan if the denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(numerator) / denominator)


def _losses(
    logits: Array, targets: Array, where: Array | None, sample_weight: Array | None, *starts: Array, axis: int,
    ignore_index: Any, **options: Any,
) -> Array:  # fmt: skip
    """Losses of a block; the class axis stays, with length 1."""
    options |= {"axis": axis, "ignore_index": ignore_index, "where": where, "sample_weight": sample_weight}
    try:
        with _naming_block(starts):  # errors about integers that are not one-hot, or about weights below 0
            nll = _cross_entropy(logits, targets, reduction="none", **options)
    except IndexError:
        classes = logits.shape[axis]
        kept = _kept(targets, targets.shape, where, sample_weight, ignore_index)
        bad = np.argwhere(kept & ((targets < 0) | (targets >= classes)))
        if not len(bad):  # the targets changed during the call
            raise
        first = bad[0]
        position = [int(start[0] + i) for start, i in zip(starts, first, strict=True)]
        raise_bad_class("targets", targets, first, classes, position)
    return np.expand_dims(nll, axis)


def _sums(
    logits: Array, targets: Array, where: Array | None, sample_weight: Array | None, *starts: Array, axis: int,
    ignore_index: Any, weight: Any, **options: Any,
) -> Array:  # fmt: skip
    """Sums of the losses of a block, and of their weights."""
    options |= {"axis": axis, "ignore_index": ignore_index, "weight": weight, "z_loss": float(options["z_loss"])}
    nll = _losses(logits, targets, where, sample_weight, *starts, **options).squeeze(axis)
    kept = _kept(targets, nll.shape, where, sample_weight, ignore_index)
    losses, weights = ExactMoments.of(nll, kept), ExactMoments()
    by_class = weight is not None and targets.shape == nll.shape
    if by_class or sample_weight is not None:
        class_weights = weight[targets[kept]] if by_class else 1
        weights = ExactMoments.of(np.asarray(class_weights, np.float64) * _weights_of_rows(kept, sample_weight))
    return np.full((1,) * logits.ndim, ExactRatio(losses, weights), object)


def _weights(
    targets: Array, where: Array | None, sample_weight: Array | None, *, weight: Array, ignore_index: Any
) -> Array:
    """Sums of the weights of a block's rows, the numerators, and of these times the weights of their classes.

    Class ids out of range, which the losses refuse later, may have any weight.
    """
    kept = _kept(targets, targets.shape, where, sample_weight, ignore_index)
    row_weights = _weights_of_rows(kept, sample_weight)
    class_weights = weight.take(targets[kept], mode="clip").astype(np.float64)
    sums = ExactRatio(ExactMoments.of(row_weights), ExactMoments.of(class_weights * row_weights))
    return np.full((1,) * targets.ndim, sums, object)


def _weights_of_rows(kept: Array, sample_weight: Array | None) -> Array:
    """The weight of each row that is kept."""
    if sample_weight is None:
        return np.ones(np.count_nonzero(kept))
    return check_sample_weight(sample_weight, kept.shape)[kept]


def _scaled_z_loss(sums: ExactRatio, z_loss: float) -> float:
    """The factor of z-loss times the mean weight of the classes, by which a weighted mean divides."""
    return z_loss * _ratio(sums.denominators.sum, sums.numerators.sum)


def _meter(nll: Array, kept: Array, sample_weight: Array | None, *starts: Array) -> Array:
    """Meter of a block of losses: of its tokens or, with several axes, of its sequences."""
    meter = LossMeter()
    with _naming_block(starts):  # errors about weights below 0
        if nll.ndim > 1:
            meter.update(sequence_losses(nll, where=kept, sample_weight=sample_weight))
        else:
            meter.update(nll, kept, sample_weight=sample_weight)
    return np.full((1,) * nll.ndim, meter, object)


@contextmanager
def _naming_block(starts: tuple[Array, ...]) -> Iterator[None]:
    """Add to a ValueError where its block starts, since its positions are counted from there."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"in the block at {[int(start[0]) for start in starts]}: {error}") from error


def _kept(
    targets: Array, batch: tuple[int, ...], where: Array | None, sample_weight: Array | None, ignore_index: int | None
) -> Array:
    """Mask of the positions of a block that are included."""
    kept = np.ones(batch, np.bool_) if where is None else where
    if sample_weight is not None:
        kept = kept & (sample_weight != 0)
    return kept if ignore_index is None or targets.shape != batch else kept & (targets != ignore_index)


def map_shards(
    function: Callable[[ShardT], ResultT], shards: Iterable[ShardT], scheduler: str
) -> Iterator[tuple[int, ResultT]]:
    """Call a function with each shard on a cluster, and yield results as they come.

    Parameters
    ----------
    function : callable
        Function to call on the workers, for example with the path of a file that all of them can open. It is pickled by
        name, so the workers must be able to import its module. Each thread of a worker runs its own call, so one thread
        of tokenloss for each call (``workers=1``) uses them all.
    shards : iterable
        Arguments, one for each call. They are sent through the scheduler, so they should be small.
    scheduler : str
        Address of a Dask scheduler, such as ``"tcp://127.0.0.1:8786"``.

    Yields
    ------
    number : int
        Number of the shard, from 0.
    result
        Result of the function for it, say a `LossMeter`: sums of meters are bitwise identical in any order.

    Raises
    ------
    TypeError, ValueError
        If no scheduler answers, when the first result is requested.
    Exception
        Whatever the function raises for a shard; the remaining shards are canceled then. Shards of a worker that dies
        are computed again by another.

    Examples
    --------
    >>> from distributed import LocalCluster
    >>> from tokenloss.dask import map_shards
    >>> with LocalCluster(processes=False, dashboard_address=":0") as cluster:
    ...     sorted(map_shards(len, ["a", "bcd"], cluster.scheduler_address))
    [(0, 1), (1, 3)]
    """
    try:
        from distributed import Client, as_completed
        from distributed.comm.addressing import resolve_address
    except ImportError:
        raise_error("missing", name="a scheduler", got="dask[distributed]")
    fits = "the address of a running Dask scheduler"
    if not isinstance(scheduler, str):
        raise_error("type", name="scheduler", got=scheduler, fits=fits)
    try:
        resolve_address(scheduler)  # checked first, since a client without a valid address cannot be closed
        client = Client(scheduler, set_as_default=False)
    except (OSError, ValueError):
        raise_error("option", name="scheduler", got=scheduler, fits=fits)
    with client:
        numbers = {future: number for number, future in enumerate(client.map(function, list(shards), pure=False))}
        for future, result in as_completed(list(numbers), loop=client.loop, with_results=True):
            yield numbers.pop(future), result
