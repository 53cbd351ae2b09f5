"""What comes of bad input and of numbers at the edge, case by case."""

import math
import sys

import numpy as np
import pytest
from arrays import FLOATS, LOSSES, call, fails, scores_for, sum_of

import tokenloss
from tokenloss import LossMeter, cross_entropy, cross_entropy_loss, logsumexp, nll_loss

NAN, INF = math.nan, math.inf
NAMES = {
    "cross_entropy_loss": ("y_pred", "y_true"),
    "nll_loss": ("log_probs", "targets"),
    "cross_entropy": ("logits", "targets"),
}
each_loss = pytest.mark.parametrize("loss", LOSSES)
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)
BORDERS = [0, 1, 63, 64, 511, 512, 4095, 4096, 8191, 8192, 8999]


@pytest.fixture
def rng():
    return np.random.default_rng(7)


# target outside [0, V) and not ignore_index: IndexError naming position, value and V, before anything is written


@each_loss
@pytest.mark.parametrize("value", [-1, 5, 6, -101, 2**31, 2**62, -(2**63), 2**63 - 1])
def test_target_that_is_no_class(loss, value):
    scores = np.ones((2, 3, 5))
    targets = np.zeros((2, 3), np.int64)
    targets[1, 2] = value
    with fails(IndexError, NAMES[loss][1], "[1, 2]", value, "[0, 5)"):
        call(tokenloss, loss, scores, targets)


@each_loss
@pytest.mark.parametrize("value", [5, 255, 2**16 - 1, 2**32 - 1, 2**63, 2**64 - 1])
def test_unsigned_target_that_is_no_class(loss, value):
    for dtype in (np.uint8, np.uint16, np.uint32, np.uint64):
        for swap in (False, True):
            if value <= np.iinfo(dtype).max:
                targets = np.array([0, value], dtype)
                targets = targets.astype(targets.dtype.newbyteorder()) if swap else targets
                with fails(IndexError, NAMES[loss][1], "[1]", value, "[0, 5)"):
                    call(tokenloss, loss, np.ones((2, 5)), targets)


@each_loss
def test_single_target_that_is_no_class(loss):
    with fails(IndexError, NAMES[loss][1], "7", "[0, 3)"):
        call(tokenloss, loss, [0.1, 0.2, 0.7], 7)
    with fails(IndexError, NAMES[loss][1], "7", "[0, 3)"):
        call(tokenloss, loss, [0.1, 0.2, 0.7], np.array(7))


@each_loss
def test_first_of_many_bad_targets_is_named(loss):
    targets = np.zeros((300, 10000), np.int32)
    targets[[200, 250, 299], [9, 0, 9999]] = [3, 4, 5]
    scores = np.broadcast_to(np.float32(0.5), (300, 10000, 3))
    with fails(IndexError, NAMES[loss][1], "[200, 9]", 3, "[0, 3)"):
        call(tokenloss, loss, scores, targets)


@each_loss
def test_bad_target_in_a_strided_array_is_named(loss):
    targets = np.full((6, 8), 99)[::2, ::-2]
    targets[...] = 0
    targets[2, 3] = -1
    with fails(IndexError, "[2, 3]", -1, "[0, 5)"):
        call(tokenloss, loss, np.ones((3, 4, 5)), targets)
    with fails(IndexError, "[2, 3]", -1, "[0, 5)"):
        call(tokenloss, loss, np.ones((5, 3, 4)), targets, axis=0)


@each_loss
def test_ignore_index_of_another_value_makes_minus_100_bad(loss):
    for ignore_index in (None, 0, -1, 2**63 - 1, 2**64):
        with fails(IndexError, NAMES[loss][1], "[0]", -100, "[0, 3)"):
            call(tokenloss, loss, np.ones((1, 3)), [-100], ignore_index=ignore_index)


def test_huge_unsigned_target_is_not_taken_for_ignore_index():
    with fails(IndexError, "[0]", 2**64 - 1, "[0, 3)"):
        cross_entropy(np.ones((1, 3)), np.array([2**64 - 1], np.uint64), ignore_index=-1)
    with fails(IndexError, "[0]", 2**64 - 2, "[0, 3)"):
        cross_entropy(np.ones((1, 3)), np.array([2**64 - 2], np.uint64), ignore_index=2**63 - 1)


