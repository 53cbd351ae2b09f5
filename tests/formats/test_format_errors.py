"""Files whose headers or arrays are wrong are refused in one line that names the file."""

import itertools
import json
import math
import struct
import zipfile

import numpy as np
import pytest
import safetensors.numpy
import zarr
from damage import bounded
from files import (
    IN_ONE_FILE,
    LOGITS,
    TARGETS,
    assert_file_refused,
    in_memory,
    npy,
    refusal,
    save_compressed_npz,
    save_llama_cpp,
    save_npy,
    save_npy_in_fortran_order,
    save_npz,
    save_safetensors,
    save_zarr,
    save_zarr_3,
    save_zarr_array,
    save_zarr_zip,
    zipped,
)

from tokenloss import evaluate
from tokenloss.formats import open_scores
from tokenloss.formats.readers import FILES


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")  # of Zarr's own zip files
@pytest.mark.parametrize("save", IN_ONE_FILE)
def test_files_that_are_cut_short(save, tmp_path):
    path = save(tmp_path / "scores")
    data = path.read_bytes()
    for kept in range(0, len(data), max(1, len(data) // 200)):
        path.write_bytes(data[:kept])
        message = refusal(path)
        if (save is save_llama_cpp and kept >= 20) or (save in (save_npy, save_npy_in_fortran_order) and kept >= 128):
            assert f"byte {kept}: the file ends; it must have {len(data)} bytes" in message


@pytest.mark.parametrize("save", [save_npy, save_npy_in_fortran_order, save_safetensors, save_llama_cpp])
def test_files_with_bytes_after_the_end(save, tmp_path):
    path = save(tmp_path / "scores")
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"\0")
    assert f"byte {size}: the file continues for 1 bytes; it must have {size} bytes" in refusal(path)


# -- headers ----------------------------------------------------------------------------------------------------------

HEADER = {"descr": "<f4", "fortran_order": False, "shape": (4, 6)}
ENTRY = {"dtype": "F32", "shape": [4, 6], "data_offsets": [0, 96]}
TOKENS = np.array([[0x61, 0xD800, 0x10FFFF]] * 8, "u4")


def npz(compression=zipfile.ZIP_STORED, **members):
    """A .npz file of arrays, or of the bytes of .npy files."""
    members = {name: data if isinstance(data, bytes) else npy_of(data) for name, data in members.items()}
    return zipped({f"{name}.npy": data for name, data in members.items()}, compression)


def npy_of(array):
    return in_memory(lambda file: np.save(file, array))


def safetensors_bytes(header, n_bytes=96, length=None):
    """A .safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(n_bytes)


def tokens_with(code, order):
    """Text with this code point."""
    codes = TOKENS.astype(f"{order}u4")
    codes[5, 1] = code
    return codes.view(f"{order}U3")[:, 0]


def wrong_npy():
    """Files and what is said of them."""
    for header, *words in [
        ({"shape": (4, 7)}, "byte 224: the file ends; it must have 240 bytes"),
        ({"shape": (10**30, 10**30)}, "byte 224: the file ends; it must have 4" + "0" * 57),
        ({"shape": (2**62, 4)}, "byte 224: the file ends"),
        ({"shape": (0, 10**30)}, "cannot be read"),
        ({"shape": (-4, 6)}, "cannot be read: its shape is (-4, 6)"),
        ({"shape": 24}, "cannot be read"),
        ({"shape": ()}, "byte 132: the file continues for 92 bytes"),
        ({"descr": "<i4"}, "logits has dtype int32; it must be float16, bfloat16, float32 or float64"),
        ({"descr": "<c8", "shape": (4, 3)}, "logits has dtype complex64"),
        ({"descr": [("a", "<f4")]}, "logits has dtype [('a', '<f4')]"),
        ({"descr": "O", "shape": (4, 3)}, "cannot be read", "Python objects"),
        ({"descr": "<V4"}, "logits has dtype |V4"),
        ({"descr": "nonsense"}, "cannot be read"),
        ({"descr": "<f4", "extra": 1}, "cannot be read"),
    ]:
        yield npy(HEADER | header), *words
    for text in ("-" * 9000 + "1", "(" * 300, "[" * 9000):
        yield npy(text), "cannot be read"
    yield npy(HEADER | {"shape": (2**40, 0)}, 0), "rows without classes"
    yield b"\x93NUMPY\x02\x00" + b"\xff" * 4 + bytes(100), "cannot be read"  # a header of 4 GB
    yield npy_of(np.float32(1)), "logits is a scalar; it must have a class axis"


def wrong_npz():
    """Files and what is said of them."""
    stored, deflated = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
    for compression in (stored, deflated):
        for shape in ((4, 7), (4, 5), (10**20, 10**20)):
            words = f"logits: has 224 bytes; it must have {128 + 4 * math.prod(shape)}, by its header"
            yield npz(compression, logits=npy(HEADER | {"shape": shape})), words
        for part, descr in (("tokens", "<U0"), ("targets", "|V0"), ("targets", "|S0")):
            empty = npy(HEADER | {"descr": descr, "shape": (8,)}, 0)
            words = f"{part}: cannot be read: its dtype is {descr}, of no bytes"
            yield npz(compression, logits=npy(HEADER | {"shape": (8, 6)}, 192), **{part: empty}), words
        for order, code in itertools.product("<>", (0x110000, 0xFFFFFFFF)):
            words = f"tokens has the code point {code:#x}; it must have none above 0x10ffff"
            yield npz(compression, logits=LOGITS, tokens=tokens_with(code, order)), words
    yield npz(zipfile.ZIP_LZMA, logits=npy(HEADER)), "logits: cannot be read: it is compressed by method 14"
    words = "logits: is compressed in Fortran order; it must be in C order, or not compressed"
    yield npz(deflated, logits=np.asfortranarray(LOGITS)), words
    yield npz(logits=LOGITS, tokens=np.arange(8)), "tokens has dtype int64; it must be text"
    yield npz(logits=LOGITS, tokens=np.array(["a"])), "tokens has shape (1,); it must have shape (8,)"
    yield zipped({"logits.npy": npy_of(LOGITS), "logits": npy_of(LOGITS)}), "contains logits twice"


def wrong_safetensors():
    """Files and what is said of them."""
    yield bytes(8), "byte 8: the file ends; it must have a header"
    for n in (10, 100):
        yield (
            bytes(n),
            f"byte 0: the length of the header is 0; it must be at least 2 and fit into the file of {n} bytes",
        )
    yield b"\1\2\3", "byte 3: the file ends; it must have a header"
    yield safetensors_bytes({"logits": ENTRY}, length=2**63), f"byte 0: the length of the header is {2**63}", "fit into"
    for text in (b"{" + b" " * 9, b"[" * 100_000, b"\xff\xfe\xfd{", b"9" * 5000):
        yield safetensors_bytes(text), "byte 8: the header is not JSON"
    for header, *words in [
        ([ENTRY], "byte 8: according to the header, all is [{", "dtype, shape and data_offsets"),
        ({"logits": 3}, "according to the header, logits is 3;"),
        ({"logits": ENTRY, "other": ENTRY}, "other begins at 0", "begin at 96"),
        (
            {"top_logprobs": ENTRY},
            "contains top_logprobs; it must",
            "; for lists of likely tokens, see topk_divergence_bound",
        ),
        ({"weights": ENTRY}, "contains weights; it must contain exactly one of logits, log_probs, "),
        (
            {"h.0.qweight": ENTRY},
            "contains a model's weights, such as h.0.qweight; it must contain its predictions",
        ),
    ]:
        yield safetensors_bytes(header), *words
    for entry, *words in [
        ({"shape": [4, 7]}, "logits has 96 bytes; it must have 112"),
        ({"shape": [-4, -6]}, "logits is {"),
        ({"shape": [4.0, 6]}, "logits is {"),
        ({"shape": [2**62, 2**62]}, "logits has 96 bytes; it must have "),
        ({"shape": [2**62] * 100_000}, "logits is {"),
        ({"data_offsets": [0, 97]}, "logits has 97 bytes"),
        ({"data_offsets": [96, 0]}, "byte 8: according to the header, logits"),
        ({"data_offsets": [8, 104]}, "logits begins at 8", "begin at 0"),
        ({"data_offsets": [0]}, "logits is {"),
        ({"data_offsets": [0, 2**64]}, "logits is {"),
        ({"dtype": "F8_E5M2"}, "logits has dtype F8_E5M2", "float16"),
        ({"dtype": "U32"}, "logits has dtype uint32", "float16"),
    ]:
        offsets = entry.get("data_offsets", [0, 96])
        yield safetensors_bytes({"logits": ENTRY | entry}, min(max(offsets), 104)), *words
    yield safetensors_bytes({"logits": ENTRY}, 97), "the file continues for 1 bytes"
    yield safetensors_bytes({"logits": ENTRY}, 95), "the file ends"
    yield safetensors_bytes({}, 0), "contains nothing"
    entry = json.dumps(ENTRY)
    yield safetensors_bytes(f'{{"logits": {entry}, "logits": {entry}}}'.encode()), "has the key 'logits' twice"
    empty = {"dtype": "F32", "shape": [0, 6], "data_offsets": [0, 0]}
    huge = {"dtype": "I64", "shape": [0, 2**62], "data_offsets": [0, 0]}
    yield safetensors_bytes({"logits": empty, "targets": huge}, 0), "cannot be read"


WRONG = {"npy": wrong_npy, "npz": wrong_npz, "safetensors": wrong_safetensors}
CASES = [(suffix, data, words) for suffix, wrong in WRONG.items() for data, *words in wrong()]


@pytest.mark.parametrize(("suffix", "data", "words"), CASES, ids=[f"{case[0]}-{case[2][0][:60]}" for case in CASES])
def test_file_with_a_wrong_header(suffix, data, words, tmp_path):
    path = tmp_path / f"scores.{suffix}"
    path.write_bytes(data)
    with bounded():
        assert_file_refused(path, *words)


def test_headers_that_are_unusual_and_right(tmp_path):
    for compression, order in itertools.product((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), "<>"):
        (tmp_path / "text.npz").write_bytes(npz(compression, logits=LOGITS, tokens=tokens_with(0xD800, order)))
        assert open_scores(tmp_path / "text.npz").file.tokens[7] == "a\ud800\U0010ffff"
    array = npy_of(LOGITS)
    (tmp_path / "twice.npz").write_bytes(zipped({"logits.npy": array, "other.npy": array, "other": array}))
    assert open_scores(tmp_path / "twice.npz").shape == LOGITS.shape


# -- other damage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [1, 100])
@pytest.mark.parametrize("save", [save_npz, save_compressed_npz])
def test_npz_member_that_goes_on_beyond_the_end_of_the_file(save, missing, tmp_path):
    """As its directory says, whose other numbers fit; newer versions of zipfile refuse it in words of their own."""
    path = save(tmp_path / "scores")
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("logits.npy")
    entry = data.index(b"PK\1\2", data.index(b"PK\1\2") + 1)
    assert data[entry + 46 :].startswith(b"logits.npy")
    end = info.header_offset + 30 + sum(struct.unpack_from("<2H", data, info.header_offset + 26))
    struct.pack_into("<I", data, entry + 20, len(data) - end + missing)
    path.write_bytes(data)
    assert_file_refused(path, "logits")
    with pytest.raises(ValueError, match=r"logits has .* bytes; it must fit in the file|logits: .* Overlapped entries"):
        open_scores(path)


@pytest.mark.parametrize("more", [1, 10**6])
def test_zarr_entry_that_goes_on_beyond_the_end_of_the_file(more, tmp_path):
    path = save_zarr_zip(tmp_path / "scores")
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\1\2") + 20, len(data) + more)
    path.write_bytes(data)
    assert_file_refused(path, f" is said to have {len(data) + more} bytes")


def test_npz_with_damaged_compressed_data(tmp_path):
    path = save_compressed_npz(tmp_path / "scores", np.tile(LOGITS, (1, 100)))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    assert "logits: cannot be read: " in refusal(path)


def test_tokens_of_zarr_beyond_unicode(tmp_path):
    path = save_zarr(tmp_path / "scores.zarr", 2, logits=LOGITS, targets=TARGETS, tokens=np.array(["abc", "d"] * 4))
    assert open_scores(path).file.tokens[0] == "abc"
    chunk = path / "tokens" / "1"
    chunk.write_bytes(chunk.read_bytes().replace(b"b\0\0\0", b"b\0\x11\0"))
    assert_file_refused(path, "tokens has the code point 0x110062")


@pytest.mark.slow
def test_zarr_with_very_many_axes(tmp_path):
    path = save_zarr_3(tmp_path / "scores.zarr", logits=LOGITS, targets=TARGETS)
    metadata = json.loads((path / "logits/zarr.json").read_text())
    metadata["shape"] = metadata["chunk_grid"]["configuration"]["chunk_shape"] = [2**62] * 100_000
    (path / "logits/zarr.json").write_text(json.dumps(metadata))
    assert_file_refused(path, "logits: has 100000 axes; it must have at most 64")


def test_zarr_with_damaged_chunk_or_metadata(tmp_path):
    path = save_zarr_3(tmp_path / "scores")
    (path / "logits" / "c" / "1" / "0").write_bytes(b"no chunk")
    message = refusal(path)
    assert "logits[" in message
    assert "cannot be read" in message
    (path / "logits" / "zarr.json").write_text("{")
    refusal(path)


def test_zarr_directory_without_arrays(tmp_path):
    assert "is empty; it must contain files of scores" in refusal(tmp_path)
    zarr.open_group(tmp_path / "empty.zarr", mode="w")
    assert "contains nothing" in refusal(tmp_path / "empty.zarr")


def test_files_of_other_formats(tmp_path):
    path = tmp_path / "scores.txt"
    path.write_text("logits")
    assert f"is not a file of scores; it must be {FILES}" in refusal(path)
    path = path.rename(tmp_path / "scores.zip")
    assert "cannot be read: File is not a zip file" in refusal(path)
    with pytest.raises(FileNotFoundError):
        open_scores(tmp_path / "none.npz")


def test_names_that_are_very_long(tmp_path):
    path, name = tmp_path / "scores.safetensors", "n" * 1_000_000
    path.write_bytes(safetensors_bytes({name: ENTRY}))
    message = refusal(path)
    assert len(message) < 4100
    assert message.startswith(f"{path}: contains {name[:1000]}")
    assert "; it must contain exactly one of logits, log_probs, probs" in message


@pytest.mark.parametrize("save", [save_npz, save_safetensors, save_zarr_3])
def test_array_and_kind_that_are_missing(save, tmp_path):
    path = save(tmp_path / "scores")
    assert "it must contain 'other'" in refusal(path, array="other")
    assert "it must contain probs" in refusal(path, kind="probs")


@pytest.mark.parametrize("save", [save_npy, save_zarr_array, save_llama_cpp])
def test_array_of_a_file_without_names(save, tmp_path):
    path = save(tmp_path / "scores")
    assert "contains one array without a name; it must name 'other'" in refusal(path, array="other")


@pytest.mark.parametrize("name", ["targets", "tokens"])
def test_array_that_holds_targets_or_tokens(name, tmp_path):
    np.savez(tmp_path / "scores.npz", logits=LOGITS, targets=LOGITS, tokens=LOGITS)
    safetensors.numpy.save_file({"targets": LOGITS, "tokens": LOGITS}, tmp_path / "scores.safetensors")
    save_zarr(tmp_path / "scores.zarr", targets=LOGITS, tokens=LOGITS)
    for suffix in ("npz", "safetensors", "zarr"):
        with pytest.raises(ValueError, match=f"array is '{name}'; it must be the name of scores"):
            open_scores(tmp_path / f"scores.{suffix}", array=name)


@pytest.mark.parametrize("save", [save_npz, save_safetensors, save_zarr_3])
@pytest.mark.parametrize("name", ["mask", "loss_mask", "response_mask", "completion_mask"])
def test_mask_of_a_trainer_is_not_ignored_in_silence(save, name, tmp_path):
    path = save(tmp_path / "masked", LOGITS, TARGETS, **{name: np.arange(8) % 2})
    with pytest.raises(ValueError, match=name) as raised:
        evaluate(path)
    fits = f"it must have targets of -100 where it is 0, and no {name}"
    assert str(raised.value) == f"{path}: has {name}, which is not read; {fits}"
    assert [row["count"] for row in evaluate(path, by=name).figures["groups"]] == [4, 4]


@pytest.mark.parametrize("save", [save_npz, save_safetensors, save_zarr_3])
def test_attention_mask_beside_targets_that_score_the_padding(save, tmp_path):
    """It was not read: padding counted as tokens, whatever the mask said."""
    mask, targets = np.ones(8, np.int64), TARGETS.copy()
    assert evaluate(save(tmp_path / "ones", LOGITS, targets, attention_mask=mask), shift=False).meter.count == 8
    mask[2:] = 0
    fits = "it must have targets that are ignored where it is 0, or come with shift=True if they are input ids"
    path = save(tmp_path / "padding", LOGITS, targets, attention_mask=mask)
    with pytest.raises(ValueError, match="attention_mask") as raised:
        evaluate(path)
    assert str(raised.value) == f"{path}: attention_mask[2] is 0, but its token would be scored; {fits}"
    targets[2:] = -100
    assert evaluate(save(tmp_path / "ignored", LOGITS, targets, attention_mask=mask)).meter.count == 2
    path = save(tmp_path / "short", LOGITS, targets, attention_mask=mask[:1])
    assert "attention_mask has shape (1,)" in refusal(path)
