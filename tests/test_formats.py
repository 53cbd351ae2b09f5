"""Scores on disk: what was written is read, in bounded memory, and one line says what is wrong with a file."""

import json
import math
import re
import struct
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import zarr
from arrays import BFLOAT16, assert_same_bits
from hypothesis import given
from hypothesis import strategies as st

import tokenloss
from tokenloss.formats import llama_cpp, open_scores

GOLDEN = Path(__file__).parent / "data" / "llama-cpp.kld"
SHARED = Path(__file__).parents[2] / "shared" / "data" / "llama-cpp"


def save_npy(path, logits, targets):
    np.save(path := path.with_suffix(".npy"), logits)
    return path


def save_npy_in_fortran_order(path, logits, targets):
    return save_npy(path, np.asfortranarray(logits), targets)


def save_npz(path, logits, targets):
    np.savez(path := path.with_suffix(".npz"), targets=targets, logits=logits)
    return path


def save_npz_in_fortran_order(path, logits, targets):
    return save_npz(path, np.asfortranarray(logits), np.asfortranarray(targets))


def save_compressed_npz(path, logits, targets):
    np.savez_compressed(path := path.with_suffix(".npz"), targets=np.asfortranarray(targets), logits=logits)
    return path


def save_safetensors(path, logits, targets):
    arrays = {"targets": targets, "logits": logits, "hidden": np.ones((2, 3), np.float16)}
    safetensors.numpy.save_file(arrays, path := path.with_suffix(".safetensors"), metadata={"model": "none"})
    return path


