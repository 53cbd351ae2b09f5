"""The files of llama.cpp: written as it writes them, read, and refused where they are damaged."""

import math
import struct

import numpy as np
import pytest
import reference
from arrays import BFLOAT16, assert_same_bits
from files import logits_of_all_kinds, read_rows, refusal
from places import DATA

import tokenloss
from tokenloss.formats import llama_cpp, open_scores

GOLDEN = DATA / "llama-cpp.kld"


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(size=(4, 6), scale=4).astype(np.float32)


def stored_row(logits, range_nats):
    """Scale, least log-probability and steps of a row, number by number, as llama.cpp finds them."""
    top = max(logits)
    low = max(min(logits), top - np.float32(range_nats))
    log_sum = np.float32(math.log(math.fsum(float(np.float32(math.exp(x - top))) for x in logits)))
    scale = np.float32((top - low) / np.float32(65535))
    if not scale > 1e-37:
        return np.float32(0), low - top - log_sum, [0] * len(logits)
    inverse = np.float32(1) / scale
    return scale, low - top - log_sum, [round(float(inverse * (x - low))) if x > low else 0 for x in logits]


@pytest.mark.parametrize("range_nats", [16, 24])
@pytest.mark.parametrize("n_vocab", [11, 12])
@pytest.mark.parametrize("n_ctx", [3, 8, 9])
def test_write_stores_what_llama_cpp_stores(n_ctx, n_vocab, range_nats, tmp_path):
    n_rows = n_ctx - 1 - n_ctx // 2
    tokens = np.random.default_rng(0).integers(n_vocab, size=(6, n_ctx))
    logits = logits_of_all_kinds(6 * n_rows, n_vocab)
    llama_cpp.write(tmp_path / "base.kld", tokens, [logits[:5], logits[5:]], n_ctx, range_nats=range_nats)
    with (tmp_path / "base.kld").open("rb") as file:
        assert file.read(8) == b"_logits_"
        assert struct.unpack("<3i", file.read(12)) == (n_ctx, n_vocab, 6)
        assert np.frombuffer(file.read(24 * n_ctx), "<i4").tolist() == tokens.ravel().tolist()
        for row in logits:
            scale, least, steps = stored_row(list(row), range_nats)
            found_scale, found_least, *found_steps = struct.unpack(f"<ff{n_vocab}H", file.read(8 + 2 * n_vocab))
            assert (found_scale, found_steps) == (scale, steps)
            assert found_least == pytest.approx(least, abs=3e-6)  # their expf is not ours
            assert file.read(2 * (n_vocab % 2)) == b"\0\0" * (n_vocab % 2)
        assert file.read() == b""
    scores = open_scores(tmp_path / "base.kld")
    assert (scores.kind, scores.shape, scores.dtype) == ("log_probs", (6, n_rows, n_vocab), "float32")
    np.testing.assert_array_equal(scores.targets, tokens[:, n_ctx // 2 + 1 :])
    below = logits - logits.max(-1, keepdims=True)
    exact = below - tokenloss.logsumexp(below)[:, None]
    raised = np.maximum(exact, exact.max(-1, keepdims=True) - range_nats)
    assert np.abs(read_rows(scores, 4) - raised).max() < range_nats / 65535 / 2 + 4e-6


@pytest.mark.parametrize("step", [2.0**-149, 2.0**-130, 2.0**-127, 2.0**-126, 2.0**-125])
def test_write_of_steps_that_have_no_inverse_in_float32(step, tmp_path):
    """Steps that are subnormal are stored as one step of length 0, others as they are."""
    logits = np.float32([[0, 65535 * step, 30000 * step]])
    llama_cpp.write(tmp_path / "base.kld", [0, 1, 2], [logits], 3)
    stored = (tmp_path / "base.kld").read_bytes()[20 + 12 :]
    scale, _, *steps = struct.unpack("<ff3H2x", stored)
    assert (scale, steps) == ((step, [0, 65535, 30000]) if step >= 2.0**-126 else (0, [0, 0, 0]))


def test_write_makes_the_recorded_file(tmp_path):
    rng = np.random.default_rng(42)
    tokens, logits = rng.integers(101, size=40), logits_of_all_kinds(15, 101)
    llama_cpp.write(tmp_path / "base.kld", tokens, [logits], 8)
    assert (tmp_path / "base.kld").read_bytes() == GOLDEN.read_bytes()


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, ">f4", np.float64])
def test_write_takes_any_dtype(dtype, logits, tmp_path):
    given = logits.astype(dtype)
    for path, block in (("a", given), ("b", given.astype(np.float32))):
        llama_cpp.write(tmp_path / path, np.zeros(12, int), [block], 6)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"range_nats": 20}, ValueError, ["range_nats is 20", "16 (llama.cpp) or 24 (ik_llama.cpp)"]),
        ({"n_ctx": 2}, ValueError, ["n_ctx is 2", "from 3"]),
        ({"n_ctx": 2**31}, ValueError, ["n_ctx is 2147483648"]),
        ({"n_ctx": 5}, ValueError, ["tokens has shape (12,)", "multiple of n_ctx, 5"]),
        ({"tokens": []}, TypeError, ["tokens has dtype float64"]),
        ({"tokens": np.array([], int)}, ValueError, ["tokens has shape (0,)"]),
        ({"tokens": [0] * 11 + [6]}, IndexError, ["tokens[11] = 6", "[0, 6)"]),
        ({"tokens": [0] * 3 + [-1] * 9}, IndexError, ["tokens[3] = -1"]),
        ({"logits": []}, ValueError, ["logits has shape (0, ", "4 rows"]),
        ({"logits": [np.zeros((3, 6))]}, ValueError, ["logits has shape (3, 6)", "4 rows"]),
        ({"logits": [np.zeros((4, 6)), np.zeros((1, 6))]}, ValueError, ["logits has shape (5, 6)"]),
        ({"logits": [np.zeros((3, 6)), np.zeros((1, 7))]}, ValueError, ["block of logits has shape (1, 7)", "(n, 6)"]),
        ({"logits": [np.zeros(6)]}, ValueError, ["block of logits has shape (6,)"]),
        ({"logits": [np.zeros((4, 0))]}, ValueError, ["block of logits has shape (4, 0)"]),
        ({"logits": [np.zeros((4, 6), int)]}, TypeError, ["logits has dtype int64", "bfloat16"]),
        ({"logits": [np.zeros((2, 6)), [[0.0] * 6, [1, 2, np.nan, 0, 0, 0]]]}, ValueError, ["logits[3] is nan"]),
        ({"logits": [np.full((4, 6), np.inf)]}, ValueError, ["logits[0] is inf"]),
        ({"logits": [np.full((4, 6), -np.inf)]}, ValueError, ["logits[0] is -inf"]),
    ],
)
def test_write_leaves_the_old_file_after_an_error(arguments, error, words, tmp_path):
    path = tmp_path / "base.kld"
    path.write_text("precious")
    with pytest.raises(error) as raised:
        llama_cpp.write(path, **{"tokens": [0] * 12, "logits": [np.zeros((4, 6))], "n_ctx": 6} | arguments)
    for word in words:
        assert word in str(raised.value)
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_log_probs_are_float32_steps():
    data = GOLDEN.read_bytes()[20 + 4 * 40 :]
    blocks = open_scores(GOLDEN).blocks(1)
    for block, stored in zip(blocks, struct.iter_unpack("<ff101H2x", data), strict=True):
        scale, least, *steps = stored
        expected = [np.float32(np.float32(scale) * np.float32(q)) + np.float32(least) for q in steps]
        assert_same_bits(block, np.array([expected], np.float32))


