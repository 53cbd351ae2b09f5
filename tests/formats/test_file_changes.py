"""Files that are cut short, rewritten or replaced while they are read."""

import os
import re
import sys

import numpy as np
import pytest
from commands import at_most, run
from files import LOGITS, MAPPED, TARGETS, save_compressed_npz

from tokenloss._evaluation import compare as shard_compare
from tokenloss._evaluation import plan
from tokenloss._evaluation import rows as shard_rows
from tokenloss._evaluation.sequences import SequenceCollector
from tokenloss.formats import open_scores

pytestmark = pytest.mark.thread_unsafe(reason="sets an alarm for the process, and measures its memory")
SCORES_A_BLOCK = {"score": (SequenceCollector, "update"), "compare": (shard_compare, "pair_columns")}
SHARES = np.full((8, 6), 1 / 6, np.float32)


@pytest.fixture(autouse=True)
def _alarm():
    """Fail instead of waiting forever."""
    with at_most(20):
        yield


def truncate(path, size):
    with path.open("r+b") as file:
        file.truncate(size)


def change(function, *arguments):
    """Change a file by this function, or skip the test."""
    try:
        function(*arguments)
    except OSError:
        if sys.platform != "win32":
            raise
        pytest.skip("Windows does not let files be changed while they are mapped or open")


@pytest.mark.parametrize("save", MAPPED)
def test_file_cut_short_between_two_blocks(save, tmp_path):
    path = save(tmp_path / "scores")
    size, blocks = path.stat().st_size, open_scores(path).blocks(3)
    next(blocks)
    change(truncate, path, 100)
    with pytest.raises(ValueError, match=re.escape(f"{path}: byte 100: the file ends; it must have {size} bytes")):
        next(blocks)


@pytest.mark.parametrize("save", [*MAPPED, save_compressed_npz])
@pytest.mark.parametrize("what", ["rewritten", "replaced"])
def test_file_changed_after_it_was_opened(save, what, tmp_path):
    path = save(tmp_path / "scores")
    scores = open_scores(path)
    assert len(next(scores.blocks(3))) == 3
    if what == "replaced":
        (tmp_path / "other").write_bytes(path.read_bytes())
        change((tmp_path / "other").replace, path)
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
def test_file_cut_short_while_the_command_reads_it(command, how, tmp_path, monkeypatch):
    logits, targets = tmp_path / "logits.npy", tmp_path / "targets.npy"
    np.save(logits, LOGITS)
    np.save(tmp_path / "other.npy", LOGITS)
    np.save(targets, SHARES if how == "distributions" else np.resize(TARGETS, 16) if how == "one for all" else TARGETS)
    monkeypatch.setattr(plan, "_BLOCK_BYTES", 64)
    cut = logits if how == "scores" else targets
    size, (place, name) = cut.stat().st_size, SCORES_A_BLOCK[command]
    function = getattr(place, name)

    def cutting(first, losses, *args, **options):
        result = function(first, losses, *args, **options)
        if np.size(losses):
            change(truncate, cut, 128)
        return result

    monkeypatch.setattr(place, name, cutting)
    files = [logits, tmp_path / "other.npy"] if command == "compare" or how == "one for all" else [logits]
    status, message = run(command, *files, "--targets", targets)
    assert status == 2
    assert f"{cut}: byte 128: the file ends; it must have {size} bytes" in message


@pytest.mark.parametrize("how", ["ids", "distributions"])
@pytest.mark.parametrize("what", ["rewritten", "replaced"])
def test_targets_changed_while_the_command_reads_them(how, what, tmp_path, monkeypatch):
    logits, targets = tmp_path / "logits.npy", tmp_path / "targets.npy"
    array = SHARES if how == "distributions" else TARGETS
    np.save(logits, LOGITS)
    np.save(targets, array)
    monkeypatch.setattr(plan, "_BLOCK_BYTES", 64)
    update = SequenceCollector.update

    def changing(self, scores, *others):
        update(self, scores, *others)
        if scores.nll.size:
            np.save(tmp_path / "other.npy", array[::-1])
            if what == "replaced":
                change((tmp_path / "other.npy").replace, targets)
            else:
                change(targets.write_bytes, (tmp_path / "other.npy").read_bytes())
                os.utime(targets, ns=(0, 0))

    monkeypatch.setattr(SequenceCollector, "update", changing)
    status, message = run("score", logits, "--targets", targets)
    assert (status, f"{targets}: changed after it was opened" in message) == (2, True)


CUT = """
import os, sys
from tokenloss import LossMeter
from tokenloss._command.cli import main
update = LossMeter.update
def cutting(self, losses, **options):
    update(self, losses, **options)
    if len(losses):
        os.truncate(sys.argv[1], 1000)
LossMeter.update = cutting
print(main(["score", sys.argv[1], sys.argv[2]]))
"""


def test_file_cut_short_does_not_kill_the_process(run_python, tmp_path):
    logits, targets = tmp_path / "logits.npy", tmp_path / "targets.npy"
    np.save(logits, np.zeros((1 << 14, 1 << 10), np.float32))  # two blocks
    np.save(targets, np.zeros(1 << 14, np.int64))
    program = f"import sys; sys.argv[1:] = [{str(logits)!r}, {str(targets)!r}]\n"
    assert run_python(program + CUT) == "2\n"


def test_targets_are_copied_before_they_are_used(tmp_path, monkeypatch):
    np.save(tmp_path / "logits.npy", LOGITS)
    np.save(tmp_path / "targets.npy", TARGETS)
    seen = []
    scores_of_kind = shard_rows.scores_of_kind

    def changing(logits, targets, **options):
        seen.append(targets.copy())
        np.load(tmp_path / "targets.npy", mmap_mode="r+")[:] = 10**12
        seen.append(targets.copy())
        return scores_of_kind(logits, targets, **options)

    monkeypatch.setattr(shard_rows, "scores_of_kind", changing)
    assert run("score", tmp_path / "logits.npy", tmp_path / "targets.npy")[0] == 0
    np.testing.assert_array_equal(seen, [TARGETS] * 2)