def fill_group(store, zarr_format, logits, targets):
    group = zarr.open_group(store, mode="w", zarr_format=zarr_format)
    for name, array in (("logits", logits), ("targets", targets)):
        chunks = tuple(max(1, length // 2) for length in array.shape)
        group.create_array(name, data=array, chunks=chunks)


def save_zarr_2(path, logits, targets):
    fill_group(path := path.with_suffix(".zarr"), 2, logits, targets)
    return path


def save_zarr_3(path, logits, targets):
    fill_group(path := path.with_suffix(".zarr"), 3, logits, targets)
    return path


def save_zarr_zip(path, logits, targets):
    with zarr.storage.ZipStore(path := path.with_suffix(".zip"), mode="w") as store:
        fill_group(store, 2, logits, targets)
    return path


def save_zarr_array(path, logits, targets):
    chunks = tuple(max(1, length // 3) for length in logits.shape)
    shards = tuple(2 * length for length in chunks)
    zarr.create_array(path := path.with_suffix(".zarr"), data=logits, chunks=chunks, shards=shards)
    return path


SAVERS = [
    save_npy, save_npy_in_fortran_order, save_npz, save_npz_in_fortran_order, save_compressed_npz, save_safetensors,
    save_zarr_2, save_zarr_3, save_zarr_zip, save_zarr_array,
]  # fmt: skip
WITHOUT_TARGETS = {save_npy, save_npy_in_fortran_order, save_zarr_array}


def rows(scores, most_rows):
    """All rows of a file, read in blocks."""
    blocks = list(scores.blocks(most_rows))
    assert all(1 <= len(block) <= most_rows and block.dtype == scores.dtype for block in blocks)
    return np.concatenate([np.empty((0, scores.shape[-1]), scores.dtype), *blocks])


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(size=(4, 6), scale=4).astype(np.float32)


# -- what was written is read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7,), (5, 8), (3, 4, 5), (2, 2, 3, 4), (0, 4), (3, 0), (2, 0, 4)])
@pytest.mark.parametrize("save", SAVERS)
def test_shapes(save, shape, tmp_path):
    rng = np.random.default_rng(1)
    logits, targets = rng.normal(size=shape).astype(np.float32), rng.integers(5, size=shape[:-1])
    scores = open_scores(save(tmp_path / "scores", logits, targets))
    assert (scores.kind, scores.shape, scores.dtype, scores.tokens) == ("logits", shape, np.float32, None)
    assert (scores.rows, scores.row_bytes) == (math.prod(shape[:-1]), 4 * shape[-1])
    if save in WITHOUT_TARGETS:
        assert scores.targets is None
    else:
        np.testing.assert_array_equal(scores.targets, targets)
    for most_rows in (1, 3, 4, 1000):
        for _ in range(2):  # each pass starts from the beginning
            assert_same_bits(rows(scores, most_rows), logits.reshape(math.prod(shape[:-1]), shape[-1]))


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float64, ">f2", ">f4", ">f8", BFLOAT16.newbyteorder(">")])
@pytest.mark.parametrize("save", SAVERS)
def test_dtypes(save, dtype, logits, tmp_path):
    dtype = np.dtype(dtype)
    if "zarr" in save.__name__ and dtype.name == "bfloat16":
        pytest.skip("Zarr has no bfloat16")
    if save is save_safetensors and not dtype.isnative:
        pytest.skip("its library writes the bytes of other orders as they are")
    scores = open_scores(save(tmp_path / "scores", logits.astype(dtype), np.zeros(4, np.uint8)))
    assert scores.dtype.name == dtype.name
    assert_same_bits(rows(scores, 3).astype(np.float64), logits.astype(dtype).astype(np.float64))
    losses = [tokenloss.cross_entropy(block, [0] * len(block), reduction="none") for block in scores.blocks(3)]
    assert_same_bits(np.concatenate(losses), tokenloss.cross_entropy(logits.astype(dtype), [0] * 4, reduction="none"))


@pytest.mark.parametrize("save", [save_npz, save_compressed_npz, save_safetensors, save_zarr_2, save_zarr_3])
def test_targets_that_are_distributions(save, logits, tmp_path):
    shares = np.abs(logits) / np.abs(logits).sum(-1, keepdims=True)
    assert_same_bits(open_scores(save(tmp_path / "scores", logits, shares)).targets, shares)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_text_of_npz(save, logits, tmp_path):
    tokens = np.array(["a", "Ġb", "<script>", ""])
    save(tmp_path / "scores.npz", log_probs=logits, tokens=tokens)
    scores = open_scores(tmp_path / "scores.npz")
    assert (scores.kind, scores.targets) == ("log_probs", None)
    np.testing.assert_array_equal(scores.tokens, tokens)


def test_text_of_zarr(logits, tmp_path):
    group = zarr.open_group(tmp_path / "scores.zarr", mode="w")
    group.create_array("probs", data=logits)
    group.create_array("tokens", shape=(4,), dtype=str)[:] = np.array(["a", "Ġb", "<script>", ""])
    scores = open_scores(tmp_path / "scores.zarr")
    assert (scores.kind, scores.tokens.tolist()) == ("probs", ["a", "Ġb", "<script>", ""])


def test_zarr_groups_within_groups_and_unwritten_chunks(logits, tmp_path):
    group = zarr.open_group(tmp_path / "scores.zarr", mode="w")
    array = group.create_array("model/logits", shape=(4, 6), chunks=(2, 6), dtype=np.float32, fill_value=7)
    array[:2] = logits[:2]
    scores = open_scores(tmp_path / "scores.zarr" / "model")
    assert_same_bits(rows(scores, 3), np.concatenate([logits[:2], np.full((2, 6), 7, np.float32)]))


def test_names_and_kinds(logits, tmp_path):
    np.savez(tmp_path / "two.npz", logits=logits, probs=np.abs(logits), other=-logits)
    for options, kind, expected in [
        ({"kind": "probs"}, "probs", np.abs(logits)),
        ({"array": "logits"}, "logits", logits),
        ({"array": "probs"}, "probs", np.abs(logits)),
        ({"array": "other"}, "logits", -logits),
        ({"array": "other", "kind": "log_probs"}, "log_probs", -logits),
    ]:
        scores = open_scores(tmp_path / "two.npz", **options)
        assert scores.kind == kind
        assert_same_bits(rows(scores, 9), expected)
    np.save(tmp_path / "one.npy", logits)
    assert open_scores(str(tmp_path / "one.npy"), kind="log_probs").kind == "log_probs"


def test_content_counts_more_than_the_name(logits, tmp_path):
    np.savez(tmp_path / "scores.npz", logits=logits)
    (tmp_path / "scores.npz").rename(tmp_path / "scores.npy")
    assert_same_bits(rows(open_scores(tmp_path / "scores.npy"), 9), logits)


def test_what_is_not_compressed_is_mapped(logits, tmp_path):
    for save in (save_npy, save_npz, save_safetensors):
        block = next(open_scores(save(tmp_path / "scores", logits, np.zeros(4, int))).blocks(2))
        assert isinstance(block, np.memmap)
        assert not block.flags.writeable


MEASURED = """
import sys, zipfile
from pathlib import Path
import numpy as np
from tokenloss.formats import open_scores

SHAPE, N_BYTES = (1024, 1 << 17), 1 << 29


def write(file, fortran_order=False, zeros=None):
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": fortran_order, "shape": SHAPE})
    if zeros is None:
        file.truncate(file.tell() + N_BYTES)  # takes no room on the disk
    else:
        for _ in range(N_BYTES >> 20):
            file.write(zeros)


path, how = Path(sys.argv[1]), sys.argv[2]
if how == "deflated":
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("logits.npy", "w") as file:
            write(file, zeros=bytes(1 << 20))
elif how == "zarr":
    import zarr
    zarr.create_array(path, shape=SHAPE, chunks=(32, 1 << 14), dtype=np.float32)
elif how == "safetensors":
    with path.open("wb") as file:
        header = b'{"logits": {"dtype": "F32", "shape": [1024, 131072], "data_offsets": [0, 536870912]}}'
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(file.tell() + N_BYTES)
elif how == "llama.cpp":
    with path.open("wb") as file:
        file.write(b"_logits_" + np.array([2049, 1 << 17, 1], "<i4").tobytes() + bytes(4 * 2049))
        file.truncate(file.tell() + 1024 * (8 + (2 << 17)))
else:
    with path.open("wb") as file:
        write(file, how == "Fortran")
scores = open_scores(path)


def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


before = peak()
n_rows = 0
for block in scores.blocks(64):  # 32 MB
    assert block.max() == block.min() == 0
    n_rows += len(block)
assert n_rows == scores.rows == 1024
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("how", ["C", "Fortran", "deflated", "safetensors", "zarr", "llama.cpp"])
def test_memory_is_bounded(how, run_python, tmp_path):
    program = f"import sys; sys.argv[1:] = [{str(tmp_path / f'scores.{how}')!r}, {how!r}]\n"
    assert int(run_python(program + MEASURED)) < 150e6


# -- llama.cpp --------------------------------------------------------------------------------------------------------


def logits_of_all_kinds(n, n_vocab):
    logits = np.random.default_rng(7).normal(size=(n, n_vocab), scale=8).astype(np.float32)
    logits[0] = 3  # a single step, of length 0
    logits[1, ::2] = -np.inf
    logits[2] = np.float32(1e30)
    logits[3, 5] = 60  # far above the rest, which is raised
    logits[4] = np.linspace(0, 1e-41, n_vocab)  # steps too small to have an inverse
    return logits


def stored_row(logits):
    """Scale, least log-probability and steps of a row, number by number, as llama.cpp finds them."""
    top = max(logits)
    low = max(min(logits), top - np.float32(16))
    log_sum = np.float32(math.log(math.fsum(float(np.float32(math.exp(x - top))) for x in logits)))
    scale = np.float32((top - low) / np.float32(65535))
    if not scale > 1e-37:
        return np.float32(0), low - top - log_sum, [0] * len(logits)
    inverse = np.float32(1) / scale
    return scale, low - top - log_sum, [round(float(inverse * (x - low))) if x > low else 0 for x in logits]


@pytest.mark.parametrize("n_vocab", [11, 12])
@pytest.mark.parametrize("n_ctx", [3, 8, 9])
def test_llama_cpp_file_is_as_llama_cpp_writes_it(n_ctx, n_vocab, tmp_path):
    n_rows = n_ctx - 1 - n_ctx // 2
    tokens = np.random.default_rng(0).integers(n_vocab, size=(6, n_ctx))
    logits = logits_of_all_kinds(6 * n_rows, n_vocab)
    llama_cpp.write(tmp_path / "base.kld", tokens, [logits[:5], logits[5:]], n_ctx)
    with (tmp_path / "base.kld").open("rb") as file:
        assert file.read(8) == b"_logits_"
        assert struct.unpack("<3i", file.read(12)) == (n_ctx, n_vocab, 6)
        assert np.frombuffer(file.read(24 * n_ctx), "<i4").tolist() == tokens.ravel().tolist()
        for row in logits:
            scale, least, steps = stored_row(list(row))
            found_scale, found_least, *found_steps = struct.unpack(f"<ff{n_vocab}H", file.read(8 + 2 * n_vocab))
            assert (found_scale, found_steps) == (scale, steps)
            assert found_least == pytest.approx(least, abs=3e-6)  # their expf is not ours
            assert file.read(2 * (n_vocab % 2)) == b"\0\0" * (n_vocab % 2)
        assert file.read() == b""
    scores = open_scores(tmp_path / "base.kld")
    assert (scores.kind, scores.shape, scores.dtype) == ("log_probs", (6, n_rows, n_vocab), np.float32)
    np.testing.assert_array_equal(scores.targets, tokens[:, n_ctx // 2 + 1 :])
    below = logits - logits.max(-1, keepdims=True)
    exact = below - tokenloss.logsumexp(below)[:, None]
    raised = np.maximum(exact, exact.max(-1, keepdims=True) - 16)
    assert np.abs(rows(scores, 4) - raised).max() < 16 / 65535 / 2 + 4e-6


def test_llama_cpp_golden_file(tmp_path):
    rng = np.random.default_rng(42)
    tokens, logits = rng.integers(101, size=40), logits_of_all_kinds(15, 101)
    llama_cpp.write(tmp_path / "base.kld", tokens, [logits], 8)
    assert (tmp_path / "base.kld").read_bytes() == GOLDEN.read_bytes()


def test_llama_cpp_log_probabilities_are_those_of_float32_steps():
    data = GOLDEN.read_bytes()[20 + 4 * 40 :]
    blocks = open_scores(GOLDEN).blocks(1)
    for block, stored in zip(blocks, struct.iter_unpack("<ff101H2x", data), strict=True):
        scale, least, *steps = stored
        expected = [np.float32(np.float32(scale) * np.float32(q)) + np.float32(least) for q in steps]
        assert_same_bits(block, np.array([expected], np.float32))


def test_llama_cpp_file_that_is_read_and_written_again(tmp_path):
    scores = open_scores(GOLDEN)
    tokens = np.frombuffer(GOLDEN.read_bytes()[20 : 20 + 160], "<i4")
    llama_cpp.write(tmp_path / "again.kld", tokens, scores.blocks(4), 8)
    again = rows(open_scores(tmp_path / "again.kld"), 99)
    assert np.abs(again - rows(scores, 99)).max() < 2e-4  # what was raised makes the sum of probabilities exceed 1


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, ">f4", np.float64])
def test_llama_cpp_file_of_any_floats(dtype, logits, tmp_path):
    given = logits.astype(dtype)
    for path, block in (("a", given), ("b", given.astype(np.float32))):
        llama_cpp.write(tmp_path / path, np.zeros(12, int), [block], 6)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.skipif(not SHARED.exists(), reason="the whole data set is not beside the checkout")
def test_llama_cpp_file_of_llama_cpp_itself(tmp_path):
    scores = open_scores(SHARED / "base.kld")
    meter = tokenloss.LossMeter()
    for block, targets in zip(scores.blocks(31), scores.targets, strict=True):
        meter.update(tokenloss.nll_loss(block, targets, reduction="none"))
    assert f"Mean PPL(base)                :  {meter.perplexity:.6f}" in (SHARED / "stats_kld.txt").read_text()
    printed = re.search(r"PPL = ([\d.]+)", (SHARED / "stats_base.txt").read_text())
    assert meter.perplexity == pytest.approx(float(printed[1]), abs=5e-4)  # of logits before they were rounded
    np.testing.assert_array_equal(scores.targets.ravel(), np.load(SHARED / "targets.npy"))
    data = (SHARED / "base.kld").read_bytes()
    llama_cpp.write(tmp_path / "again.kld", np.frombuffer(data[20:2580], "<i4"), scores.blocks(100), 64)
    again = (tmp_path / "again.kld").read_bytes()
    assert again[:2580] == data[:2580]
    first, second = (np.frombuffer(file, "<u2", offset=2580).reshape(310, -1) for file in (data, again))
    np.testing.assert_array_equal(first[:, [0, 1, *range(4, 4100)]], second[:, [0, 1, *range(4, 4100)]])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
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
def test_llama_cpp_file_is_written_whole_or_not_at_all(arguments, error, words, tmp_path):
    path = tmp_path / "base.kld"
    path.write_text("precious")
    with pytest.raises(error) as raised:
        llama_cpp.write(path, **{"tokens": [0] * 12, "logits": [np.zeros((4, 6))], "n_ctx": 6} | arguments)
    for word in words:
        assert word in str(raised.value)
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


# -- what is wrong ----------------------------------------------------------------------------------------------------


def refusal(path, error=ValueError, **options):
    """The one line that refuses a file, which names it."""
    with pytest.raises(error) as raised:
        rows(open_scores(path, **options), 3)
    message = str(raised.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def save_llama_cpp(path, logits, targets):
    llama_cpp.write(path, np.arange(12) % 6, [logits], 6)
    return path


IN_ONE_FILE = [
    save_npy, save_npy_in_fortran_order, save_npz, save_compressed_npz, save_safetensors, save_zarr_zip, save_llama_cpp,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")  # of Zarr's own zip files
@pytest.mark.parametrize("save", IN_ONE_FILE)
def test_truncated(save, logits, tmp_path):
    path = save(tmp_path / "scores", logits, np.zeros(4, int))
    data = path.read_bytes()
    for kept in range(0, len(data), max(1, len(data) // 200)):
        path.write_bytes(data[:kept])
        message = refusal(path)
        if (save is save_llama_cpp and kept >= 20) or (save in (save_npy, save_npy_in_fortran_order) and kept >= 128):
            assert f"byte {kept}: the file ends; it must have {len(data)} bytes" in message


@pytest.mark.parametrize("save", [save_npy, save_npy_in_fortran_order, save_safetensors, save_llama_cpp])
def test_oversized(save, logits, tmp_path):
    path = save(tmp_path / "scores", logits, np.zeros(4, int))
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"\0")
    assert f"byte {size}: the file goes on for 1 bytes; it must have {size} bytes" in refusal(path)


@pytest.mark.parametrize("save", IN_ONE_FILE)
@given(changes=st.lists(st.tuples(st.integers(0, 2**32), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_files_are_read_or_refused(save, changes, tmp_path_factory):
    logits = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    directory = tmp_path_factory.getbasetemp() / f"{save.__name__}-{threading.get_ident()}"
    directory.mkdir(exist_ok=True)
    path = save(directory / "scores", logits, np.zeros(4, int))
    data = bytearray(path.read_bytes())
    for position, byte in changes:
        data[position % len(data)] = byte
    path.write_bytes(data)
    message = str(path)
    try:
        rows(open_scores(path), 3)
    except ValueError as error:
        message = str(error)
    assert re.search(f"^{re.escape(str(path))}.*$", message)


def npy_bytes(header, n_bytes=96):
    """A .npy file with this header."""
    text = str(header).ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(n_bytes)


HEADER = {"descr": "<f4", "fortran_order": False, "shape": (4, 6)}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"shape": (4, 7)}, ["byte 224: the file ends; it must have 240 bytes"]),
        ({"shape": (10**30, 10**30)}, ["byte 224: the file ends; it must have 4" + "0" * 57]),
        ({"shape": (2**62, 4)}, ["byte 224: the file ends"]),
        ({"shape": (0, 10**30)}, ["cannot be read"]),
        ({"shape": (-4, 6)}, ["cannot be read: its shape is (-4, 6)"]),
        ({"shape": 24}, ["cannot be read"]),
        ({"shape": ()}, ["byte 132: the file goes on for 92 bytes"]),
        ({"descr": "<i4"}, ["logits has dtype int32; it must be float16, bfloat16, float32 or float64"]),
        ({"descr": "<c8", "shape": (4, 3)}, ["logits has dtype complex64"]),
        ({"descr": [("a", "<f4")]}, ["logits has dtype [('a', '<f4')]"]),
        ({"descr": "O", "shape": (4, 3)}, ["cannot be read", "allow_pickle"]),
        ({"descr": "<V4"}, ["logits has dtype |V4"]),
        ({"descr": "nonsense"}, ["cannot be read"]),
        ({"descr": "<f4", "extra": 1}, ["cannot be read"]),
    ],
)
def test_npy_headers_that_lie(header, words, tmp_path):
    path = tmp_path / "scores.npy"
    path.write_bytes(npy_bytes(HEADER | header))
    message = refusal(path)
    for word in words:
        assert word in message


def test_npy_header_of_four_gigabytes_allocates_nothing(tmp_path):
    path = tmp_path / "scores.npy"
    path.write_bytes(b"\x93NUMPY\x02\x00" + b"\xff" * 4 + bytes(100))
    assert "cannot be read" in refusal(path)


def test_npy_scalar_is_no_row(tmp_path):
    np.save(tmp_path / "scores.npy", np.float32(1))
    assert "logits is a scalar; it must have a class axis" in refusal(tmp_path / "scores.npy")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_npz_headers_that_lie(compression, tmp_path):
    path = tmp_path / "scores.npz"
    for shape in ((4, 7), (4, 5), (10**20, 10**20)):
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("logits.npy", npy_bytes(HEADER | {"shape": shape}))
        assert f"logits: has 224 bytes; it must have {128 + 4 * math.prod(shape)} by its header" in refusal(path)


def test_npz_members_that_cannot_be_read(logits, tmp_path):
    path = tmp_path / "scores.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("logits.npy", npy_bytes(HEADER))
    assert "logits: cannot be read: it is compressed by method 14" in refusal(path)
    np.savez_compressed(path, logits=np.asfortranarray(logits))
    assert "logits: is compressed in Fortran order; it must be in C order, or not compressed" in refusal(path)
    np.savez(path, logits=logits, tokens=[1, 2, 3, 4])
    assert "tokens has dtype int64; it must be text" in refusal(path)
    np.savez(path, logits=logits, tokens=["a"])
    assert "tokens has shape (1,); it must have shape (4,)" in refusal(path)


def test_npz_damage_within_compressed_data(logits, tmp_path):
    path = save_compressed_npz(tmp_path / "scores", np.tile(logits, (1, 100)), np.zeros(4, int))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    assert "logits: cannot be read: " in refusal(path)


def safetensors_bytes(header, n_bytes=96, length=None):
    """A .safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(n_bytes)


ENTRY = {"dtype": "F32", "shape": [4, 6], "data_offsets": [0, 96]}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\1\2\3", ["byte 3: the file ends; it must have a header"]),
        (safetensors_bytes({"logits": ENTRY}, length=2**63), [f"byte 0: the length of the header is {2**63}", "most"]),
        (safetensors_bytes(b"{" + b" " * 9), ["byte 8: the header is no JSON"]),
        (safetensors_bytes(b"[" * 100_000), ["byte 8: the header is no JSON"]),
        (safetensors_bytes(b"\xff\xfe\xfd{"), ["byte 8: the header is no JSON"]),
        (safetensors_bytes(b"9" * 5000), ["byte 8: the header is no JSON"]),
        (safetensors_bytes([ENTRY]), ["byte 8: by the header all is [{", "dtype, shape and data_offsets"]),
        (safetensors_bytes({"logits": 3}), ["by the header logits is 3;"]),
        (safetensors_bytes({"logits": ENTRY | {"shape": [4, 7]}}), ["logits has 96 bytes; it must have 112"]),
        (safetensors_bytes({"logits": ENTRY | {"shape": [-4, -6]}}), ["logits is {"]),
        (safetensors_bytes({"logits": ENTRY | {"shape": [4.0, 6]}}), ["logits is {"]),
        (safetensors_bytes({"logits": ENTRY | {"shape": [2**62, 2**62]}}), ["logits has 96 bytes; it must have "]),
        (safetensors_bytes({"logits": ENTRY | {"data_offsets": [0, 97]}}, 97), ["logits has 97 bytes"]),
        (safetensors_bytes({"logits": ENTRY | {"data_offsets": [96, 0]}}), ["byte 8: by the header logits"]),
        (safetensors_bytes({"logits": ENTRY | {"data_offsets": [8, 104]}}, 104), ["logits begins at 8", "begin at 0"]),
        (safetensors_bytes({"logits": ENTRY | {"data_offsets": [0]}}), ["logits is {"]),
        (safetensors_bytes({"logits": ENTRY | {"data_offsets": [0, 2**64]}}), ["logits is {"]),
        (safetensors_bytes({"logits": ENTRY, "other": ENTRY}), ["other begins at 0", "begin at 96"]),
        (safetensors_bytes({"logits": ENTRY}, 97), ["the file goes on for 1 bytes"]),
        (safetensors_bytes({"logits": ENTRY}, 95), ["the file ends"]),
        (safetensors_bytes({"logits": ENTRY | {"dtype": "F8_E5M2"}}), ["logits has dtype F8_E5M2", "float16"]),
        (safetensors_bytes({"logits": ENTRY | {"dtype": "U32"}}), ["logits has dtype uint32", "float16"]),
        (safetensors_bytes({"weights": ENTRY}), ["holds weights; it must hold exactly one of logits, log_probs, "]),
        (safetensors_bytes({}, 0), ["holds nothing"]),
    ],
)  # fmt: skip
def test_safetensors_headers_that_lie(data, words, tmp_path):
    path = tmp_path / "scores.safetensors"
    path.write_bytes(data)
    message = refusal(path)
    for word in words:
        assert word in message


