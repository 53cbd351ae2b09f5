#!/usr/bin/env bash
# Builds the package for a Python without a GIL, and runs tests there, most of them in several threads at once.
#
#     tests/free_threaded.sh FOLDER       builds this Python into the folder, unless it is there, from Debian's source
#     PYTHON=python3.14t tests/free_threaded.sh      uses one that there is
#
# The source package needs apt-get, dpkg-dev and what CPython is built with: gcc make libssl-dev zlib1g-dev libffi-dev.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

step() { printf '\n== %s (after %s s)\n' "$*" "$SECONDS"; }

build_python() { # into a folder
    mkdir -p "$scratch/sources" "$scratch/lists/partial"
    for file in /etc/apt/sources.list.d/*.sources; do
        grep -q '^Signed-By' "$file" || continue # a folder of the machine's own, which has no sources
        sed 's/^Types: deb$/Types: deb-src/' "$file" > "$scratch/sources/$(basename "$file")"
    done
    apt=(apt-get -qq -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$scratch/sources"
        -o "Dir::State::lists=$scratch/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
        -o APT::Sandbox::User=root)
    "${apt[@]}" update
    # Debian's patches are for its own packages
    { # `set -e` does not hold before ||
        cd "$scratch" && "${apt[@]}" source --download-only python3.13 && dpkg-source --skip-patches -x ./*.dsc cpython &&
            cd cpython &&
            ./configure -q --disable-gil --disable-test-modules --prefix="$1" CFLAGS="-O1 -g0" &&
            make -s -j"$(nproc)" && make -s install && touch "$1/complete"
    } > "$scratch/log" 2>&1 || { tail -50 "$scratch/log"; exit 1; }
}

if [ -z "${PYTHON:-}" ]; then
    folder=$(realpath -m "${1:?a folder for Python, or the variable PYTHON}")
    PYTHON=$folder/bin/python3.13t
    if [ ! -e "$folder/complete" ]; then
        step "Python from source"
        build_python "$folder"
    fi
fi

step "packages"
"$PYTHON" -m venv "$scratch/venv"
# those that have wheels for it: without zarr, safetensors and Dask the tests of files and of clusters are left out
"$scratch/venv/bin/pip" install -q --only-binary :all: \
    'setuptools>=77' 'cython>=3.1' numpy pytest pytest-run-parallel hypothesis mpmath scipy ml_dtypes rich
step "tokenloss"
cp -r "$root" "$scratch/tokenloss"
cd "$scratch/tokenloss"
rm -rf build
"$scratch/venv/bin/pip" install -q --no-build-isolation --no-deps .
cd tests
export PYTHON_GIL=0
"$scratch/venv/bin/python" -W error -c 'import sys, tokenloss; sys.exit(sys._is_gil_enabled())'

step "a crowd of threads, and tests that have threads of their own"
"$scratch/venv/bin/python" -m pytest -q test_workers.py test_interrupts.py -k '32_threads or caller or fork or any_step or gil'
step "tests in several threads each"
"$scratch/venv/bin/python" -m pytest -q --parallel-threads=4 --skip-thread-unsafe=True \
    test_out.py test_compare.py test_config.py
step "done"
