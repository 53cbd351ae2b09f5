"""Arrays of every origin: lists, buffers, memory maps, DLPack, torch, JAX and pandas; and those that cannot be read."""

import array
import ctypes
import gc
import math
import re
import warnings
import weakref
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from arrays import BFLOAT16, LOSSES, OnDevice, assert_same_bits, backwards, call, fails, scores_for, strided

import tokenloss
from tokenloss import LossMeter, cross_entropy, cross_entropy_loss, logsumexp, nll_loss

each_loss = pytest.mark.parametrize("loss", LOSSES)
NAMES = {
    "cross_entropy_loss": ("y_pred", "y_true"),
    "nll_loss": ("log_probs", "targets"),
    "cross_entropy": ("logits", "targets"),
}


@each_loss
def test_lists_and_scalars(loss, rng):
    scores = scores_for(loss, rng, (3, 4), np.float64)
    expected = call(tokenloss, loss, scores, np.array([0, 3, 1]), reduction="none")
    assert_same_bits(call(tokenloss, loss, scores.tolist(), [0, 3, 1], reduction="none"), expected)
    assert_same_bits(call(tokenloss, loss, tuple(map(tuple, scores)), (0, 3, 1), reduction="none"), expected)
    assert_same_bits(call(tokenloss, loss, list(scores), [np.int8(0), 3, np.uint16(1)], reduction="none"), expected)
    for target in (0, np.int16(0), np.array(0)):
        assert call(tokenloss, loss, scores[0].tolist(), target) == expected[0]


def test_lists_of_integers_as_scores():
    assert cross_entropy([[1, 2, 3]], [2]) == cross_entropy([[1.0, 2.0, 3.0]], [2])
    assert nll_loss([[-1, 0]], [0]) == 1.0


@each_loss
@pytest.mark.parametrize("typecode", "fd")
def test_buffers(loss, typecode, rng):
    scores = scores_for(loss, rng, (6,), np.dtype(typecode))
    expected = call(tokenloss, loss, scores, 2)
    assert call(tokenloss, loss, array.array(typecode, scores), 2) == expected
    assert call(tokenloss, loss, memoryview(scores), 2) == expected
    assert call(tokenloss, loss, memoryview(array.array(typecode, scores)), 2) == expected
    shares = array.array("b", [0, 0, 1, 0, 0, 0])
    assert call(tokenloss, loss, scores, shares) == expected
    ids = array.array("H", [2, 2])
    assert call(tokenloss, loss, np.stack([scores, scores]), memoryview(ids)) == expected


@each_loss
def test_memory_maps_and_subclasses(loss, rng, tmp_path):
    scores = scores_for(loss, rng, (30, 40), np.float16)
    targets = rng.integers(0, 40, 30)
    np.save(tmp_path / "scores.npy", scores)
    np.save(tmp_path / "targets.npy", targets)
    mapped = np.load(tmp_path / "scores.npy", mmap_mode="r")
    ids = np.load(tmp_path / "targets.npy", mmap_mode="r")
    expected = call(tokenloss, loss, scores, targets)
    assert call(tokenloss, loss, mapped, ids) == expected
    assert call(tokenloss, loss, np.asarray(scores).view(np.recarray), ids) == expected


def test_memory_mapped_npy_files(tmp_path):
    rng = np.random.default_rng(1)
    for dtype in (np.float16, np.float32, np.dtype(">f4"), np.float64):
        for order in "CF":
            logits = np.asarray(rng.standard_normal((60, 700)), dtype, order=order)
            np.save(tmp_path / "logits.npy", logits)
            mapped = np.load(tmp_path / "logits.npy", mmap_mode="r")
            assert isinstance(mapped, np.memmap)
            targets = rng.integers(0, 700, 60)
            for expected, actual in [
                (cross_entropy(logits, targets, reduction="none"), cross_entropy(mapped, targets, reduction="none")),
                (logsumexp(logits), logsumexp(mapped)),
                (nll_loss(-abs(logits[5]), 3), nll_loss(-abs(mapped[5]), 3)),
            ]:
                assert_same_bits(actual, expected)
            del mapped


# DLPack


class Exporter:
    """An array of another library, which has no protocol but DLPack."""

    def __init__(self, array, device=(1, 0)):
        self.array, self.device = array, device

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device


