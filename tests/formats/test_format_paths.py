"""Paths of files of scores: names like URLs, pipes, devices, links and directories."""

import os
import re
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from arrays import assert_same_bits, fails
from commands import at_most, run
from files import LOGITS, TARGETS, assert_file_refused, read_rows, refusal, save_zarr

from tokenloss import evaluate
from tokenloss.formats import open_hidden_states, open_scores

pytestmark = pytest.mark.thread_unsafe(reason="sets an alarm for the process, and measures its memory")
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files or names")


@pytest.fixture(autouse=True)
def _alarm():
    """Fail instead of waiting forever."""
    with at_most(20):
        yield


@POSIX
@pytest.mark.parametrize("name", ["http://127.0.0.1:1/z.zarr", "a::b.zarr", "memory://z.zarr", "s3:/b/z.zarr"])
def test_path_that_looks_like_a_url(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_zarr(tmp_path / name, logits=LOGITS, targets=TARGETS)

    def refuse(*_, **__):
        raise AssertionError("the network is used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    if "fsspec" in sys.modules:
        monkeypatch.setattr("fsspec.core.url_to_fs", refuse)
    assert_same_bits(read_rows(open_scores(name), 3), LOGITS)
    assert run("score", name) == (0, "")


@pytest.fixture
def pipe(tmp_path):
    """A named pipe that nobody writes to."""
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@POSIX
@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors", "zip", "kld"])
def test_path_of_a_pipe(suffix, pipe, tmp_path):
    link = tmp_path / f"link.{suffix}"
    link.symlink_to(pipe)
    assert_file_refused(
        link, "is not a regular file; it must be one, since files are read more than once: first save the output of the"
    )
    np.save(tmp_path / "scores.npy", LOGITS)
    assert_file_refused(tmp_path / "scores.npy", "is not a regular file", targets=link)


@POSIX
def test_path_of_a_pipe_that_holds_a_file(pipe, tmp_path):
    np.save(tmp_path / "scores.npy", LOGITS)
    with os.fdopen(os.open(pipe, os.O_RDWR), "wb", buffering=0) as file:
        file.write((tmp_path / "scores.npy").read_bytes())
        assert_file_refused(pipe, "is not a regular file")


@pytest.mark.skipif(not Path("/dev/zero").is_char_device(), reason="there is no /dev/zero")
def test_path_of_a_device(tmp_path):
    assert_file_refused("/dev/zero", "is not a regular file")
    np.save(tmp_path / "scores.npy", LOGITS)
    assert_file_refused(tmp_path / "scores.npy", "is not a regular file", targets="/dev/zero")


def test_path_of_stdin_and_empty_path(tmp_path):
    np.save(tmp_path / "scores.npy", LOGITS)
    assert_file_refused(
        "-", "is standard input; it must be the path of a file, since files are read more than once: first save"
    )
    assert_file_refused(tmp_path / "scores.npy", "is standard input", targets="-")
    with fails(ValueError, "paths is empty; it must be a path"):
        open_scores("")
    assert "is empty; it must be a name" in run("score", "")[1]


def test_targets_in_files_of_other_formats(tmp_path):
    np.save(tmp_path / "scores.npy", LOGITS)
    np.savez(tmp_path / "scores.npz", logits=LOGITS, targets=TARGETS)
    save_zarr(tmp_path / "scores.zarr", targets=TARGETS)
    for name, words in (("scores.npz", "not a .npy file"), ("scores.zarr", "cannot be read"), (".", "cannot be read")):
        assert_file_refused(tmp_path / "scores.npy", words, targets=tmp_path / name)
    for array in (np.array(3), np.zeros(8, "M8[s]"), np.zeros(8, [("a", "<i4")]), np.zeros((8, 6), [("a", "<f4")])):
        np.save(tmp_path / "targets.npy", array)
        assert_file_refused(tmp_path / "scores.npy", "targets", targets=tmp_path / "targets.npy")


@pytest.mark.parametrize("name", ["zarr.json", ".zgroup", ".zarray"])
def test_zarr_metadata_that_is_a_directory(name, tmp_path):
    (tmp_path / name).mkdir()
    assert_file_refused(tmp_path, "cannot be read: ")


@pytest.mark.parametrize("address", ["https://host/a.npz", "s3://bucket/a.json", "hf://model/a.safetensors"])
def test_an_address_is_to_be_downloaded_first(address):
    assert_file_refused(address, "is an address; it must be a file: download it first")


@pytest.mark.parametrize("suffix", [".csv", ".CSV", ".parquet", ".h5"])
def test_a_table_is_to_be_saved_as_arrays(suffix, tmp_path):
    (tmp_path / f"a{suffix}").write_bytes(b"a,b\n1,2\n")
    assert_file_refused(tmp_path / f"a{suffix}", "must be saved as .npz: np.savez('scores.npz', logits=logits, targets")


def test_arrays_of_other_names_are_read_by_these(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, scores=LOGITS, y=np.zeros(LOGITS.shape[:-1], int))
    words = "contains scores, y; it must contain exactly one of logits, log_probs, probs, or come with the name of its "
    words += "array: "
    assert refusal(path) == f"{path}: {words}array=; targets_array= names targets"
    of_command = "--array, or --base-array for the base; --targets-array names targets"
    assert run("score", path) == (2, f"tokenloss: error: {path}: {words}{of_command}\n")
    assert evaluate(open_scores(path, array="scores", targets_array="y")).count == LOGITS[..., 0].size
    hidden = "exactly one of hidden_states, hidden, or come with the name of its array: array=; "
    with pytest.raises(ValueError, match=re.escape(hidden)):
        open_hidden_states(path, path)
    assert hidden.replace("array=", "--hidden") in run("score", path, "--lm-head", path)[1]


@POSIX
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("what", ["pipe", "link to a pipe", "link to a device"])
@pytest.mark.parametrize("key", ["logits/zarr.json", "logits/c/1/0", "targets/c/0", "zarr.json"])
def test_zarr_chunk_or_metadata_that_is_a_pipe_or_device(key, what, zarr_format, pipe, tmp_path):
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
    assert_file_refused(path, f"{Path(key).name} is not a regular file")


@POSIX
def test_zarr_chunk_that_is_a_device_prints_one_line(run_python, tmp_path):
    path = save_zarr(tmp_path / "scores.zarr", logits=LOGITS, targets=TARGETS)
    (path / "logits/c/1/0").unlink()
    (path / "logits/c/1/0").symlink_to("/dev/zero")
    program = f"import sys\nfrom tokenloss._command.cli import main\nsys.exit(main(['score', {str(path)!r}]))"
    assert re.fullmatch(r"tokenloss: error: .*c/1/0 is not a regular file\n", run_python(program, fails=True))


def test_zarr_chunk_that_is_a_directory(tmp_path):
    path = save_zarr(tmp_path / "scores.zarr", logits=LOGITS, targets=TARGETS)
    (path / "logits/c/1/0").unlink()
    (path / "logits/c/1/0").mkdir()
    assert_file_refused(path, "logits/c/1/0 is not a regular file")


@POSIX
def test_zarr_chunk_that_is_a_link(tmp_path):
    path = save_zarr(tmp_path / "scores.zarr", logits=LOGITS, targets=TARGETS)
    (path / "logits/c/0/0").rename(tmp_path / "chunk")
    (path / "logits/c/0/0").symlink_to(tmp_path / "chunk")
    (path / "loop").symlink_to(path)
    assert_same_bits(read_rows(open_scores(path), 3), LOGITS)
    (path / "logits/c/0/0").unlink()
    (path / "logits/c/0/0").symlink_to(path / "logits/c/0/0")
    status, message = run("compare", path, path)
    assert (status, str(path) in message) == (2, True)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("lost", ["logits/c/1/0", "targets/c/0", "logits/c", "logits/c/1"])
def test_zarr_chunk_that_is_a_broken_link(lost, tmp_path):
    path = save_zarr(tmp_path / "scores.zarr", logits=LOGITS, targets=TARGETS)
    chunk = path / lost
    chunk.rename(tmp_path / "moved")
    chunk.symlink_to(tmp_path / "moved")
    assert len(np.concatenate(list(open_scores(path).blocks(3)))) == len(LOGITS)
    (tmp_path / "moved").rename(tmp_path / "away")
    assert_file_refused(path, "is not where a link says")
