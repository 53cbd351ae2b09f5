"""Losses against the tutorial's numbers, and against the oracle in every dtype, layout and container."""

import array
import gc
import math
import warnings
import weakref

import numpy as np
import pytest
import reference
from arrays import (
    BFLOAT16,
    FLOATS,
    INTEGERS,
    KINDS_OF_ROWS,
    LAYOUTS,
    LOSSES,
    REDUCTIONS,
    assert_near,
    assert_same_bits,
    backwards,
    call,
    distributions,
    error_allowed,
    fails,
    misaligned,
    row_of_logits,
    scores_for,
    strided,
    swapped,
)

import tokenloss
from tokenloss import cross_entropy, cross_entropy_loss, logsumexp, nll_loss

each_loss = pytest.mark.parametrize("loss", LOSSES)
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture
def rng():
    return np.random.default_rng(20240607)


def assert_as_oracle(loss, scores, targets, actual_scores=None, actual_targets=None, axis=-1):
    """Compare losses of arrays in some layout with those that the oracle has of the plain ones."""
    actual = call(
        tokenloss,
        loss,
        scores if actual_scores is None else actual_scores,
        targets if actual_targets is None else actual_targets,
        axis=axis,
        reduction="none",
    )
    expected = call(reference, loss, scores, targets, axis=axis, reduction="none")
    assert_near(actual, expected, error_allowed(loss, scores, targets, axis))


# the tutorial


def test_tutorial_single_prediction():
    assert cross_entropy_loss([1, 0, 0], [0.7, 0.2, 0.1]) == pytest.approx(0.3567, abs=5e-5)
    assert cross_entropy_loss([1, 0, 0], [0.1, 0.8, 0.1]) == pytest.approx(2.3026, abs=5e-5)


def test_tutorial_mean_of_three_losses():
    probabilities = np.exp([[-0.36, -5, -5], [-5, -0.02, -5], [-5, -5, -0.22]])
    assert cross_entropy_loss([0, 1, 2], probabilities) == pytest.approx(0.20, abs=1e-12)
    assert cross_entropy_loss(np.eye(3, dtype=int), probabilities) == pytest.approx(0.20, abs=1e-12)


def test_tutorial_numpy_formula(rng):
    y_pred = scores_for("cross_entropy_loss", rng, (8, 20), np.float64)
    y_true = np.eye(20)[rng.integers(0, 20, 8)]
    formula = -np.sum(y_true * np.log(np.clip(y_pred, 1e-12, 1 - 1e-12)), axis=-1)
    np.testing.assert_allclose(cross_entropy_loss(y_true, y_pred, reduction="none"), formula, rtol=1e-15)
    assert cross_entropy_loss(y_true, y_pred) == pytest.approx(formula.mean(), rel=1e-15)


def test_near_certain_token_keeps_its_digits():
    assert f"{cross_entropy([17.0, 0.0], 0):.3g}" == "4.14e-08"
    assert f"{cross_entropy(np.float16([17, 0]), 0):.3g}" == "4.14e-08"


def test_float16_zeros_of_a_large_vocabulary():
    logits = np.zeros((1, 131072), np.float16)
    assert cross_entropy(logits, [7]) == pytest.approx(math.log(131072), abs=1e-13)
    assert logsumexp(logits)[0] == pytest.approx(math.log(131072), abs=1e-13)


# what comes out


@each_loss
def test_reduced_losses_are_python_floats(loss, rng):
    scores = scores_for(loss, rng, (3, 5), np.float32)
    for reduction in ("mean", "sum"):
        assert type(call(tokenloss, loss, scores, [0, 1, 2], reduction=reduction)) is float


@each_loss
@each_dtype
def test_losses_of_tokens_are_float64_arrays_of_the_batch(loss, dtype, rng):
    for shape in [(1, 5), (3, 5), (2, 3, 5), (0, 5)]:
        scores = scores_for(loss, rng, shape, dtype)
        losses = call(tokenloss, loss, scores, np.zeros(shape[:-1], int), reduction="none")
        assert type(losses) is np.ndarray
        assert losses.dtype == np.float64
        assert losses.shape == shape[:-1]
        assert losses.flags.writeable


@each_loss
def test_mean_is_the_default_reduction(loss, rng):
    scores = scores_for(loss, rng, (3, 5), np.float32)
    assert call(tokenloss, loss, scores, [0, 1, 2]) == call(tokenloss, loss, scores, [0, 1, 2], reduction="mean")


# dtypes and layouts


