"""The C kernels give the same bits on every backend, compiler and architecture: golden hashes of a driver in C."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from places import C_DRIVERS, ROOT

from tokenloss._core import _core

pytestmark = pytest.mark.thread_unsafe(reason="starts processes")
HERE = C_DRIVERS
KERNELS = ROOT / "src" / "tokenloss" / "_core" / "kernels"
SOURCES = sorted(map(str, KERNELS.rglob("*.c")))
OBJECTS = os.environ.get("BACKEND_OBJECTS")  # a folder with the compiled backends of the package, if there is one
GOLDEN = HERE / "golden.txt"  # made by tests/c/record_golden.py
WARNINGS = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
FLAGS = [*WARNINGS, "-O2", "-ffp-contract=off"]
LINES = ["-g1"]  # for valgrind; all of -g doubles the time of gcc

# by compiler, where Debian and macOS have it, and flags; clang needs none to leave expressions as they are. The
# package, whose bits are recorded, is compiled by -O3. Each hashes half, on every backend but the portable one,
# which takes 90 % of the time
NATIVE = [
    ("gcc", ""),  # the objects that other tests need, too
    ("clang", "-ffp-contract=on"),
]
# The portable backend hashes half of the kinds of rows here, the other half on other machines, and all on the only one
# with big-endian numbers; recorded bits are of all kinds
ODD_KINDS, EVEN_KINDS, ALL_KINDS = 0b101010, 0b010101, 0b111111
NEON = frozenset({"neon", "portable"})
PORTABLE = frozenset({"portable"})
BACKENDS = {"x86_64": PORTABLE, "aarch64": NEON, "arm64": NEON}  # at least


class Machine(NamedTuple):
    """How programs for another machine are built and run here."""

    compiler: str
    emulator: str
    packages: str
    backends: frozenset[str] = PORTABLE
    flags: str = "-static -O1"  # which takes two thirds of the time to compile, and runs as fast under an emulator
    kinds: int = EVEN_KINDS


MACHINES = {
    "aarch64": Machine(
        "aarch64-linux-gnu-gcc",
        "qemu-aarch64",
        "gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user",
        NEON,
    ),
    "riscv64": Machine(
        "riscv64-linux-gnu-gcc", "qemu-riscv64", "gcc-riscv64-linux-gnu libc6-dev-riscv64-cross qemu-user"
    ),
    "ppc64le": Machine(
        "powerpc64le-linux-gnu-gcc", "qemu-ppc64le", "gcc-powerpc64le-linux-gnu libc6-dev-ppc64el-cross qemu-user"
    ),
    "s390x": Machine(
        "s390x-linux-gnu-gcc",
        "qemu-s390x",
        "gcc-s390x-linux-gnu libc6-dev-s390x-cross qemu-user",
        kinds=ALL_KINDS,
    ),
    "i686": Machine(  # which x86_64 runs itself
        "i686-linux-gnu-gcc",
        "env",
        "gcc-i686-linux-gnu libc6-dev-i386-cross",
        flags="-static -O1 -msse2 -mfpmath=sse",
    ),
    "wasm": Machine("emcc", "node", "emscripten nodejs", flags="-O1"),
}


def need(*programs: str, packages: str) -> None:
    """Skip a test for lack of programs; fail in CI, which can install them on Debian."""
    missing = [program for program in programs if not shutil.which(program)]
    if missing:
        installable = sys.platform == "linux" and platform.machine() == "x86_64"
        stop = pytest.fail if os.environ.get("CI") and installable else pytest.skip
        stop(f"needs {' and '.join(missing)} (Debian: {packages})")


def kernels(compiler: str, where: Path, flags: str = "") -> list[str]:
    """Objects of all kernels, which are compiled once for all tests of a run, whose folder `where` is that of one."""
    import fcntl  # which Windows lacks

    folder = where.parents["PYTEST_XDIST_WORKER" in os.environ] / "_".join(["kernels", compiler, *flags.split()])
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            is_plain = compiler == "gcc" and not flags
            compiled = sorted(Path(OBJECTS).glob("*.o")) if OBJECTS and is_plain else []
            sources = [source for source in SOURCES if Path(source).stem not in {path.stem for path in compiled}]
            command = [compiler, *FLAGS, *(LINES if is_plain else []), *flags.split(), f"-I{KERNELS}", "-c", *sources]
            subprocess.run(command, cwd=folder, check=True)
            for path in compiled:
                shutil.copy(path, folder)
            (folder / "done").touch()
    return sorted(map(str, folder.glob("*.o")))


def build(driver: str, compiler: str, where: Path, flags: str = "") -> str:
    """The program of a file of tests/c."""
    program = str(where / f"{driver}.exe")
    objects = kernels(compiler, where, flags)
    command = [compiler, *FLAGS, *LINES, *flags.split(), f"-I{KERNELS}", str(HERE / f"{driver}.c"), *objects, "-lm"]
    subprocess.run([*command, "-o", program], check=True)
    return program


def run_driver(
    compiler: str,
    where: Path,
    *,
    flags: str,
    emulator: str = "env",
    parts: int = 1,
    part: int = 0,
    kinds: int = ALL_KINDS,
) -> dict[str, dict[str, str]]:
    """Hashes that the driver printed, by backend and quantity; `scalar_math` stands for what all backends share.

    Of every `parts` kinds of rows one is hashed, for each dtype another; of these the portable backend hashes those
    whose bits `kinds` has.
    """
    command = [emulator, build("golden", compiler, where, flags), str(parts), str(part), str(kinds)]
    return parse(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def parse(lines: str) -> dict[str, dict[str, str]]:
    """Hashes by the first word of their lines and by the words that follow it."""
    result: dict[str, dict[str, str]] = {}
    for line in lines.splitlines():
        backend, hashed = line.split(" ", 1)
        quantity, value = hashed.rsplit(" ", 1)
        result.setdefault(backend, {})[quantity] = value
    return result


def check(result: dict[str, dict[str, str]], backends: frozenset[str], parts: int) -> None:
    """Compare hashes with the golden ones: at least one in `parts`, and half as many of the portable backend."""
    golden = parse(GOLDEN.read_text())
    assert backends <= set(result)
    assert result.pop("scalar_math") == golden["scalar_math"]
    for backend, hashes in result.items():
        at_least = len(golden["backend"]) / parts / (1 + (backend == "portable"))
        assert len(hashes) >= at_least, backend
        assert hashes == {quantity: golden["backend"][quantity] for quantity in hashes}, backend


@pytest.mark.slow
@pytest.mark.parametrize(("compiler", "flags"), NATIVE)
def test_native_backends(compiler, flags, tmp_path):
    if platform.machine() not in BACKENDS:
        pytest.skip(f"no hashes of {platform.machine()}")
    need(compiler, packages=compiler)
    parts, part = len(NATIVE), NATIVE.index((compiler, flags))
    result = run_driver(compiler, tmp_path, flags=flags, parts=parts, part=part, kinds=ODD_KINDS)
    check(result, BACKENDS[platform.machine()], parts)


@pytest.mark.slow
@pytest.mark.parametrize("name", MACHINES)
def test_foreign_backends(name, tmp_path):
    machine = MACHINES[name]
    if name == "i686" and not (sys.platform == "linux" and platform.machine() == "x86_64"):
        pytest.skip("x86_64 alone runs i686")
    need(machine.compiler, machine.emulator, packages=machine.packages)
    parts, part = len(MACHINES), list(MACHINES).index(name)  # all of them together hash every dtype and kind of rows
    compiler, emulator, _, backends, flags, kinds = machine
    result = run_driver(compiler, tmp_path, flags=flags, emulator=emulator, parts=parts, part=part, kinds=kinds)
    check(result, backends, parts)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["x86_64", "i686 -msse2", "aarch64"])
def test_visual_c_would_find_what_it_needs(target):
    """Clang without its own name and GNU's parses what is meant for Visual C++, with stubs of its library."""
    need("clang-19", packages="clang-19")  # older ones hide AVX from it
    machine, *flags = target.split()
    visual = [f"--target={machine}-pc-windows-msvc", "-fms-compatibility-version=19.40", "-ffreestanding"]
    unlike = ["-U__clang__", "-Wno-unknown-pragmas"]  # Visual C++ has a pragma for contraction that clang has not
    stubs = ["-isystem", str(HERE / "msvc")]
    subprocess.run(["clang-19", *WARNINGS, *visual, *unlike, *flags, *stubs, "-fsyntax-only", *SOURCES], check=True)


