"""Builds the extension module; everything else is in pyproject.toml."""

import glob
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

# Floating-point expressions as they are written: results must not depend on the compiler.
FLAGS = ["/O2", "/fp:precise", "/std:c11"] if sys.platform == "win32" else ["-O3", "-std=c11", "-ffp-contract=off"]

core = Extension(
    "tokenloss._core",
    sources=["src/tokenloss/_core.pyx", *sorted(glob.glob("src/tokenloss/_kernels/*.c"))],
    depends=sorted(glob.glob("src/tokenloss/_kernels/*.h")),
    include_dirs=["src/tokenloss"],
    extra_compile_args=FLAGS,
)

setup(ext_modules=cythonize([core], build_dir="build"))
