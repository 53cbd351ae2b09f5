"""Arrays in every dtype and layout, kinds of rows, options, and comparisons with the allowed errors."""

import inspect
import re

import ml_dtypes
import numpy as np
import pytest
import reference

import tokenloss
from tokenloss._core.validation import loss_options

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


def distributions(rng, shape, axis=-1, zeros=0.3):
    """Random soft targets, some of them 0."""
    shares = rng.random(shape) * (rng.random(shape) > zeros)
    return shares / np.maximum(shares.sum(axis, keepdims=True), 1e-9)


SHAPES_OF_LOGITS = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "normal_5": lambda rng, n: 5 * rng.standard_normal(n),
    "normal_10": lambda rng, n: 10 * rng.standard_normal(n),
    "zeros": lambda rng, n: np.zeros(n),
    "near_uniform": lambda rng, n: 1e-3 * rng.standard_normal(n),
    "one_dominant": lambda rng, n: rng.standard_normal(n) + 30 * (np.arange(n) == n // 3),
    "two_dominant": lambda rng, n: rng.standard_normal(n) + 25 * np.isin(np.arange(n), [n // 3, n - 1]),
    "rising": lambda rng, n: np.linspace(-200, 200, n),
    "falling": lambda rng, n: np.linspace(200, -200, n),
    "staircase": lambda rng, n: np.arange(n) // 512 * 39.0,
    "around_1e4": lambda rng, n: 1e4 + 3 * rng.standard_normal(n),
    "around_minus_1e4": lambda rng, n: -1e4 + 3 * rng.standard_normal(n),
    "far_apart": lambda rng, n: rng.choice([-6e4, 0, 6e4], n) + rng.standard_normal(n),
    "float16_masked": lambda rng, n: np.where(rng.random(n) > 0.01, -65504.0, rng.standard_normal(n)),
    "minus_infinity_masked": lambda rng, n: np.where(rng.random(n) > 0.01, -np.inf, rng.standard_normal(n)),
    "subnormal": lambda rng, n: rng.standard_normal(n) * 1e-40,
    "tiny": lambda rng, n: rng.standard_normal(n) * 6e-8,
}
FAR_OUT = {
    "around_1e5": lambda rng, n: 1e5 + 3 * rng.standard_normal(n),
    "around_minus_1e5": lambda rng, n: -1e5 + 3 * rng.standard_normal(n),
    "around_1e9": lambda rng, n: 1e9 + 200 * rng.standard_normal(n),
    "all_3e38": lambda rng, n: np.full(n, 3e38),
    "all_minus_3e38": lambda rng, n: np.full(n, -3e38),
    "both_3e38": lambda rng, n: rng.choice([-3e38, 3e38], n),
    "masked_by_minus_1e9": lambda rng, n: np.where(np.arange(n) < n - 9, -1e9, rng.standard_normal(n)),
    "masked_by_minus_1e30": lambda rng, n: np.where(np.arange(n) < n - 9, -1e30, 100 * rng.standard_normal(n)),
    "masked_by_the_lowest": lambda rng, n: np.where(np.arange(n) < n - 9, -3.38e38, 700 + rng.standard_normal(n)),
    "lowest_then_highest": lambda rng, n: np.where(np.arange(n) < n - 9, -3.3e38, 3.3e38),
    "rising_far": lambda rng, n: np.linspace(-1e6, 1e6, n),
    "crossing_65536": lambda rng, n: np.linspace(65400, 65700, n),
    "crossing_minus_65536": lambda rng, n: np.linspace(-65700, -65400, n),
}
FLOAT64_ONLY = {
    "all_1e308": lambda rng, n: np.full(n, 1.7e308),
    "masked_by_minus_1e308": lambda rng, n: np.where(np.arange(n) < n - 9, -1.7e308, 700 + rng.standard_normal(n)),
    "around_700": lambda rng, n: 700 + 5 * rng.standard_normal(n),
    "huge_differences": lambda rng, n: rng.choice([-1e300, 1e300, 5.0], n),
}
KINDS_OF_EACH = SHAPES_OF_LOGITS, *[SHAPES_OF_LOGITS | FAR_OUT] * 2, SHAPES_OF_LOGITS | FAR_OUT | FLOAT64_ONLY
# by default each kind in two dtypes
KINDS_OF_ROWS = [
    pytest.param(dtype, kind, id=f"{dtype}-{kind}", marks=[pytest.mark.slow] * ((i + j) % 2))
    for i, (dtype, kinds) in enumerate(zip(FLOATS, KINDS_OF_EACH, strict=True))
    for j, kind in enumerate(kinds)
]


def row_of_logits(kind, rng, length, dtype):
    """A row of one of the kinds above."""
    row = (SHAPES_OF_LOGITS | FAR_OUT | FLOAT64_ONLY)[kind](rng, length)
    if dtype == np.float16:
        row = np.where(np.isinf(row), row, np.clip(row, -65504, 65504))
    return row.astype(dtype)


OPTIONS = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.1},
    "smooth": {"label_smoothing": 1.0},
    "penalized": {"z_loss": 1e-2},
    "scaled": {"logit_scale": 0.3},
    "capped": {"softcap": 5.0},
    "smoothed_and_penalized": {"label_smoothing": 0.3, "z_loss": 1e-3},
    "scaled_and_capped": {"logit_scale": 2.5, "softcap": 30.0},
    "everything": {"label_smoothing": 0.2, "z_loss": 1e-3, "logit_scale": 1.7, "softcap": 3.0},
}