@pytest.mark.slow
def test_threads_share_rows_without_races(tmp_path):
    """ThreadSanitizer finds no races, and several threads give the results of one.

    The backends share their source and take longest to compile, so only the best one has ThreadSanitizer.
    """
    need("gcc", packages="gcc")
    if not Path(shared_library("libtsan.so")).is_absolute():
        need("libtsan.so", packages="libtsan2")  # which is on no path of programs
    program = tmp_path / "threads"
    others = {source.stem for source in (KERNELS / "backends").glob("*.c")} - {_core.backends()[0]}
    sources = [str(HERE / "threads.c"), *(source for source in SOURCES if Path(source).stem not in others)]
    sources += [path for path in kernels("gcc", tmp_path) if Path(path).stem in others]
    command = ["gcc", *FLAGS, *LINES, "-O1", "-fsanitize=thread", f"-I{KERNELS}", *sources, "-lm", "-o", str(program)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    done = subprocess.run([str(program)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "portable" in {line.split()[0] for line in done.stdout.splitlines()}


def promised_error(dtype: str, family: str) -> float:
    """The largest error that a loss may have: in nats, or relative to it where a class is nearly certain."""
    if family == "certain":
        return 1e-6
    in_double = {"float64": 4e-15, "scaled_float32": 4e-15, "capped_bfloat16": 5e-15}
    return in_double.get(dtype, 2e-7)


def lines_of_search(name: str, where: Path) -> list[str]:
    """What a search for the worst errors printed, which compares with long double."""
    if platform.machine() not in {"x86_64", "AMD64"} or np.finfo(np.longdouble).nmant != 63:
        pytest.skip("long double may have too few digits")
    need("gcc", packages="gcc")
    program = build(name, "gcc", where)
    return subprocess.run([program], check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()


@pytest.mark.slow
def test_worst_losses_of_class_ids_are_within_the_promised_error(tmp_path):
    """Rows of 2 to 16384 classes: random ones, and a search for those whose rounding errors add up."""
    lines = lines_of_search("worst_losses", tmp_path)
    assert len(lines) == 2 * 12 * 3  # dtypes, numbers of classes, and kinds of search
    wrong = []
    for line in lines:
        dtype, search, *words = line.split()
        of_climbs = {words[0]: max(abs(float(words[1])), abs(float(words[3])))}
        errors = of_climbs if search == "climbed" else dict(zip(words[:6:2], map(float, words[1:6:2]), strict=True))
        promised = {"absolute": promised_error(dtype, "loss"), "relative": 1e-6, "mean": 3e-8}
        if not all(abs(error) < promised[name] for name, error in errors.items()):
            wrong.append(line)
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_worst_rows_are_within_the_promised_error(tmp_path):
    """A search for rows whose rounding errors add up."""
    lines = lines_of_search("worst_rows", tmp_path)
    assert len(lines) == 42  # dtypes and families
    wrong = []
    for line in lines:
        dtype, family, error, _ = line.split(" ", 3)
        if not abs(float(error)) < promised_error(dtype, family):
            wrong.append(line)
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_logarithms_of_probabilities_are_within_the_promised_error(tmp_path):
    """Every seventh float from 1e-12 on, and many doubles, compared with long double."""
    largest = {}
    for line in lines_of_search("worst_logs", tmp_path):
        dtype, absolute, _, _, relative, _, _ = line.split()
        largest[dtype] = float(absolute), float(relative)
    assert largest["float32"][0] < 1e-8
    assert largest["float32"][1] < 7e-8
    assert largest["float64"][0] < 4e-15
    assert largest["float64"][1] < 2.3e-16


def shared_library(name: str) -> str:
    """The path of a library of gcc's, or its bare name where there is none."""
    result = subprocess.run(["gcc", f"-print-file-name={name}"], check=True, capture_output=True, text=True)
    return result.stdout.strip()


@pytest.mark.slow
def test_portable_object_calls_no_mathematics(tmp_path):
    """The portable backend calls no libm and has no instructions beyond the baseline."""
    need("gcc", "nm", packages="gcc binutils")
    target = next(path for path in kernels("gcc", tmp_path) if path.endswith("portable.o"))
    undefined = subprocess.run(["nm", "-u", target], check=True, capture_output=True, text=True).stdout.split()
    moves, checks = {"memcpy", "memset", "bzero"}, {"stack_chk_fail", "stack_chk_guard", "GLOBAL_OFFSET_TABLE"}
    names = {name.strip("_") for name in undefined} - {"U"}  # macOS has underscores before them
    assert names <= moves | checks
    if platform.machine() == "x86_64":
        code = subprocess.run(["objdump", "-d", target], check=True, capture_output=True, text=True).stdout
        assert "ymm" not in code
        assert "fmadd" not in code