@each_loss
def test_target_of_no_classes(loss):
    with fails(IndexError, NAMES[loss][1], "[0]", 0, "[0, 0)"):
        call(tokenloss, loss, np.ones((2, 0)), [0, 0])


# wrong shape, dtype, reduction, axis, epsilon, ...: naming the argument, what came, what fits


@each_loss
def test_targets_of_wrong_shape(loss):
    scores_name, name = NAMES[loss]
    for shape in [(2,), (3, 2), (2, 3, 1), (2, 3, 4), (1, 3), (), (6,), (2, 3, 5, 1)]:
        with fails(ValueError, name, shape, (2, 3), "class ids", (2, 3, 5), "distributions", scores_name):
            call(tokenloss, loss, np.ones((2, 3, 5)), np.zeros(shape, int))
    with fails(ValueError, name, (2, 3), (2, 5), (2, 3, 5)):
        call(tokenloss, loss, np.ones((2, 3, 5)), np.zeros((2, 3), int), axis=1)


@each_loss
@pytest.mark.parametrize("dtype", ["i8", "u1", "?", "c8", "c16", "O", "U3", "S3", "M8[s]", "m8[s]", "V4"])
def test_scores_of_wrong_dtype(loss, dtype):
    with fails(TypeError, NAMES[loss][0], np.dtype(dtype), "float16, bfloat16, float32 or float64"):
        call(tokenloss, loss, np.zeros((2, 3), dtype), [0, 1])


@pytest.mark.skipif(np.dtype(np.longdouble) == np.float64, reason="long double is double here")
def test_long_double_is_refused_rather_than_rounded():
    with fails(TypeError, "logits", np.dtype(np.longdouble), "float64"):
        logsumexp(np.zeros(3, np.longdouble))


def test_structured_scores_are_refused():
    with fails(TypeError, "logits", "float16"):
        logsumexp(np.zeros(3, [("a", "f4"), ("b", "f4")]))


@each_loss
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "?", "c8", "O", "U3", "M8[s]"])
def test_class_ids_of_wrong_dtype(loss, dtype):
    with fails(TypeError, NAMES[loss][1], np.dtype(dtype), "integer", (2,)):
        call(tokenloss, loss, np.ones((2, 3)), np.zeros(2, dtype))


@each_loss
@pytest.mark.parametrize("dtype", ["c8", "O", "U3", "M8[s]"])
def test_distributions_of_wrong_dtype(loss, dtype):
    with fails(TypeError, NAMES[loss][1], np.dtype(dtype), "integer, bool, float16"):
        call(tokenloss, loss, np.ones((2, 3)), np.zeros((2, 3), dtype))


@each_loss
def test_class_ids_beyond_every_integer(loss):
    with fails(TypeError, NAMES[loss][1], "object", "integer"):
        call(tokenloss, loss, np.ones((1, 3)), [2**64])


@each_loss
@pytest.mark.parametrize("value", [None, "abc", {}, ..., [[1, 2], [3]], [None, 1.0], [[1.0, "a"]]], ids=repr)
def test_what_is_no_array_of_numbers(loss, value):
    scores_name, name = NAMES[loss]
    with fails(TypeError, scores_name):
        call(tokenloss, loss, value, [0])
    with pytest.raises((TypeError, ValueError), match=name):
        call(tokenloss, loss, np.ones((2, 3)), value)


@each_loss
def test_masked_arrays_are_refused_since_their_mask_would_be_lost(loss):
    scores_name, name = NAMES[loss]
    with fails(TypeError, scores_name, "masked array", "where"):
        call(tokenloss, loss, np.ma.masked_array([[1.0, 2.0]], [[True, False]]), [0])
    with fails(TypeError, name, "masked array", "where"):
        call(tokenloss, loss, [[1.0, 2.0]], np.ma.masked_array([0], [True]))


@each_loss
@pytest.mark.parametrize(
    "value", ["Mean", "", "average", None, 0, True, ["mean"], ("none",), np.array(["mean", "sum"])]
)
def test_wrong_reduction(loss, value):
    with fails(ValueError, "reduction", "'mean', 'sum' or 'none'"):
        call(tokenloss, loss, np.ones((1, 3)), [0], reduction=value)


@each_loss
@pytest.mark.parametrize("axis", [2, -3, 10**30])
def test_axis_that_the_scores_do_not_have(loss, axis):
    with fails(ValueError, "axis", axis, NAMES[loss][0], "2 dimensions"):
        call(tokenloss, loss, np.ones((1, 3)), [0], axis=axis)


