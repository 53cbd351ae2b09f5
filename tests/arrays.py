"""The same numbers in every dtype and layout that arrays come in, and how results are compared."""

import ml_dtypes
import numpy as np
import reference

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = [np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64)]
INTEGERS = [np.dtype(code) for code in "bhilqBHILQ"]
LOSSES = ["cross_entropy_loss", "nll_loss", "cross_entropy"]
REDUCTIONS = ["mean", "sum", "none"]


def swapped(array):
    return array.byteswap().view(array.dtype.newbyteorder())


def strided(array):
    """Every other element along each axis of an array whose rest is nan or -1."""
    whole = _garbage(tuple(2 * length + 1 for length in array.shape), array.dtype)
    return _fill(whole[(..., *[slice(1, None, 2)] * array.ndim)], array)


def backwards(array):
    return _fill(_garbage(array.shape, array.dtype)[(..., *[slice(None, None, -1)] * array.ndim)], array)


def class_first_in_memory(array):
    """The last axis of the array is the outermost one in memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, -1, 0)), 0, -1) if array.ndim else array.copy()


def misaligned(array):
    memory = np.full(array.nbytes + 1, 255, np.uint8)
    return _fill(memory[1:].view(array.dtype).reshape(array.shape), array)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def _garbage(shape, dtype):
    return np.frombuffer(bytearray(b"\xff" * (dtype.itemsize * int(np.prod(shape)))), dtype).reshape(shape)


def _fill(view, array):
    view[...] = array
    return view


LAYOUTS = {
    "c": lambda array: array.copy(order="C"),
    "fortran": lambda array: array.copy(order="F"),
    "strided": strided,
    "backwards": backwards,
    "class_first_in_memory": class_first_in_memory,
    "misaligned": misaligned,
    "read_only": read_only,
    "swapped": swapped,
    "swapped_and_strided": lambda array: strided(swapped(array)),
    "swapped_and_misaligned": lambda array: misaligned(swapped(array)),
}


def scores_for(loss, rng, shape, dtype, axis=-1):
    """Random scores of the kind that the loss takes."""
    logits = 4 * rng.standard_normal(shape)
    logits -= logits.max(axis, keepdims=True, initial=-100)
    log_probs = logits - np.log(np.exp(logits).sum(axis, keepdims=True)) if logits.size else logits
    scores = {"cross_entropy_loss": np.exp(log_probs), "nll_loss": log_probs, "cross_entropy": logits + 2}
    return scores[loss].astype(dtype)


def call(module, loss, scores, targets, **options):
    """Call a loss of the package or of the oracle, scores first."""
    arguments = (targets, scores) if loss == "cross_entropy_loss" else (scores, targets)
    return getattr(module, loss)(*arguments, **options)


def error_allowed(loss, scores, targets=None, axis=-1):
    """How far losses, of class ids unless distributions are given, may be from the exact ones before their rounding."""
    scores = np.asarray(scores)
    batch = tuple(np.delete(scores.shape, axis))
    error = np.zeros(batch)
    if loss in ("cross_entropy", "logsumexp"):
        if scores.dtype.newbyteorder("=") == np.float64:
            normalizer = np.abs(reference.logsumexp(scores, axis=axis))
            error += 4e-15 * np.where(np.isfinite(normalizer), np.maximum(1, normalizer), 1)
        else:
            error += 2e-7
    if np.ndim(targets) == scores.ndim:
        shares = np.abs(reference.float64(targets))
        # terms of both signs may cancel: an ulp of their sizes
        sizes = -np.abs(reference.float64(scores)) if loss == "nll_loss" else scores
        terms = call(reference, loss, sizes, shares, axis=axis, reduction="none")
        with np.errstate(over="ignore", invalid="ignore"):
            error = error * shares.sum(axis) + 2 * np.spacing(np.where(np.isfinite(terms), terms, 0))
    return error


def assert_near(actual, expected, error, roundings=1):
    """Compare with the exact values, themselves rounded, up to the error and so many half-ulp roundings.

    Each rounding counts for a whole ulp, since the exact values are known to half an ulp only.
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == np.float64
    assert actual.shape == expected.shape
    special = ~np.isfinite(expected)
    np.testing.assert_array_equal(actual[special], expected[special])
    finite, error = expected[~special], np.broadcast_to(error, expected.shape)[~special]
    excess = np.abs(actual[~special] - finite) - (error + roundings * np.spacing(np.abs(finite)))
    within = excess <= 0  # False of nan
    assert within.all(), f"{actual[~special][~within][0]!r} is not {finite[~within][0]!r} to within {error.max():.3g}"


def bits(values):
    """Every bit of floats, as integers; all nans alike."""
    values = np.asarray(values, np.float64)
    return np.where(np.isnan(values), np.nan, values).view(np.int64)


def assert_same_bits(actual, expected, what=""):
    np.testing.assert_array_equal(bits(actual), bits(expected), err_msg=what)


def shuffled_specials(rng, array, count=3):
    """Put nan, infinities, subnormals and zeros at random places of an array, in place."""
    tiny = np.finfo(array.dtype if array.dtype != BFLOAT16 else np.float32).tiny
    values = [np.nan, np.inf, -np.inf, -np.inf, tiny / 4, -tiny / 4, 0.0, -0.0]
    for value in rng.choice(values, count):
        array[tuple(rng.integers(0, length) for length in array.shape)] = value
    return array