class OlderExporter(Exporter):
    """An array of a library from before DLPack had versions."""

    def __dlpack__(self, stream=None):
        return self.array.__dlpack__()


class PinnedExporter(Exporter):
    """An array in memory of the CPU that is pinned for a GPU."""

    def __init__(self, array):
        super().__init__(array, (3, 0))


@each_loss
@pytest.mark.parametrize("exporter", [Exporter, OlderExporter, PinnedExporter])
@pytest.mark.parametrize("dtype", ["e", "f", "d"])
def test_dlpack(loss, exporter, dtype, rng):
    scores = scores_for(loss, rng, (4, 6, 5), np.dtype(dtype))
    targets = rng.integers(0, 5, (4, 6))
    expected = call(tokenloss, loss, scores, targets, reduction="none")
    for layout in (np.ascontiguousarray, np.asfortranarray, strided, backwards):
        exported = exporter(layout(scores))
        assert_same_bits(call(tokenloss, loss, exported, targets, reduction="none"), expected)
    for integers in "bhilBHILQ":
        ids = exporter(targets.astype(integers))
        assert_same_bits(call(tokenloss, loss, scores, ids, reduction="none"), expected)
    one_hot = exporter(np.eye(5, dtype=np.float32)[targets])
    assert_same_bits(call(tokenloss, loss, scores, one_hot, reduction="none"), expected)


@each_loss
def test_dlpack_weight_and_where(loss, rng):
    scores, targets = scores_for(loss, rng, (6, 5), np.float32), [0, 1, 2, 3, 4, 0]
    weight, where = rng.random(5), rng.random(6) > 0.5
    expected = call(tokenloss, loss, scores, targets, weight=weight, where=where)
    assert call(tokenloss, loss, scores, targets, weight=Exporter(weight), where=Exporter(where)) == expected


def test_dlpack_of_no_elements_and_of_no_dimensions():
    assert math.isnan(cross_entropy(Exporter(np.zeros((0, 3))), Exporter(np.zeros(0, int))))
    assert cross_entropy([1.0, 2.0], Exporter(np.array(1))) == cross_entropy([1.0, 2.0], 1)


def test_dlpack_memory_lives_as_long_as_it_is_read(rng):
    logits = rng.standard_normal((50, 1000))
    expected = cross_entropy(logits, [1] * 50)
    for _ in range(20):
        assert cross_entropy(Exporter(logits.copy()), [1] * 50) == expected


@pytest.mark.parametrize("exporter", [Exporter, OlderExporter])
def test_dlpack_memory_is_released(exporter, rng):
    logits = rng.standard_normal((5, 100))
    watched = weakref.ref(logits)
    cross_entropy(exporter(logits), [1] * 5)
    with pytest.raises(IndexError):
        cross_entropy(exporter(logits), [100] * 5)
    with pytest.raises(TypeError):
        cross_entropy(exporter(logits.astype(np.complex64)), [1] * 5)
    del logits
    gc.collect()
    assert watched() is None


# DLPack capsules that do not fit


class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
    )  # fmt: skip


class Producer:
    """A tensor whose capsule holds any values, right or wrong. Without a deleter it lives as long as the process."""

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