@each_loss
@pytest.mark.parametrize("axis", [None, 1.0, "1", (0,)])
def test_axis_that_is_no_integer(loss, axis):
    with fails(TypeError, "axis", axis, "integer"):
        call(tokenloss, loss, np.ones((1, 3)), [0], axis=axis)


@each_loss
def test_scores_without_an_axis_of_classes(loss):
    for scores in (0.5, np.float32(0.5), np.array(0.5)):
        with fails(ValueError, NAMES[loss][0], "scalar", "axis"):
            call(tokenloss, loss, scores, 0)


@pytest.mark.parametrize("epsilon", [-1e-12, 0.50001, 1, 2, NAN, INF, -INF])
def test_epsilon_out_of_range(epsilon):
    with fails(ValueError, "epsilon", repr(epsilon), "0 and 0.5"):
        cross_entropy_loss([0], np.ones((1, 3)), epsilon=epsilon)


@pytest.mark.parametrize("epsilon", [None, "1e-12", [0.1, 0.2], 1j, ...], ids=repr)
def test_epsilon_that_is_no_number(epsilon):
    with fails(TypeError, "epsilon", "0 and 0.5"):
        cross_entropy_loss([0], np.ones((1, 3)), epsilon=epsilon)


@each_loss
def test_weight_of_wrong_shape(loss):
    for weight in (1.0, np.ones(2), np.ones(4), np.ones((1, 3)), np.ones((3, 1)), []):
        with fails(ValueError, "weight", np.shape(weight), "(3,)"):
            call(tokenloss, loss, np.ones((2, 3)), [0, 1], weight=weight)


@each_loss
def test_weight_of_wrong_dtype(loss):
    for weight in (np.ones(3, complex), np.ones(3, object), ["a", "b", "c"]):
        with fails(TypeError, "weight", np.asarray(weight).dtype, "float"):
            call(tokenloss, loss, np.ones((2, 3)), [0, 1], weight=weight)


@each_loss
def test_where_of_wrong_shape(loss):
    for shape in [(3,), (2, 1), (2, 3), (1, 2), (0,)]:
        with fails(ValueError, "where", shape, (2,), "broadcast"):
            call(tokenloss, loss, np.ones((2, 3)), [0, 1], where=np.ones(shape, bool))


@each_loss
def test_where_of_wrong_dtype(loss):
    for where in ([0, 1], [1.0, 0.0], np.ones(2, np.uint8), "ab", np.ones(2, object)):
        with fails(TypeError, "where", np.asarray(where).dtype, "bool"):
            call(tokenloss, loss, np.ones((2, 3)), [0, 1], where=where)


@each_loss
def test_wrong_workers(loss):
    for workers in (0, -2, -(2**70)):
        with fails(ValueError, "workers", workers, "positive integer, -1 for all CPUs, or None"):
            call(tokenloss, loss, np.zeros((1, 3)), [0], workers=workers)
    for workers in (1.0, "2", [1]):
        with fails(TypeError, "workers", workers, "positive integer, -1 for all CPUs, or None"):
            call(tokenloss, loss, np.zeros((1, 3)), [0], workers=workers)


@each_loss
def test_ignore_index_that_is_no_integer(loss):
    for value in (-100.0, "0", [1]):
        with fails(TypeError, "ignore_index", value, "integer or None"):
            call(tokenloss, loss, np.ones((1, 3)), [0], ignore_index=value)


@each_loss
def test_options_are_keywords_only(loss):
    with pytest.raises(TypeError, match="positional"):
        getattr(tokenloss, loss)(np.ones((1, 3)), [0], -1)


def test_wrong_out():
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
def test_out_is_not_written_where_the_input_is_bad(logits, options, error):
    out = np.array([7.0, 8.0])
    with pytest.raises(error):
        logsumexp(logits, out=out, **options)
    assert out.tolist() == [7.0, 8.0]


@each_loss
def test_bad_input_leaves_its_arrays_as_they_were(loss):
    scores, targets, weight = np.ones((2, 3)), np.array([0, 3]), np.ones(3)
    with pytest.raises(IndexError):
        call(tokenloss, loss, scores, targets, weight=weight, reduction="none")
    assert (scores == 1).all()
    assert targets.tolist() == [0, 3]
    assert (weight == 1).all()


