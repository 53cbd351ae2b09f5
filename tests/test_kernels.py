"""The C folds give the same bits on every backend, compiler and architecture: golden hashes of a driver in C."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.thread_unsafe(reason="works in processes of its own")
HERE = Path(__file__).parent / "kernels"
KERNELS = HERE.parents[1] / "src" / "tokenloss" / "_kernels"
FLAGS = ["-std=c11", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Wconversion", "-Werror"]

NATIVE = {"x86_64": ["portable"], "aarch64": ["neon", "portable"]}
FOREIGN = {"aarch64": ["neon", "portable"], "s390x": ["portable"]}


def run_driver(
    compiler: str, where: Path, *, emulator: str = "", flags: list[str] | None = None
) -> dict[str, list[str]]:
    """Lines that the driver printed, by backend."""
    program = where / "golden"
    sources = [str(HERE / "golden.c"), *map(str, sorted(KERNELS.glob("*.c")))]
    command = [compiler, *FLAGS, *flags, f"-I{KERNELS}", *sources, "-lm", "-o", str(program)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    printed = subprocess.run([*emulator.split(), str(program)], check=True, capture_output=True, text=True).stdout
    found: dict[str, list[str]] = {}
    for line in printed.splitlines():
        backend, rest = line.split(" ", 1)
        found.setdefault(backend, []).append(rest)
    return found


def golden() -> dict[str, list[str]]:
    """The hashes that every backend must print, and those of the functions that all share."""
    lines = (HERE / "golden.txt").read_text().splitlines()
    return {"fold": lines[:-1], "any": lines[-1:]}


def check(found: dict[str, list[str]]) -> None:
    """Compare all hashes with the golden ones."""
    assert found.pop("any") == golden()["any"]
    for backend, lines in found.items():
        assert lines == golden()["fold"], backend


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("level", ["-O1", "-O3"])
def test_native_backends(compiler, level, tmp_path):
    if platform.machine() not in NATIVE or not shutil.which(compiler):
        pytest.skip(f"no {compiler} for {platform.machine()} here")
    found = run_driver(compiler, tmp_path, flags=(level,))
    assert set(NATIVE[platform.machine()]) <= set(found)
    check(found)


@pytest.mark.slow
@pytest.mark.parametrize("machine", FOREIGN)
def test_foreign_backends(machine, tmp_path):
    compiler, emulator = f"{machine}-linux-gnu-gcc", f"qemu-{machine}"
    if not shutil.which(compiler) or not shutil.which(emulator):
        pytest.skip(f"needs {compiler} and {emulator} (Debian: gcc-{machine}-linux-gnu, qemu-user)")
    found = run_driver(compiler, tmp_path, emulator=emulator, flags=("-static",))
    assert set(found) == {*FOREIGN[machine], "any"}
    check(found)


@pytest.mark.slow
def test_threads_share_rows_without_races(tmp_path):
    """ThreadSanitizer finds none, and results are those of one thread."""
    if not shutil.which("gcc") or not Path(shared_library("libtsan.so")).is_absolute():
        pytest.skip("needs gcc with ThreadSanitizer (Debian: libtsan2, or the one of gcc's version)")
    program = tmp_path / "threads"
    sources = [str(HERE / "threads.c"), *map(str, sorted(KERNELS.glob("*.c")))]
    command = ["gcc", *FLAGS, "-g", "-fsanitize=thread", f"-I{KERNELS}", *sources, "-lm", "-o", str(program)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    done = subprocess.run([str(program)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(NATIVE[platform.machine()]) <= {line.split()[0] for line in done.stdout.splitlines()}


def shared_library(name: str) -> str:
    """The path of a library of gcc's, or its bare name where there is none."""
    found = subprocess.run(["gcc", f"-print-file-name={name}"], check=True, capture_output=True, text=True)
    return found.stdout.strip()


def test_portable_object_calls_no_mathematics(tmp_path):
    """The fold of the baseline holds neither libm nor instructions beyond the baseline."""
    if not shutil.which("gcc") or not shutil.which("nm"):
        pytest.skip("needs gcc and nm")
    target = tmp_path / "fold.o"
    subprocess.run(["gcc", *FLAGS, "-c", str(KERNELS / "fold_portable.c"), "-o", str(target)], check=True)
    undefined = subprocess.run(["nm", "-u", str(target)], check=True, capture_output=True, text=True).stdout.split()
    assert set(undefined) - {"U"} <= {"memcpy", "__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_"}
    if platform.machine() == "x86_64":
        code = subprocess.run(["objdump", "-d", str(target)], check=True, capture_output=True, text=True).stdout
        assert "ymm" not in code
        assert "fmadd" not in code
