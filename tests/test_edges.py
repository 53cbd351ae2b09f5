"""Edges of the core: arrays that lie about themselves, ids that change during a call, sums and products beyond floats.

The numbers (W2, M1, ...) are those of the findings that these tests began with.
"""

import ctypes
import json
import math
from typing import ClassVar

import numpy as np
import pytest
from arrays import FLOATS, fails

import tokenloss
from tokenloss import (
    LossMeter,
    cross_entropy,
    cross_entropy_and_grad,
    cross_entropy_loss,
    logsumexp,
    nll_loss,
    token_scores,
)

LOSSES = {"cross_entropy": cross_entropy, "nll_loss": nll_loss}

# DLPack


class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
    )  # fmt: skip


class Producer:
    """A tensor whose capsule says what it is told to, and which lives as long as the process, for it has no deleter."""

    alive: ClassVar = []

    def __init__(self, device=(1, 0), **changes):
        self.alive.append(self)
        self.memory = np.zeros((2, 3), np.float32)
        self.shape = (ctypes.c_int64 * 3)(*changes.pop("shape", (2, 3)))
        values = {"data": self.memory.ctypes.data, "device_type": 1, "ndim": 2, "code": 2, "bits": 32, "lanes": 1}
        self.tensor = Tensor(**values | changes)
        self.tensor.shape = self.shape
        self.device = device

    def __dlpack__(self, **options):
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(ctypes.addressof(self.tensor), b"dltensor", None)

    def __dlpack_device__(self):
        return self.device


def test_dlpack_producer_of_this_file():
    np.testing.assert_allclose(logsumexp(Producer()), [math.log(3)] * 2, rtol=1e-15)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": None}, ("its data pointer is NULL",)),  # W2
        ({"data": None, "byte_offset": 64}, ("its data pointer is NULL",)),
        ({"ndim": -1}, ("-1 dimensions",)),  # M4
        ({"ndim": -(2**31)}, ("dimensions",)),
        ({"ndim": 65}, ("65 dimensions",)),  # U7
        ({"shape": (2, -3)}, ("its shape holds -3",)),
        ({"shape": (2**40, 2**40)}, ("more elements than memory",)),
        ({"device_type": 2}, ("device 2:0", "CPU")),
        ({"lanes": 2}, ("float32x2", "float16, bfloat16, float32 or float64")),
        ({"code": 6, "bits": 1}, ("bool1",)),
        ({"code": 6}, ("bool32",)),
        ({"code": 5}, ("complex32",)),
        ({"code": 77, "bits": 8}, ("unknown8",)),
    ],
    ids=str,
)
def test_dlpack_of_impossible_tensors(changes, words):
    with fails(TypeError, "logits", *words):
        logsumexp(Producer(**changes))
    with fails(TypeError, "targets"):
        cross_entropy(np.zeros((2, 3)), Producer(**changes))


def test_dlpack_of_no_elements_may_have_no_memory():
    assert logsumexp(Producer(data=None, shape=(0, 3))).shape == (0,)


def test_dlpack_producers_type_errors_are_theirs():  # U7
    class Refuses(Producer):
        def __dlpack__(self, **options):
            raise TypeError("no arrays with nulls")

    with fails(TypeError, "targets cannot be read through DLPack: no arrays with nulls"):
        cross_entropy(np.zeros((2, 3)), Refuses())


def test_torch_tensors_without_memory():  # W2
    torch = pytest.importorskip("torch", reason="torch is optional")
    fake = pytest.importorskip("torch._subclasses.fake_tensor", reason="this torch has none")
    with fake.FakeTensorMode():
        tensor = torch.randn(2, 3)
    with fails(TypeError, "logits"):
        cross_entropy(tensor, [0, 1])
    with fails(TypeError, "out"):
        tokenloss.softmax(np.zeros((2, 3), np.float32), out=tensor)


def test_torch_tensors_with_the_negative_bit():  # W3
    torch = pytest.importorskip("torch", reason="torch is optional")
    for view in (torch._neg_view(torch.tensor([[1.0, 2, 3]])), torch.tensor([[1 - 1j, 2 - 2j, 3 - 3j]]).conj().imag):
        with fails(TypeError, "logits", "resolve_neg"):
            cross_entropy(view, [0])
    for lists in ([torch._neg_view(torch.tensor([1.0, 2, 3]))], [torch.tensor([1.0, 2, 3], requires_grad=True)]):
        with fails(TypeError, "logits is no array of numbers"):
            cross_entropy(lists, [0])
    assert cross_entropy(view.resolve_neg(), [0]) == cross_entropy(np.float32([[1.0, 2, 3]]), [0])


