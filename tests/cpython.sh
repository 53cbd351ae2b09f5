#!/usr/bin/env bash
# Builds CPython 3.13 from Debian's source into a folder, unless it is there:
#
#     tests/cpython.sh FOLDER [arguments of configure]
#
# Needs what debian_source.sh does, and Debian's dpkg-dev, gcc, make and xz-utils.
set -euo pipefail
here=$(realpath "$(dirname "$0")")
folder=$(realpath -m "${1:?a folder}")
shift
[ ! -e "$folder/complete" ] || exit 0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Debian's patches are for its own packages; --help instead of compiling all modules thrice
{ # `set -e` does not hold before ||
    "$here/debian_source.sh" python3.13 "$scratch" && cd "$scratch" &&
        dpkg-source --skip-patches -x ./*.dsc cpython && cd cpython &&
        ./configure -q --disable-test-modules --prefix="$folder" CFLAGS="-O1 -g0" "$@" &&
        make -s -j"$(nproc)" && make -s install COMPILEALL_OPTS="--help" && touch "$folder/complete"
} >"$scratch/log" 2>&1 || { tail -50 "$scratch/log"; exit 1; }
