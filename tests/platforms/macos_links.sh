#!/usr/bin/env bash
# Builds wheels for macOS on Linux, and checks whether a Mac could load the extension. Nothing is run:
#
#     tests/platforms/macos_links.sh
#
# Needs Python with its headers, and Debian's lld-19 and llvm-19. PyPI's ziglang has the compiler, and Apple's headers and
# list of the names in its system library; Debian's linker can make bundles of them, which ziglang's cannot.
set -euo pipefail
cd "$(dirname "$0")/../.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

step() { printf '\n== %s (after %s s)\n' "$*" "$SECONDS"; }

step "packages"
python3 -m venv "$scratch/venv"
python=$scratch/venv/bin/python
"$python" -m pip install -q ziglang==0.17.1 'setuptools>=77' 'cython>=3.1' abi3audit
headers=$scratch/headers
tests/platforms/headers.sh "$headers"
# this list of names without architectures that Debian's linker does not know yet
libraries=$("$python" -c 'import pathlib, ziglang; print(pathlib.Path(ziglang.__file__).parent / "lib/libc/darwin")')
sed 's/arm64e\.x1-[a-z]*,\? *//g' "$libraries/libSystem.tbd" >"$scratch/libSystem.tbd"

# Builds a wheel: the architecture's name in ziglang, its name elsewhere, and the first macOS that it is for.
build() {
    mkdir "$scratch/$2"
    cp -r setup.py pyproject.toml README.md LICENSE src "$scratch/$2"
    cd "$scratch/$2"
    rm -f src/tokenloss/_core/*.so
    MACOSX_DEPLOYMENT_TARGET=$3 _PYTHON_HOST_PLATFORM=macosx-$3-$2 \
        CC="$python -m ziglang cc -target $1-macos.$3 -Wall -Wextra -Werror -I$headers" \
        LDSHARED="ld64.lld-19 -bundle -undefined dynamic_lookup -arch $2 -platform_version macos $3 $3 -L$scratch -lSystem" \
        "$python" setup.py -q bdist_wheel -d "$scratch/wheels" >"$scratch/$2.log" 2>&1 || { cat "$scratch/$2.log"; exit 1; }
}

# Checks an extension: its architecture, first macOS, libraries, and the names that it exports and needs.
check() {
    wheel=$(echo "$scratch"/wheels/*-cp311-abi3-"macosx_${2/./_}_$1.whl")
    "$python" -m abi3audit --strict "$wheel"
    "$python" -m zipfile -e "$wheel" "$scratch/$1/wheel"
    core=$scratch/$1/wheel/tokenloss/_core/_core.abi3.so
    llvm-objdump-19 --macho --private-headers "$core" >"$scratch/$1.headers"
    grep -iE "^ *MH_MAGIC_64 +$1 .* BUNDLE " "$scratch/$1.headers"
    [ "$(awk '$1 == "minos" { print $2 }' "$scratch/$1.headers")" = "$2" ]
    [ "$(llvm-objdump-19 --macho --dylibs-used "$core" | awk 'NR > 1 { print $1 }')" = /usr/lib/libSystem.B.dylib ]
    [ "$(llvm-nm-19 --extern-only --defined-only --just-symbol-name "$core")" = _PyInit__core ]
    # Names of Python are looked up when it is loaded. So would any names that macOS lacks, so there must be none of those.
    llvm-nm-19 -m --undefined-only "$core" >"$scratch/$1.undefined"
    if grep -vE 'external __?Py\w+ \(dynamically looked up\)$|\(from libSystem\)$' "$scratch/$1.undefined"; then exit 1; fi
    sed -n 's/.* _\(\w*\) (from libSystem)$/\1/p' "$scratch/$1.undefined" | sort | xargs echo "from libSystem:"
}

# the first macOS that wheels support, as in pyproject.toml: on x86_64 with timespec_get, on arm64 all versions
step "compile and link"
build aarch64 arm64 11.0 &
build x86_64 x86_64 10.15
wait $!
for architecture in "arm64 11.0" "x86_64 10.15"; do
    step "what macOS would load, $architecture"
    # shellcheck disable=SC2086 # two words
    check $architecture
done
step "done: compiled, linked and read. Nothing was run on macOS"
