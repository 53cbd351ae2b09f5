#!/usr/bin/env bash
# Builds CPython 3.13 from Debian's source into a folder, unless this script has built it there:
#
#     tests/platforms/cpython.sh FOLDER [arguments of configure]
#
# Needs what debian_source.sh does, and Debian's dpkg-dev, gcc, make and xz-utils.
set -euo pipefail
here=$(realpath "$(dirname "$0")")
folder=$(realpath -m "${1:?a folder}")
shift
recipe=$(cat "$here"/cpython.sh <(echo "$@") | cksum)
[ "$(cat "$folder/complete" 2>/dev/null)" != "$recipe" ] || exit 0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Debian's patches are for its own packages; --help instead of compiling all modules three times.
# Without a GIL, 3.13 yields the CPU 40 times at a lock that the same thread holds, as when a file is closed: with three
# other busy processes, it imports NumPy in half a minute (CPython's issue 114203, fixed in 3.14). With a GIL, it never
# yields.
{ # `set -e` does not hold before ||
    "$here/debian_source.sh" python3.13 "$scratch" && cd "$scratch" &&
        dpkg-source --skip-patches -x ./*.dsc cpython && cd cpython &&
        sed -i '/MAX_SPIN_COUNT = / s/40/0/' Python/lock.c &&
        ./configure -q --disable-test-modules --prefix="$folder" CFLAGS="-O1 -g0" "$@" &&
        make -s -j"$(nproc)" && make -s install COMPILEALL_OPTS="--help" &&
        echo "$recipe" >"$folder/complete"
} >"$scratch/log" 2>&1 || { tail -50 "$scratch/log"; exit 1; }
