"""next_token: logits and the ids that they predict, as views, for padded batches too."""

import itertools

import numpy as np
import pytest
from arrays import BFLOAT16, assert_same_bits, fails

from tokenloss import cross_entropy, next_token, sequence_losses, token_scores


def test_by_hand():
    logits, ids = np.arange(24.0).reshape(2, 4, 3), np.array([[5, 6, 7, 0], [8, 9, 0, 0]])
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0]])
    left, right, where = next_token(logits, ids, mask)
    assert left.tolist() == logits[:, :3].tolist()
    assert right.tolist() == [[6, 7, 0], [9, 0, 0]]
    assert where.dtype == bool
    assert where.tolist() == [[True, True, False], [True, False, False]]
    assert next_token(logits, ids)[2] is None


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)], ids=str)
@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float16), BFLOAT16], ids=str)
def test_results_are_views(batch, dtype, rng):
    logits, ids = rng.standard_normal((*batch, 5, 7)).astype(dtype), rng.integers(0, 7, (*batch, 5))
    for mask in (None, rng.random(ids.shape) > 0.5):
        left, right, where = next_token(logits, ids, mask)
        assert (left.shape, right.shape) == ((*batch, 4, 7), (*batch, 4))
        assert (left.dtype, right.dtype) == (logits.dtype, ids.dtype)
        np.testing.assert_array_equal(left, logits[..., :-1, :])
        np.testing.assert_array_equal(right, ids[..., 1:])
        if ids.size:
            assert np.shares_memory(left, logits)
            assert np.shares_memory(right, ids)
        if mask is not None:
            np.testing.assert_array_equal(where, mask[..., :-1] & mask[..., 1:], strict=True)


def test_keyword_arguments_and_layouts(rng):
    logits, ids = rng.standard_normal((7, 5, 2)).T, rng.integers(0, 7, (5, 2)).T
    left, right, where = next_token(logits=logits, ids=ids, attention_mask=np.ones((2, 5), bool)[:, ::-1])
    assert np.shares_memory(left, logits)
    assert np.shares_memory(right, ids)
    assert left.strides == logits.strides
    assert where.all()


@pytest.mark.parametrize("length", [1, 2])
def test_short_texts(length):
    left, right, where = next_token(np.zeros((3, length, 4)), np.zeros((3, length), int), np.ones((3, length), int))
    assert left.shape == (3, length - 1, 4)
    assert right.shape == where.shape == (3, length - 1)


@pytest.mark.parametrize("dtype", [bool, np.int64, np.int32, np.uint8, np.int8], ids=str)
def test_mask_of_bools_and_integers(dtype, rng):
    mask = rng.random((4, 9)) > 0.4
    where = next_token(np.zeros((4, 9, 2)), np.zeros((4, 9), int), mask.astype(dtype))[2]
    np.testing.assert_array_equal(where, mask[:, :-1] & mask[:, 1:], strict=True)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int8, np.float16, np.float64, BFLOAT16], ids=str)
def test_attention_mask_of_document_numbers_ends_each_document(dtype):
    mask = np.array([[1, 1, 1, 2, 2, 0], [0, 3, 3, 1, 0, 1]])
    where = next_token(np.zeros((2, 6, 4)), np.zeros((2, 6), int), mask.astype(dtype))[2]
    assert where.tolist() == [[True, True, False, True, False], [False, True, False, False, False]]


def test_attention_mask_of_packed_documents_equals_each_document_alone(rng):
    lengths, logits, ids = [5, 1, 4, 2], rng.standard_normal((14, 6)), rng.integers(0, 6, 14)
    mask = np.append(np.repeat([1, 2, 3, 4], lengths), [0, 0])
    scores, targets, where = next_token(logits, ids, mask)
    ends = np.cumsum([0, *lengths])
    alone = [cross_entropy(logits[a : b - 1], ids[a + 1 : b], reduction="none") for a, b in itertools.pairwise(ends)]
    assert_same_bits(cross_entropy(scores, targets, where=where, reduction="none")[where], np.concatenate(alone))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_texts_equal_each_text_alone(side, rng):
    lengths = [5, 1, 9, 2]
    logits, ids = np.full((4, 9, 6), np.nan, np.float32), np.full((4, 9), 999)  # no padding may be read
    mask, alone = np.zeros((4, 9), int), []
    for k, length in enumerate(lengths):
        at = slice(9 - length, 9) if side == "left" else slice(0, length)
        logits[k, at], ids[k, at], mask[k, at] = rng.standard_normal((length, 6)), rng.integers(0, 6, length), 1
        alone.append(cross_entropy(logits[k, at][:-1], ids[k, at][1:], reduction="none"))
    scores, targets, where = next_token(logits, ids, mask)
    losses = cross_entropy(scores, targets, where=where, reduction="none")
    for k, expected in enumerate(alone):
        assert_same_bits(losses[k, where[k]], expected)
    assert where.sum(1).tolist() == [length - 1 for length in lengths]
    assert_same_bits(cross_entropy(scores, targets, where=where), cross_entropy_of(alone))
    sequences = sequence_losses(token_scores(scores, targets, where=where))
    assert sequences.count.tolist() == [4, 0, 8, 1]
    assert_same_bits(sequences.nll, [sequence_losses(losses).nll for losses in alone])