def changed(position, code, *numbers):
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
        (8, "i", 7, ["byte 3340: the file goes on for 20 bytes"]),
        (8, "i", 2**31 - 1, ["byte 3360: the file ends"]),
        (12, "i", 0, ["byte 12: n_vocab is 0"]),
        (12, "i", -101, ["byte 12: n_vocab is -101"]),
        (12, "i", 2**31 - 1, ["byte 3360: the file ends; it must have 64424509740 bytes"]),
        (16, "i", -1, ["byte 16: n_chunk is -1; it must be at least 0"]),
        (16, "i", 0, ["byte 20: the file goes on for 3340 bytes"]),
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
def test_llama_cpp_files_that_lie(position, code, number, words, tmp_path):
    assert GOLDEN.stat().st_size == 3360
    path = tmp_path / "base.kld"
    path.write_bytes(changed(position, code, number))
    message = refusal(path)
    for word in words:
        assert word in message


def test_llama_cpp_damage_of_a_row_does_not_hide_the_rows_before(tmp_path):
    path = tmp_path / "base.kld"
    path.write_bytes(changed(180 + 7 * ROW, "f", math.nan))
    blocks = open_scores(path).blocks(4)
    assert_same_bits(next(blocks), rows(open_scores(GOLDEN), 4)[:4])
    with pytest.raises(ValueError, match=f"byte {180 + 7 * ROW}"):
        next(blocks)


