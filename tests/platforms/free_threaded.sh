#!/usr/bin/env bash
# Builds the package for a Python without a GIL, and runs tests there, most of them in several threads at once.
#
#     tests/platforms/free_threaded.sh FOLDER [files of tests]     builds this Python into the folder, unless it is there: see cpython.sh
#     PYTHON=python3.14t tests/platforms/free_threaded.sh ""       uses an existing one
#
# Without files, all tests are run in two threads each, which takes up to half an hour.
# Needs the same as cpython.sh, and Debian's libssl-dev, zlib1g-dev and libffi-dev.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

step() { printf '\n== %s (after %s s)\n' "$*" "$SECONDS"; }

if [ -z "${PYTHON:-}" ]; then
    folder=$(realpath -m "${1:?a folder for Python, or the variable PYTHON}")
    step "Python from source"
    "$root/tests/platforms/cpython.sh" "$folder" --disable-gil
    PYTHON=$folder/bin/python3
fi

step "packages"
"$PYTHON" -m venv "$scratch/venv"
# packages that have wheels for it: without zarr, safetensors and Dask, tests of files and clusters are left out
"$scratch/venv/bin/pip" install -q --no-compile --only-binary :all: \
    'setuptools>=77' 'cython>=3.1' numpy pytest pytest-xdist pytest-run-parallel hypothesis scipy ml_dtypes rich
step "tokenloss"
cp -r "$root" "$scratch/tokenloss"
cd "$scratch/tokenloss"
rm -rf build
# the kernels know nothing of a GIL: less optimization takes a third of the time
printf '#!/bin/sh\nexec %s "$@" -O1\n' "${CC:-gcc}" >"$scratch/cc"
chmod +x "$scratch/cc"
CC=$scratch/cc "$scratch/venv/bin/pip" install -q --no-build-isolation --no-deps .
cd tests
export PYTHON_GIL=0
"$scratch/venv/bin/python" -W error -c 'import sys, tokenloss; sys.exit(sys._is_gil_enabled())'

step "tests that have threads of their own"
"$scratch/venv/bin/python" -m pytest -q -n 2 core/test_workers.py core/test_interrupts.py
step "tests in two threads each, but those that are marked as thread_unsafe, which say why"
"$scratch/venv/bin/python" -m pytest -q --parallel-threads=2 --skip-thread-unsafe=True "${@:2}"
step "done"
