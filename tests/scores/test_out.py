"""out: results are written to arrays of every layout, or over the logits; arrays that do not fit are refused."""

import math

import numpy as np
import pytest
from arrays import (
    FLOATS,
    LAYOUTS,
    OPTIONS,
    assert_same_bits,
    distributions,
    fails,
    misaligned,
    scores_for,
    strided,
    swapped,
)

import tokenloss
from tokenloss import cross_entropy_and_grad, logsumexp

WRITABLE = [name for name in LAYOUTS if name != "read_only"]
OPTIONS_OF_GRADIENTS = {
    "gradient": {},
    "gradient_penalized": OPTIONS["smoothed_and_penalized"],
    "gradient_with_everything": OPTIONS["everything"],
}
FUNCTIONS = ["softmax", "log_softmax", *OPTIONS_OF_GRADIENTS, "gradient_of_distributions"]
each_function = pytest.mark.parametrize("function", FUNCTIONS)
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)
each_layout = pytest.mark.parametrize("layout", WRITABLE)


def written(function, logits, axis=-1, **options):
    """The result of a function of logits; for gradients the targets are always the same."""
    if function in ("softmax", "log_softmax"):
        return getattr(tokenloss, function)(logits, axis=axis, **options)
    targets = np.arange(logits.size // logits.shape[axis]).reshape(np.delete(logits.shape, axis)) % logits.shape[axis]
    if function == "gradient_of_distributions":
        targets = distributions(np.random.default_rng(1), logits.shape, axis)
    options |= OPTIONS_OF_GRADIENTS.get(function, {})
    return cross_entropy_and_grad(logits, targets, axis=axis, reduction="sum", **options)[1]


@each_function
@each_dtype
@each_layout
def test_out_in_every_dtype_layout_and_axis(function, dtype, layout, rng):
    for axis in range(3):
        logits = scores_for("cross_entropy", rng, (4, 5, 6), dtype, axis)
        expected = written(function, logits, axis)
        out = LAYOUTS[layout](np.full_like(logits, math.nan))
        given = swapped(logits) if "swapped" in layout else logits
        assert written(function, given, axis, out=out) is out
        assert_same_bits(out, expected)
        if layout in ("strided", "swapped_and_strided", "misaligned"):  # no other memory was written
            memory = out
            while isinstance(memory.base, np.ndarray):
                memory = memory.base
            out[...] = np.frombuffer(b"\xff" * dtype.itemsize, out.dtype)
            assert set(memory.tobytes()) == {255}


@each_function
@each_dtype
@each_layout
def test_out_that_is_the_logits(function, dtype, layout, rng):
    for shape, axis in [((4, 5, 6), 0), ((4, 5, 6), 1), ((4, 5, 6), -1), ((2, 4500), -1)]:
        logits = scores_for("cross_entropy", rng, shape, dtype, axis)
        expected = written(function, logits, axis)
        logits = LAYOUTS[layout](logits)
        out = logits[...] if axis else logits  # another view, or the same object
        assert written(function, logits, axis, out=out) is out
        assert_same_bits(logits, expected)


@each_function
def test_out_that_is_the_logits_of_long_rows_on_every_backend(function, rng, backend):
    logits = scores_for("cross_entropy", rng, (3, 9001), np.float32)
    expected = written(function, logits)
    for layout in (np.ascontiguousarray, np.asfortranarray, strided):
        given = layout(logits.copy())
        assert_same_bits(written(function, given, out=given), expected)


@each_function
def test_out_elsewhere_leaves_the_logits_as_they_are(function, rng):
    logits = scores_for("cross_entropy", rng, (3, 4500), np.float32)
    before = logits.tobytes()
    for out in (None, np.empty_like(logits)):
        assert not np.shares_memory(written(function, logits, out=out), logits)
        assert logits.tobytes() == before


@each_function
def test_out_that_overlaps_a_part_of_the_logits_is_refused(function):
    memory = np.arange(60, dtype=np.float32)
    logits = memory[:36].reshape(6, 6)
    for out in (memory[6:42].reshape(6, 6), memory[1:37].reshape(6, 6), logits[::-1], logits[:, ::-1], logits.T):
        with fails(ValueError, "out", "logits"):
            written(function, logits, out=out)
    assert memory.tolist() == list(range(60))


@pytest.mark.parametrize("shift", [0, 1, 9])
@pytest.mark.parametrize("name", ["targets", "weight"])
def test_out_that_overlaps_targets_or_weight_is_right_or_refused(name, shift, rng):
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
def test_out_of_another_shape_dtype_or_read_only_is_refused(function):
    logits = np.zeros((2, 3), np.float32)
    for out in (np.zeros(2, np.float32), np.zeros((3, 2), np.float32), np.zeros((1, 2, 3), np.float32)):
        with fails(ValueError, "out", out.shape, "(2, 3)"):
            written(function, logits, out=out)
    for out in (np.zeros((2, 3)), np.zeros((2, 3), np.float16), np.zeros((2, 3), int), [[0.0] * 3] * 2, "out"):
        with fails(TypeError, "out", "float32"):
            written(function, logits, out=out)
    with fails(ValueError, "out", "read-only"):
        written(function, logits, out=LAYOUTS["read_only"](logits))


# out of logsumexp


def test_out_of_logsumexp_in_every_layout(rng):
    logits = rng.standard_normal((3, 4, 5))
    expected = logsumexp(logits)
    for out in (np.empty((3, 4)), np.empty((4, 3)).T, np.empty((6, 8))[::2, ::2], misaligned(np.zeros((3, 4)))):
        assert logsumexp(logits, out=out) is out
        assert_same_bits(out, expected)


def test_out_of_logsumexp_that_does_not_fit():
    logits = np.zeros((2, 3))
    with fails(ValueError, "out", (3,), (2,)):
        logsumexp(logits, out=np.zeros(3))
    for out in (np.zeros(2, np.float32), np.zeros(2, int), np.zeros(2, np.dtype("f8").newbyteorder()), [0.0, 0.0]):
        with fails(TypeError, "out", "float64"):
            logsumexp(logits, out=out)
    out = np.zeros(2)
    out.flags.writeable = False
    with fails(ValueError, "out", "read-only"):
        logsumexp(logits, out=out)


# bad input is found before out is written


@pytest.mark.parametrize(
    ("logits", "options", "error"),
    [
        (np.zeros((2, 3), int), {}, TypeError),
        (np.zeros((2, 3), object), {}, TypeError),
        (np.zeros((2, 3)), {"axis": 2}, ValueError),
        (np.zeros((2, 3)), {"axis": "x"}, TypeError),
        (np.zeros((2, 3)), {"workers": 0}, ValueError),
        (np.zeros((2, 3)), {"workers": "x"}, TypeError),
        (np.zeros((3, 3)), {}, ValueError),
    ],
)
def test_out_is_not_written_if_the_input_is_bad(logits, options, error):
    for name, shape in (("logsumexp", (2,)), ("softmax", (2, 3)), ("log_softmax", (2, 3))):
        out = np.full(shape, 7.0)
        with pytest.raises(error):
            getattr(tokenloss, name)(logits, out=out, **options)
        assert (out == 7).all()


@pytest.mark.parametrize(
    ("targets", "options"),
    [
        ([0, 3], {}),
        ([0, -1], {}),
        ([0, 1, 2], {}),
        ([0.5, 1.0], {}),
        (np.ones((3, 2)), {}),
        ([0, 1], {"weight": [1, 2]}),
        ([0, 1], {"where": [1, 0]}),
        ([0, 1], {"label_smoothing": 2}),
        ([0, 1], {"z_loss": -1}),
        ([0, 1], {"logit_scale": 0}),
        ([0, 1], {"softcap": "x"}),
        ([0, 1], {"axis": 2}),
        ([0, 1], {"reduction": "average"}),
        ([0, 1], {"workers": 0}),
        ([0, 1], {"ignore_index": 0.5}),
    ],
)
def test_out_of_the_gradient_is_not_written_if_the_input_is_bad(targets, options):
    logits, out = np.full((2, 3), 5.0), np.full((2, 3), 7.0)
    for given in (out, logits):
        with pytest.raises((IndexError, TypeError, ValueError)):
            cross_entropy_and_grad(logits, targets, out=given, **options)
    assert (logits == 5).all()
    assert (out == 7).all()


# memory of out


def test_out_of_a_subclass_with_a_false_shape():
    class Liar(np.ndarray):
        shape = property(lambda self: (10**6,))

    with fails(ValueError, "out has shape (1,)", "(1000000,)"):
        logsumexp(np.broadcast_to(0.0, (10**6, 3)), out=np.zeros(1).view(Liar))
    with fails(ValueError, "out has shape (1, 1)", "(1,)"):
        logsumexp(np.zeros((1, 3)), out=np.zeros((1, 1)).view(np.recarray))
    with fails(TypeError, "out is a masked array"):
        logsumexp(np.zeros((1, 3)), out=np.ma.zeros(1))
    named = np.zeros(1).view(np.rec.recarray)
    assert logsumexp(np.zeros((1, 3)), out=named) is named
    assert named[0] == logsumexp(np.zeros(3))


@pytest.mark.parametrize("strides", [(0, 8), (8, 0), (8, 8), (4, 24), (-8, 16)], ids=str)
def test_out_whose_elements_share_memory(strides):
    memory = np.zeros(50)
    view = np.lib.stride_tricks.as_strided(memory[10:], (4, 3), strides)
    for function in (tokenloss.softmax, lambda x, out: cross_entropy_and_grad(x, [0] * 4, out=out)):
        with fails(ValueError, "out has elements that share memory"):
            function(np.zeros((4, 3)), out=view)
    with fails(ValueError, "out has elements that share memory"):
        logsumexp(np.zeros((5, 3)), out=np.lib.stride_tricks.as_strided(memory, (5,), (0,)))
    assert not memory.any()


def test_out_of_every_view_without_overlap():
    x = np.random.default_rng(0).standard_normal((4, 3))
    views = np.zeros((8, 9))[::2, ::3], np.zeros((3, 4)).T, np.zeros((4, 6))[::-1, ::-2], np.zeros((4, 1, 3))[:, 0]
    for view in views:
        assert (tokenloss.softmax(x, out=view) == tokenloss.softmax(x)).all()
