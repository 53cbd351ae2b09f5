#!/usr/bin/env bash
# Builds the wheel for musl, and runs its tests on a CPython that is built for musl:
#
#     tests/platforms/musl.sh FOLDER [arguments of pytest]
#
# The folder keeps this Python. Needs Debian's musl-tools, libffi-dev, zlib1g-dev and patchelf, what cpython.sh needs, and
# a python3 with pip.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$(realpath -m "${1:?a folder for Python}")
shift
machine=$(uname -m)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

step() { printf '\n== %s (after %s s)\n' "$*" "$SECONDS"; }

install_for_musl() { # FOLDER PACKAGE...; by the machine's pip, since the Python for musl has no ssl to download with
    python3 -m pip install -q --no-compile --disable-pip-version-check --root-user-action=ignore --only-binary :all: \
        --python-version "$version" --abi "cp$version" --abi abi3 --abi none --platform "musllinux_1_2_$machine" \
        --platform "linux_$machine" --target "$@"
}

step "Python from source"
mkdir -p "$folder/include"
# configure compares gcc's name of the machine with its own. Debian's gcc says glibc: here it gives no name
printf '#!/bin/sh\n[ "$1" = --print-multiarch ] || exec musl-gcc "$@"\n' >"$folder/cc"
chmod +x "$folder/cc"
# zlib and libffi are Debian's static libraries, which were built for glibc: all modules are linked into Python itself.
# musl lacks one function that they need: libffi uses it to find a file system where memory cannot contain code.
debian=$(gcc -print-multiarch)
cp /usr/include/z{lib,conf}.h "/usr/include/$debian"/ffi*.h "$folder/include"
echo 'long __getdelim(void) { return -1; }' | musl-gcc -x c -c - -o "$folder/getdelim.o"
tests/platforms/cpython.sh "$folder/python" MODULE_BUILDTYPE=static CC="$folder/cc" PKG_CONFIG=false --without-ensurepip \
    ZLIB_CFLAGS="-I$folder/include" ZLIB_LIBS="/usr/lib/$debian/libz.a" LIBFFI_CFLAGS="-I$folder/include" \
    LIBFFI_LIBS="/usr/lib/$debian/libffi.a $folder/getdelim.o"
python=$folder/python/bin/python3
version=$("$python" -c 'import sys; print(*sys.version_info[:2], sep="")')

step "wheel"
install_for_musl "$scratch/builders" setuptools cython
mkdir "$scratch/checkout"
git ls-files -z | tar --create --null --files-from=- | tar --extract --directory="$scratch/checkout"
cd "$scratch/checkout"
PYTHONPATH=$scratch/builders "$python" -c 'from setuptools.build_meta import build_wheel; build_wheel("dist")'

step "packages"
packages=$scratch/packages
# the extra `test` without zarr, which needs packages that have no wheels for musl, Matplotlib, whose Pillow needs a shared
# zlib for musl, and Dask, whose scheduler needs ssl
install_for_musl "$packages" dist/*.whl pytest pytest-xdist hypothesis scipy rich safetensors pyarrow
# ml_dtypes has no wheel for musl. The one for glibc works with the C++ library of NumPy's wheel
install_for_musl "$scratch/glibc" --no-deps --platform "manylinux_2_27_$machine" --platform "manylinux2014_$machine" ml_dtypes
for module in "$scratch"/glibc/ml_dtypes/*.so; do
    patchelf --set-rpath '$ORIGIN/../numpy.libs' --remove-needed libgcc_s.so.1 --output "${module%%.cpython*}.so" \
        --replace-needed libstdc++.so.6 "$(cd "$packages/numpy.libs" && echo libstdc++-*)" "$module"
    rm "$module"
done
mv "$scratch/glibc/ml_dtypes" "$packages"

step "tests"
cd tests
export PYTHONPATH=$packages
"$python" -W error -c 'import sysconfig, tokenloss; print(sysconfig.get_platform(), tokenloss.__file__)'
"$python" -m pytest -p no:cacheprovider "$@"
step "done"