def test_dlpack_capsule_made_by_hand():
    assert_same_bits(logsumexp(Producer()), logsumexp(np.zeros((2, 3), np.float32)))
    second = Producer(byte_offset=12, shape=(1, 3))
    second.memory[:] = [[7, 8, 9], [0, 1, 2]]
    assert_same_bits(logsumexp(second), logsumexp(second.memory[1:]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": None}, ("its data pointer is NULL",)),
        ({"data": None, "byte_offset": 64}, ("its data pointer is NULL",)),
        ({"ndim": -1}, ("-1 dimensions",)),
        ({"ndim": -(2**31)}, ("dimensions",)),
        ({"ndim": 65}, ("65 dimensions",)),
        ({"shape": (2, -3)}, ("its shape holds -3",)),
        ({"shape": (2**40, 2**40)}, ("more elements than memory",)),
        ({"device_type": 2}, ("device 2:0", "CPU")),
        ({"lanes": 2}, ("float32x2", "float16, bfloat16, float32 or float64")),
        ({"code": 6, "bits": 1}, ("bool1",)),
        ({"code": 6}, ("bool32",)),
        ({"code": 5}, ("complex32",)),
        ({"code": 77, "bits": 8}, ("dtype number 77 of DLPack (8 bits)",)),
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


def test_dlpack_type_error_of_the_other_library_is_shown():
    class Refuses(Producer):
        def __dlpack__(self, **options):
            raise TypeError("no arrays with nulls")

    with fails(TypeError, "targets cannot be read through DLPack: no arrays with nulls"):
        cross_entropy(np.zeros((2, 3)), Refuses())


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


def test_dlpack_that_fails_names_the_argument():
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


def test_dlpack_of_other_dtypes():
    class Exporter(OnDevice):
        def __dlpack__(self, **options):
            return np.zeros((1, 3), np.complex64).__dlpack__(**options)

    with fails(TypeError, "logits", "complex64", "float16, bfloat16, float32 or float64"):
        cross_entropy(Exporter(1, 0), [0])


# torch, JAX and pandas


@each_loss
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_torch_tensors(loss, dtype, rng):
    torch = pytest.importorskip("torch")
    scores = scores_for(loss, rng, (4, 6, 5), BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype))
    targets = rng.integers(0, 5, (4, 6))
    tensor = torch.tensor(scores.astype(np.float64)).to(getattr(torch, dtype))
    expected = call(tokenloss, loss, scores, targets, reduction="none")
    for scores_given in (tensor, tensor.mT.contiguous().mT, tensor.repeat_interleave(2, -1)[..., ::2]):
        for integers in (torch.int64, torch.int32, torch.uint8, torch.int8):
            ids = torch.tensor(targets).to(integers)
            assert_same_bits(call(tokenloss, loss, scores_given, ids, reduction="none"), expected)
    one_hot = torch.nn.functional.one_hot(torch.tensor(targets), 5)
    for shares in (one_hot, one_hot.bool(), one_hot.to(torch.bfloat16)):
        assert_same_bits(call(tokenloss, loss, tensor, shares, reduction="none"), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_torch_tensors_of_logits(dtype, rng):
    torch = pytest.importorskip("torch")
    logits = scores_for("cross_entropy", rng, (4, 9), BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype))
    tensor, ids = torch.tensor(logits.astype(np.float64)).to(getattr(torch, dtype)), [8, 1, 0, 3]
    for function, *arguments in (
        (tokenloss.softmax,), (tokenloss.log_softmax,), (logsumexp,), (tokenloss.class_log_probs, ids[:2]),
        (lambda logits, ids: tokenloss.cross_entropy_and_grad(logits, ids)[1], ids),
    ):  # fmt: skip
        result, expected = function(tensor, *map(torch.tensor, arguments)), function(logits, *arguments)
        assert result.dtype == expected.dtype
        assert_same_bits(result, expected)


def test_torch_tensors_that_cannot_be_read():
    torch = pytest.importorskip("torch")
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


@pytest.mark.slow
def test_torch_tensors_without_memory():
    torch = pytest.importorskip("torch")
    fake = pytest.importorskip("torch._subclasses.fake_tensor", reason="this torch has none")
    with fake.FakeTensorMode():
        tensor = torch.randn(2, 3)
    with fails(TypeError, "logits"):
        cross_entropy(tensor, [0, 1])
    with fails(TypeError, "out"):
        tokenloss.softmax(np.zeros((2, 3), np.float32), out=tensor)


def test_torch_tensors_with_the_negative_bit():
    torch = pytest.importorskip("torch")
    for view in (torch._neg_view(torch.tensor([[1.0, 2, 3]])), torch.tensor([[1 - 1j, 2 - 2j, 3 - 3j]]).conj().imag):
        with fails(TypeError, "logits", "resolve_neg"):
            cross_entropy(view, [0])
    for lists in ([torch._neg_view(torch.tensor([1.0, 2, 3]))], [torch.tensor([1.0, 2, 3], requires_grad=True)]):
        with fails(TypeError, "logits is not a numeric array"):
            cross_entropy(lists, [0])
    assert cross_entropy(view.resolve_neg(), [0]) == cross_entropy(np.float32([[1.0, 2, 3]]), [0])


@each_loss
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_jax_arrays(loss, dtype, rng):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jnp = pytest.importorskip("jax.numpy")
    scores = scores_for(loss, rng, (4, 6, 5), BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype))
    targets = rng.integers(0, 5, (4, 6)).astype(np.int32)
    expected = call(tokenloss, loss, scores, targets, reduction="none")
    ours = call(tokenloss, loss, jnp.asarray(scores), jnp.asarray(targets), reduction="none")
    assert_same_bits(ours, expected)


