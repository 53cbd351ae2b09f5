"""Files that are not what they are taken for: pipes, devices, links, names like URLs; files that change meanwhile."""

import contextlib
import io
import os
import re
import socket
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import zarr
from arrays import assert_same_bits, fails
from commands import at_most, run

from tokenloss._evaluation import comparison, plan
from tokenloss._evaluation import run as shard_run
from tokenloss.formats import llama_cpp, open_scores

pytestmark = pytest.mark.thread_unsafe(reason="sets an alarm for the process, and measures its memory")
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files or names")
LOGITS = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
TARGETS = np.arange(8) % 6
SHARES = np.full((8, 6), 1 / 6, np.float32)


@pytest.fixture(autouse=True)
def _alarm():
    """Fail instead of waiting for good."""
    with at_most(20):
        yield


def assert_refused(path, *words, targets=None):
    """The package and the command refuse a file in one line that names it and says this."""
    if targets is None:
        with pytest.raises(ValueError) as raised:
            list(open_scores(path).blocks(3))
        said = [str(raised.value), run("score", path)[1]]
    else:
        said = [run("score", path, "--targets", targets)[1]]
    for line in said:
        for word in (str(path if targets is None else targets), *words):
            assert word in line


def save_zarr(path, zarr_format=3, **arrays):
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    for name, array in arrays.items():
        group.create_array(name, data=array, chunks=tuple(max(1, n // 2) for n in array.shape), compressors=None)
    return path


def rows(path):
    return np.concatenate(list(open_scores(path).blocks(3)))


# -- names that look like URLs ----------------------------------------------------------------------------------------


@POSIX
@pytest.mark.parametrize("name", ["http://127.0.0.1:1/z.zarr", "a::b.zarr", "memory://z.zarr", "s3:/b/z.zarr"])
def test_path_of_a_zarr_directory_that_looks_like_a_url(name, tmp_path, monkeypatch):  # W4
    monkeypatch.chdir(tmp_path)
    save_zarr(tmp_path / name, logits=LOGITS, targets=TARGETS)

    def refuse(*_, **__):
        raise AssertionError("the network is used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    if "fsspec" in sys.modules:
        monkeypatch.setattr("fsspec.core.url_to_fs", refuse)
    assert_same_bits(rows(name), LOGITS)
    assert run("score", name) == (0, "")


# -- what is no regular file ------------------------------------------------------------------------------------------


@pytest.fixture
def pipe(tmp_path):
    """A named pipe that nobody writes to."""
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@POSIX
@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors", "zip", "kld"])
def test_path_of_a_pipe(suffix, pipe, tmp_path):  # U3, L2
    link = tmp_path / f"link.{suffix}"
    link.symlink_to(pipe)
    assert_refused(link, "is no regular file; it must be one, since files are mapped")
    np.save(tmp_path / "scores.npy", LOGITS)
    assert_refused(tmp_path / "scores.npy", "is no regular file", targets=link)


@POSIX
def test_path_of_a_pipe_that_holds_a_file(pipe, tmp_path):  # U3
    np.save(tmp_path / "scores.npy", LOGITS)
    with os.fdopen(os.open(pipe, os.O_RDWR), "wb", buffering=0) as file:
        file.write((tmp_path / "scores.npy").read_bytes())
        assert_refused(pipe, "is no regular file")


@pytest.mark.skipif(not Path("/dev/zero").is_char_device(), reason="there is no /dev/zero")
def test_path_of_a_device(tmp_path):  # U3
    assert_refused("/dev/zero", "is no regular file")
    np.save(tmp_path / "scores.npy", LOGITS)
    assert_refused(tmp_path / "scores.npy", "is no regular file", targets="/dev/zero")


def test_path_of_standard_input_or_nothing(tmp_path):  # U3
    np.save(tmp_path / "scores.npy", LOGITS)
    assert_refused("-", "is standard input; it must be the path of a file, since files are mapped")
    assert_refused(tmp_path / "scores.npy", "is standard input", targets="-")
    with fails(ValueError, "'': names no file; it must be the path of a file"):
        open_scores("")
    assert "'' is no name" in run("score", "")[1]


def test_targets_of_other_kinds_of_files(tmp_path):
    np.save(tmp_path / "scores.npy", LOGITS)
    np.savez(tmp_path / "scores.npz", logits=LOGITS, targets=TARGETS)
    save_zarr(tmp_path / "scores.zarr", targets=TARGETS)
    for name, words in (("scores.npz", "is no .npy file"), ("scores.zarr", "cannot be read"), (".", "cannot be read")):
        assert_refused(tmp_path / "scores.npy", words, targets=tmp_path / name)
    for array in (np.array(3), np.zeros(8, "M8[s]"), np.zeros(8, [("a", "<i4")]), np.zeros((8, 6), [("a", "<f4")])):
        np.save(tmp_path / "targets.npy", array)
        assert_refused(tmp_path / "scores.npy", "targets", targets=tmp_path / "targets.npy")


@POSIX
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("what", ["pipe", "link to a pipe", "link to a device"])
@pytest.mark.parametrize("key", ["logits/zarr.json", "logits/c/1/0", "targets/c/0", "zarr.json"])
def test_zarr_file_that_is_no_regular_file(key, what, zarr_format, pipe, tmp_path):  # L2
    path = save_zarr(tmp_path / "scores.zarr", zarr_format, logits=LOGITS, targets=TARGETS)
    if zarr_format == 2:
        key = key.replace("zarr.json", ".zgroup" if key == "zarr.json" else ".zarray").replace("/c/1/0", "/1.0")
        key = key.replace("/c/", "/")
    assert (path / key).is_file()
    (path / key).unlink()
    if what == "pipe":
        os.mkfifo(path / key)
    else:
        (path / key).symlink_to(pipe if what == "link to a pipe" else "/dev/zero")
    assert_refused(path, f"{Path(key).name} is no regular file")


@POSIX
def test_zarr_file_that_is_no_regular_file_leaves_no_tasks_that_say_so(run_python, tmp_path):  # L2
    path = save_zarr(tmp_path / "scores.zarr", logits=LOGITS, targets=TARGETS)
    (path / "logits/c/1/0").unlink()
    (path / "logits/c/1/0").symlink_to("/dev/zero")
    program = f"import sys\nfrom tokenloss.cli import main\nsys.exit(main(['score', {str(path)!r}]))"
    assert re.fullmatch(r"tokenloss: error: .*c/1/0 is no regular file\n", run_python(program, fails=True))


@POSIX
def test_zarr_links_to_regular_files_and_loops(tmp_path):  # L2
    path = save_zarr(tmp_path / "scores.zarr", logits=LOGITS, targets=TARGETS)
    (path / "logits/c/0/0").rename(tmp_path / "chunk")
    (path / "logits/c/0/0").symlink_to(tmp_path / "chunk")
    (path / "loop").symlink_to(path)
    assert_same_bits(rows(path), LOGITS)
    (path / "logits/c/0/0").unlink()
    (path / "logits/c/0/0").symlink_to(path / "logits/c/0/0")
    status, message = run("compare", path, path)
    assert (status, str(path) in message) == (2, True)


def test_zarr_file_that_is_larger_than_its_chunk_can_be(tmp_path):
    path = save_zarr(tmp_path / "scores.zarr", logits=LOGITS, targets=TARGETS)
    with (path / "logits/c/1/1").open("r+b") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    assert_refused(path, f"c/1/1 has {1 << 40} bytes, more than the {16 << 20} that it can need")


def test_zarr_entry_that_is_larger_than_its_chunk_can_be(tmp_path):
    path = save_zarr(tmp_path / "scores.zarr", logits=LOGITS, targets=TARGETS)
    with zipfile.ZipFile(tmp_path / "scores.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in path.rglob("*"):
            if file.is_file():
                large = file.match("c/1/1")
                archive.writestr(
                    str(file.relative_to(path).as_posix()), bytes(64 << 20) if large else file.read_bytes()
                )
    assert_refused(tmp_path / "scores.zip", f"c/1/1 has {64 << 20} bytes")


def test_zarr_chunk_of_much_text(tmp_path):
    path = save_zarr(tmp_path / "scores.zarr", logits=np.zeros((1 << 19, 1), np.float16))
    tokens = zarr.open_group(path).create_array(
        "tokens", shape=(1 << 19,), chunks=(1 << 19,), dtype=str, compressors=None
    )
    tokens[:] = np.full(1 << 19, "x" * 40)
    assert (path / "tokens/c/0").stat().st_size > 16 << 20
    assert open_scores(path).tokens[-1] == "x" * 40


# -- files that say more than they have -------------------------------------------------------------------------------


@contextlib.contextmanager
def held_at_most(n_bytes):
    """Fail where more than this is allocated."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < n_bytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("part", "array"), [("targets", np.zeros(1 << 23, np.int64)), ("tokens", np.zeros(1 << 22, "U4"))]
)
def test_npz_shapes_are_compared_before_anything_is_inflated(part, array, tmp_path):  # L1
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, logits=LOGITS, **{part: array})
    with held_at_most(8 << 20), pytest.raises(ValueError, match=re.escape(f"{part} has shape {array.shape}; it must")):
        open_scores(path)


def test_npz_row_that_expands_too_much(tmp_path):  # L1
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, logits=np.zeros((1, 1 << 25), np.float32), targets=[0])
    words = f"logits: takes {4 << 25} bytes at once by its header; it must be at most 1000 times"
    with held_at_most(8 << 20), pytest.raises(ValueError, match=words):
        open_scores(path)


def test_npz_members_are_held_once(tmp_path):  # L1
    targets = np.random.default_rng(0).integers(6, size=1 << 21)
    path = tmp_path / "large.npz"
    np.savez_compressed(path, logits=np.broadcast_to(np.float16(0), (1 << 21, 6)), targets=targets)
    with held_at_most(targets.nbytes * 3 // 2):
        scores = open_scores(path)
    np.testing.assert_array_equal(scores.targets, targets)


def test_npz_blocks_are_held_once(tmp_path):  # L1
    path = tmp_path / "large.npz"
    np.savez_compressed(path, logits=np.resize(LOGITS, (1 << 16, 64)))
    scores = open_scores(path)
    with held_at_most((16 << 20) * 3 // 2):
        assert next(scores.blocks(1 << 16)).nbytes == 16 << 20


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_tokens_with_code_points_beyond_unicode(save, order, tmp_path):  # M5
    codes = np.array([[0x61, 0xD800, 0x10FFFF]] * 8, f"{order}u4")
    save(tmp_path / "text.npz", logits=LOGITS, targets=TARGETS, tokens=codes.view(f"{order}U3")[:, 0])
    assert open_scores(tmp_path / "text.npz").tokens[7] == "a\ud800\U0010ffff"
    for code in (0x110000, 0xFFFFFFFF):
        codes[5, 1] = code
        save(tmp_path / "text.npz", logits=LOGITS, targets=TARGETS, tokens=codes.view(f"{order}U3")[:, 0])
        assert_refused(tmp_path / "text.npz", f"tokens has the code point {code:#x}; it must have none above 0x10ffff")


def test_tokens_are_looked_at_in_pieces(tmp_path):  # M5
    tokens = np.zeros(1 << 14, "U256")
    tokens[-1] = "x" * 256
    path = tmp_path / "text.npz"
    np.savez(path, logits=np.zeros((1 << 14, 2), np.float16), tokens=tokens)
    data = bytearray(path.read_bytes())
    data[data.rindex(b"x\0\0\0") + 2] = 0x11
    path.write_bytes(data)
    with held_at_most(8 << 20), pytest.raises(ValueError, match="tokens has the code point 0x110078"):
        open_scores(path)


def test_zarr_tokens_with_code_points_beyond_unicode(tmp_path):  # M5
    path = save_zarr(tmp_path / "scores.zarr", 2, logits=LOGITS, targets=TARGETS, tokens=np.array(["abc", "d"] * 4))
    assert open_scores(path).tokens[0] == "abc"
    chunk = path / "tokens" / "1"
    chunk.write_bytes(chunk.read_bytes().replace(b"b\0\0\0", b"b\0\x11\0"))
    assert_refused(path, "tokens has the code point 0x110062")


def npy_bytes(descr, shape, n_bytes=0):
    """A .npy file with this header."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(n_bytes)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(("part", "descr"), [("tokens", "<U0"), ("targets", "|V0"), ("targets", "|S0")])
def test_dtypes_without_bytes(part, descr, compression, tmp_path):
    path = tmp_path / "scores.npz"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("logits.npy", npy_bytes("<f4", (8, 6), 192))
        archive.writestr(f"{part}.npy", npy_bytes(descr, (8,)))
    assert_refused(path, f"{part}: cannot be read: its dtype is {descr}, of no bytes")


@pytest.mark.parametrize("name", ["targets", "tokens"])
def test_array_that_is_not_of_scores(name, tmp_path):
    np.savez(tmp_path / "scores.npz", logits=LOGITS, targets=LOGITS, tokens=LOGITS)
    safetensors.numpy.save_file({"targets": LOGITS, "tokens": LOGITS}, tmp_path / "scores.safetensors")
    save_zarr(tmp_path / "scores.zarr", targets=LOGITS, tokens=LOGITS)
    for suffix in ("npz", "safetensors", "zarr"):
        with pytest.raises(ValueError, match=f"array is '{name}'; it must be the name of scores"):
            open_scores(tmp_path / f"scores.{suffix}", array=name)


@pytest.mark.parametrize("n_bytes", [8, 10, 100])
def test_safetensors_file_of_zeros(n_bytes, tmp_path):  # U4
    path = tmp_path / "zeros.safetensors"
    path.write_bytes(bytes(n_bytes))
    if n_bytes < 10:
        assert_refused(path, f"byte {n_bytes}: the file ends; it must have a header")
    else:
        fits = f"it must be at least 2 and at most {n_bytes - 8}"
        assert_refused(path, f"byte 0: the length of the header is 0; {fits}")


# -- what names no file -----------------------------------------------------------------------------------------------

LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from tokenloss.formats import open_scores

path = sys.argv[1]
with open(path, "wb") as file:
    header = {"descr": "<f4", "fortran_order": sys.argv[2] == "F", "shape": (256, 1 << 20)}
    np.lib.format.write_array_header_1_0(file, header)
    file.truncate(file.tell() + (1 << 30))
scores = open_scores(path)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20), resource.RLIM_INFINITY))
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
def test_address_space_is_that_of_a_block(order, run_python, tmp_path):  # U2
    program = f"import sys; sys.argv[1:] = [{str(tmp_path / 'large.npy')!r}, {order!r}]\n"
    assert run_python(program + LIMITED) == "done\n"


@pytest.mark.parametrize("name", ["zarr.json", ".zgroup", ".zarray"])
def test_zarr_directory_without_a_group_is_named(name, tmp_path):  # U2
    (tmp_path / name).mkdir()
    assert_refused(tmp_path, "cannot be read: ")


# -- files that change while they are read ----------------------------------------------------------------------------


def save(how, path):
    if how == "npz":
        np.savez(path, logits=LOGITS, targets=TARGETS)
    elif how == "compressed":
        np.savez_compressed(path, logits=LOGITS, targets=TARGETS)
    elif how == "safetensors":
        safetensors.numpy.save_file({"targets": TARGETS, "logits": LOGITS}, path)
    elif how == "kld":
        llama_cpp.write(path, np.arange(20) % 6, [LOGITS], 20 // 2)
    else:
        np.save(path, np.asarray(LOGITS, order=how))
    return path


MAPPED = {"C": "npy", "F": "npy", "npz": "npz", "safetensors": "safetensors", "kld": "kld"}


@pytest.mark.parametrize("how", MAPPED)
def test_file_that_is_cut_short_between_two_blocks(how, tmp_path):  # M2
    path = save(how, tmp_path / f"scores.{MAPPED[how]}")
    size, blocks = path.stat().st_size, open_scores(path).blocks(3)
    next(blocks)
    os.truncate(path, 100)
    with pytest.raises(ValueError, match=re.escape(f"{path}: byte 100: the file ends; it must have {size} bytes")):
        next(blocks)


@pytest.mark.parametrize("how", [*MAPPED, "compressed"])
@pytest.mark.parametrize("change", ["rewritten", "replaced"])
def test_file_that_changes_after_it_was_opened(how, change, tmp_path):  # M2
    path = save(how, tmp_path / f"scores.{MAPPED.get(how, 'npz')}")
    scores = open_scores(path)
    assert len(next(scores.blocks(3))) == 3
    if change == "replaced":
        (tmp_path / "other").write_bytes(path.read_bytes())
        (tmp_path / "other").replace(path)
    else:
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
    with pytest.raises(ValueError, match="changed after it was opened; it must stay as it is while it is read"):
        next(scores.blocks(3))


@pytest.mark.parametrize(
    ("command", "how"),
    [
        ("score", "scores"), ("score", "ids"), ("score", "distributions"), ("score", "one for all"),
        ("compare", "scores"), ("compare", "ids"),
    ],
)  # fmt: skip
def test_file_that_is_cut_short_while_the_command_reads_it(command, how, tmp_path, monkeypatch):  # M2
    logits, targets = tmp_path / "logits.npy", tmp_path / "targets.npy"
    np.save(logits, LOGITS)
    np.save(tmp_path / "other.npy", LOGITS)
    np.save(targets, SHARES if how == "distributions" else np.resize(TARGETS, 16) if how == "one for all" else TARGETS)
    monkeypatch.setattr(plan, "_BLOCK_BYTES", 64)
    cut = logits if how == "scores" else targets
    size, meter = cut.stat().st_size, shard_run.LossMeter if command == "score" else comparison.ComparisonMeter
    update = meter.update

    def cutting(self, losses, *args, **options):
        update(self, losses, *args, **options)
        if np.size(losses):
            os.truncate(cut, 128)

    monkeypatch.setattr(meter, "update", cutting)
    files = [logits, tmp_path / "other.npy"] if command == "compare" or how == "one for all" else [logits]
    status, message = run(command, *files, "--targets", targets)
    assert status == 2
    assert f"{cut}: byte 128: the file ends; it must have {size} bytes" in message


@pytest.mark.parametrize("how", ["ids", "distributions"])
@pytest.mark.parametrize("change", ["rewritten", "replaced"])
def test_targets_that_change_while_the_command_reads_them(how, change, tmp_path, monkeypatch):  # M2
    logits, targets = tmp_path / "logits.npy", tmp_path / "targets.npy"
    array = SHARES if how == "distributions" else TARGETS
    np.save(logits, LOGITS)
    np.save(targets, array)
    monkeypatch.setattr(plan, "_BLOCK_BYTES", 64)
    update = shard_run.LossMeter.update

    def changing(self, losses, *args, **options):
        update(self, losses, *args, **options)
        if np.size(losses):
            np.save(tmp_path / "other.npy", array[::-1])
            if change == "replaced":
                (tmp_path / "other.npy").replace(targets)
            else:
                targets.write_bytes((tmp_path / "other.npy").read_bytes())
                os.utime(targets, ns=(0, 0))

    monkeypatch.setattr(shard_run.LossMeter, "update", changing)
    status, message = run("score", logits, "--targets", targets)
    assert (status, f"{targets}: changed after it was opened" in message) == (2, True)


CUT = """
import os, sys
from tokenloss._evaluation import run
from tokenloss.cli import main
update = run.LossMeter.update
def cutting(self, losses, **options):
    update(self, losses, **options)
    if len(losses):
        os.truncate(sys.argv[1], 1000)
run.LossMeter.update = cutting
print(main(["score", sys.argv[1], sys.argv[2]]))
"""


def test_process_whose_file_is_cut_short(run_python, tmp_path):  # M2
    logits, targets = tmp_path / "logits.npy", tmp_path / "targets.npy"
    np.save(logits, np.zeros((1 << 14, 1 << 10), np.float32))  # two blocks
    np.save(targets, np.zeros(1 << 14, np.int64))
    program = f"import sys; sys.argv[1:] = [{str(logits)!r}, {str(targets)!r}]\n"
    assert run_python(program + CUT) == "2\n"


def test_targets_that_are_read_while_they_change_are_those_of_one_moment(tmp_path, monkeypatch):
    np.save(tmp_path / "logits.npy", LOGITS)
    np.save(tmp_path / "targets.npy", TARGETS)
    seen = []
    token_scores = shard_run.token_scores

    def changing(logits, targets, **options):
        seen.append(targets.copy())
        np.load(tmp_path / "targets.npy", mmap_mode="r+")[:] = 10**12
        seen.append(targets.copy())
        return token_scores(logits, targets, **options)

    monkeypatch.setattr(shard_run, "token_scores", changing)
    assert run("score", tmp_path / "logits.npy", tmp_path / "targets.npy")[0] == 0
    np.testing.assert_array_equal(seen, [TARGETS] * 2)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("lost", ["logits/c/1/0", "targets/c/0", "logits/c", "logits/c/1"])
def test_zarr_links_to_what_is_lost(lost, tmp_path):
    path = save_zarr(tmp_path / "scores.zarr", logits=LOGITS, targets=TARGETS)
    chunk = path / lost
    chunk.rename(tmp_path / "moved")
    chunk.symlink_to(tmp_path / "moved")
    assert len(np.concatenate(list(open_scores(path).blocks(3)))) == len(LOGITS)
    (tmp_path / "moved").rename(tmp_path / "away")
    assert_refused(path, "is not where a link says")


def test_zarr_directory_in_the_place_of_a_chunk(tmp_path):
    path = save_zarr(tmp_path / "scores.zarr", logits=LOGITS, targets=TARGETS)
    (path / "logits/c/1/0").unlink()
    (path / "logits/c/1/0").mkdir()
    assert_refused(path, "logits/c/1/0 is no regular file")


@pytest.mark.parametrize("kind", ["one-hot targets", "constant ids"])
def test_compressed_targets_that_shrink_a_thousand_times(kind, tmp_path):
    rows, classes = 90, 50257
    targets = np.zeros(rows, int)
    if kind == "one-hot targets":
        targets = np.zeros((rows, classes), np.float32)
        targets[range(rows), np.random.default_rng(0).integers(0, classes, rows)] = 1
    logits = np.random.default_rng(1).standard_normal((rows, classes)).astype(np.float16)
    np.savez_compressed(tmp_path / "scores.npz", logits=logits, targets=targets)
    assert run("score", tmp_path / "scores.npz")[0] == 0