DEFAULTS = {
    name: inspect.signature(tokenloss.cross_entropy).parameters[name].default
    for name in inspect.signature(loss_options).parameters
}


def problem(rng, kind, dtype, axis=-1, weighted=False, classes=9):
    """Logits, targets and options of 5 x 6 positions, some of which where and ignore_index leave out."""
    shape = [5, 6]
    shape.insert(axis % 3, classes)
    logits = scores_for("cross_entropy", rng, shape, dtype, axis)
    targets = rng.integers(0, classes, (5, 6)) if kind == "ids" else distributions(rng, shape, axis)
    if kind == "ids":
        targets[1, 2:] = -100
    weight = rng.random(classes) + 0.1 if weighted else None
    return logits, targets, {"axis": axis, "weight": weight, "where": rng.random((5, 6)) > 0.3}


def call(module, loss, scores, targets, **options):
    """Call a loss of the package or of the oracle, scores first."""
    arguments = (targets, scores) if loss == "cross_entropy_loss" else (scores, targets)
    return getattr(module, loss)(*arguments, **options)


def sum_of(losses):
    """The package's exact sum of numbers: those below 0 are losses of a class with weight -1."""
    losses = np.asarray(losses, np.float64)
    log_probs = np.repeat(-np.abs(losses)[:, None], 2, 1)
    return tokenloss.nll_loss(log_probs, np.signbit(losses).astype(int), weight=[1, -1], reduction="sum")


def possible(loss, scores):
    """Scores with those that the loss refuses set to 0."""
    least, most = {"cross_entropy_loss": (-1e-3, 1.001), "nll_loss": (-np.inf, 1e-3)}.get(loss, (-np.inf, np.inf))
    values = reference.float64(scores)
    return np.where((values < least) | (values > most), scores.dtype.type(0), scores)


def error_allowed(loss, scores, targets=None, axis=-1):
    """Largest error of losses before they are rounded; targets are class ids unless distributions are given."""
    scores = np.asarray(scores)
    batch = tuple(np.delete(scores.shape, axis))
    error = np.zeros(batch)
    if loss in ("cross_entropy", "logsumexp"):
        error += normalizer_error(scores, axis)
    if loss == "cross_entropy_loss" and scores.dtype.newbyteorder("=") != np.float64:
        error += 2e-7
    if np.ndim(targets) == scores.ndim:
        shares = np.abs(reference.float64(targets))
        # terms of both signs may cancel: an ulp of their sizes
        sizes = -np.abs(reference.float64(scores)) if loss == "nll_loss" else scores
        terms = call(reference, loss, sizes, shares, axis=axis, reduction="none")
        with np.errstate(over="ignore", invalid="ignore"):
            error = error * shares.sum(axis) + 2 * np.spacing(np.where(np.isfinite(terms), terms, 0))
    return error


def normalizer_error(logits, axis=-1, logit_scale=1.0, softcap=None):
    """Largest error of the logsumexp of each row."""
    normalizer = np.abs(reference.logsumexp(logits, axis=axis, logit_scale=logit_scale, softcap=softcap))
    if logits.dtype.newbyteorder("=") != np.float64:
        return np.full(normalizer.shape, 2e-7)
    return 4e-15 * np.where(np.isfinite(normalizer), np.maximum(1, normalizer), 1)


def loss_error(
    logits, targets, *, axis=-1, weight=None, z_loss=0.0, logit_scale=1.0, softcap=None, sizes=False, **others
):
    """Largest error of a cross_entropy with options; with `sizes`, only the factor of the logsumexp's error in it."""
    normalizer = np.abs(reference.logsumexp(logits, axis=axis, logit_scale=logit_scale, softcap=softcap))
    shares = np.abs(reference.float64(targets)).sum(axis) if np.ndim(targets) == logits.ndim else 1
    size = (1 if weight is None else np.max(weight)) * np.maximum(1, shares)
    size = size + 2 * z_loss * np.where(np.isfinite(normalizer), normalizer, 0)
    with np.errstate(over="ignore"):
        return size if sizes else size * normalizer_error(logits, axis, logit_scale, softcap)


