"""Builds the extension module and says what the sdist holds; everything else is in pyproject.toml.

Environment variables: TOKENLOSS_DEBUG=1 checks bounds and assertions, TOKENLOSS_SANITIZE=address,undefined builds with
these sanitizers of gcc or clang, TOKENLOSS_LIMITED_API=0 builds for the running version of Python alone. Each kind is
built in a directory of its own, and none takes what was built for another.
"""

import glob
import gzip
import os
import platform
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

DEBUG = os.environ.get("TOKENLOSS_DEBUG", "0") == "1"
SANITIZE = os.environ.get("TOKENLOSS_SANITIZE", "")
# One build for all versions of Python from 3.11 on, which costs a tiny call some 5 to 10 % of its time. Pythons without
# a GIL have no limited API to build for, and PyPy has none.
LIMITED_API = (
    os.environ.get("TOKENLOSS_LIMITED_API", "1") == "1"
    and sys.implementation.name == "cpython"
    and not sysconfig.get_config_var("Py_GIL_DISABLED")
)

# else gcc or clang, on Windows too: compilers are those that built Python
MSVC = platform.python_compiler().startswith("MSC")

# the system that it is built for, which is another than this one where it is cross-compiled
LINUX = sysconfig.get_platform().startswith("linux")

# Floating-point expressions as they are written: results must not depend on the compiler. That none traps lets loops
# with a choice in them be vectorised, and changes no result.
# Assertions are in debug builds alone, whatever flags Python was built with.
if MSVC:
    FLAGS = ["/O2", "/fp:precise", "/std:c11", "/UNDEBUG" if DEBUG else "/DNDEBUG"]
else:
    FLAGS = ["-O3", "-g0", "-std=c11", "-ffp-contract=off", "-fno-trapping-math", "-fvisibility=hidden"]
    FLAGS += ["-UNDEBUG" if DEBUG else "-DNDEBUG"]
    if LINUX and not DEBUG and not SANITIZE:  # for C++ and debuggers: 3 % of a wheel
        FLAGS += ["-fno-asynchronous-unwind-tables", "-fno-unwind-tables"]
        # Cython marks all of its helper functions inline; copies of the larger ones would be a twentieth of a wheel
        FLAGS += ["--param=max-inline-insns-single=15"]  # of gcc; clang ignores it
    if sys.maxsize < 2**32 and platform.machine().lower() in ("i386", "i486", "i586", "i686", "x86_64", "amd64"):
        FLAGS += ["-msse2", "-mfpmath=sse"]
    if platform.machine() == "s390x":  # where gcc takes float for double in ISO modes, if an old glibc does
        FLAGS += ["-fexcess-precision=fast"]
if DEBUG or SANITIZE:
    FLAGS += ["/Zi"] if MSVC else ["-g", "-fno-omit-frame-pointer"]
# Each of these saves much time of compiling, and hardly makes the code slower: less optimisation; lines alone for
# debuggers; calls for the checks of addresses in large functions, which gcc makes and clang passes over.
SANITIZERS = ["-O1", "-g1", "--param=asan-instrumentation-with-call-threshold=500"] if SANITIZE else []
SANITIZERS += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"] if SANITIZE else []

# names of our functions, which nobody links to, would be a thirtieth of a wheel
STRIP = ["-Wl,--strip-all"] if LINUX and not DEBUG and not SANITIZE else []

KIND = [*(["debug"] if DEBUG else []), *filter(None, SANITIZE.split(",")), *([] if LIMITED_API else ["unlimited"])]
BUILD = f"build/{'-'.join(KIND)}" if KIND else "build"

core = Extension(
    "tokenloss._core._core",
    sources=["src/tokenloss/_core/_core.pyx", *sorted(glob.glob("src/tokenloss/_core/kernels/**/*.c", recursive=True))],
    depends=sorted(glob.glob("src/tokenloss/_core/kernels/**/*.h", recursive=True)),
    include_dirs=["src/tokenloss/_core"],
    define_macros=[("Py_LIMITED_API", "0x030b0000")] if LIMITED_API else [],
    py_limited_api=LIMITED_API,
    extra_compile_args=FLAGS + SANITIZERS,
    extra_link_args=SANITIZERS + STRIP,
)


# what compiling needs, and how to install it
NEEDED = {
    "stdlib.h": "a C compiler with its headers",
    "Python.h": f"the C headers of Python {sysconfig.get_python_version()}",
}
INSTALL = {
    "darwin": "xcode-select --install",
    "win32": "Build Tools for Visual Studio, with 'Desktop development with C++'",
}.get(
    sys.platform,
    "'apt install gcc python3-dev' (Debian, Ubuntu), 'dnf install gcc python3-devel' (Fedora), "
    "'apk add gcc musl-dev python3-dev' (Alpine)",
)


class Build(build):
    """Compiles before it copies files, so that an error is not hidden below a hundred lines of their names."""

    sub_commands = build.sub_commands[::-1]


class BuildExtension(build_ext):
    """Ends with one line that says what is missing, if it cannot compile."""

    def build_extensions(self) -> None:
        """Compile; only if that fails, look for what is missing."""
        try:
            super().build_extensions()
        except Exception as error:  # each compiler of setuptools has its own
            for header, what in NEEDED.items():
                if not self.compiles(f"#include <{header}>\n"):
                    raise SystemExit(f"error: tokenloss must be compiled, which needs {what}: {INSTALL}") from error
            raise

    def compiles(self, code: str) -> bool:
        """Whether the compiler accepts this code; False if there is no compiler."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "needed.c")
            source.write_text(code, "utf-8")
            try:
                self.compiler.compile([str(source)], output_dir=folder)
            except Exception:
                return False
        return True


class SourceDistribution(sdist):
    """An sdist that can be built, tested and measured, of the same bytes each time."""

    def make_distribution(self) -> None:
        """Add what setuptools does not find by itself."""
        for tree in ("src", "tests", "benchmarks"):
            self.filelist.graft(tree)
        self.filelist.prune("benchmarks/results")  # measured on one machine: for readers of the repository
        self.filelist.include("CHANGELOG.md")
        for pattern in ("*.py[cod]", "*.so", "*.pyd"):
            self.filelist.global_exclude(pattern)
        super().make_distribution()

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Leave out setup.cfg, which setuptools adds: an sdist that is built from this one would differ."""
        super().make_release_tree(base_dir, files)
        Path(base_dir, "setup.cfg").unlink(missing_ok=True)

    def make_archive(self, base_name: str, *_: object, base_dir: str, **__: object) -> str:
        """Leave out what differs between machines: times, users, and permissions other than to execute."""
        time = int(os.environ.get("SOURCE_DATE_EPOCH", "1577836800"))  # 2020: a zip file's times begin in 1980

        def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
            member.mtime, member.mode = time, 0o755 if member.mode & 0o100 else 0o644
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            return member

        name = f"{base_name}.tar.gz"
        with gzip.GzipFile(name, "wb", mtime=time) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(base_dir, filter=plain)  # in the order of names
        return name


setup(
    ext_modules=cythonize(
        [core],
        build_dir=BUILD,
        # without binding, functions have no signature for `inspect`, and are smaller
        compiler_directives={"boundscheck": DEBUG, "initializedcheck": DEBUG, "binding": False},
    ),
    cmdclass={"build": Build, "build_ext": BuildExtension, "sdist": SourceDistribution},
    options={"build": {"build_base": BUILD}, "bdist_wheel": {"py_limited_api": "cp311"} if LIMITED_API else {}},
)