# class ids that change during a call


CHANGED = """
import contextlib
import threading
import numpy as np
from tokenloss import *

changing, x = np.zeros(300_000, np.{dtype}), np.zeros((300_000, 3))
probs, weight, hidden, matrix = x + 1 / 3, np.ones(3), np.zeros((300_000, 2)), np.zeros((3, 2))
stop = threading.Event()


def change():
    while not stop.is_set():
        changing[:] = {value}
        changing[:] = 0


thread = threading.Thread(target=change)
thread.start()
for _ in range(100):
    with contextlib.suppress(IndexError):
        {call}
stop.set()
thread.join()
"""


@pytest.mark.parametrize(
    "call",
    [
        "cross_entropy(x, changing, workers=2)",
        "cross_entropy(x, changing, weight=weight, workers=2)",
        "cross_entropy_and_grad(x, changing, weight=weight, workers=2)",
        "cross_entropy_loss(changing, probs, weight=weight, workers=2)",
        "token_scores(x, changing, top_k=2, workers=2)",
        "linear_token_scores(hidden[:3000], matrix, changing[:3000], workers=2)",
        "cross_entropy(x.T, changing, axis=0, workers=2)",
    ],
)
@pytest.mark.parametrize(("dtype", "value"), [("int64", "10**12"), ("uint64", "2**64 - 2**40")])
def test_class_ids_that_other_threads_change_lead_nowhere(call, dtype, value, run_python):  # M1
    run_python(CHANGED.format(call=call, dtype=dtype, value=value))


# out


def test_out_of_a_subclass_that_lies_about_its_shape():  # M3
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
def test_out_whose_elements_share_memory(strides):  # U15
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


# numbers


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", ">i8", "uint64", ">u8"])
def test_ignore_index_of_the_largest_and_smallest_integers(dtype):  # U8
    for value in (np.iinfo(dtype).max, np.iinfo(dtype).min):
        targets = np.array([1, value], dtype)
        for number in (int(value), np.iinfo(dtype).dtype.type(value)):
            assert cross_entropy(np.zeros((2, 3)), targets, ignore_index=number) == cross_entropy(np.zeros(3), 1)
    with fails(IndexError, "targets[1] is", np.iinfo(dtype).max):  # another number of the same bits
        cross_entropy(np.zeros((2, 3)), np.array([1, np.iinfo(dtype).max], dtype), ignore_index=-1)


def test_logit_scale_that_overflows():  # U9
    logits, scale = np.array([[1e300, 2.0, 3.0], [2.0, 1e300, 3.0], [1.0, 1.0, -1e300]]), 1e308
    losses = cross_entropy(logits, [0, 0, 0], logit_scale=scale, reduction="none")
    np.testing.assert_allclose(losses, [0.0, np.inf, math.log(2)], rtol=1e-15)
    assert np.isnan(cross_entropy([1e300, np.nan], 0, logit_scale=scale))
    np.testing.assert_array_equal(
        cross_entropy(logits, np.eye(3)[[0, 1, 0]], logit_scale=scale, reduction="none"), [0.0, 0.0, losses[2]]
    )
    for layout in (logits, np.asfortranarray(logits)):
        scores = token_scores(layout, [0, 0, 0], logit_scale=scale, top_k=1)
        np.testing.assert_array_equal(scores.nll, losses)
        assert scores.rank.tolist() == [1, 3, 2]
        assert scores.logsumexp.tolist() == [np.inf, np.inf, 1e308]
        np.testing.assert_allclose(scores.top_logprobs[:, 0], [0, 0, -math.log(2)], rtol=1e-15)
    loss, gradient = cross_entropy_and_grad(logits[0], 0, logit_scale=scale)
    assert (loss, gradient.tolist()) == (0.0, [0.0, 0.0, 0.0])