@each_loss
def test_good_input_is_not_written_to(loss, rng):
    scores = scores_for(loss, rng, (20, 1000), np.float32)
    scores[3, 4] = np.nan
    targets, weight, where = rng.integers(0, 1000, 20), rng.random(1000), rng.random(20) > 0.5
    copies = [array.tobytes() for array in (scores, targets, weight, where)]
    call(tokenloss, loss, scores, targets, weight=weight, where=where)
    call(tokenloss, loss, scores, np.eye(1000)[targets], weight=weight, where=where)
    assert [array.tobytes() for array in (scores, targets, weight, where)] == copies


# array on a GPU or other device: TypeError that says to move it to the CPU


class OnDevice:
    def __init__(self, *device):
        self.device = device

    def __dlpack__(self, **options):
        raise AssertionError("no other device may be asked for its memory")

    def __dlpack_device__(self):
        return self.device


@each_loss
@pytest.mark.parametrize("device", [(2, 0), (2, 7), (8, 0), (10, 1), (13, 0)])
def test_array_on_another_device(loss, device):
    scores_name, name = NAMES[loss]
    with fails(TypeError, scores_name, "device", device[0], device[1], "CPU"):
        call(tokenloss, loss, OnDevice(*device), [0])
    with fails(TypeError, name, "device", device[0], device[1], "CPU"):
        call(tokenloss, loss, np.ones((1, 3)), OnDevice(*device))
    for option in ("weight", "where"):
        with fails(TypeError, option, "device", "CPU"):
            call(tokenloss, loss, np.ones((1, 3)), [0], **{option: OnDevice(*device)})


def test_array_on_another_device_given_to_a_meter():
    meter = LossMeter()
    with fails(TypeError, "nll", "device", "CPU"):
        meter.update(OnDevice(2, 0))
    assert meter == LossMeter()


def test_exporters_that_fail_are_named():
    class Refuses:
        def __init__(self, error):
            self.error = error

        def __dlpack__(self, **options):
            raise self.error

        def __dlpack_device__(self):
            return (1, 0)

    for error in (BufferError("it has a gradient"), RuntimeError("it has a gradient"), ValueError("it has a gradient")):
        with fails(TypeError, "logits", "DLPack", "it has a gradient"):
            cross_entropy(Refuses(error), [0])

    class SaysNothing:
        def __dlpack__(self, **options):
            return np.zeros((1, 3)).__dlpack__(**options)

    with fails(TypeError, "logits"):
        cross_entropy(SaysNothing(), [0])

    class GivesNonsense(Refuses):
        def __dlpack__(self, **options):
            return "no capsule"

    with fails(TypeError, "logits", "DLPack"):
        cross_entropy(GivesNonsense(None), [0])


def test_exporters_of_other_dtypes():
    class Exporter(OnDevice):
        def __dlpack__(self, **options):
            return np.zeros((1, 3), np.complex64).__dlpack__(**options)

    with fails(TypeError, "logits", "complex64", "float16, bfloat16, float32 or float64"):
        cross_entropy(Exporter(1, 0), [0])


def test_torch_tensors_that_cannot_be_read():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with fails(TypeError, "logits", "grad"):
        cross_entropy(torch.zeros(2, 3, requires_grad=True), [0, 0])
    with fails(TypeError, "logits"):
        cross_entropy(torch.zeros(2, 3).to_sparse(), [0, 0])
    with fails(TypeError, "logits"):
        cross_entropy(torch.zeros(2, 3, device="meta"), [0, 0])
    with fails(TypeError, "logits", "float16, bfloat16, float32 or float64"):
        cross_entropy(torch.zeros(2, 3, dtype=torch.int64), [0, 0])
    with fails(TypeError, "targets", "integer"):
        cross_entropy(torch.zeros(2, 3), torch.zeros(2))


# ignored or masked row: never read, and 0.0 where nothing is reduced


@each_loss
def test_ignored_rows_read_zero(loss, rng):
    scores = scores_for(loss, rng, (4, 5), np.float32)
    expected = call(tokenloss, loss, scores, [1, 2, 3, 4], reduction="none")
    scores[1] = np.nan
    losses = call(tokenloss, loss, scores, [1, -100, 3, 4], reduction="none")
    assert losses.tolist() == [expected[0], 0.0, expected[2], expected[3]]
    assert math.copysign(1, losses[1]) == 1
    losses = call(tokenloss, loss, scores, [1, 0, 3, 4], ignore_index=0, reduction="none")
    assert losses.tolist() == [expected[0], 0.0, expected[2], expected[3]]