class Frame:
    """Like a data frame: it becomes an array, but has no dtype."""

    def __init__(self, rows):
        self.rows = rows

    def __array__(self, dtype=None, copy=None):
        return np.array(self.rows, dtype)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "cross_entropy", "token_scores"])
@pytest.mark.parametrize("library", ["pandas", "none"])
def test_integers_of_a_data_frame_are_refused_as_those_of_an_array_are(library, name):
    frame = Frame if library == "none" else pytest.importorskip("pandas").DataFrame
    ids = () if "softmax" in name or name == "logsumexp" else ([0],)
    function = getattr(tokenloss, name)
    with fails(TypeError, "logits has dtype int64"):
        function(frame([[1, 2, 3]]), *ids)
    function(frame([[1.0, 2.0, 3.0]]), *ids)


# what people have in hand: columns of data frames, labels, and what a model returned


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_columns_of_data_frames(library):
    module = pytest.importorskip(library)
    probs, ids = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]), [0, 2, 1]
    frame = module.DataFrame({"ids": ids, "weight": [1.0, 2.0, 3.0], "mask": [True, False, True]})
    expected = tokenloss.cross_entropy_loss(ids, probs, weight=[1.0, 2, 3], sample_weight=[1.0, 2, 3])
    options = {"weight": frame["weight"], "sample_weight": frame["weight"]}
    assert tokenloss.cross_entropy_loss(frame["ids"], module.DataFrame(probs), **options) == expected
    expected = tokenloss.cross_entropy_loss(ids, probs, where=[True, False, True])
    assert tokenloss.cross_entropy_loss(frame["ids"], probs, where=frame["mask"]) == expected
    meter = LossMeter()
    meter.update(frame["weight"])
    assert meter.loss == 2
    with fails(ValueError, "y_true", "(3, 1)", "np.asarray(y_true)[..., 0]"):
        tokenloss.cross_entropy_loss(frame[["ids"]], probs)
    missing = module.Series([0, None, 1]) if library == "polars" else module.Series([0, None, 1], dtype="Int64")
    with fails(TypeError, "y_true", "missing values", "integer", "-100", "astype(int)"):
        tokenloss.cross_entropy_loss(missing, probs)
    filled = missing.fill_null(-100) if library == "polars" else missing.fillna(-100)
    assert tokenloss.cross_entropy_loss(filled, probs) == tokenloss.cross_entropy_loss([0, -100, 1], probs)
    if library == "pandas":
        table = module.DataFrame([[0.5, None], [0.25, 0.75]]).astype("Float64")
        with fails(TypeError, "y_pred", "object", "y_pred.to_numpy('float64', na_value=np.nan)"):
            tokenloss.cross_entropy_loss([0, 1], table)
        array = table.to_numpy("float64", na_value=np.nan)
        assert tokenloss.cross_entropy_loss([0, 1], array) == -(math.log(0.5) + math.log(0.75)) / 2


UNIQUE = "np.unique(y_true, return_inverse=True)[1]"