@pytest.mark.parametrize("weight", [None, [0, 1, 1]])
def test_logit_scale_that_overflows_where_the_gradient_replaces_the_logits(weight):  # U9
    logits = np.array([[1e300, 2.0, 3.0], [2.0, 1e300, 3.0], [1.0, 1.0, -1e300], [-np.inf, 1.0, 2.0]])
    options = {"logit_scale": 1e308, "weight": weight, "reduction": "none"}
    losses, gradient = cross_entropy_and_grad(logits, [0, 2, 0, 0], **options)
    np.testing.assert_array_equal(losses, cross_entropy(logits, [0, 2, 0, 0], **options))
    np.testing.assert_allclose(gradient[1], [0, 1e308, -1e308], rtol=1e-15)
    for order in "CF":
        out = logits.copy(order)
        found, _ = cross_entropy_and_grad(out, [0, 2, 0, 0], out=out, **options)
        np.testing.assert_array_equal(found, losses)
        np.testing.assert_array_equal(out, gradient)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dtype_that_came_is_named(dtype):  # P1
    with fails(TypeError, f"targets has dtype {dtype.name}; it must be integer"):
        cross_entropy(np.zeros((1, 3)), np.array([1], dtype))
    with fails(TypeError, f"where has dtype {dtype.name}; it must be bool"):
        cross_entropy(np.zeros((1, 3)), [1], where=np.array([1], dtype))


def test_results_of_one_row_are_scalars():  # P5
    results = [logsumexp([1.0, 2.0]), cross_entropy_loss([1, 0], [0.5, 0.5], reduction="none")]
    results += [loss([-1.0, -2.0], 1, reduction="none") for loss in LOSSES.values()]
    results += [cross_entropy_and_grad([1.0, 2.0], 0, reduction="none")[0]]
    results += [tokenloss.kl_divergence([1.0, 2.0], [2.0, 1.0], reduction="none")]
    results += [tokenloss.linear_cross_entropy([1.0], [[1.0], [2.0]], 0, reduction="none")]
    for result in results:
        assert type(result) is np.float64
        assert json.loads(json.dumps(result)) == result
    out = np.empty(())
    assert logsumexp([1.0, 2.0], out=out) is out
    assert out[()] == results[0]


@pytest.mark.parametrize("losses", [[1e308] * 2, [1e308] * 7, [1.7e308, 1.7e308, 1.0], [-1.7e308] * 3])
def test_mean_fits_where_the_sum_does_not(losses):  # P7
    meter = LossMeter()
    meter.update(losses)
    expected = float(sum(map(int, losses)) // len(losses))
    assert meter.loss == pytest.approx(expected, rel=1e-15)
    if losses[0] > 0:
        assert nll_loss(-np.array(losses)[:, None], [0] * len(losses)) == pytest.approx(expected, rel=1e-15)
    assert math.isinf(meter.total)


def test_meter_of_more_bytes_than_a_float_can_count():  # U1
    meter = LossMeter()
    meter.update([1e308] * 4, n_bytes=10**310, n_words=10**310)
    assert meter.bits_per_byte == pytest.approx(0.04 / math.log(2), rel=1e-12)
    assert meter.word_perplexity == pytest.approx(math.exp(0.04), rel=1e-12)
    meter.update([1.0], n_bytes=10**700)
    assert meter.bits_per_byte == 0.0


def test_meters_add_up_by_sum():  # U11
    meters = [LossMeter() for _ in range(3)]
    for k, meter in enumerate(meters):
        meter.update([1.0, float(k)])
    assert sum(meters) == sum(meters, LossMeter())
    assert sum(meters[:1]) == meters[0]
    assert sum(meters[:1]) is not meters[0]
    for other in (1, 0.0, None, "0"):
        with pytest.raises(TypeError):
            other + meters[0]


def test_meter_of_token_scores_with_where():  # W11
    logits, targets = np.random.default_rng(0).standard_normal((2, 3, 5)), np.array([[0, -100, 2], [3, 4, -100]])
    scores, where = token_scores(logits, targets), np.array([True, True, False])
    for arguments, kept in (((), targets >= 0), ((where,), (targets >= 0) & where)):
        meter, expected = LossMeter(), LossMeter()
        meter.update(scores, *arguments, n_bytes=7)
        expected.update(scores.nll[kept], n_bytes=7)
        assert meter == expected
    with fails(ValueError, "where has shape (2,)"):
        LossMeter().update(scores, [True, False])


@pytest.mark.parametrize("workers", [-1, np.int64(-1)])
def test_workers_of_minus_one_are_all(workers, run_python):
    logits = np.random.default_rng(0).standard_normal((300, 4096)).astype(np.float32)
    assert cross_entropy(logits, [0] * 300, workers=workers) == cross_entropy(logits, [0] * 300, workers=1)
    program = """
import os, threading
os.sched_getaffinity = lambda pid: {0, 1, 2}
import numpy as np, tokenloss
tokenloss.logsumexp(np.zeros((3000, 4096)), workers=-1)
print(threading.active_count())
"""
    assert run_python(program, TOKENLOSS_NUM_WORKERS="1").strip() == "3"
