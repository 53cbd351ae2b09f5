"""Builds the extension module and says what the sdist holds; everything else is in pyproject.toml."""

import glob
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.sdist import sdist

# Floating-point expressions as they are written: results must not depend on the compiler. That none traps lets loops
# with a choice in them be vectorised, and changes no result.
if sys.platform == "win32":
    FLAGS = ["/O2", "/fp:precise", "/std:c11"]
else:
    FLAGS = ["-O3", "-g0", "-std=c11", "-ffp-contract=off", "-fno-trapping-math", "-fvisibility=hidden"]

core = Extension(
    "tokenloss._core",
    sources=["src/tokenloss/_core.pyx", *sorted(glob.glob("src/tokenloss/_kernels/*.c"))],
    depends=sorted(glob.glob("src/tokenloss/_kernels/*.h")),
    include_dirs=["src/tokenloss"],
    extra_compile_args=FLAGS,
)


class SourceDistribution(sdist):
    """An sdist that can be built, tested and measured."""

    def make_distribution(self) -> None:
        """Add what setuptools does not find by itself."""
        for tree in ("src", "tests", "benchmarks"):
            self.filelist.graft(tree)
        self.filelist.include("CHANGELOG.md")
        for pattern in ("*.py[cod]", "*.so", "*.pyd"):
            self.filelist.global_exclude(pattern)
        super().make_distribution()


setup(ext_modules=cythonize([core], build_dir="build"), cmdclass={"sdist": SourceDistribution})