@each_loss
@each_dtype
@each_layout
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
def test_class_ids_in_every_layout(loss, dtype, layout, axis, rng):
    scores = scores_for(loss, rng, (6, 7, 8), dtype, axis)
    targets = rng.integers(0, scores.shape[axis], np.delete(scores.shape, axis))
    assert_as_oracle(loss, scores, targets, LAYOUTS[layout](scores), axis=axis)


@each_loss
@each_dtype
@each_layout
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_distributions_in_every_layout(loss, dtype, layout, axis, rng):
    scores = scores_for(loss, rng, (6, 7, 8), dtype, axis)
    targets = distributions(rng, scores.shape, axis)
    assert_as_oracle(loss, scores, targets, LAYOUTS[layout](scores), LAYOUTS[layout](targets), axis=axis)


@each_loss
@each_dtype
@pytest.mark.parametrize("classes", [1, 2, 63, 64, 65, 511, 512, 513, 1536, 4095, 4096, 4097, 9000])
def test_every_length_of_row_in_layouts_that_are_gathered(loss, dtype, classes, rng):
    scores = scores_for(loss, rng, (2, classes), dtype)
    for targets in ([0, classes - 1], rng.integers(0, classes, 2)):
        for layout in (np.ascontiguousarray, strided, backwards, swapped, misaligned):
            assert_as_oracle(loss, scores, targets, layout(scores))


@each_loss
@pytest.mark.parametrize("ndim", [1, 2, 3, 4, 5])
def test_any_number_of_dimensions(loss, ndim, rng):
    shape = (2, 3, 4, 3, 2)[:ndim]
    for axis in range(-ndim, ndim):
        scores = scores_for(loss, rng, shape, np.float32, axis)
        targets = rng.integers(0, shape[axis], np.delete(shape, axis))
        assert_as_oracle(loss, scores, targets, axis=axis)
        assert_as_oracle(loss, scores, distributions(rng, shape, axis), axis=axis)


@each_loss
@each_dtype
def test_broadcast_arrays(loss, dtype, rng):
    row = scores_for(loss, rng, (9,), dtype)
    scores = np.broadcast_to(row, (4, 9))
    targets = np.broadcast_to(rng.integers(0, 9), (4,))
    assert_as_oracle(loss, scores, targets)
    one_score = np.broadcast_to(row[:1], (4, 9))
    assert_as_oracle(loss, one_score, targets)
    assert_as_oracle(loss, one_score, np.broadcast_to(np.float32(1 / 9), (4, 9)))


@each_loss
@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5), (0, 0, 5)])
def test_empty_batches(loss, shape):
    scores = np.ones(shape, np.float32)
    for targets in (np.zeros(shape[:-1], int), np.ones(shape)):
        assert call(tokenloss, loss, scores, targets, reduction="none").shape == shape[:-1]
        assert call(tokenloss, loss, scores, targets, reduction="sum") == 0.0
        assert math.isnan(call(tokenloss, loss, scores, targets))


@each_dtype
@each_layout
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_logsumexp_in_every_layout(dtype, layout, axis, rng):
    logits = scores_for("cross_entropy", rng, (6, 7, 8), dtype)
    actual = logsumexp(LAYOUTS[layout](logits), axis=axis)
    assert_near(actual, reference.logsumexp(logits, axis=axis), error_allowed("logsumexp", logits, axis=axis))


def test_logsumexp_writes_to_out(rng):
    logits = rng.standard_normal((3, 4, 5))
    expected = logsumexp(logits)
    for out in (np.empty((3, 4)), np.empty((4, 3)).T, np.empty((6, 8))[::2, ::2], misaligned(np.zeros((3, 4)))):
        assert logsumexp(logits, out=out) is out
        assert_same_bits(out, expected)


def test_logsumexp_of_a_single_row_and_of_no_classes():
    assert logsumexp([1, 2]).shape == ()
    assert_same_bits(logsumexp(np.empty((2, 0))), [-np.inf, -np.inf])


# targets


@each_loss
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_class_ids_of_every_integer(loss, dtype, rng):
    scores = scores_for(loss, rng, (5, 6, 100), np.float32)
    targets = rng.integers(0, 100, (5, 6)).astype(dtype)
    for layout in LAYOUTS.values():
        assert_as_oracle(loss, scores, targets, None, layout(targets))


