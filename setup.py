"""Builds the extension module and defines the content of the sdist; everything else is in pyproject.toml.

Environment variables: TOKENLOSS_DEBUG=1 checks bounds and assertions, TOKENLOSS_SANITIZE=address,undefined builds with
these sanitizers of gcc or clang, TOKENLOSS_LIMITED_API=0 builds for the running version of Python alone.
"""

import os
import platform
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

DEBUG = os.environ.get("TOKENLOSS_DEBUG") == "1"
SANITIZE = os.environ.get("TOKENLOSS_SANITIZE", "")
# One build for all versions of Python from 3.11 on, which costs a tiny call some 5 to 10 % of its time. Pythons without
# a GIL have no limited API to build for, and PyPy has none.
LIMITED_API = os.environ.get("TOKENLOSS_LIMITED_API", "1") == "1" and sys.implementation.name == "cpython"
LIMITED_API &= not sysconfig.get_config_var("Py_GIL_DISABLED")

# Each kind is built in its own directory, and none reuses what was built for another.
KINDS = {"debug": DEBUG, SANITIZE.replace(",", "-"): SANITIZE, "unlimited": not LIMITED_API}
BUILD = "/".join(["build", *(kind for kind, is_built in KINDS.items() if is_built)])

# Floating-point expressions stay as written: results must not depend on the compiler. Without traps, the compiler may
# vectorize loops with a choice in them, which changes no result. Only debug builds have assertions.
if platform.python_compiler().startswith("MSC"):
    FLAGS = ["/O2", "/fp:precise", "/std:c11", *(["/UNDEBUG", "/Zi"] if DEBUG else ["/DNDEBUG"])]
else:  # gcc or clang, on Windows too: compilers are those that built Python
    FLAGS = ["-O3", "-std=c11", "-ffp-contract=off", "-fno-trapping-math", "-fvisibility=hidden"]
    FLAGS += ["-UNDEBUG" if DEBUG else "-DNDEBUG"]
    FLAGS += ["-g", "-fno-omit-frame-pointer"] if DEBUG or SANITIZE else ["-g0"]
    if sys.maxsize < 2**32 and platform.machine().lower() in ("i386", "i486", "i586", "i686", "x86_64", "amd64"):
        FLAGS += ["-msse2", "-mfpmath=sse"]
    if platform.machine() == "s390x":  # where gcc takes float for double in ISO modes, if an old glibc does
        FLAGS += ["-fexcess-precision=fast"]
# These save much compile time and cost little: less optimization, only line numbers for debuggers, checks by calls.
SANITIZERS = ["-O1", "-g1", "--param=asan-instrumentation-with-call-threshold=500"] if SANITIZE else []
SANITIZERS += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"] if SANITIZE else []


def adapted(source: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options to compile with: -O2 makes portable C a third smaller, and wheels a tenth, where few machines run it."""
    has_vectors = platform.machine().lower() in ("x86_64", "amd64", "aarch64", "arm64")
    if SANITIZE or "-O3" not in FLAGS or not has_vectors or Path(source).name != "portable.c":
        return options
    return options | {"extra_postargs": [*options["extra_postargs"], "-O2"]}


NEEDED = "a C compiler with its headers and Python's: " + {
    "darwin": "xcode-select --install",
    "win32": "Build Tools for Visual Studio, with 'Desktop development with C++'",
}.get(
    sys.platform, "'apt install gcc python3-dev', 'dnf install gcc python3-devel', 'apk add gcc musl-dev python3-dev'"
)


class BuildExtension(build_ext):
    """Compiles with all processors, and ends with one line that says what to install if it cannot compile."""

    def build_extensions(self) -> None:
        compile_in_order = self.compiler.compile

        def compile_at_once(sources: list[str], **options: Any) -> list[str]:
            compile_in_order([], **options)  # Visual C++ is looked for once, before there are threads
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                jobs = [pool.submit(compile_in_order, [source], **adapted(source, options)) for source in sources]
                return [path for job in jobs for path in job.result()]

        self.compiler.compile = compile_at_once
        try:
            super().build_extensions()
        except Exception as error:  # each compiler of setuptools has its own
            raise SystemExit(f"{error}\nerror: tokenloss must be compiled, which needs {NEEDED}") from error


class SourceDistribution(sdist):
    """An sdist that can be built, tested and measured; results of benchmarks are for readers of the repository."""

    def make_distribution(self) -> None:
        for line in ("graft src", "graft tests", "graft benchmarks", "prune benchmarks/results"):
            self.filelist.process_template_line(line)
        self.filelist.process_template_line("global-exclude *.py[cod] *.so *.pyd")
        self.filelist.include("CHANGELOG.md")
        super().make_distribution()


CORE = Path("src/tokenloss/_core")
EXTENSION = Extension(
    "tokenloss._core._core",
    sources=[str(CORE / "_core.pyx"), *map(str, sorted(CORE.glob("kernels/**/*.c")))],
    depends=[*map(str, sorted(CORE.glob("kernels/**/*.h")))],
    include_dirs=[str(CORE)],
    define_macros=[("Py_LIMITED_API", "0x030b0000")] if LIMITED_API else [],
    py_limited_api=LIMITED_API,
    extra_compile_args=FLAGS + SANITIZERS,
    extra_link_args=SANITIZERS,
)
CHECKS = {"boundscheck": DEBUG, "initializedcheck": DEBUG}
setup(
    ext_modules=cythonize([EXTENSION], build_dir=BUILD, compiler_directives=CHECKS),
    cmdclass={"build_ext": BuildExtension, "sdist": SourceDistribution},
    options={"build": {"build_base": BUILD}, "bdist_wheel": {"py_limited_api": "cp311"} if LIMITED_API else {}},
)
