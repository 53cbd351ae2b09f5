"""Files that are replaced when the new one is complete, whatever ends the work before."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tokenloss._core.files import replacing


def test_replacing_a_file(tmp_path):
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"before")
    if sys.platform == "win32":  # making links takes a privilege there
        link = path
    else:
        link.symlink_to(path)
    with replacing(link) as file:
        file.write(b"after")
        file.flush()
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after"
    assert link.is_symlink() == (link != path)
    with contextlib.suppress(KeyboardInterrupt), replacing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"after"
    assert set(tmp_path.iterdir()) == {path, link}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o666])
def test_replacing_a_file_keeps_its_mode(mode, tmp_path):
    path, new = tmp_path / "file", tmp_path / "new"
    path.write_bytes(b"before")
    path.chmod(mode)
    owner = path.stat().st_uid, path.stat().st_gid
    with replacing(path) as file:
        assert all(stat.S_IMODE(one.stat().st_mode) == mode for one in tmp_path.iterdir())
        file.write(b"after")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"after", mode)
    assert (path.stat().st_uid, path.stat().st_gid) == owner
    before = os.umask(0o027)
    try:
        with replacing(new) as file:
            file.write(b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(new.stat().st_mode) == 0o640


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_replacing_a_file_after_a_killed_run(tmp_path):
    path = tmp_path / ("x" * 250 + ".html")
    program = (
        "import os, signal, sys; from tokenloss._core.files import replacing\n"
        "with replacing(sys.argv[1]) as file:\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", program, path], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    with replacing(path):
        assert left.exists()  # it may be that of a run which has not locked it yet
    os.utime(left, (0, 0))
    other = tmp_path / f".{'x' * 40}.y.tmp"  # of somebody else
    other.write_bytes(b"")
    os.utime(other, (0, 0))
    with replacing(path) as file:
        assert set(tmp_path.iterdir()) - {other, path} == {Path(file.name)}
    assert set(tmp_path.iterdir()) == {path, other}


def test_replacing_a_file_in_two_runs(tmp_path):
    """Each writes a file of its own, and neither takes the other's for one that was left."""
    path = tmp_path / "file"
    with replacing(path) as first:
        first.write(b"first")
        first.flush()
        os.utime(first.name, (0, 0))
        with replacing(path) as second:
            second.write(b"second")
            assert len(list(tmp_path.iterdir())) == 2
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="links there need a privilege")
@pytest.mark.parametrize("what", ["link", "pipe", "directory"])
def test_replacing_a_file_beside_what_has_the_name_of_a_temporary_one(what, tmp_path):
    taken, victim = tmp_path / ".file.tokenloss-0.tmp", tmp_path / "victim"  # older than those that are left
    victim.write_bytes(b"victim")
    {"link": lambda: taken.symlink_to(victim), "pipe": lambda: os.mkfifo(taken), "directory": taken.mkdir}[what]()
    os.utime(taken, (0, 0), follow_symlinks=False)
    with replacing(tmp_path / "file") as file:
        file.write(b"written")
    assert (tmp_path / "file").read_bytes() == b"written"
    assert victim.read_bytes() == b"victim"


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="has no devices among its files")
def test_replacing_a_device():
    with replacing("/dev/null") as file:
        file.write(b"gone")
    assert Path("/dev/null").is_char_device()