@pytest.mark.parametrize("cached", [1, 101, 300])
def test_log_probs_do_not_depend_on_pieces(cached, monkeypatch):
    whole = read_rows(open_scores(GOLDEN), 99)
    monkeypatch.setattr(llama_cpp, "_CACHED", cached)
    assert_same_bits(read_rows(open_scores(GOLDEN), 99), whole)


def test_range_nats_of_a_comparison(tmp_path):
    """With 24 nats, rare classes keep the probabilities that 16 raise; the divergence is of those above -16."""
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(6, 40), scale=3).astype(np.float32)
    logits[:, :3] -= 30
    logits[:, 3:6] = logits.max(-1, keepdims=True) - np.float32([18, 20, 22])
    for nats in 16, 24:
        llama_cpp.write(tmp_path / "base.kld", np.arange(16) % 40, [logits], 16 // 2, range_nats=nats)
        log_probs = read_rows(open_scores(tmp_path / "base.kld"), 99)
        exact = reference.log_softmax(logits)
        slack = nats / 65535 / 2 + 4e-6
        assert (np.abs(log_probs - exact)[:, 3:6].max() < slack) == (nats == 24)
        compared = log_probs, logits[:, ::-1], np.zeros(6, int)
        result, expected = (library.compare(*compared, definitions="llama.cpp") for library in (tokenloss, reference))
        np.testing.assert_allclose(result.kl, expected.kl, rtol=1e-6)


def test_file_that_is_read_and_written_again(tmp_path):
    scores = open_scores(GOLDEN)
    tokens = np.frombuffer(GOLDEN.read_bytes()[20 : 20 + 160], "<i4")
    llama_cpp.write(tmp_path / "again.kld", tokens, scores.blocks(4), 8)
    again = read_rows(open_scores(tmp_path / "again.kld"), 99)
    assert np.abs(again - read_rows(scores, 99)).max() < 2e-4  # what was raised makes the sum of probabilities exceed 1


def test_file_without_rows(tmp_path):
    for n_ctx, n_chunk in ((1, 3), (2, 3), (8, 0)):
        path = tmp_path / f"{n_ctx}-{n_chunk}.kld"
        path.write_bytes(struct.pack(f"<8s3i{4 * n_ctx * n_chunk}x", b"_logits_", n_ctx, 9, n_chunk))
        scores = open_scores(path)
        assert scores.shape == (n_chunk, max(0, (n_ctx - 1) // 2), 9)
        assert scores.targets.shape == scores.shape[:2]
        assert list(scores.blocks(2)) == []


def changed_golden_file(position, code, *numbers):
    """The golden file of llama.cpp with other numbers at a position."""
    data = bytearray(GOLDEN.read_bytes())
    struct.pack_into(f"<{code}", data, position, *numbers)
    return data


ROW = 8 + 2 * 102  # bytes of the golden file


@pytest.mark.parametrize(
    ("position", "code", "number", "words"),
    [
        (8, "i", 0, ["byte 8: n_ctx is 0; it must be at least 1"]),
        (8, "i", -8, ["byte 8: n_ctx is -8"]),
        (8, "i", 9, ["byte 3360: the file ends; it must have 4440 bytes"]),
        (8, "i", 7, ["byte 3340: the file continues for 20 bytes"]),
        (8, "i", 2**31 - 1, ["byte 3360: the file ends"]),
        (12, "i", 0, ["byte 12: n_vocab is 0"]),
        (12, "i", -101, ["byte 12: n_vocab is -101"]),
        (12, "i", 2**31 - 1, ["byte 3360: the file ends; it must have 64424509740 bytes"]),
        (16, "i", -1, ["byte 16: n_chunk is -1; it must be at least 0"]),
        (16, "i", 0, ["byte 20: the file continues for 3340 bytes"]),
        (16, "i", 2**31 - 1, ["byte 3360: the file ends"]),
        (20 + 4 * 17, "i", 101, ["byte 88: the token is 101; it must be in [0, 101)"]),
        (20 + 4 * 3, "i", -1, ["byte 32: the token is -1"]),
        (180 + 7 * ROW, "f", math.nan, [f"byte {180 + 7 * ROW}: scale is nan; it must be finite and at least 0"]),
        (180 + 7 * ROW, "f", math.inf, ["scale is inf"]),
        (180 + 7 * ROW, "f", -1e-9, ["scale is -9.99"]),
        (184 + 14 * ROW, "f", math.nan, [f"byte {184 + 14 * ROW}: min_log_prob is nan; it must be finite"]),
        (184 + 14 * ROW, "f", -math.inf, ["min_log_prob is -inf"]),
    ],
)
def test_headers_and_rows_with_wrong_numbers(position, code, number, words, tmp_path):
    assert GOLDEN.stat().st_size == 3360
    path = tmp_path / "base.kld"
    path.write_bytes(changed_golden_file(position, code, number))
    message = refusal(path)
    for word in words:
        assert word in message


def test_rows_before_a_damaged_row_are_read(tmp_path):
    path = tmp_path / "base.kld"
    path.write_bytes(changed_golden_file(180 + 7 * ROW, "f", math.nan))
    blocks = open_scores(path).blocks(4)
    assert_same_bits(next(blocks), read_rows(open_scores(GOLDEN), 4)[:4])
    with pytest.raises(ValueError, match=f"byte {180 + 7 * ROW}"):
        next(blocks)