@each_loss
@pytest.mark.parametrize("dtype", [np.dtype(bool), *INTEGERS, *FLOATS], ids=str)
def test_one_hot_of_every_dtype(loss, dtype, rng):
    scores = scores_for(loss, rng, (5, 6, 100), np.float32)
    ids = rng.integers(0, 100, (5, 6))
    targets = np.eye(100, dtype=bool)[ids].astype(dtype)
    expected = call(tokenloss, loss, scores, ids, reduction="none")
    for layout in LAYOUTS.values():
        assert_same_bits(call(tokenloss, loss, scores, layout(targets), reduction="none"), expected)


@each_loss
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("classes", [3, 63, 64, 65, 130, 1000])
def test_distributions_of_every_float(loss, dtype, classes, rng):
    scores = scores_for(loss, rng, (4, classes), np.float32)
    targets = distributions(rng, (4, classes), zeros=0.7).astype(dtype)
    assert_as_oracle(loss, scores, targets)
    assert_as_oracle(loss, scores, targets, None, swapped(targets))
    assert_as_oracle(loss, scores, targets, None, strided(targets))


@each_loss
def test_counts_and_negative_shares(loss, rng):
    scores = scores_for(loss, rng, (4, 9), np.float64)
    assert_as_oracle(loss, scores, rng.integers(0, 200, (4, 9)).astype(np.float32))
    assert_as_oracle(loss, scores, rng.integers(-3, 4, (4, 9)).astype(np.float64))
    assert_as_oracle(loss, scores, np.zeros((4, 9)))


@each_loss
def test_lonely_share_anywhere_in_a_long_row(loss, rng):
    scores = scores_for(loss, rng, (1, 70000), np.float32)
    for k in [0, 63, 64, 65535, 65536, 65537, 69999]:
        for dtype in (np.int8, np.float32, np.float64):
            targets = np.zeros((1, 70000), dtype)
            targets[0, k] = 1
            expected = call(tokenloss, loss, scores, [k], reduction="none")
            assert_same_bits(call(tokenloss, loss, scores, targets, reduction="none"), expected, f"class {k}")


# containers


@each_loss
def test_lists_and_scalars(loss, rng):
    scores = scores_for(loss, rng, (3, 4), np.float64)
    expected = call(tokenloss, loss, scores, np.array([0, 3, 1]), reduction="none")
    assert_same_bits(call(tokenloss, loss, scores.tolist(), [0, 3, 1], reduction="none"), expected)
    assert_same_bits(call(tokenloss, loss, tuple(map(tuple, scores)), (0, 3, 1), reduction="none"), expected)
    assert_same_bits(call(tokenloss, loss, list(scores), [np.int8(0), 3, np.uint16(1)], reduction="none"), expected)
    for target in (0, np.int16(0), np.array(0)):
        assert call(tokenloss, loss, scores[0].tolist(), target) == expected[0]


def test_lists_of_integers_are_scores_too():
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


class Exporter:
    """An array of another library: nothing but DLPack."""

    def __init__(self, array, device=(1, 0)):
        self.array, self.device = array, device

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device


class OlderExporter(Exporter):
    """As libraries were before DLPack had versions."""

    def __dlpack__(self, stream=None):
        return self.array.__dlpack__()


class PinnedExporter(Exporter):
    """The CPU's memory, pinned for a GPU."""

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
def test_dlpack_options(loss, rng):
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
def test_dlpack_memory_is_given_back(exporter, rng):
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


@each_loss
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_torch_tensors(loss, dtype, rng):
    torch = pytest.importorskip("torch", reason="torch is not installed")
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


def test_torch_agrees_on_its_own_options(rng):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    logits, targets = torch.tensor(rng.standard_normal((20, 7))), torch.tensor(rng.integers(0, 7, 20))
    weight, shares = torch.tensor(rng.random(7)), torch.tensor(distributions(rng, (20, 7)))
    torch_loss = torch.nn.functional.cross_entropy
    for reduction in REDUCTIONS:
        for options in ({}, {"weight": weight}, {"ignore_index": 3}, {"weight": weight, "ignore_index": 3}):
            ours = cross_entropy(logits, targets, reduction=reduction, **options)
            np.testing.assert_allclose(ours, torch_loss(logits, targets, reduction=reduction, **options), rtol=1e-13)
        for options in ({}, {"weight": weight}):
            ours = cross_entropy(logits, shares, reduction=reduction, **options)
            np.testing.assert_allclose(ours, torch_loss(logits, shares, reduction=reduction, **options), rtol=1e-13)


