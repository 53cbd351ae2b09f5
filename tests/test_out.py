"""Arrays that results are written to: of every layout, the logits themselves, and what does not fit."""

import math

import numpy as np
import pytest
from arrays import FLOATS, LAYOUTS, OPTIONS, assert_same_bits, distributions, fails, scores_for, strided, swapped

import tokenloss
from tokenloss import cross_entropy_and_grad

WRITABLE = [name for name in LAYOUTS if name != "read_only"]
OPTIONS_OF_GRADIENTS = {
    "gradient": {},
    "gradient_penalized": OPTIONS["smoothed_and_penalized"],
    "gradient_with_everything": OPTIONS["everything"],
}
FUNCTIONS = ["softmax", "log_softmax", *OPTIONS_OF_GRADIENTS, "gradient_of_shares"]
each_function = pytest.mark.parametrize("function", FUNCTIONS)
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)
each_layout = pytest.mark.parametrize("layout", WRITABLE)


@pytest.fixture
def rng():
    return np.random.default_rng(61)


def written(function, logits, axis=-1, **options):
    """What a function makes of logits; the targets of gradients are always the same."""
    if function in ("softmax", "log_softmax"):
        return getattr(tokenloss, function)(logits, axis=axis, **options)
    targets = np.arange(logits.size // logits.shape[axis]).reshape(np.delete(logits.shape, axis)) % logits.shape[axis]
    if function == "gradient_of_shares":
        targets = distributions(np.random.default_rng(1), logits.shape, axis)
    options |= OPTIONS_OF_GRADIENTS.get(function, {})
    return cross_entropy_and_grad(logits, targets, axis=axis, reduction="sum", **options)[1]


@each_function
@each_dtype
@each_layout
def test_every_layout(function, dtype, layout, rng):
    for axis in range(3):
        logits = scores_for("cross_entropy", rng, (4, 5, 6), dtype, axis)
        expected = written(function, logits, axis)
        out = LAYOUTS[layout](np.full_like(logits, math.nan))
        given = swapped(logits) if "swapped" in layout else logits
        assert written(function, given, axis, out=out) is out
        assert_same_bits(out, expected)
        if layout in ("strided", "swapped_and_strided", "misaligned"):  # nothing beside out was written
            memory = out
            while isinstance(memory.base, np.ndarray):
                memory = memory.base
            out[...] = np.frombuffer(b"\xff" * dtype.itemsize, out.dtype)
            assert set(memory.tobytes()) == {255}


@each_function
@each_dtype
@each_layout
def test_logits_are_overwritten_in_place(function, dtype, layout, rng):
    for shape, axis in [((4, 5, 6), 0), ((4, 5, 6), 1), ((4, 5, 6), -1), ((2, 4500), -1)]:
        logits = scores_for("cross_entropy", rng, shape, dtype, axis)
        expected = written(function, logits, axis)
        logits = LAYOUTS[layout](logits)
        out = logits[...] if axis else logits  # another view, or the same object
        assert written(function, logits, axis, out=out) is out
        assert_same_bits(logits, expected)


@each_function
def test_long_rows_are_overwritten_in_place_on_every_backend(function, rng, backend):
    logits = scores_for("cross_entropy", rng, (3, 9001), np.float32)
    expected = written(function, logits)
    for layout in (np.ascontiguousarray, np.asfortranarray, strided):
        given = layout(logits.copy())
        assert_same_bits(written(function, given, out=given), expected)


@each_function
def test_logits_are_not_written_to_otherwise(function, rng):
    logits = scores_for("cross_entropy", rng, (3, 4500), np.float32)
    before = logits.tobytes()
    for out in (None, np.empty_like(logits)):
        assert not np.shares_memory(written(function, logits, out=out), logits)
        assert logits.tobytes() == before


@each_function
def test_partial_overlap_with_logits_is_refused(function):
    memory = np.arange(60, dtype=np.float32)
    logits = memory[:36].reshape(6, 6)
    for out in (memory[6:42].reshape(6, 6), memory[1:37].reshape(6, 6), logits[::-1], logits[:, ::-1], logits.T):
        with fails(ValueError, "out", "logits"):
            written(function, logits, out=out)
    assert memory.tolist() == list(range(60))


@pytest.mark.parametrize("shift", [0, 1, 9])
@pytest.mark.parametrize("name", ["targets", "weight"])
def test_overlap_with_what_else_is_read_is_harmless_or_refused(name, shift, rng):
    logits, memory = rng.standard_normal((4, 9)).astype(np.float32), rng.random(50).astype(np.float32)
    out = memory[:36].reshape(4, 9)
    given = memory[shift : shift + 36].reshape(4, 9) if name == "targets" else memory[9 + shift : 18 + shift]
    targets, weight = (given, None) if name == "targets" else ([0, 1, 2, 3], given)
    expected = cross_entropy_and_grad(logits, targets, weight=weight, label_smoothing=0.1)
    try:
        loss, gradient = cross_entropy_and_grad(logits, targets, weight=weight, label_smoothing=0.1, out=out)
    except ValueError as error:
        assert name in str(error)  # noqa: PT017
    else:
        assert loss == expected[0]
        assert_same_bits(gradient, expected[1])


@each_function
def test_what_does_not_fit(function):
    logits = np.zeros((2, 3), np.float32)
    for out in (np.zeros(2, np.float32), np.zeros((3, 2), np.float32), np.zeros((1, 2, 3), np.float32)):
        with fails(ValueError, "out", out.shape, "(2, 3)"):
            written(function, logits, out=out)
    for out in (np.zeros((2, 3)), np.zeros((2, 3), np.float16), np.zeros((2, 3), int), [[0.0] * 3] * 2, "out"):
        with fails(TypeError, "out", "float32"):
            written(function, logits, out=out)
    with fails(ValueError, "out", "read-only"):
        written(function, logits, out=LAYOUTS["read_only"](logits))
