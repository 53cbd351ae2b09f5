"""The C kernels touch nothing beyond their rows and use nothing that was not written: a driver in C checks both."""

import subprocess
import sys
from pathlib import Path

import pytest
from test_kernels import FLAGS, HERE, KERNELS, SOURCES, need

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="pages are guarded by mmap")]


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Path:
    """The driver, with assertions."""
    need("gcc", packages="gcc")
    program = tmp_path_factory.mktemp("guarded") / "guarded"
    sources = [HERE / "guarded.c", *SOURCES]
    subprocess.run(["gcc", *FLAGS, "-g", f"-I{KERNELS}", *sources, "-lm", "-o", program], check=True)
    return program


def backends_that_passed(*command: str | Path) -> list[str]:
    """The backends that the driver ran."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.split()[0] for line in done.stdout.splitlines()]


def test_nothing_beyond_a_row_is_touched(driver):
    assert "portable" in backends_that_passed(driver)


def test_nothing_undefined_is_used(driver):
    need("valgrind", packages="valgrind")
    assert "portable" in backends_that_passed("valgrind", "-q", "--error-exitcode=9", driver)