def probability_error(logits, axis=-1, logit_scale=1.0, softcap=None):
    """Largest error of the probabilities of each row before they are rounded: relative, and absolute."""
    scaling = {"axis": axis, "logit_scale": logit_scale, "softcap": softcap}
    losses = -reference.log_softmax(logits, **scaling)
    distance = np.where(np.isfinite(losses), losses, 0)
    if logits.dtype.newbyteorder("=") == np.float64:
        return np.expand_dims(normalizer_error(logits, **scaling), axis) + 2.0**-53 * distance, 0.0
    return 1e-6 + 2.0**-24 * distance, 3e-45 * (logits.dtype.itemsize == 4)


def gradient_error(logits, targets, gradient, divisor=1.0, *, axis=-1, logit_scale=1.0, softcap=None, **options):
    """Largest error of a gradient before it is rounded: relative, plus an absolute part where terms cancel."""
    scaling = {"axis": axis, "logit_scale": logit_scale, "softcap": softcap}
    relative, absolute = probability_error(logits, **scaling)
    error = relative * np.abs(gradient)
    if np.ndim(targets) == logits.ndim or options.get("label_smoothing") or options.get("z_loss") or softcap:
        size = 2 * logit_scale / divisor * loss_error(logits, targets, sizes=True, **scaling, **options)
        size = np.expand_dims(np.broadcast_to(size, np.delete(logits.shape, axis)), axis)
        absolute = absolute + relative * size * reference.softmax(logits, **scaling)
        absolute += 2.0**-50 * size if softcap else 0
    else:  # a target's probability less 1 is computed as the sum of the others, with their errors
        index = np.expand_dims(np.maximum(targets, 0), axis)
        np.put_along_axis(error, index, 0, axis)
        np.put_along_axis(error, index, error.sum(axis, keepdims=True), axis)
    return error + absolute


def assert_near(actual, expected, error, roundings=1):
    """Compare with the rounded exact values, up to the error and a number of half-ulp roundings.

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


def assert_rounded_near(actual, expected, error, dtype):
    """Compare an array with the exact values, up to the error and one rounding to its dtype."""
    assert type(actual) is np.ndarray
    assert actual.dtype.newbyteorder("=") == dtype.newbyteorder("=")
    info = ml_dtypes.finfo(dtype.newbyteorder("="))
    with np.errstate(over="ignore"):
        beyond = np.isinf(reference.float64(expected.astype(info.dtype)))
    expected = np.where(beyond, np.copysign(np.inf, expected), expected)
    exponent = np.maximum(np.frexp(np.where(np.isfinite(expected), expected, 0))[1] - 1, info.minexp)
    rounding = np.ldexp(0.5, exponent - info.nmant) if dtype.itemsize < 8 else 0
    assert_near(reference.float64(actual), expected, error + rounding)


def bits(values):
    """Every bit of floats, as integers; all nans alike."""
    values = np.asarray(values, np.float64)
    return np.where(np.isnan(values), np.nan, values).view(np.int64)


def assert_same_bits(actual, expected, what=""):
    actual, expected = bits(actual), bits(expected)
    if not np.array_equal(actual, expected):  # which takes a tenth of the assertion's time
        np.testing.assert_array_equal(actual, expected, err_msg=what)


def token_columns(scores):
    """All fields of token scores, one column each, as an array."""
    columns = [np.asarray(values, float) for values in vars(scores).values()]
    return np.concatenate([values.reshape(*scores.nll.shape, -1) for values in columns], -1)


def shuffled_specials(rng, array, count=3):
    """Put nan, infinities, subnormals and zeros at random places of an array, in place."""
    tiny = np.finfo(array.dtype if array.dtype != BFLOAT16 else np.float32).tiny
    values = [np.nan, np.inf, -np.inf, -np.inf, tiny / 4, -tiny / 4, 0.0, -0.0]
    for value in rng.choice(values, count):
        array[tuple(rng.integers(0, length) for length in array.shape)] = value
    return array


def fails(error, *words):
    """Expect an error whose message holds all the words, in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(re.escape(str(word)) for word in words))


def trying_row(kind, rng, shape, dtype):
    """Rows whose bits would differ if backends did: plain, with_specials, wide, far_out or near_underflow."""
    row = 3 * rng.standard_normal(shape)
    each = (*row.shape[:-1], 1)
    if kind == "wide":
        row *= 10.0 ** rng.uniform(-8, 4, each)
    elif kind == "far_out":
        row = rng.choice([-1, 1], each) * 10.0 ** rng.uniform(3, 30, each) + row * 10.0 ** rng.uniform(-2, 20, each)
    elif kind == "near_underflow":
        row = rng.uniform(0.9, 1.03, shape) * np.log(float(ml_dtypes.finfo(dtype).smallest_subnormal))
        row[..., 0] = 0  # the other probabilities are subnormal, or 0, or little larger
    with np.errstate(over="ignore"):
        row = row.astype(dtype)
    return shuffled_specials(rng, row) if kind == "with_specials" else row


class OnDevice:
    def __init__(self, *device):
        self.device = device

    def __dlpack__(self, **options):
        raise AssertionError("no other device may be asked for its memory")

    def __dlpack_device__(self):
        return self.device
