#!/usr/bin/env bash
# Builds CPython from Debian's source into a folder, unless it is there:
#
#     tests/cpython.sh FOLDER [arguments of configure]
#     SUITE=sid PACKAGE=python3.14 tests/cpython.sh FOLDER ...       of another release than the machine's
#
# Needs apt-get, and Debian's dpkg-dev, gcc, make and xz-utils.
set -euo pipefail
folder=$(realpath -m "${1:?a folder}")
shift
[ ! -e "$folder/complete" ] || exit 0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# the machine's lists and sources stay as they are
mkdir -p "$folder" "$scratch/sources" "$scratch/lists/partial"
for file in /etc/apt/sources.list.d/*.sources; do
    # only signed ones: a folder of the machine's own has no sources
    awk -v RS= -v ORS='\n\n' -v suite="${SUITE:-}" '/\nSigned-By/ && !(suite && /-security/) {
        sub(/Types: deb\n/, "Types: deb-src\n")
        if (suite) sub(/Suites: [^\n]*/, "Suites: " suite)
        print
    }' "$file" >"$scratch/sources/$(basename "$file")"
done
apt=(apt-get -qq -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$scratch/sources"
    -o "Dir::State::lists=$scratch/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root)
"${apt[@]}" update
# Debian's patches are for its own packages; --help instead of compiling all modules thrice
{ # `set -e` does not hold before ||
    cd "$scratch" && "${apt[@]}" source --download-only "${PACKAGE:-python3.13}" &&
        dpkg-source --skip-patches -x ./*.dsc cpython && cd cpython &&
        ./configure -q --disable-test-modules --prefix="$folder" CFLAGS="-O1 -g0" "$@" &&
        make -s -j"$(nproc)" && make -s install COMPILEALL_OPTS="--help" && touch "$folder/complete"
} > "$scratch/log" 2>&1 || { tail -50 "$scratch/log"; exit 1; }