def cross_entropy_of(parts):
    """The mean of losses that are known, rounded as the package rounds it."""
    losses = sequence_losses(np.concatenate(parts))
    return float(losses.loss)


def test_torch_tensors(rng):
    torch = pytest.importorskip("torch")
    logits, ids = torch.randn(3, 6, 5), torch.randint(0, 5, (3, 6))
    mask = torch.tensor(rng.random((3, 6)) > 0.3)
    expected = next_token(logits.numpy(), ids.numpy(), mask.numpy())
    for dtype in (torch.bool, torch.int64):
        left, right, where = next_token(logits, ids, mask.to(dtype))
        assert np.shares_memory(np.asarray(left), logits.numpy())
        assert np.shares_memory(np.asarray(right), ids.numpy())
        for actual, exact in zip((left, right, where), expected, strict=True):
            np.testing.assert_array_equal(np.asarray(actual), exact)
        assert cross_entropy(left, right, where=where) == cross_entropy(*expected[:2], where=expected[2])
    packed = torch.tensor([[1, 1, 2, 2, 2, 0]]).expand(3, 6)
    for dtype in (torch.uint8, torch.float16, torch.bfloat16):
        where = next_token(logits, ids, packed.to(dtype))[2]
        assert where.tolist() == [[True, False, True, True, False]] * 3
    half = logits.to(torch.bfloat16)
    left, right, where = next_token(half, ids)
    assert where is None
    assert left.data_ptr() == half.data_ptr()
    assert cross_entropy(left, right) == cross_entropy(half[:, :-1], ids[:, 1:])


def test_lists():
    scores, targets, where = next_token([[0.0, 1.0], [2.0, 3.0], [4.0, 9.0]], [0, 1, 1], [1, 1, 0])
    assert np.asarray(scores).tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert np.asarray(targets).tolist() == [1, 1]
    assert np.asarray(where).tolist() == [True, False]


LOGITS, IDS = np.zeros((2, 5, 3)), np.zeros((2, 5), int)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((LOGITS, IDS[:, 1:]), ValueError, ["ids", (2, 4), (2, 5)]),
        ((LOGITS, IDS[0]), ValueError, ["ids", (5,), (2, 5)]),
        ((LOGITS, np.zeros((2, 5, 3), int)), ValueError, ["ids", (2, 5, 3), (2, 5)]),
        ((LOGITS, IDS, np.ones((2, 4), int)), ValueError, ["attention_mask", (2, 4), (2, 5)]),
        ((LOGITS, IDS, np.ones(5, bool)), ValueError, ["attention_mask", (5,), (2, 5)]),
        ((np.zeros(5), np.zeros(5, int)), ValueError, ["logits", (5,)]),
        ((1.0, 1), TypeError, ["logits", "float"]),
        ((LOGITS, 1), TypeError, ["ids", "int"]),
    ],
    ids=str,
)
def test_wrong_shapes(arguments, error, words):
    with fails(error, *words):
        next_token(*arguments)


@pytest.mark.parametrize(
    "mask",
    [
        [0.0, -np.inf, 0.0],
        [0, -1, 0],
        [0.0, np.finfo(np.float32).min, 0.0],
        [1, 0.25, 1],
        [1, np.nan, 1],
        [np.inf, 1, 1],
    ],
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, BFLOAT16, "torch", "jax"], ids=str)
def test_attention_mask_of_other_numbers_is_refused(mask, dtype):
    """Such as what is added to attention scores, which is 0 for tokens."""
    make = {
        "torch": lambda: pytest.importorskip("torch").tensor([mask]),
        "jax": lambda: pytest.importorskip("jax.numpy").asarray([mask]),
    }.get(dtype, lambda: np.array([mask]).astype(dtype))
    with np.errstate(over="ignore"), fails(ValueError, "attention_mask", "1 for tokens and 0 for padding"):
        next_token(np.zeros((1, 3, 4)), np.zeros((1, 3), int), make())