@each_loss
@pytest.mark.parametrize("garbage", [99, -1, -(2**62), -100])
def test_targets_of_masked_rows_may_be_garbage(loss, garbage, rng):
    scores = scores_for(loss, rng, (4, 5), np.float32)
    expected = call(tokenloss, loss, scores, [1, 2, 3, 4], reduction="none")
    scores[[0, 3]] = np.nan
    losses = call(tokenloss, loss, scores, [garbage, 2, 3, garbage], where=[False, True, True, False], reduction="none")
    assert losses.tolist() == [0.0, expected[1], expected[2], 0.0]


@each_loss
def test_masked_rows_of_distributions_may_be_garbage(loss, rng):
    scores, shares = scores_for(loss, rng, (3, 5), np.float32), np.full((3, 5), 0.2)
    expected = call(tokenloss, loss, scores, shares, reduction="none")
    scores[1], shares[1] = np.nan, np.inf
    losses = call(tokenloss, loss, scores, shares, where=[True, False, True], reduction="none")
    assert losses.tolist() == [expected[0], 0.0, expected[2]]


@each_loss
def test_mean_counts_kept_rows_only(loss, rng):
    scores = scores_for(loss, rng, (4, 5), np.float64)
    losses = call(tokenloss, loss, scores, [1, 2, 3, 4], reduction="none")
    kept = call(tokenloss, loss, scores, [1, 2, -100, 4], where=[False, True, True, True])
    assert kept == math.fsum(losses[[1, 3]]) / 2


FORBIDDEN_PAGES = """
import ctypes, mmap
import numpy as np
from tokenloss import cross_entropy, cross_entropy_loss, logsumexp, nll_loss

PAGE = mmap.PAGESIZE
memory = mmap.mmap(-1, 3 * PAGE)
bytes_ = np.frombuffer(memory, np.uint8)
libc = ctypes.CDLL(None, use_errno=True)


def forbid(page):
    address = ctypes.c_void_p(bytes_.ctypes.data + page * PAGE)
    assert libc.mprotect(address, ctypes.c_size_t(PAGE), 0) == 0
"""
needs_mprotect = pytest.mark.skipif(sys.platform == "win32", reason="there is no mprotect")


@needs_mprotect
def test_ignored_and_masked_rows_lie_in_memory_that_cannot_be_read(run_python):
    run_python(
        FORBIDDEN_PAGES
        + """
rows = np.frombuffer(memory, np.float32).reshape(3, -1)
shares = np.broadcast_to(np.float32(1), rows.shape)
rows[...] = 0
forbid(1)
where = [True, False, True]
for loss in (cross_entropy, nll_loss, lambda scores, *rest, **options: cross_entropy_loss(*rest, scores, **options)):
    for targets in ([0, -100, 9], [5, -100, rows.shape[1] - 1]):
        assert loss(rows, targets, reduction="none")[1] == 0
    assert loss(rows, [5, 10**9, 0], where=where, reduction="none")[1] == 0
    assert loss(rows, shares, where=where, reduction="none")[1] == 0
"""
    )


@needs_mprotect
def test_scores_of_classes_without_a_share_lie_in_memory_that_cannot_be_read(run_python):
    run_python(
        FORBIDDEN_PAGES
        + """
row = np.frombuffer(memory, np.float32)
row[...] = 0.5
forbid(1)
for dtype in (np.float16, np.float32, np.float64):
    shares = np.zeros(row.size, dtype)
    shares[[0, PAGE // 4 - 1, PAGE // 2, -1]] = 1
    assert abs(cross_entropy_loss(shares, row) - 4 * np.log(2)) < 1e-14
for dtype in (np.int8, bool):  # one-hot
    for k in (0, PAGE // 4 - 1, PAGE // 2, -1):
        shares = np.zeros(row.size, dtype)
        shares[k] = 1
        assert cross_entropy_loss(shares, row) == np.log(2)
"""
    )


