"""--state beside files of every format: whose change is noticed; states that take much memory."""

import os
import shutil
import sys

import numpy as np
import pytest
import zarr
from arrays import fails
from commands import assert_refused
from files import SAVERS, held_at_most
from places import SAMPLE

from tokenloss import evaluate
from tokenloss.formats import open_scores

RNG = np.random.default_rng(43)

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")


def set_times(path):
    """Give a file, or all files of a directory, the time that archives give to theirs."""
    for file in (path, *path.rglob("*")):
        os.utime(file, (0, 0))


def copy(path, target):
    """Copy a file or a directory to another place or onto another."""
    if path.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(path, target)
    else:
        shutil.copy(path, target)
    set_times(target)


@pytest.mark.parametrize("save", SAVERS)
def test_state_of_a_file_that_changed_but_for_its_time(save, command, score_json, tmp_path):
    rng = np.random.default_rng(3)
    logits, targets, ids = rng.normal(size=(900, 40)), rng.integers(40, size=900), np.repeat(np.arange(90), 10)
    logits[:, 0] = 0.0  # so that a compressed file is not read whole by chance
    files = [
        save(tmp_path / "scores", logits.astype(np.float32), targets),
        tmp_path / "targets.npy",
        tmp_path / "ids.npy",
    ]
    others = [save(tmp_path / "other", 3 * logits.astype(np.float32), targets)]
    for name, array, other in ("targets", targets, targets[::-1]), ("ids", ids, ids[::-1]):
        np.save(tmp_path / f"{name}.npy", array)
        np.save(tmp_path / f"other-{name}.npy", other)
        others.append(tmp_path / f"other-{name}.npy")
    for path in files:
        copy(path, path.with_name(f"kept-{path.name}"))
        set_times(path)
    argv = files[0], "--targets", files[1], "--segment-ids", files[2], "--state", tmp_path / "state"
    first = score_json(*argv)
    for path, other in zip(files, others, strict=True):
        copy(other, path)
        assert_refused(command("score", *argv), f"state: contains the result of {files[0]}", "changed")
        copy(path.with_name(f"kept-{path.name}"), path)  # the same content, in another inode
        assert score_json(*argv)["loss"] == first["loss"]


def test_state_of_files_in_another_order_beside_one_file_of_segment_ids(tmp_path):
    paths = [tmp_path / f"{name}.npz" for name in "ab"]
    for path in paths:
        np.savez(path, logits=RNG.normal(size=(4, 5)), targets=RNG.integers(5, size=4))
    np.save(tmp_path / "ids.npy", np.arange(8) // 3)
    ordered, reversed_ = (open_scores(given, segment_ids=tmp_path / "ids.npy") for given in (paths, paths[::-1]))
    first = evaluate(ordered, state=tmp_path / "state")
    with fails(ValueError, "state: contains the result of", "a.npz", "changed"):
        evaluate(reversed_, state=tmp_path / "state")
    assert evaluate(ordered, state=tmp_path / "state") == first


def test_state_of_a_large_file_whose_last_bytes_change_but_for_its_time(tmp_path):
    path, state = tmp_path / "logits.npy", tmp_path / "state"
    logits = RNG.normal(size=(3600, 100))
    np.save(path, logits)
    np.save(tmp_path / "targets.npy", np.zeros(3600, int))
    assert path.stat().st_size > 2.8e6
    set_times(path)
    source = open_scores(path, tmp_path / "targets.npy")
    evaluate(source, state=state)
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(np.float64(9).tobytes())
    set_times(path)
    with fails(ValueError, "state: contains the result of", "logits.npy", "changed"):
        evaluate(source, state=state)


@pytest.mark.parametrize("change", ["touch", "content", "swap", "link"])
@pytest.mark.skipif(sys.platform == "win32", reason="links there need a privilege")
def test_state_of_a_zarr_store_with_a_changed_chunk(change, command, score_json, tmp_path):
    store, logits = tmp_path / "s.zarr", np.random.default_rng(3).normal(size=(60, 11))
    zarr.create_array(store, data=logits, chunks=(10, 11), compressors=None)
    np.save(tmp_path / "targets.npy", np.arange(60) % 11)
    chunks = store / "c"
    if change == "link":
        chunks = chunks.rename(tmp_path / "elsewhere")
        (store / "c").symlink_to(chunks)
    argv = store, "--targets", tmp_path / "targets.npy", "--state", tmp_path / "state"
    score_json(*argv)
    first, second = chunks / "0" / "0", chunks / "1" / "0"
    times = [chunk.stat().st_mtime_ns for chunk in (first, second)]
    if change == "swap":  # each has its size and time as before
        first.rename(tmp_path / "chunk")
        second.rename(first)
        (tmp_path / "chunk").rename(second)
    else:
        first.write_bytes(bytes(first.stat().st_size) if change != "touch" else first.read_bytes())
        times[0] -= change == "touch"  # earlier than the newest
    for chunk, time in zip((first, second), times, strict=True):
        os.utime(chunk, ns=(time, time))
    assert_refused(command("score", *argv), f"state: contains the result of {store}", "changed")


@pytest.mark.parametrize("line", [0, 1])
def test_state_with_a_line_that_expands_in_memory(line, command, tmp_path):
    state = tmp_path / "state"
    assert command("score", SAMPLE, "--state", state)[0] == 0
    lines = state.read_bytes().splitlines(True)
    lines[line] = b"[" + b"[]," * (4 << 20) + b"[]]\n"
    state.write_bytes(b"".join(lines))
    with held_at_most(4 * len(lines[line])):
        message = "line 2: is damaged" if line else "is not a state of tokenloss score"
        assert_refused(command("score", SAMPLE, "--state", state), f"{state}: {message}")
