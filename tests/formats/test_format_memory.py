"""Files are read in bounded memory, however large they are or claim to be."""

import io
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from commands import run
from files import LOGITS, TARGETS, assert_file_refused, held_at_most, save_zarr
from safetensors.numpy import save_file

from tokenloss.formats import open_scores
from tokenloss.formats.lm_head import open_lm_head

pytestmark = pytest.mark.thread_unsafe(reason="sets an alarm for the process, and measures its memory")
MEASURED = """
import sys, zipfile
from pathlib import Path
import numpy as np
from tokenloss.formats import open_scores

SHAPE, N_BYTES = (256, 1 << 16), 1 << 26


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
    zarr.create_array(path, shape=SHAPE, chunks=(32, 1 << 14), dtype=np.float32, fill_value=1)
elif how == "safetensors":
    with path.open("wb") as file:
        header = b'{"logits": {"dtype": "F32", "shape": [256, 65536], "data_offsets": [0, 67108864]}}'
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(file.tell() + N_BYTES)
elif how == "llama.cpp":
    with path.open("wb") as file:
        file.write(b"_logits_" + np.array([513, 1 << 16, 1], "<i4").tobytes() + bytes(4 * 513))
        file.truncate(file.tell() + 256 * (8 + (2 << 16)))
else:
    with path.open("wb") as file:
        write(file, how == "Fortran")
scores = open_scores(path)


def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


before = peak()
n_rows = 0
for block in scores.blocks(16):  # 4 MB
    assert block.max() == block.min() == (how == "zarr")
    n_rows += len(block)
assert n_rows == scores.file.rows == 256
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("how", ["C", "Fortran", "deflated", "safetensors", "zarr", "llama.cpp"])
def test_memory_is_that_of_a_block(how, run_python, tmp_path):
    program = f"import sys; sys.argv[1:] = [{str(tmp_path / f'scores.{how}')!r}, {how!r}]\n"
    assert int(run_python(program + MEASURED)) < 50e6


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from tokenloss.formats import open_scores

path = sys.argv[1]
with open(path, "wb") as file:
    header = {"descr": "<f4", "fortran_order": sys.argv[2] == "F", "shape": (256, 1 << 18)}
    np.lib.format.write_array_header_1_0(file, header)
    file.truncate(file.tell() + (1 << 28))
scores = open_scores(path)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limits = used + (200 << 20), resource.RLIM_INFINITY
resource.setrlimit(resource.RLIMIT_AS, limits)
if resource.getrlimit(resource.RLIMIT_AS) != limits:
    print("not limited")
    sys.exit()
assert sum(len(block) for block in scores.blocks(8 if sys.argv[2] == "C" else 24)) == 256
if sys.argv[2] == "C":
    try:
        list(scores.blocks(256))  # at once
    except OSError as error:
        assert error.filename == path, error
    else:
        raise AssertionError("it fits")
print("done")
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="address space is read from /proc")
@pytest.mark.parametrize("order", "CF")
@pytest.mark.slow
def test_address_space_is_that_of_a_block(order, run_python, tmp_path):
    program = f"import sys; sys.argv[1:] = [{str(tmp_path / 'large.npy')!r}, {order!r}]\n"
    result = run_python(program + LIMITED)
    if result == "not limited\n":
        pytest.skip("the address space of a process cannot be limited here (QEMU ignores it)")
    assert result == "done\n"


@pytest.mark.parametrize(
    ("part", "array"), [("targets", np.zeros(1 << 23, np.int64)), ("tokens", np.zeros(1 << 22, "U4"))]
)
def test_npz_shapes_are_checked_before_decompression(part, array, tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, logits=LOGITS, **{part: array})
    with held_at_most(8 << 20), pytest.raises(ValueError, match=re.escape(f"{part} has shape {array.shape}; it must")):
        open_scores(path)


def test_npz_row_that_expands_too_much(tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, logits=np.zeros((1, 1 << 25), np.float32), targets=[0])
    words = f"logits: needs {4 << 25} bytes at once; it must be at most 1000 times"
    with held_at_most(8 << 20), pytest.raises(ValueError, match=words):
        open_scores(path)


def test_npz_row_that_expands_too_much_for_its_size(tmp_path):
    path, classes = tmp_path / "bomb.npz", 150 << 20
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1, classes)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("logits.npy", header.getvalue())
        archive.writestr("other.npy", np.random.default_rng(0).bytes(1 << 20))
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\1\2") + 24, header.tell() + 4 * classes)
    path.write_bytes(data)
    with held_at_most(8 << 20), pytest.raises(ValueError, match=f"needs {4 * classes} bytes .* at most 100 times"):
        open_scores(path)


@pytest.mark.slow
def test_npz_members_are_held_once(tmp_path):
    targets = np.random.default_rng(0).integers(6, size=1 << 21)
    path = tmp_path / "large.npz"
    np.savez_compressed(path, logits=np.broadcast_to(np.float16(0), (1 << 21, 6)), targets=targets)
    with held_at_most(targets.nbytes * 3 // 2):
        scores = open_scores(path)
    np.testing.assert_array_equal(scores.targets, targets)


def test_npz_blocks_are_held_once(tmp_path):
    path = tmp_path / "large.npz"
    np.savez_compressed(path, logits=np.resize(LOGITS, (1 << 16, 64)))
    scores = open_scores(path)
    with held_at_most((16 << 20) * 3 // 2):
        assert next(scores.blocks(1 << 16)).nbytes == 16 << 20


@pytest.mark.parametrize("kind", ["one-hot targets", "constant ids"])
@pytest.mark.slow
def test_npz_targets_that_compress_well(kind, tmp_path):
    rows, classes = 90, 50257
    targets = np.zeros(rows, int)
    if kind == "one-hot targets":
        targets = np.zeros((rows, classes), np.float32)
        targets[range(rows), np.random.default_rng(0).integers(0, classes, rows)] = 1
    logits = np.random.default_rng(1).standard_normal((rows, classes)).astype(np.float16)
    np.savez_compressed(tmp_path / "scores.npz", logits=logits, targets=targets)
    assert run("score", tmp_path / "scores.npz")[0] == 0


def test_tokens_are_checked_in_pieces(tmp_path):
    tokens = np.zeros(1 << 14, "U256")
    tokens[-1] = "x" * 256
    path = tmp_path / "text.npz"
    np.savez(path, logits=np.zeros((1 << 14, 2), np.float16), tokens=tokens)
    data = bytearray(path.read_bytes())
    data[data.rindex(b"x\0\0\0") + 2] = 0x11
    path.write_bytes(data)
    with held_at_most(8 << 20), pytest.raises(ValueError, match="tokens has the code point 0x110078"):
        open_scores(path)


def test_zarr_file_larger_than_its_chunk(tmp_path):
    path = save_zarr(tmp_path / "scores.zarr", logits=LOGITS, targets=TARGETS)
    with (path / "logits/c/1/1").open("r+b") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    assert_file_refused(path, f"c/1/1 has {1 << 40} bytes, more than the {16 << 20} that it can need")


def test_zarr_zip_entry_larger_than_its_chunk(tmp_path):
    path = save_zarr(tmp_path / "scores.zarr", logits=LOGITS, targets=TARGETS)
    with zipfile.ZipFile(tmp_path / "scores.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in path.rglob("*"):
            if file.is_file():
                large = file.match("c/1/1")
                archive.writestr(
                    str(file.relative_to(path).as_posix()), bytes(64 << 20) if large else file.read_bytes()
                )
    assert_file_refused(tmp_path / "scores.zip", f"c/1/1 has {64 << 20} bytes")


def test_safetensors_header_that_expands_in_memory(tmp_path):
    path, header = tmp_path / "bomb.safetensors", b"[" + b"[]," * (4 << 20) + b"[]]"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with held_at_most(2 * len(header)), pytest.raises(ValueError, match=r"needs \d+ MB of memory, more than 512"):
        open_scores(path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_of_a_model_that_expands_in_memory(name, tmp_path):
    save_file({"lm_head.weight": LOGITS}, tmp_path / "model.safetensors")
    (tmp_path / name).write_bytes(b'{"a": [' + b"[]," * (4 << 20) + b"[]]}")
    message = r"needs \d+ MB of memory, more than 512"
    with held_at_most(128 << 20), pytest.raises(ValueError, match=re.escape(f"{tmp_path / name}: ") + ".*" + message):
        open_lm_head(str(tmp_path), LOGITS.shape[1])