@needs_mprotect
def test_nothing_is_read_beyond_either_end_of_a_row(run_python):
    run_python(
        FORBIDDEN_PAGES
        + """
import ml_dtypes
from tokenloss import _core, cross_entropy_and_grad, kl_divergence, log_softmax, softmax, token_scores

bytes_[...] = 0
forbid(0)
forbid(2)
for backend in _core.backends():
    _core.use_backend(backend)
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
        itemsize = np.dtype(dtype).itemsize
        page = bytes_[PAGE : 2 * PAGE].view(dtype)
        for count in [1, 2, 3, 63, 64, 65, 127, 128, 129, 511, 512, 513, 1000, PAGE // itemsize]:
            if count <= page.size:
                for row in (page[:count], page[page.size - count :]):
                    for view in (row, row[::-1]):
                        assert abs(float(logsumexp(view)) - np.log(count)) < 1e-12
                        assert abs(cross_entropy(view, 0) - np.log(count)) < 1e-12
                        assert abs(cross_entropy(view, count - 1) - np.log(count)) < 1e-12
                        assert kl_divergence(view, row) == 0
                        assert token_scores(view, 0, top_k=min(count, 2), softcap=9.0).rank == count
                        softmax(view, out=view)
                        assert abs(view.sum(dtype=float) - 1) < 0.01
                        log_softmax(view, out=view)
                        cross_entropy_and_grad(view, 0, out=view)
                        row[...] = 0
                    shares = np.zeros(count, np.float32)
                    shares[-1] = 1
                    assert nll_loss(row, shares) == 0
                    assert abs(cross_entropy(shares, row)) == 0
                    assert nll_loss([row[0]] * count, row) == 0
"""
    )


# every row ignored, or none given: mean nan, sum 0.0


@each_loss
@pytest.mark.parametrize("weighted", [False, True])
def test_every_row_ignored(loss, weighted):
    scores, weight = np.full((3, 4), np.nan, np.float32), np.ones(4) if weighted else None
    everything_ignored = [
        ([-100] * 3, {}),
        ([2] * 3, {"ignore_index": 2}),
        ([0] * 3, {"where": False}),
        ([9, -100, 0], {"where": [False, True, False]}),
        (np.ones((3, 4)), {"where": [False] * 3}),
    ]
    for targets, options in everything_ignored:
        assert math.isnan(call(tokenloss, loss, scores, targets, weight=weight, **options))
        assert str(call(tokenloss, loss, scores, targets, weight=weight, reduction="sum", **options)) == "0.0"
        assert call(tokenloss, loss, scores, targets, weight=weight, reduction="none", **options).tolist() == [0, 0, 0]


@each_loss
def test_single_position_that_is_ignored(loss):
    assert math.isnan(call(tokenloss, loss, [0.1, 0.9], -100))
    assert call(tokenloss, loss, [0.1, 0.9], -100, reduction="none") == 0.0
    assert call(tokenloss, loss, [0.1, 0.9], 0, where=False, reduction="sum") == 0.0


@each_loss
def test_no_rows_given(loss):
    scores = np.empty((0, 4))
    for targets in ([], np.empty(0, int), np.empty((0, 4))):
        assert math.isnan(call(tokenloss, loss, scores, targets))
        assert call(tokenloss, loss, scores, targets, reduction="sum") == 0.0
        assert call(tokenloss, loss, scores, targets, reduction="none").shape == (0,)


@each_loss
def test_weights_that_add_up_to_nothing(loss):
    scores = np.full((2, 3), 0.25 if loss == "cross_entropy_loss" else -0.25)
    assert math.isnan(call(tokenloss, loss, scores, [0, 1], weight=[0, 0, 1]))
    assert call(tokenloss, loss, scores, [0, 1], weight=[0, 0, 1], reduction="sum") == 0.0
    unequal = np.sign(scores) * [[0.25, 0.5, 0.25], [0.5, 0.75, 0.25]]
    assert math.isinf(call(tokenloss, loss, unequal, [0, 1], weight=[1, -1, 0]))


# target's logit -inf: inf; all logits -inf: nan; nan or +inf in a kept row: nan