def test_llama_cpp_file_without_rows(tmp_path):
    path = tmp_path / "base.kld"
    for n_ctx, n_chunk in ((1, 3), (2, 3), (8, 0)):
        path.write_bytes(struct.pack(f"<8s3i{4 * n_ctx * n_chunk}x", b"_logits_", n_ctx, 9, n_chunk))
        scores = open_scores(path)
        assert scores.shape == (n_chunk, max(0, (n_ctx - 1) // 2), 9)
        assert scores.targets.shape == scores.shape[:2]
        assert list(scores.blocks(2)) == []


def test_zarr_damage(logits, tmp_path):
    path = save_zarr_3(tmp_path / "scores", logits, np.zeros(4, int))
    (path / "logits" / "c" / "1" / "0").write_bytes(b"no chunk")
    message = refusal(path)
    assert "logits[" in message
    assert "cannot be read" in message
    (path / "logits" / "zarr.json").write_text("{")
    refusal(path)


def test_what_is_no_store_of_zarr(tmp_path):
    assert "is a directory without metadata of Zarr" in refusal(tmp_path)
    zarr.open_group(tmp_path / "empty.zarr", mode="w")
    assert "holds nothing" in refusal(tmp_path / "empty.zarr")


def test_what_is_no_file_of_scores(tmp_path):
    path = tmp_path / "scores.txt"
    path.write_text("logits")
    assert "is no file of scores; it must be a .npy, .npz or .safetensors file, a Zarr store, or" in refusal(path)
    with pytest.raises(FileNotFoundError):
        open_scores(tmp_path / "none.npz")


@pytest.mark.parametrize("save", [save_npz, save_safetensors, save_zarr_3])
def test_names_that_are_not_there(save, logits, tmp_path):
    path = save(tmp_path / "scores", logits, np.zeros(4, int))
    assert "it must hold other" in refusal(path, array="other")
    assert "it must hold probs" in refusal(path, kind="probs")


@pytest.mark.parametrize("save", [save_npy, save_zarr_array, save_llama_cpp])
def test_names_where_there_are_none(save, logits, tmp_path):
    path = save(tmp_path / "scores", logits, np.zeros(4, int))
    assert "holds one array without a name; it must name 'other'" in refusal(path, array="other")


def test_options_that_do_not_fit(logits, tmp_path):
    path = save_llama_cpp(tmp_path / "base.kld", logits, None)
    assert open_scores(path, kind="log_probs").kind == "log_probs"
    assert "holds log_probs of llama.cpp; it must hold probs" in refusal(path, kind="probs")
    with pytest.raises(ValueError, match="kind is 'odds'; it must be 'logits', 'log_probs', 'probs'"):
        open_scores(path, kind="odds")
    with pytest.raises(ValueError, match="most_rows is 0; it must be a positive integer"):
        open_scores(path).blocks(0)


@pytest.mark.parametrize(("package", "save"), [("zarr", save_zarr_3), ("ml_dtypes", save_npy)])
def test_packages_that_are_missing(package, save, logits, tmp_path, monkeypatch):
    path = save(
        tmp_path / "scores", logits.astype(BFLOAT16 if package == "ml_dtypes" else np.float32), np.zeros(4, int)
    )
    monkeypatch.setitem(sys.modules, package, None)
    assert f"needs the package {package}: pip install {package}" in refusal(path, ImportError)
