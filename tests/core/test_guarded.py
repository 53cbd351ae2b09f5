"""The C kernels touch nothing beyond their rows and use nothing that was not written: a driver in C checks both."""

import subprocess
import sys

import pytest
from test_kernels import MACHINES, build, need

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="pages are guarded by mmap")]

# one case in N is run, and one in M on the portable backend, which takes ten times as long as the others together
HERE = "1", "4"
EMULATED = "16", "48"  # by emulators that take a hundred times as long


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> str:
    need("gcc", packages="gcc")
    return build("guarded", "gcc", tmp_path_factory.mktemp("guarded"))


def backends_that_passed(*command: str) -> list[str]:
    """The backends that the driver ran."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.split()[0] for line in done.stdout.splitlines()]


def test_nothing_beyond_a_row_is_touched(driver):
    assert "portable" in backends_that_passed(driver, *HERE)


def test_nothing_beyond_a_row_is_touched_by_neon(tmp_path):
    machine = MACHINES["aarch64"]
    need(machine.compiler, machine.emulator, packages=machine.packages)
    program = build("guarded", machine.compiler, tmp_path, machine.flags)
    assert machine.backends <= set(backends_that_passed(machine.emulator, program, *EMULATED))


def test_nothing_undefined_is_used(driver):
    need("valgrind", packages="valgrind")
    assert "portable" in backends_that_passed("valgrind", "-q", "--error-exitcode=9", driver, *EMULATED)