@each_dtype
def test_target_of_no_chance(dtype, backend):
    for length in (2, 3, 600, 9000):
        for target in {0, 1, length // 2, length - 1}:
            row = np.linspace(-5, 5, length).astype(dtype)
            row[target] = -np.inf
            assert cross_entropy(row, target) == INF
            assert cross_entropy(row, np.arange(length) == target) == INF
            assert nll_loss(row, target) == INF
            assert logsumexp(row) < INF


@each_dtype
def test_all_logits_minus_infinity(dtype, backend):
    for length in (1, 2, 511, 512, 513, 4096, 9000):
        row = np.full(length, -np.inf, dtype)
        assert math.isnan(cross_entropy(row, length - 1))
        assert math.isnan(cross_entropy(row, np.arange(length) == 0))
        assert logsumexp(row) == -INF


@each_dtype
def test_all_logits_minus_infinity_but_one(dtype, backend):
    for length in (1, 2, 511, 512, 513, 4096, 9000):
        for k in {0, length // 2, length - 1}:
            for value in (0.0, -3.0, 6e4, -6e4):
                row = np.full(length, -np.inf, dtype)
                row[k] = value
                assert str(cross_entropy(row, k)) == "0.0"
                assert logsumexp(row) == pytest.approx(float(row[k]), rel=1e-15, abs=2e-7)
                assert length == 1 or cross_entropy(row, (k + 1) % length) == INF


@each_dtype
@pytest.mark.parametrize("value", [NAN, INF, -NAN])
def test_nan_or_infinity_anywhere_in_a_kept_row(dtype, value, rng, backend):
    clean = rng.standard_normal(9000).astype(dtype)
    for position in BORDERS:
        row = clean.copy()
        row[position] = value
        for target in (position, 0, 4096, 8999):
            for view, k in ((row, target), (row[::-1], 8999 - target), (np.repeat(row, 2)[::2], target)):
                assert math.isnan(cross_entropy(view, k)), (position, target)
        assert math.isnan(cross_entropy(row, np.eye(1, 9000, 17, dtype=np.int8)[0]))
        assert math.isnan(logsumexp(row))
    assert math.isfinite(cross_entropy(clean, 0))


@each_dtype
@pytest.mark.parametrize("length", [1, 2, 3, 64, 65, 512, 513])
def test_nan_or_infinity_in_short_rows(dtype, length, backend):
    for value in (NAN, INF):
        for position in {0, length // 2, length - 1}:
            for background in (0.0, -np.inf, 6e4, -6e4):
                row = np.full(length, background, dtype)
                row[position] = value
                assert math.isnan(logsumexp(row))
                assert math.isnan(cross_entropy(row, 0))
                assert math.isnan(cross_entropy(row, length - 1))


@pytest.mark.parametrize("value", [NAN, INF])
def test_nan_or_infinity_in_rows_far_out(value, backend):
    for dtype in (np.float32, np.float64):
        for background in (-3e38, -1e6, 1e6, 3e38):
            for position in BORDERS:
                row = np.full(9000, background, dtype)
                row[position] = value
                assert math.isnan(logsumexp(row))
                assert math.isnan(cross_entropy(row, 100))


@each_loss
def test_nan_spoils_its_own_row_only(loss, rng):
    scores = scores_for(loss, rng, (5, 100), np.float32)
    scores[2] = np.nan
    targets = rng.integers(0, 100, 5)
    losses = call(tokenloss, loss, scores, targets, reduction="none")
    assert np.isnan(losses).tolist() == [False, False, True, False, False]
    assert math.isnan(call(tokenloss, loss, scores, targets))
    assert math.isnan(call(tokenloss, loss, scores, targets, reduction="sum"))


@each_loss
def test_infinite_loss_in_a_batch(loss):
    scores = {"cross_entropy_loss": [[0.0, 1], [0.5, 0.5]], "nll_loss": [[-INF, 0], [-1, -1]]}.get(
        loss, [[-INF, 0], [1, 1]]
    )
    options = {"epsilon": 0} if loss == "cross_entropy_loss" else {}
    assert call(tokenloss, loss, scores, [0, 1], **options) == INF
    assert call(tokenloss, loss, scores, [0, 1], reduction="sum", **options) == INF
    assert call(tokenloss, loss, scores, [0, 1], reduction="none", **options).tolist()[0] == INF


def test_scores_of_other_classes_do_not_matter_unless_they_are_summed():
    assert cross_entropy_loss(0, [0.5, NAN, INF]) == pytest.approx(math.log(2), rel=1e-15)
    assert nll_loss([-0.5, NAN, INF], 0) == 0.5
    assert math.isnan(cross_entropy_loss(1, [0.5, NAN, INF]))
    assert math.isnan(nll_loss([-0.5, NAN, INF], 1))


# soft target 0 where log-probability is -inf: contributes 0


def test_no_share_of_an_impossible_class():
    assert cross_entropy([0.0, -INF, 0.0], [0.5, 0, 0.5]) == pytest.approx(math.log(2), rel=1e-15)
    assert nll_loss([-0.5, -INF, -0.25], [0.5, 0, 0.5]) == 0.375
    assert cross_entropy_loss([0.5, 0, 0.5], [0.5, 0, 0.5], epsilon=0) == pytest.approx(math.log(2), rel=1e-15)
    assert cross_entropy([0.0, -INF], [1.0, -0.0]) == 0.0


def test_share_of_an_impossible_class():
    assert cross_entropy([0.0, -INF, 0.0], [0.5, 0.1, 0.4]) == INF
    assert nll_loss([-0.5, -INF, -0.25], [0.5, 0.1, 0.4]) == INF
    assert cross_entropy([0.0, -INF, -INF], [0.6, 0.1, 0.3]) == INF
    assert cross_entropy([-INF, 0.0, -INF], [0.6, 0.1, 0.3]) == INF


def test_nan_and_infinite_shares():
    for loss in (nll_loss, cross_entropy):
        assert math.isnan(loss([-1.0, -2.0], [NAN, 1.0]))
        assert math.isnan(loss([-1.0, -2.0], [1.0, NAN]))
        assert loss([-1.0, -2.0], [1.0, INF]) == INF


# probability 0 with epsilon=0: inf


@each_dtype
def test_probability_zero_without_clipping(dtype):
    y_pred = np.array([[0, 1, 0], [0.5, 0.5, 0]]).astype(dtype)
    assert cross_entropy_loss([0, 0], y_pred, epsilon=0) == INF
    assert cross_entropy_loss([2, 1], y_pred, epsilon=0, reduction="none")[0] == INF
    assert cross_entropy_loss([[1, 0, 0], [0, 1, 0]], y_pred, epsilon=0) == INF
    assert cross_entropy_loss([0, 0], y_pred) == pytest.approx((-math.log(1e-12) + math.log(2)) / 2, rel=1e-15)


# perplexity of a loss above 709: inf, never OverflowError


@pytest.mark.parametrize("loss", [710.0, 1e4, 1e308, INF])
def test_perplexity_beyond_a_float(loss):
    meter = LossMeter()
    meter.update([loss, loss], n_bytes=3, n_words=1)
    assert meter.perplexity == INF
    assert meter.word_perplexity == INF
    assert meter.perplexity_interval[1] == INF or math.isnan(meter.perplexity_interval[1])
    assert "inf" in repr(meter)


def test_perplexity_of_the_largest_loss_that_fits():
    meter = LossMeter()
    meter.update(709.0)
    assert meter.perplexity == pytest.approx(math.exp(709), rel=1e-15)


# the losses themselves overflow


def test_loss_beyond_a_float():
    row = np.array([1.7e308, -1.7e308])
    assert cross_entropy(row, 1) == INF
    assert cross_entropy(row, 0) == 0.0
    assert nll_loss([[-1.7e308], [-1.7e308]], [0, 0], reduction="sum") == INF
    assert nll_loss([[-1.7e308], [-1.7e308]], [0, 0]) == 1.7e308  # P7: the mean is a float where the sum is none
    assert sum_of([1.7e308, 1.7e308, -1.7e308]) == 1.7e308


# a weight of 0


def test_weight_of_nothing_makes_the_same_of_ids_and_of_one_hot_targets():
    logits = [[0.0, -INF], [-1.0, -2.0]]
    for reduction in ("none", "sum", "mean"):
        for loss in (cross_entropy, nll_loss):
            ids = loss(logits, [1, 0], weight=[1, 0], reduction=reduction)
            one_hot = loss(logits, [[0, 1], [1, 0]], weight=[1, 0], reduction="none")
            if reduction == "none":
                assert np.isnan(ids).tolist() == np.isnan(one_hot).tolist() == [True, False]  # 0 * inf
            else:
                assert math.isnan(ids)


def test_class_of_no_weight_does_not_blur_the_others():
    for far, dtype in ((-3e38, np.float32), (-1e6, np.float64), (-1e300, np.float64)):
        logits = np.array([0.25, 0.5, far], dtype)
        expected = 0.4 * (math.log(math.exp(0.25) + math.exp(0.5)) - 0.25)
        assert cross_entropy(logits, [0.4, 0.0, 0.6], weight=[1, 1, 0]) == pytest.approx(expected, abs=2e-7 * 0.4), far
        if dtype == np.float64:
            assert cross_entropy(logits, [0.4, 0.0, 0.6], weight=[1, 1, 0]) == pytest.approx(expected, rel=8e-15)