@each_loss
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_jax_arrays(loss, dtype, rng):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jnp = pytest.importorskip("jax.numpy", reason="jax is not installed")
    scores = scores_for(loss, rng, (4, 6, 5), BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype))
    targets = rng.integers(0, 5, (4, 6)).astype(np.int32)
    expected = call(tokenloss, loss, scores, targets, reduction="none")
    ours = call(tokenloss, loss, jnp.asarray(scores), jnp.asarray(targets), reduction="none")
    assert_same_bits(ours, expected)


# options


@each_loss
@pytest.mark.parametrize("kind", ["ids", "distributions"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("ignore_index", [-100, 2, None])
@pytest.mark.parametrize("axis", [-1, 0])
def test_options_together(loss, kind, weighted, masked, ignore_index, axis, rng):
    shape = (5, 6, 4) if axis == -1 else (4, 5, 6)
    scores = scores_for(loss, rng, shape, np.float64, axis)
    targets = rng.integers(0, 4, (5, 6)) if kind == "ids" else distributions(rng, shape, axis)
    if kind == "ids" and ignore_index == -100:
        targets[1, 2:] = -100
    options = {
        "axis": axis,
        "weight": rng.random(4) if weighted else None,
        "where": rng.random((5, 6)) > 0.3 if masked else None,
    }
    options |= {"ignore_index": ignore_index} if kind == "ids" else {}
    for reduction in REDUCTIONS:
        actual = call(tokenloss, loss, scores, targets, reduction=reduction, **options)
        expected = call(reference, loss, scores, targets, reduction=reduction, **options)
        np.testing.assert_allclose(actual, expected, rtol=2e-14, atol=0)


@each_loss
def test_ignore_index_that_is_given_with_distributions_is_refused(loss, rng):  # P4
    scores, shares = scores_for(loss, rng, (4, 3), np.float64), distributions(rng, (4, 3))
    for ignore_index in (0, 1, -1, 2**70):
        with fails(ValueError, "ignore_index", ignore_index, "distributions", "where"):
            call(tokenloss, loss, scores, shares, ignore_index=ignore_index)
    expected = call(tokenloss, loss, scores, shares)
    for ignore_index in (None, -100):  # the default does not tell that it was given
        assert call(tokenloss, loss, scores, shares, ignore_index=ignore_index) == expected


@each_loss
@pytest.mark.parametrize("ignore_index", [-(2**63), 2**63 - 1, 2**63, -(2**70), 2**70, np.int8(-1)])
def test_any_ignore_index(loss, ignore_index, rng):
    scores = scores_for(loss, rng, (3, 4), np.float64)
    assert call(tokenloss, loss, scores, [1, 2, 3], ignore_index=ignore_index) == call(
        tokenloss, loss, scores, [1, 2, 3]
    )
    if -(2**63) <= ignore_index < 2**63 - 1:
        targets = np.array([1, ignore_index, 3])
        assert call(tokenloss, loss, scores, targets, ignore_index=ignore_index, reduction="none")[1] == 0.0


@each_loss
@pytest.mark.parametrize("dtype", [np.dtype(bool), *INTEGERS, *FLOATS], ids=str)
def test_weights_of_every_dtype(loss, dtype, rng):
    scores = scores_for(loss, rng, (12, 5), np.float64)
    targets = rng.integers(0, 5, 12)
    weight = np.array([1, 0, 1, 3, 2]).astype(dtype)
    expected = call(reference, loss, scores, targets, weight=weight)
    for layout in (np.ascontiguousarray, strided, backwards, swapped, misaligned):
        assert call(tokenloss, loss, scores, targets, weight=layout(weight)) == pytest.approx(expected, rel=1e-14)
    assert call(tokenloss, loss, scores, targets, weight=weight.tolist()) == pytest.approx(expected, rel=1e-14)


@each_loss
def test_where_is_broadcast_over_the_batch(loss, rng):
    scores = scores_for(loss, rng, (3, 4, 5), np.float32)
    targets = rng.integers(0, 5, (3, 4))
    masks = [True, False, rng.random(4) > 0.5, rng.random((3, 1)) > 0.5, strided(rng.random((3, 4)) > 0.5)]
    for where in masks:
        whole = np.broadcast_to(where, (3, 4)).copy()
        for given in (where, np.asarray(where).tolist()):
            losses = call(tokenloss, loss, scores, targets, where=given, reduction="none")
            assert_same_bits(losses, call(tokenloss, loss, scores, targets, where=whole, reduction="none"))
        kept = call(tokenloss, loss, scores, targets, reduction="none")[whole]
        assert_same_bits(losses[whole], kept)
        assert_same_bits(losses[~whole], np.zeros((~whole).sum()))


@pytest.mark.parametrize("epsilon", [0, 1e-300, 1e-12, 1e-3, 0.25, 0.5, np.float32(0.25)])
@each_dtype
def test_probabilities_are_clipped_in_float64(epsilon, dtype, rng):
    smallest = np.finfo(dtype if dtype != BFLOAT16 else np.float32).smallest_subnormal
    y_pred = np.array([0, smallest, 1e-7, 1e-3, 0.3, 0.5, 0.999, 1, -smallest, -1e-3 + 4e-6]).astype(dtype)
    for k in range(y_pred.size):
        clipped = float(np.clip(y_pred.astype(np.float64)[k], float(epsilon), 1 - float(epsilon)))
        actual = cross_entropy_loss(k, y_pred, epsilon=epsilon)
        assert_near(actual, np.float64(-reference.log(reference.wide(clipped)) if clipped else np.inf), 0, 1)
        assert actual != 0 or math.copysign(1, actual) == 1  # not -0.0


def test_probability_one_costs_what_clipping_leaves():
    assert cross_entropy_loss([0, 0], np.float32([[1, 0], [1, 0]])) == pytest.approx(1e-12, rel=1e-3)
    assert str(cross_entropy_loss(0, [1.0, 0.0], epsilon=0)) == "0.0"
    assert str(nll_loss([0.0], 0)) == "0.0"


# accuracy

LENGTHS = [1, 2, 3, 65, 511, 513, 4095, 4097, 8193, 50257, 262144]


@pytest.mark.parametrize(("dtype", "kind"), KINDS_OF_ROWS)
def test_accuracy(dtype, kind, rng):
    for length in LENGTHS:
        row = row_of_logits(kind, rng, length, dtype)
        losses = reference._losses_of_logits(reference.float64(row))
        error = error_allowed("cross_entropy", row)
        assert_near(logsumexp(row), reference.logsumexp(row), error)
        for target in {int(row.argmax()), int(row.argmin()), length // 2, length - 1}:
            assert_near(cross_entropy(row, target), np.float64(losses[target]), error)


@each_dtype
@pytest.mark.parametrize("length", [2, 100, 513, 50257])
@pytest.mark.parametrize("start", [0.0, -5.0, 1000.0])
def test_near_certain_tokens_are_right_relatively(dtype, length, start, rng):
    for lead in [1, 5, 10, 17, 20, 40, 80, 85, 90, 100, 200, 500]:
        row = (start + rng.standard_normal(length)).astype(dtype)
        target = int(rng.integers(length))
        row[target] = start + lead
        exact = float(reference._losses_of_logits(reference.float64(row))[target])
        assert cross_entropy(row, target) == pytest.approx(exact, rel=1e-6, abs=0), f"{lead} ahead"


def test_near_certain_tokens_with_a_leader_in_a_later_block(rng):
    for dtype in (np.float32, np.float64):
        row = rng.standard_normal(20000).astype(dtype)
        row[[5000, 13000]] = 60, 75
        exact = float(reference._losses_of_logits(reference.float64(row))[13000])
        assert cross_entropy(row, 13000) == pytest.approx(exact, rel=1e-6, abs=0)


LEVELS = [-3.3e38, -1e30, -1e9, -66000.0, -65000.0, -2000.0, -90.0, 0.0, 90.0, 2000.0, 65000.0, 66000.0, 1e9, 3.3e38]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("level", LEVELS)
def test_leader_on_any_level_anywhere_in_the_row(dtype, level):
    for height in LEVELS:
        for position in [0, 511, 512, 4096, 8192]:
            row = np.full(8200, level, dtype)
            row[position] = height
            row[[(position + 1) % 8200, (position + 600) % 8200]] = height - 1
            losses = reference._losses_of_logits(reference.float64(row))
            error = error_allowed("cross_entropy", row)
            for target in (position, 8199):
                assert_near(cross_entropy(row, target), np.float64(losses[target]), error)
            assert_near(cross_entropy(row[::-1], 0), np.float64(losses[8199]), error)


@each_dtype
def test_any_rise_after_the_first_elements_of_a_row(dtype):
    for rise in range(-300, 1000, 7):
        for position in (600, 4500):
            row = np.zeros(4700, dtype)
            row[position : position + 100] = rise
            losses = reference._losses_of_logits(reference.float64(row))
            for target in (3, position + 1):
                assert_near(cross_entropy(row, target), np.float64(losses[target]), error_allowed("cross_entropy", row))
