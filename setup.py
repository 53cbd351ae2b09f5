"""Builds the extension module and says what the sdist holds; everything else is in pyproject.toml.

Environment variables: TOKENLOSS_DEBUG=1 checks bounds and assertions, TOKENLOSS_SANITIZE=address,undefined builds with
these sanitizers of gcc or clang, TOKENLOSS_LIMITED_API=0 builds for the running version of Python alone. Each kind is
built in a directory of its own, and none takes what was built for another.
"""

import glob
import os
import platform
import sys
import sysconfig

from Cython.Build import cythonize
from setuptools import Extension, setup
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

# what is built for, which need not be what builds
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
# sanitized code is hardly faster for more optimisation, but takes twice as long to compile
SANITIZERS = ["-O1", f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"] if SANITIZE else []

# names of our functions, which nobody links to, would be a thirtieth of a wheel
STRIP = ["-Wl,--strip-all"] if LINUX and not DEBUG and not SANITIZE else []

KIND = [*(["debug"] if DEBUG else []), *filter(None, SANITIZE.split(",")), *([] if LIMITED_API else ["unlimited"])]
BUILD = f"build/{'-'.join(KIND)}" if KIND else "build"

core = Extension(
    "tokenloss._core",
    sources=["src/tokenloss/_core.pyx", *sorted(glob.glob("src/tokenloss/_kernels/**/*.c", recursive=True))],
    depends=sorted(glob.glob("src/tokenloss/_kernels/**/*.h", recursive=True)),
    include_dirs=["src/tokenloss"],
    define_macros=[("Py_LIMITED_API", "0x030b0000")] if LIMITED_API else [],
    py_limited_api=LIMITED_API,
    extra_compile_args=FLAGS + SANITIZERS,
    extra_link_args=SANITIZERS + STRIP,
)


class SourceDistribution(sdist):
    """An sdist that can be built, tested and measured."""

    def make_distribution(self) -> None:
        """Add what setuptools does not find by itself."""
        for tree in ("src", "tests", "benchmarks"):
            self.filelist.graft(tree)
        self.filelist.prune("benchmarks/results")  # measured on one machine: for readers of the repository
        self.filelist.include("CHANGELOG.md")
        for pattern in ("*.py[cod]", "*.so", "*.pyd"):
            self.filelist.global_exclude(pattern)
        super().make_distribution()


setup(
    ext_modules=cythonize(
        [core],
        build_dir=BUILD,
        # without binding, functions have no signature for `inspect`, and are smaller
        compiler_directives={"boundscheck": DEBUG, "initializedcheck": DEBUG, "binding": False},
    ),
    cmdclass={"sdist": SourceDistribution},
    options={"build": {"build_base": BUILD}, "bdist_wheel": {"py_limited_api": "cp311"} if LIMITED_API else {}},
)