@pytest.mark.parametrize(
    ("labels", "classes", "words"),
    [
        (["b", "a", "c"], 3, ["<U1", UNIQUE]), (np.array(["b", "a"], object), 2, ["object", UNIQUE]),
        ([1.0, 2.0, 3.0], 3, ["float64", "y_true.astype(int)", UNIQUE]), ([3, 1, 2], 3, ["out of range", UNIQUE]),
        ([-1, 1, 1], 2, ["out of range", UNIQUE]), ([True, False], 2, ["bool", "y_true.astype(int)"]),
    ],
)  # fmt: skip
def test_labels_that_are_no_class_ids(labels, classes, words):
    probs = np.random.default_rng(3).dirichlet(np.ones(classes), len(labels))
    with pytest.raises((TypeError, IndexError)) as error:
        tokenloss.cross_entropy_loss(labels, probs)
    assert [word for word in ["y_true", *words] if word not in str(error.value)] == []
    assert (UNIQUE in str(error.value)) == (UNIQUE in words)
    if UNIQUE in words:
        ids = eval(UNIQUE, {"np": np, "y_true": labels})  # noqa: S307 -- the code that the message gives
        expected = [sorted(set(np.asarray(labels).tolist())).index(label) for label in np.asarray(labels).tolist()]
        assert tokenloss.cross_entropy_loss(ids, probs) == tokenloss.cross_entropy_loss(expected, probs)


def test_ids_of_a_part_of_the_classes_are_not_taken_for_labels():
    for targets, classes in ([3, 1], 3), ([50_000, 1], 50_000), ([-100, 7, 1], 2):
        with pytest.raises(IndexError) as error:
            cross_entropy(np.zeros((len(targets), classes)), targets)
        assert "unique" not in str(error.value)


@pytest.mark.parametrize(
    ("targets", "classes", "hint"),
    [
        (
            [0, 1, 2, 3, 255],
            5,
            "if 255 marks positions without a label, give ignore_index=255",
        ),  # class 4 does not occur
        ([0, 1, 1, -1], 3, "if -1 marks positions without a label, give ignore_index=-1"),
        ([2, 1, 0, -1], 4, "if -1 marks positions without a label, give ignore_index=-1"),
        ([7, -1], 50_000, "if -1 marks positions without a label, give ignore_index=-1"),
        (
            [0, 1, 99],
            3,
            f"if 99 marks positions without a label, give ignore_index=99; if these are .*{re.escape(UNIQUE)}",
        ),
        (
            [1, -1],
            2,
            f"if -1 marks positions without a label, give ignore_index=-1; if these are .*{re.escape(UNIQUE)}",
        ),
    ],
)
def test_marks_of_no_label_are_not_taken_for_a_class(targets, classes, hint):
    probs = np.full((len(targets), classes), 1 / classes)
    with pytest.raises(IndexError, match=rf"= {targets[-1]} is out of range \[0, {classes}\); {hint}$"):
        tokenloss.cross_entropy_loss(targets, probs)
    expected = tokenloss.cross_entropy_loss(targets[:-1], probs[:-1])
    assert tokenloss.cross_entropy_loss(targets, probs, ignore_index=targets[-1]) == expected


def test_probabilities_of_class_1_alone_get_the_code_that_adds_class_0():
    p, y = np.array([0.25, 0.75, 0.5]), np.array([0, 1, 1])
    both = np.stack([1 - p, p], -1)
    for refused in (
        lambda: tokenloss.token_scores(p, y, kind="probs"),
        lambda: tokenloss.compare(p, p, y, kind="probs"),
    ):
        with fails(ValueError, "has shape (3,); it must be () (class ids)", "pass np.stack([1 - p, p], -1)"):
            refused()
    p = p[:, None]
    with fails(IndexError, "y_true[1] = 1 is out of range [0, 1)", "np.concatenate([1 - p, p], -1)"):
        tokenloss.cross_entropy_loss(y, p)
    assert (np.concatenate([1 - p, p], -1) == both).all()
    with fails(IndexError, "class_ids[0] = 1 is out of range [0, 1)"):
        tokenloss.class_log_probs([0.0], [1])


def test_weights_by_name_and_probabilities_first():
    probs = np.array([[0.25, 0.75], [0.5, 0.5]])
    for weight in "balanced", {0: 1.0, 1: 2.0}:
        with fails(TypeError, "weight has dtype", "one weight for each class, in the order of the classes"):
            tokenloss.cross_entropy_loss([0, 1], probs, weight=weight)
    with fails(TypeError, "y_pred has dtype int64", "targets come first in this function"):
        tokenloss.cross_entropy_loss(probs, np.array([0, 1]))


def test_sequences_named_by_text_get_the_code_that_numbers_them():
    names = np.array(["b", "a", "b"])
    for segment_ids in names, names.astype(object):
        with fails(TypeError, "segment_ids has dtype", "np.unique(segment_ids, return_inverse=True)[1]"):
            tokenloss.sequence_losses(np.zeros(3), segment_ids=segment_ids)


class Output(dict):
    """Like what a model of transformers returns: a dict whose entries are attributes, too."""

    def __getattr__(self, name):
        if name not in self:
            raise AttributeError(name)
        return self[name]


class SparseMatrix:
    """Like those of SciPy, which NumPy takes for a single object."""

    def toarray(self):
        return np.zeros((2, 3))


@pytest.mark.parametrize(
    ("argument", "value", "words"),
    [
        ("logits", Output(loss=1.0, logits=np.zeros((2, 3))), "logits is a Output; pass logits.logits"),
        ("logits", {"logits": np.zeros((2, 3))}, "logits is a dict; pass logits['logits']"),
        ("logits", {"scores": 5}, "logits is a dict; pass logits['scores']"),
        ("logits", {}, "logits is a dict; pass an array"),
        ("logits", None, "logits is None; it must be an array"),
        ("targets", {"attention_mask": [1, 1], "input_ids": [0, 1]}, "targets is a dict; pass targets['input_ids']"),
        ("targets", None, "targets is None; it must be an array"),
        ("logits", "scores.npy", "logits is a str; pass an array; tokenloss.evaluate and compare_files take files"),
        ("logits", Path("scores.npy"), "Path; pass an array; tokenloss.evaluate and compare_files take files"),
        ("targets", "scores.npy", "targets is a str; pass an array; tokenloss.evaluate and compare_files take files"),
        (
            "logits",
            (row for row in np.zeros((2, 3))),
            "logits is a generator; pass a list or an array, such as np.array",
        ),
        (
            "targets",
            iter([0, 1]),
            "targets is a list_iterator; pass a list or an array, such as np.array(list(targets))",
        ),
        ("logits", SparseMatrix(), "logits is a SparseMatrix; pass logits.toarray()"),
        ("targets", SparseMatrix(), "targets is a SparseMatrix; pass targets.toarray()"),
    ],
)
def test_what_holds_arrays_and_is_none(argument, value, words):
    arguments = {"logits": np.zeros((2, 3)), "targets": [0, 1], argument: value}
    for function in cross_entropy, nll_loss, tokenloss.token_scores, tokenloss.cross_entropy_and_grad:
        name = "log_probs" if function is nll_loss and argument == "logits" else argument
        with fails(TypeError, *words.replace("logits is", f"{name} is").replace("pass logits", f"pass {name}").split()):
            function(*arguments.values())
    if argument == "logits":
        with fails(TypeError, *words.split()):
            tokenloss.next_token(value, [0, 1])
        with fails(TypeError, "block 0", *words.split()):
            tokenloss.evaluate([(value, [0, 1])])


def test_swapped_arguments_get_the_order_of_the_function():
    ids, scores = np.array([0, 1]), np.full((2, 3), 1 / 3)
    for function in (cross_entropy, nll_loss, tokenloss.token_scores, tokenloss.cross_entropy_and_grad):
        name = "log_probs" if function is nll_loss else "logits"
        with fails(TypeError, f"{name} has dtype int64", f"if these are class ids: {name} come first"):
            function(ids, scores)
        with fails((TypeError, ValueError), f"if these are scores: {name} come first"):
            function(ids.tolist(), scores)
    with fails(TypeError, "y_pred has dtype int64", "if these are class ids: targets come first in this function"):
        cross_entropy_loss(scores, ids)
    with fails(ValueError, "y_true has shape (2, 3)", "if these are scores: targets come first in this function"):
        cross_entropy_loss(scores, ids.tolist())


def test_masks_of_integers_are_refused_with_what_to_write():
    for mask in [1, 0], np.array([1, 0], np.int32), [[1, 1], [0, 1]]:
        with fails(TypeError, "where has dtype int", "must be bool", "where != 0"):
            LossMeter().update(np.zeros(np.shape(mask)), where=mask)
    with pytest.raises(TypeError, match=r"where has dtype float64; it must be bool: True for the positions to keep$"):
        cross_entropy(np.zeros((2, 3)), [0, 1], where=[0.5, 1.0])
